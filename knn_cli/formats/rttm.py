"""RTTM: reading and writing speaker turns, and writing languages over time.

An RTTM file may contain lines of other types as well; only SPEAKER lines are turns.

References
----------
NIST, "The 2009 (RT-09) rich transcription meeting recognition evaluation plan", appendix A.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from knn_cli.core.errors import KnnError
from knn_cli.formats.spans import SpanDocument, format_seconds, one_line, turn_spans

if TYPE_CHECKING:
    from pyannote.core import Annotation

    from knn_cli.core.values import Diarization

OTHER_RTTM_TYPES = frozenset(
    "SEGMENT NOSCORE NO_RT_METADATA LEXEME NON-LEX NON-SPEECH FILLER EDIT IP SU CB A/P SPKR-INFO".split()
)
_EXPECTED = "Expected: SPEAKER <file> 1 <start> <duration> <NA> <NA> <speaker> <NA> <NA>."


def read_rttm(path: str | Path) -> dict[str, Annotation]:
    """Read the speaker turns of an RTTM file.

    Blank lines, `;;` comments, RTTM lines of other types and turns of no length are skipped.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict of str to pyannote.core.Annotation
        Turns by recording, in the order in which recordings first appear.

    Raises
    ------
    KnnError
        For a line that is not RTTM, with its number, and for a file that cannot be read.

    Examples
    --------
    >>> from knn_cli import read_rttm
    >>> turns = read_rttm("meeting.rttm")["meeting"]
    >>> turns.labels()
    ['ines', 'otto', 'paul', 'ruth']
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
        if not fields or fields[0].startswith(";;") or fields[0] in OTHER_RTTM_TYPES:
            continue
        if fields[0] != "SPEAKER" or len(fields) < 8:
            raise KnnError(f"Line {number} of {path} is not an RTTM line.", _EXPECTED)
        uri, label = fields[1], fields[7]
        try:
            start, duration = float(fields[3]), float(fields[4])
        except ValueError as error:
            message = f"Line {number} of {path} has no number where start and duration should be."
            raise KnnError(message, _EXPECTED) from error
        if not (0 <= start < math.inf and 0 <= duration < math.inf):
            raise KnnError(f"Line {number} of {path} has a start or duration below zero or not finite.", _EXPECTED)
        turns = recordings.setdefault(uri, Annotation(uri=uri))
        if duration > 0:
            turns[Segment(start, start + duration), number] = label
    return recordings


def read_references(path: str | Path) -> dict[str, Annotation]:
    """Read reference turns: an RTTM file, or all .rttm files in a folder.

    Parameters
    ----------
    path : path
        A file or a folder. The names of recordings are those inside the files, not the names of the files.

    Returns
    -------
    dict of str to pyannote.core.Annotation
        As returned by `read_rttm`.

    Raises
    ------
    KnnError
        As `read_rttm`, and for a folder without .rttm files or a recording that is in two of them.
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
    """Return the turns of a recording; if there is one audio file and one recording with turns, names need not match.

    Parameters
    ----------
    name : str
        Name of the recording.
    turns : mapping
        Recording -> its turns, as returned by `read_rttm`.
    files : sequence of Path
        All audio files for which turns are looked up.
    source : Path or str
        The file of the turns, for the message.

    Raises
    ------
    KnnError
        If there are no turns of this recording.
    """
    if len(turns) == len(files) == 1:
        return next(iter(turns.values()))
    annotation = turns.get(name, turns.get(rttm_field(name)))  # names in RTTM have no white space
    if annotation is None:
        raise KnnError(f"{source} has no turns of {name}.", f"It has those of {', '.join(turns)}.")
    return annotation


def write_rttm(turns: Diarization | Annotation, file: TextIO) -> None:
    """Write turns as RTTM SPEAKER lines, to the millisecond.

    Parameters
    ----------
    turns : Diarization or pyannote.core.Annotation
        Its `name` or `uri` is the recording's name. White space in names becomes an underscore.
    file : text file
        Open for writing.

    Examples
    --------
    >>> import sys
    >>> from knn_cli import read_rttm, write_rttm
    >>> turns = read_rttm("meeting.rttm")["meeting"]
    >>> with open("copy.rttm", "w", encoding="utf-8") as file:
    ...     write_rttm(turns, file)
    >>> read_rttm("copy.rttm")["meeting"] == turns
    True
    """
    from knn_cli.core.values import Diarization, turns_of_annotation

    if isinstance(turns, Diarization):
        name, plain_turns = turns.name, turns.turns
    else:
        name, plain_turns = None if turns.uri is None else str(turns.uri), turns_of_annotation(turns)
    write_turns(SpanDocument("turns", name, 0.0, turn_spans(plain_turns)), file)


def write_turns(document: SpanDocument, file: TextIO) -> None:
    """Write turns as SPEAKER lines, without confidence."""
    for turn in document.rounded():
        file.write(_speaker_line(document.name, turn.start_ms, turn.end_ms, turn.label, "<NA>"))


def write_timeline(document: SpanDocument, file: TextIO) -> None:
    """Write spans as SPEAKER lines with the label as the name and the probability as the confidence.

    RTTM has no field for tiers; their labels, the languages of speakers, are comments (`;;`). Language diarization is
    scored on such files: DER with languages in place of speakers.
    """
    for tier, (label, probability) in document.tier_labels.items():
        file.write(f";; {rttm_field(document.name)} {one_line(tier)}: {document.described(label, probability)}\n")
    for start_ms, end_ms, span in document.rounded():
        confidence = "<NA>" if span.probability is None else f"{span.probability:.4f}"
        file.write(_speaker_line(document.name, start_ms, end_ms, span.label, confidence))


def rttm_field(text: str | None) -> str:
    """Return a text as one RTTM field: without white space, never empty."""
    return "_".join((text or "").split()) or "<NA>"


def _speaker_line(name: str | None, start_ms: int, end_ms: int, label: str, confidence: str) -> str:
    start, duration = format_seconds(start_ms), format_seconds(end_ms - start_ms)
    return f"SPEAKER {rttm_field(name)} 1 {start} {duration} <NA> <NA> {rttm_field(label)} {confidence} <NA>\n"
