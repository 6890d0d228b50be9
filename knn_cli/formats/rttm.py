"""RTTM: reading and writing speaker turns, and writing languages over time.

An RTTM file may contain lines of other types as well; only SPEAKER lines are turns. Blanks part its fields, so a name
that holds one makes a line of too many: such lines are refused rather than read one field off.

References
----------
NIST, "The 2009 (RT-09) rich transcription meeting recognition evaluation plan", appendix A.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

from knn_cli.core.errors import KnnError
from knn_cli.core.texts import read_lines, split_fields, tidy
from knn_cli.core.visible_text import visible
from knn_cli.formats.spans import SpanDocument, format_seconds, one_line, turn_spans

if TYPE_CHECKING:
    from pyannote.core import Annotation

    from knn_cli.core.values import Diarization

Value = TypeVar("Value")

OTHER_RTTM_TYPES = frozenset(
    "SEGMENT NOSCORE NO_RT_METADATA LEXEME NON-LEX NON-SPEECH FILLER EDIT IP SU CB A/P SPKR-INFO".split()
)
_EXPECTED = (
    "Expected: SPEAKER <file> 1 <start> <duration> <NA> <NA> <speaker> <NA> <NA>, with no blanks in file and speaker."
)
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_MAX_LISTED = 5  # recordings that an error lists


def read_rttm(path: str | Path) -> dict[str, Annotation]:
    """Read the speaker turns of an RTTM file.

    Blank lines, `;;` comments and turns of no length are skipped. Lines of other types are no turns, but tell of which
    recordings the file is: one that has no turn is one in which nobody speaks.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict of str to pyannote.core.Annotation
        Turns by recording, in the order in which recordings first appear. Names are in composed letters (NFC).

    Raises
    ------
    KnnError
        For a line that is not RTTM, with its number and what is wrong, and for a file that cannot be read.

    Examples
    --------
    >>> from knn_cli import read_rttm
    >>> turns = read_rttm("meeting.rttm")["meeting"]
    >>> turns.labels()
    ['ines', 'otto', 'paul', 'ruth']
    """
    from pyannote.core import Annotation, Segment

    recordings: dict[str, Annotation] = {}
    for number, line in enumerate(read_lines(path, "an RTTM file"), start=1):
        fields = split_fields(line)
        if not fields or fields[0].startswith(";;"):
            continue
        if fields[0] in OTHER_RTTM_TYPES:
            if len(fields) > 1:
                recordings.setdefault(tidy(fields[1]), Annotation(uri=tidy(fields[1])))
            continue
        if reason := _line_fault(fields):
            raise KnnError(f"Line {number} of {path} is not an RTTM line of a turn: {reason}.", _EXPECTED)
        uri, start, duration = tidy(fields[1]), float(fields[3]), float(fields[4])
        if not math.isfinite(start + duration):
            raise KnnError(f"Line {number} of {path} has times that are not finite.", _EXPECTED)
        turns = recordings.setdefault(uri, Annotation(uri=uri))
        if duration > 0:
            turns[Segment(start, start + duration), number] = tidy(fields[7])
    return recordings


def _line_fault(fields: Sequence[str]) -> str | None:
    """What keeps a line from being a SPEAKER line, None where it is one.

    Files of old have nine fields, and eight say all that is needed. The two fields before the speaker are always `<NA>`
    in such lines, which shows where a blank in a name, or a field left out, has moved the others.
    """
    if fields[0] != "SPEAKER":
        return f"its type is {fields[0][:20]}"
    if not 8 <= len(fields) <= 10:
        return f"it has {len(fields)} fields, not 10"
    if any(_NUMBER.fullmatch(field) is None for field in fields[3:5]):
        return "it has no number where start and duration should be"
    if any(field.startswith("-") for field in fields[3:5]):
        return "its start or duration is below zero"
    if any(field.upper() != "<NA>" for field in fields[5:7]):
        return "its fields 6 and 7 are not <NA>, so others may be moved"
    if fields[7].upper() == "<NA>" or not tidy(fields[7]):
        return "its speaker is <NA>"
    if not tidy(fields[1]):
        return "its recording has no name"
    confidence = fields[8] if len(fields) > 8 else "<NA>"
    # A bare 0 is no confidence that any program writes, but the end of "Speaker 0".
    known = _NUMBER.fullmatch(confidence) is not None and confidence != "0" and 0 <= float(confidence) <= 1
    if confidence.upper() != "<NA>" and not known:
        return f"its confidence is {confidence[:20]}"
    last = fields[9] if len(fields) > 9 else "<NA>"
    if last.upper() != "<NA>" and _NUMBER.fullmatch(last) is None:
        return f"its last field is {last[:20]}"
    return None


def turns_of_recording(name: str, turns: Mapping[str, Value], files: Sequence[Path], source: Path | str) -> Value:
    """Return the turns of a recording; if there is one audio file and one recording with turns, names need not match.

    Parameters
    ----------
    name : str
        Name of the recording.
    turns : mapping
        Recording -> its turns.
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
    found = found_by_name(name, turns)
    if found is None:  # of one file out of a folder whose turns lie in folders, too
        inside = [key for key in turns if key.rpartition("/")[2] in (tidy(name), rttm_field(name))]
        found = turns[inside[0]] if len(inside) == 1 else None
    if found is None:
        others = f" and {len(turns) - _MAX_LISTED} others" if len(turns) > _MAX_LISTED else ""
        raise KnnError(
            f"{source} has no turns of {name}.", f"It has those of {', '.join([*turns][:_MAX_LISTED])}{others}."
        )
    return found


def found_by_name(name: str, known: Mapping[str, Value]) -> Value | None:
    """What belongs to a recording, whose name has underscores for white space in RTTM; None where nothing does."""
    return known.get(tidy(name), known.get(rttm_field(name)))


def by_rttm_name(known: Mapping[str, Value]) -> dict[str, Value]:
    """Return what is known by names of files by their names in RTTM too, for `found_by_name` of a name out of RTTM."""
    in_rttm = {rttm_field(name): value for name, value in known.items()}
    return in_rttm | {tidy(name): value for name, value in known.items()}


def check_names(names: Iterable[str], kind: str) -> None:
    """Raise KnnError where two names are one in RTTM, which has underscores for white space: `a b` and `a_b`.

    Parameters
    ----------
    names : iterable of str
        Distinct names.
    kind : str
        What they are names of: "recordings".
    """
    first: dict[str, str] = {}
    for name in names:
        if (other := first.setdefault(rttm_field(name), name)) != name:
            raise KnnError(
                f"Two {kind} would have the name {rttm_field(name)} in RTTM: {other!r} and {name!r}.",
                "Rename one, so that they can be told apart.",
            )


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
    """Write turns as SPEAKER lines, without confidence. KnnError where two speakers would have one name."""
    check_names(dict.fromkeys(span.label for span in document.spans), "speakers")
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
    """Return a text as one RTTM field: no white space or hidden characters, in composed letters, `_` for blanks."""
    return visible("_".join(tidy(text).split())) or "_" if text else "<NA>"


def _speaker_line(name: str | None, start_ms: int, end_ms: int, label: str, confidence: str) -> str:
    start, duration = format_seconds(start_ms), format_seconds(end_ms - start_ms)
    return f"SPEAKER {rttm_field(name)} 1 {start} {duration} <NA> <NA> {rttm_field(label)} {confidence} <NA>\n"
