"""Diarization results in every form, by name or by a file's suffix; references and UEM.

RTTM, CSV and JSON are written here; TextGrid, Audacity's labels and subtitles by `timeline_writers`, ELAN's files by
`eaf`, the picture by `turn_figure` and the player by `player`.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from knn_cli.core.atomic import replacing, replacing_text
from knn_cli.core.errors import KnnError
from knn_cli.formats import spans

if TYPE_CHECKING:
    from pyannote.core import Annotation, Timeline

    from knn_cli.core.values import Diarization

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


def turns_of_recording(
    name: str, turns: Mapping[str, Annotation], files: Sequence[Path], source: Path | str
) -> Annotation:
    """The turns of a recording among those of a file; the turns of a single recording go with a single file.

    Parameters
    ----------
    name : str
        Of the recording.
    turns : mapping
        Recording -> its turns, as `read_rttm` gives them.
    files : sequence of Path
        All the audio files that are looked up.
    source : Path or str
        The file of the turns, for the message.

    Raises
    ------
    KnnError
        There are no turns of this recording.
    """
    if len(turns) == len(files) == 1:
        return next(iter(turns.values()))
    found = turns.get(name, turns.get(rttm_word(name)))  # RTTM has no white space in names
    if found is None:
        raise KnnError(f"{source} has no turns of {name}.", f"It has those of {', '.join(turns)}.")
    return found


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


class Turn(NamedTuple):
    """From `start` to `end` milliseconds a speaker speaks; `confidence` is 0 to 1, None where unknown."""

    start: int
    end: int
    speaker: str
    confidence: float | None = None


def turns_of(diarization: Diarization) -> list[Turn]:
    """Turns by time; start and end are rounded each, so that neighbours still meet; those of no length are left out."""
    return _turns(diarization.turns, diarization.confidence.get)


def _turns(annotation: Annotation, confidence: Callable[[Any], float | None] = lambda _: None) -> list[Turn]:
    tracks = annotation.itertracks(yield_label=True)
    found = (
        Turn(round(segment.start * 1000), round(segment.end * 1000), str(label), confidence(track))
        for segment, track, label in tracks
    )
    return [turn for turn in found if turn.end > turn.start]


def spoken(turns: Iterable[Turn]) -> dict[str, float]:
    """Seconds that each speaker speaks, by first appearance; where turns of one speaker overlap, time counts once."""
    total: dict[str, int] = {}
    until: dict[str, int] = {}
    for turn in sorted(turns):
        new = turn.end - max(turn.start, until.get(turn.speaker, 0))
        total[turn.speaker] = total.get(turn.speaker, 0) + max(0, new)
        until[turn.speaker] = max(turn.end, until.get(turn.speaker, 0))
    return {speaker: milliseconds / 1000 for speaker, milliseconds in total.items()}


def rttm_word(text: str | None) -> str:
    """One RTTM field: no white space inside, never empty."""
    return "_".join((text or "").split()) or "<NA>"


def write_rttm(annotation: Annotation, file: TextIO) -> None:
    """Write turns as RTTM SPEAKER lines, to the millisecond; white space in names becomes an underscore."""
    for turn in _turns(annotation):
        file.write(
            f"SPEAKER {rttm_word(annotation.uri)} 1 {turn.start / 1000:.3f} {(turn.end - turn.start) / 1000:.3f}"
            f" <NA> <NA> {rttm_word(turn.speaker)} <NA> <NA>\n"
        )


def write_csv(diarization: Diarization, file: TextIO) -> None:
    """Write turns as CSV with a header: file, start, end (seconds), speaker; confidence too where it is known."""
    rows = csv.writer(file, lineterminator="\n")
    sure = bool(diarization.confidence)
    rows.writerow(("file", "start", "end", "speaker", *["confidence"] * sure))
    for turn in turns_of(diarization):
        confidence = "" if turn.confidence is None else f"{turn.confidence:.3f}"
        times = (f"{turn.start / 1000:.3f}", f"{turn.end / 1000:.3f}")
        rows.writerow((diarization.turns.uri or "", *times, turn.speaker, *[confidence] * sure))


def write_json(diarization: Diarization, file: TextIO) -> None:
    """Write one line of JSON, all times in seconds.

    {"file", "duration", "speakers": [...], "spoken": {speaker: seconds}, "turns": [{"start", "end", "speaker"}, ...]};
    a turn has "confidence" too where it is known, and "duration" is left out where it is not.
    """
    turns = turns_of(diarization)
    found = []
    for turn in turns:
        one: dict[str, Any] = {"start": turn.start / 1000, "end": turn.end / 1000, "speaker": turn.speaker}
        if turn.confidence is not None:
            one["confidence"] = round(float(turn.confidence), 3)
        found.append(one)
    line: dict[str, Any] = {"file": diarization.turns.uri}
    if diarization.seconds > 0:
        line["duration"] = round(diarization.seconds, 3)
    line |= {"speakers": list(dict.fromkeys(turn.speaker for turn in turns)), "spoken": spoken(turns), "turns": found}
    json.dump(line, file, ensure_ascii=False, allow_nan=False)
    file.write("\n")


DIARIZATION_WRITERS: dict[str, Callable[[Diarization, TextIO], None]] = {
    "rttm": lambda diarization, file: write_rttm(diarization.turns, file),
    "csv": write_csv,
    "json": write_json,
}

SUFFIXES = {"rttm": ".rttm", "csv": ".csv", "json": ".json"} | {
    form: suffix for suffix, form in spans.SUFFIXES.items() if form in ("textgrid", "audacity", "srt", "vtt")
}  # form of turns -> suffix of its files
FILE_SUFFIXES = {"eaf": ".eaf", "png": ".png", "html": ".html"}  # forms that show the sound or point to it
FILES_ONLY = frozenset({"png", "html"})  # forms that go to no terminal and no pipe
TOGETHER = ("rttm", "json")  # forms that can hold several recordings


def suffix(form: str) -> str:
    """The suffix of files of a form."""
    return (SUFFIXES | FILE_SUFFIXES)[form]


def form_of(path: str | Path) -> str | None:
    """The form that a file's suffix asks for, in capitals or not; None where it asks for none."""
    wanted = Path(path).suffix.lower()
    return next((form for form, own in (SUFFIXES | FILE_SUFFIXES).items() if own.lower() == wanted), None)


def write_turns(
    diarization: Diarization,
    file: TextIO,
    form: str,
    *,
    audio_path: str | Path | None = None,
    beside: Path | None = None,
) -> None:
    """Write turns as text of any form but those of FILES_ONLY, for which KnnError is raised.

    audio_path : the recording, which an ELAN file names
    beside     : where `file` will be, so that it can name the recording from there
    """
    if form in FILES_ONLY:
        raise KnnError(f"A {form} file is not text.", "Name a file or a folder for it.")
    if form in DIARIZATION_WRITERS:
        DIARIZATION_WRITERS[form](diarization, file)
    elif form == "eaf":
        from knn_cli.formats import elan

        elan.write_eaf(diarization, file, audio_path=audio_path, beside=beside)
    else:
        about = spans.About(str(diarization.turns.uri or ""), diarization.seconds, "speakers")
        spans.WRITERS[form](spans.turn_spans(diarization.turns), about, file)


def write(
    diarization: Diarization,
    path: str | Path,
    form: str | None = None,
    *,
    audio_path: str | Path | None = None,
    channel: str = "mix",
) -> None:
    """Write turns into a file of any form, whole or not at all; None is the form that the file's suffix asks for.

    audio_path : the recording, which the player needs and an ELAN file names; `channel` of it is played and drawn

    Raises KnnError for an unknown form, for a player without a recording, and for what the file system refuses;
    AudioError when the player cannot read the recording.
    """
    known = form or form_of(path)
    if known is None or known not in SUFFIXES | FILE_SUFFIXES:
        forms = ", ".join(f"{name} ({own})" for name, own in (SUFFIXES | FILE_SUFFIXES).items())
        what = f"The suffix of {path} names no form" if known is None else f"There is no form {form!r}"
        raise KnnError(f"{what} of turns.", f"Known: {forms}.")
    if known not in FILES_ONLY:
        with replacing_text(path) as file:
            write_turns(diarization, file, known, audio_path=audio_path, beside=Path(path))
        return
    if known == "html" and audio_path is None:
        raise KnnError("A player needs the recording.", "Name it.")
    with replacing(path) as part:
        if known == "png":
            from knn_cli.formats import plot

            part.write_bytes(plot.png(diarization))
        elif audio_path is not None:
            from knn_cli.formats import player

            player.write(diarization, part, audio_path, beside=Path(path), channel=channel)
