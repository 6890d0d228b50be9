"""Diarization results as text: RTTM, CSV and JSON, one table of writers; files appear whole or not at all."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from knn_cli import timeline_writers
from knn_cli.errors import KnnError

if TYPE_CHECKING:
    from pyannote.core import Annotation, Timeline

# NIST RT-09 evaluation plan, appendix A: what else an RTTM file may hold; only SPEAKER lines are turns.
OTHER_RTTM_TYPES = frozenset(
    "SEGMENT NOSCORE NO_RT_METADATA LEXEME NON-LEX NON-SPEECH FILLER EDIT IP SU CB A/P SPKR-INFO".split()
)


def read_rttm(path: str | Path) -> dict[str, Annotation]:
    """Speaker turns of an RTTM file, by recording, in the order in which recordings first appear.

    Blank lines, `;;` comments and RTTM lines that are not turns are passed over, turns of no length left out.
    Raises KnnError with the line's number for a line that is not RTTM, and for a file that cannot be read.
    """
    from pyannote.core import Annotation, Segment

    recordings: dict[str, Annotation] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise KnnError(f"{path} cannot be read: {error.strerror}.", "Give the path of an RTTM file.") from error
    except UnicodeDecodeError as error:
        raise KnnError(f"{path} is not a text file.", "Give the path of an RTTM file.") from error
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields or line.lstrip().startswith(";;") or fields[0] in OTHER_RTTM_TYPES:
            continue
        if fields[0] != "SPEAKER" or len(fields) < 8:
            raise _broken(path, number, "is not an RTTM line")
        uri, label = fields[1], fields[7]
        try:
            start, duration = float(fields[3]), float(fields[4])
        except ValueError as error:
            raise _broken(path, number, "has no number where start and duration should be") from error
        if not (0 <= start < math.inf and 0 <= duration < math.inf):
            raise _broken(path, number, "has a start or duration below zero or not finite")
        turns = recordings.setdefault(uri, Annotation(uri=uri))
        if duration > 0:
            turns[Segment(start, start + duration), number] = label
    return recordings


def read_references(path: str | Path) -> dict[str, Annotation]:
    """`read_rttm` of a file, or of all .rttm files in a folder, a file's name standing for no other recording.

    Raises KnnError as `read_rttm`, for a folder without such files, and for a recording that is in two of them.
    """
    folder = Path(path)
    if not folder.is_dir():
        return read_rttm(folder)
    recordings: dict[str, Annotation] = {}
    files = sorted(folder.glob("*.rttm"))
    if not files:
        raise KnnError(f"{folder} holds no .rttm files.", "Give an RTTM file, or the folder that holds them.")
    for file in files:
        for uri, turns in read_rttm(file).items():
            if uri in recordings:
                raise KnnError(f"The recording {uri} is in {file.name} and in a file before it.", "Remove one.")
            recordings[uri] = turns
    return recordings


def read_uem(path: str | Path) -> dict[str, Timeline]:
    """What is scored of each recording: lines `file channel start end`, seconds; `;;` begins a comment.

    Raises KnnError with the line's number for any other line, and for a file that cannot be read.
    """
    from pyannote.core import Segment, Timeline

    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KnnError(f"{path} cannot be read.", "Give the path of a UEM file.") from error
    scored: dict[str, Timeline] = {}
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields or fields[0].startswith(";;"):
            continue
        try:
            uri, _, start, end = fields[0], fields[1], float(fields[2]), float(fields[3])
        except (IndexError, ValueError) as error:
            raise KnnError(
                f"Line {number} of {path} is not a UEM line.", "Expected: <file> 1 <start> <end>."
            ) from error
        if not 0 <= start < end < math.inf:
            raise KnnError(f"Line {number} of {path} goes from {start:g} to {end:g} seconds.", "Mend the line.")
        scored.setdefault(uri, Timeline()).add(Segment(start, end))
    return {uri: timeline.support() for uri, timeline in scored.items()}


def _broken(path: str | Path, number: int, what: str) -> KnnError:
    return KnnError(
        f"Line {number} of {path} {what}.",
        "Expected: SPEAKER <file> 1 <start> <duration> <NA> <NA> <speaker> <NA> <NA>.",
    )


def _turns(annotation: Annotation) -> Iterator[tuple[int, int, str]]:
    """(start, end, speaker) in milliseconds, by time; start and end are rounded each, so neighbours still meet."""
    for segment, _, label in annotation.itertracks(yield_label=True):
        start, end = round(segment.start * 1000), round(segment.end * 1000)
        if end > start:
            yield start, end, str(label)


def _word(text: str | None) -> str:
    """One RTTM field: no white space inside, never empty."""
    return "_".join((text or "").split()) or "<NA>"


def write_rttm(annotation: Annotation, file: TextIO) -> None:
    """Write turns as RTTM SPEAKER lines, to the millisecond; white space in names becomes an underscore."""
    for start, end, label in _turns(annotation):
        file.write(
            f"SPEAKER {_word(annotation.uri)} 1 {start / 1000:.3f} {(end - start) / 1000:.3f}"
            f" <NA> <NA> {_word(label)} <NA> <NA>\n"
        )


def write_csv(annotation: Annotation, file: TextIO) -> None:
    """Write turns as CSV with a header: file, start, end (seconds), speaker."""
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(("file", "start", "end", "speaker"))
    for start, end, label in _turns(annotation):
        rows.writerow((annotation.uri or "", f"{start / 1000:.3f}", f"{end / 1000:.3f}", label))


def write_json(annotation: Annotation, file: TextIO) -> None:
    """Write one line of JSON: {"file", "speakers": [...], "turns": [{"start", "end", "speaker"}, ...]}."""
    turns = [{"start": start / 1000, "end": end / 1000, "speaker": label} for start, end, label in _turns(annotation)]
    speakers = list(dict.fromkeys(turn["speaker"] for turn in turns))
    json.dump({"file": annotation.uri, "speakers": speakers, "turns": turns}, file, ensure_ascii=False)
    file.write("\n")


DIARIZATION_WRITERS: dict[str, Callable[[Annotation, TextIO], None]] = {
    "rttm": write_rttm,
    "csv": write_csv,
    "json": write_json,
}

SUFFIXES = {"rttm": ".rttm", "csv": ".csv", "json": ".json"} | {
    form: suffix for suffix, form in timeline_writers.SUFFIXES.items() if form in ("textgrid", "audacity", "srt", "vtt")
}  # form of turns -> suffix of its files
TOGETHER = ("rttm", "json")  # forms that can hold several recordings


def write_turns(annotation: Annotation, file: TextIO, form: str, seconds: float) -> None:
    """Write turns in any form of SUFFIXES; `seconds` is the recording's length, which a TextGrid shows."""
    if form in DIARIZATION_WRITERS:
        DIARIZATION_WRITERS[form](annotation, file)
        return
    about = timeline_writers.About(str(annotation.uri or ""), seconds, "speakers")
    timeline_writers.WRITERS[form](timeline_writers.turn_spans(annotation), about, file)
