"""Lists of speech that restrict what is used of recordings: RTTM, UEM, Kaldi's segments, wespeaker's VAD, tables.

wespeaker takes the last three words of a line, `[segment] recording start end`, as Kaldi's segments have them too. A
table (.csv, .tsv) has the columns start and end, and one that names the recording.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from knn_cli.audio import reading_notes, segments
from knn_cli.core.errors import KnnError
from knn_cli.core.texts import read_lines, read_table, split_fields, tidy
from knn_cli.core.values import Segment
from knn_cli.formats.rttm import found_by_name, read_rttm
from knn_cli.formats.uem import read_uem
from knn_cli.store.corpora.recordings import CorpusPart, CorpusRecording
from knn_cli.store.row_labels import KeyPath

SpeechByName = Mapping[str, list[Segment]]

_NAME_COLUMNS = ("recording", "file", "path", "file_name", "name", "key", "utterance", "uri")
_HINT = "Lines are RTTM, UEM, Kaldi's segments, or `recording start end`; a table has recording, start and end."


def read_speech(path: Path | str) -> dict[str, list[Segment]]:
    """Read which parts of recordings are speech.

    Parameters
    ----------
    path : path
        RTTM (by its lines), UEM (`.uem`), a table (`.csv`, `.tsv`), or lines `[segment] recording start end`.

    Returns
    -------
    dict of str to list of Segment
        By recording, sorted and joined where they touch. A recording may have none.

    Raises
    ------
    KnnError
        For a line of another kind, with its number, and a list that names nothing.

    Examples
    --------
    >>> sorted(read_speech("meeting.rttm"))
    ['meeting']
    """
    path = Path(path)
    suffix = path.suffix.lower()
    lines = [] if suffix in (".csv", ".tsv", ".uem") else read_lines(path, "a list of speech")
    first = next((fields for line in lines if (fields := split_fields(line)) and not fields[0].startswith(";;")), [])
    if suffix == ".uem":
        found = {name: [Segment(one.start, one.end) for one in timeline] for name, timeline in read_uem(path).items()}
    elif suffix in (".csv", ".tsv"):
        found = _by_name(_table_lines(path))
    elif len(first) >= 8:
        turns = read_rttm(path)
        found = {
            name: [Segment(turn.start, turn.end) for turn in known.itersegments()] for name, known in turns.items()
        }
    else:
        found = _by_name(_word_lines(path, lines))
    if not found:
        raise KnnError(f"{path} names no recordings.", _HINT)
    return {name: segments.merge(spans) for name, spans in found.items()}


def _by_name(lines: Iterable[tuple[str, Segment]]) -> dict[str, list[Segment]]:
    found: dict[str, list[Segment]] = {}
    for name, span in lines:
        found.setdefault(name, []).append(span)
    return found


def _word_lines(path: Path, lines: Sequence[str]) -> Iterator[tuple[str, Segment]]:
    for number, line in enumerate(lines, start=1):
        fields = split_fields(line)
        if not fields:
            continue
        place = f"Line {number} of {path}"
        if len(fields) not in (3, 4):
            raise KnnError(f"{place} has {len(fields)} words.", _HINT)
        yield tidy(fields[-3]), _span(fields[-2], fields[-1], place)


def _table_lines(path: Path) -> Iterator[tuple[str, Segment]]:
    columns, lines = read_table(path, "a table of speech")
    name = next((column for column in _NAME_COLUMNS if column in columns), None)
    if name is None or not {"start", "end"} <= set(columns):
        raise KnnError(f"{path} has the columns {', '.join(columns) or '(none)'}.", _HINT)
    for number, cells in lines:
        row, place = dict(zip(columns, cells, strict=True)), f"Line {number} of {path}"
        if not row[name]:
            raise KnnError(f"{place} has no {name}.", "Add it, or leave the line out.")
        yield row[name], _span(row["start"], row["end"], place)


def _span(start: str, end: str, place: str) -> Segment:
    try:
        span = Segment(float(start), float(end))
    except ValueError as error:
        raise KnnError(f"{place} has no times: {error}.", _HINT) from error
    if not 0 <= span.start < span.end < float("inf"):
        raise KnnError(
            f"{place}: from {span.start:g} to {span.end:g} s is no segment.", "The end comes after the start."
        )
    return span


def restricted(recordings: Sequence[CorpusRecording], source: Path | str) -> list[CorpusRecording]:
    """Return recordings of which only the speech of a list is used; those that it does not name are left out.

    They are found by the key that their corpus has for them, its last part, or that without a suffix. What is left out
    is told to the listener of `reading_notes`, as is what the list names beyond the recordings.

    Parameters
    ----------
    recordings : sequence of CorpusRecording
    source : path
        See `read_speech`.

    Raises
    ------
    KnnError
        As `read_speech`, and if the list names none of the recordings.
    """
    speech = read_speech(source)
    used: set[str] = set()
    missing: list[str] = []
    kept = []
    for recording in recordings:
        parts = []
        for part in recording.parts:
            name = next((name for name in _names(recording, part) if found_by_name(name, speech) is not None), None)
            if name is None:
                missing.append(part.key)
                continue
            used.add(name)
            parts.append(replace(part, speech=_both(found_by_name(name, speech) or [], part.speech)))
        if parts:
            kept.append(replace(recording, parts=tuple(parts)))
    total = sum(len(recording.parts) for recording in recordings)
    if not kept:
        names = f"{total} recordings, such as {missing[0]}; it names {next(iter(speech))}"
        raise KnnError(f"{source} names none of the {names}.", "Name them as their corpus does.")
    if missing:
        text = f"does not name {len(missing)} of {total} recordings, such as {missing[0]}, which are left out"
        reading_notes.note(Path(source), text)
    found = {tidy(name) for name in used} | {name.replace(" ", "_") for name in used}
    if beyond := [name for name in speech if name not in found]:
        text = f"names {len(beyond)} recordings that are not there, such as {beyond[0]}"
        reading_notes.note(Path(source), text)
    return kept


def _names(recording: CorpusRecording, part: CorpusPart) -> list[str]:
    """What a list may call a part: a recording's name is no name of a piece, whose times are its own."""
    key = KeyPath(part.key)
    own = [part.key, key.name, key.stem]
    if part.span is not None:
        return [*own, part.labels.name]
    where = PurePath(recording.sound.member or recording.sound.path)
    return [*own, where.as_posix(), where.name, where.stem]


def _both(speech: Sequence[Segment], before: Sequence[Segment] | None) -> tuple[Segment, ...]:
    if before is None:
        return tuple(speech)
    return tuple(part for span in before for part in segments.crop(speech, span))
