"""Reading speaker turns from any text format that `span_formats` writes, and from those of other programs.

Each reader is one function below, under the suffix of its files. What a format cannot say stays unknown: only RTTM, CSV
and JSON name the recording, otherwise a file is of the recording that it is called by.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from knn_cli.core.errors import KnnError
from knn_cli.core.folders import files_below
from knn_cli.core.texts import read_lines, read_table, read_text, tidy
from knn_cli.core.values import Diarization, Turn, sort_turns, turns_of_annotation
from knn_cli.formats import rttm, textgrid
from knn_cli.formats.captions import Caption, read_captions
from knn_cli.store.labels import distinct

if TYPE_CHECKING:
    from pyannote.core import Annotation

Turns = dict[str, tuple[Turn, ...]]  # by recording
TurnReader = Callable[[Path], Turns]

TURN_READERS: dict[str, TurnReader] = {}
# Columns of CSV files: ours and those of pandas, Praat, Audacity and annotation tables.
_COLUMNS = {
    "file": ("file", "recording", "filename", "file_name", "audio", "uri"),
    "start": ("start", "start [s]", "start_time", "begin", "onset", "tmin"),
    "end": ("end", "end [s]", "end_time", "stop", "tmax"),
    "duration": ("duration", "dur"),
    "speaker": ("speaker", "label", "speaker_id"),
    "confidence": ("confidence",),
}
_TIERS_OF_SPEAKERS = ("speaker", "speakers", "turns")
_SECOND_LAYER = re.compile(r" \((\d+)\)$")
_SPOKEN = re.compile(r" (transcription|words)( \(\d+\))?$")  # of tiers behind the name of their speaker


def turn_reader(*suffixes: str) -> Callable[[TurnReader], TurnReader]:
    """Register the decorated function as the reader of files with these suffixes, in small letters."""

    def register(reader: TurnReader) -> TurnReader:
        TURN_READERS.update(dict.fromkeys(suffixes, reader))
        return reader

    return register


def read_turns(path: Path | str) -> Turns:
    """Read the speaker turns of a file.

    Parameters
    ----------
    path : path
        Its suffix names the format: .rttm, .csv, .tsv, .json, .TextGrid, .eaf, .srt, .vtt, or Audacity's .txt. A file
        with any other suffix is read as RTTM.

    Returns
    -------
    dict of str to tuple of Turn
        Turns by recording, each by start and end.

    Raises
    ------
    KnnError
        For a file that is not what its suffix says, with the line or turn where it is known.

    Examples
    --------
    >>> from knn_cli.formats.turn_readers import read_turns
    >>> sorted({turn.speaker for turn in read_turns("meeting.rttm")["meeting"]})
    ['ines', 'otto', 'paul', 'ruth']
    """
    path = Path(path)
    return TURN_READERS.get(path.suffix.lower(), _read_rttm)(path)


def read_references(path: Path | str) -> dict[str, Annotation]:
    """Read reference turns: a file of turns, or all of them in a folder.

    Parameters
    ----------
    path : path
        A file as for `read_turns`, or a folder: of the .rttm files below it where it has any, otherwise of those in the
        only other format of turns.

    Returns
    -------
    dict of str to pyannote.core.Annotation
        Turns by recording.

    Raises
    ------
    KnnError
        As `read_turns`; for a folder without files of turns, and a recording that is in two of them.
    """
    return {name: Diarization(turns, name).annotation for name, turns in read_given_turns(path).items()}


def read_given_turns(path: Path | str) -> Turns:
    """Like `read_references`, with the turns as they are."""
    folder = Path(path)
    if not folder.is_dir():
        return read_turns(folder)
    read = [(name, file, turns) for file in _given_files(folder) for name, turns in read_turns(file).items()]
    # Recordings of one name in several folders have the names that `diarize` gives theirs.
    names = distinct([name for name, _, _ in read], [file.parent for _, file, _ in read])
    found: Turns = {}
    origin: dict[str, Path] = {}
    for name, (_, file, turns) in zip(names, read, strict=True):
        if name in found:
            both = f"{origin[name].name} and {file.name}"
            raise KnnError(f"The recording {name} is in two files of {folder}: {both}.", "Remove one.")
        found[name], origin[name] = turns, file
    return found


def files_of_turns(folder: Path) -> list[Path]:
    """Return all files in a folder that may hold turns, of whichever format."""
    # Programs of macOS leave `._NAME.rttm` beside each file, which are no text.
    return files_below(folder, TURN_READERS)


def _given_files(folder: Path) -> list[Path]:
    by_suffix: dict[str, list[Path]] = {}
    for file in files_of_turns(folder):
        by_suffix.setdefault(file.suffix.lower(), []).append(file)
    if not by_suffix:
        raise KnnError(f"{folder} holds no files of turns.", "Give an RTTM file, or the folder that holds them.")
    if ".rttm" not in by_suffix and len(by_suffix) > 1:
        formats = ", ".join(sorted(by_suffix))
        raise KnnError(f"{folder} holds turns in several formats: {formats}.", "Put those that count into a folder.")
    return by_suffix.get(".rttm") or next(iter(by_suffix.values()))


@turn_reader(".rttm")
def _read_rttm(path: Path) -> Turns:
    found: dict[str, Annotation] = rttm.read_rttm(path)
    return {name: turns_of_annotation(turns) for name, turns in found.items()} or {tidy(path.stem): ()}


@turn_reader(".csv", ".tsv")
def _read_csv(path: Path) -> Turns:
    """Columns start, end (or duration) and speaker, in seconds; file and confidence where there are such."""
    columns, rows = read_table(path, "a table of turns")
    place = {
        field: next((columns.index(name) for name in names if name in columns), None)
        for field, names in _COLUMNS.items()
    }
    start, end, duration, speaker = (place[field] for field in ("start", "end", "duration", "speaker"))
    if start is None or speaker is None or (end is None and duration is None):
        raise KnnError(
            f"{path} has no columns of start, end and speaker; it has {', '.join(columns) or 'none'}.",
            "Name them so in its first line; times are seconds.",
        )
    found: dict[str, list[Turn]] = {}
    for number, cells in rows:
        where = f"Line {number} of {path}"
        begin = _seconds(cells[start], where)
        finish = _seconds(cells[end], where) if end is not None else begin + _seconds(cells[duration or 0], where)
        recording = cells[place["file"]] if place["file"] is not None else ""
        confidence = cells[place["confidence"]] if place["confidence"] is not None else ""
        certain = _seconds(confidence, where) if confidence else None
        found.setdefault(recording or tidy(path.stem), []).append(_turn(begin, finish, cells[speaker], where, certain))
    return _sorted(found) or {tidy(path.stem): ()}


@turn_reader(".json")
def _read_json(path: Path) -> Turns:
    """A recording per line, or one for the whole file: {"file": ..., "turns": [{"start", "end", "speaker"}, ...]}."""
    text = read_text(path, "JSON of turns")
    problem = KnnError(
        f"{path} is not JSON of turns.", 'Expected: {"file": ..., "turns": [{"start", "end", "speaker"}]}'
    )
    try:
        try:
            documents = [json.loads(text)]
        except ValueError:
            documents = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise problem from error
    if not documents:
        raise problem
    found: dict[str, list[Turn]] = {}
    for document in documents:
        if not isinstance(document, dict) or not isinstance(document.get("turns"), list):
            raise problem
        name = document.get("file")
        turns = found.setdefault(tidy(name) if isinstance(name, str) and tidy(name) else tidy(path.stem), [])
        for number, turn in enumerate(document["turns"], start=1):
            where = f"Turn {number} of {path}"
            if not isinstance(turn, dict) or not isinstance(turn.get("speaker"), str):
                raise KnnError(f"{where} has no speaker.", "Each turn needs start, end and speaker.")
            certain = turn.get("confidence")
            times = (_seconds(turn.get("start"), where), _seconds(turn.get("end"), where))
            turns.append(_turn(*times, turn["speaker"], where, None if certain is None else _seconds(certain, where)))
    return _sorted(found)


@turn_reader(".textgrid")
def _read_textgrid(path: Path) -> Turns:
    """Praat's interval tiers, in the long or the short text format.

    An interval with a text is a turn of the speaker that the text names, if the tier is one of speakers; where each
    tier is a speaker, whose intervals hold what is said, the tier is the speaker. Tiers of what a speaker says, such as
    "Anna words" beside "Anna", which `textgrid` writes too, are not read.
    """
    damaged = KnnError(f"{path} is not a TextGrid in Praat's text format.", "Save it in Praat as text file.")
    tokens = _praat_tokens(path)
    tiers: list[tuple[str, list[tuple[float, float, str]]]] = []
    try:
        if [*islice(tokens, 2)] != ["ooTextFile", "TextGrid"]:
            raise damaged
        *_, count = islice(tokens, 4)  # after start, end and <exists>
        for _ in range(_count(count)):
            kind, name, _, _, count = islice(tokens, 5)
            if kind == "IntervalTier":
                rows = [(float(next(tokens)), float(next(tokens)), next(tokens)) for _ in range(_count(count))]
                tiers.append((tidy(name), [row for row in rows if tidy(row[2])]))
            else:  # points: a time and a text
                _skip(tokens, 2 * _count(count))
    except (StopIteration, ValueError) as error:
        raise damaged from error
    names = {name for name, _ in tiers}
    tiers = [tier for tier in tiers if (of := _SPOKEN.sub("", tier[0])) == tier[0] or of not in names]
    names = {name for name, _ in tiers}
    turns = []
    for name, rows in tiers:
        layer = _SECOND_LAYER.sub("", name)  # of turns that overlap others of their tier
        name = layer if layer in names else name
        named = len(names) == 1 or name.lower() in _TIERS_OF_SPEAKERS
        turns += [_turn(start, end, text if named else name, f"The tier {name} of {path}") for start, end, text in rows]
    return {tidy(path.stem): sort_turns(turns)}


def _skip(tokens: Iterator[str], count: int) -> None:
    if len([*islice(tokens, count)]) < count:
        raise ValueError("the file ends")


def _praat_tokens(path: Path) -> Iterator[str]:
    """Texts and numbers of a file that Praat has written, which are all that counts in it, without comments."""
    # Praat writes UTF-16 where a text is not ASCII.
    head = path.read_bytes() if path.is_file() else b""
    text = head.decode("utf-16", "replace") if head[:2] in (b"\xff\xfe", b"\xfe\xff") else read_text(path, "a TextGrid")
    for match in textgrid.TOKEN.finditer(text):
        quoted, number, flag = match.groups()
        yield quoted.replace('""', '"') if quoted is not None else number if number is not None else flag


def _count(token: str) -> int:
    number = float(token)
    if not 0 <= number < 1e7 or number != int(number):
        raise ValueError(token)
    return int(number)


@turn_reader(".eaf")
def _read_eaf(path: Path) -> Turns:
    """ELAN's time-aligned annotations; the speaker is the tier's participant, or its name.

    Of a speaker with a tier of turns, those of utterances and words, which `elan` writes too, are not read.
    """
    from xml.etree import ElementTree

    from knn_cli.formats import elan

    text = read_text(path, "an ELAN document")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise KnnError(f"{path} defines entities, which ELAN does not.", "Save it in ELAN again.")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise KnnError(f"{path} is not an ELAN document: {error}.", "Save it in ELAN again.") from error
    slots = {
        slot.get("TIME_SLOT_ID"): _seconds(slot.get("TIME_VALUE"), f"A time slot of {path}") / 1000
        for slot in root.iter("TIME_SLOT")
        if slot.get("TIME_VALUE") is not None
    }
    turns: list[Turn] = []
    tiers = [*root.iter("TIER")]
    kinds = {tier: elan.kind_of_type(tier.get("LINGUISTIC_TYPE_REF")) for tier in tiers}
    with_turns = {tier.get("PARTICIPANT") for tier in tiers if kinds[tier] == elan.TURN}
    for tier in tiers:
        if kinds[tier] in (elan.UTTERANCE, elan.WORD) and tier.get("PARTICIPANT") in with_turns:
            continue
        speaker = tier.get("PARTICIPANT") or tier.get("TIER_ID") or ""
        for annotation in tier.iter("ALIGNABLE_ANNOTATION"):
            times = [slots.get(annotation.get(f"TIME_SLOT_REF{number}")) for number in (1, 2)]
            if times[0] is None or times[1] is None:
                raise KnnError(f"An annotation of {speaker} in {path} has no time.", "Align it in ELAN.")
            turns.append(_turn(times[0], times[1], speaker, f"An annotation of {path}"))
    return {tidy(path.stem): sort_turns(turns)}


@turn_reader(".srt", ".vtt")
def _read_captions(path: Path) -> Turns:
    """Captions; the speaker is a voice span (`<v Name>`), or what stands before a colon, or the whole text."""
    turns = [
        _turn(one.start, one.end, _speaker_of_caption(one), f"Line {one.line} of {path}") for one in read_captions(path)
    ]
    return {tidy(path.stem): sort_turns(turns)}


def _speaker_of_caption(caption: Caption) -> str:
    if caption.voice is not None:
        return caption.voice
    first, _, words = caption.text.partition(":")
    lines = caption.text.strip().splitlines()
    return first.strip(" []-") if words.strip() else lines[0] if lines else ""


@turn_reader(".txt")
def _read_audacity(path: Path) -> Turns:
    """Audacity's label track: start, end and text, separated by tabs; lines of frequencies begin with a backslash."""
    turns: list[Turn] = []
    for number, line in enumerate(read_lines(path, "an Audacity label track"), start=1):
        if not line.strip() or line.startswith("\\"):
            continue
        where, fields = f"Line {number} of {path}", line.split("\t", 2)
        if len(fields) < 3:
            raise KnnError(
                f"{where} is not a label of Audacity.", "Expected: start, end and speaker, separated by tabs."
            )
        turns.append(_turn(_seconds(fields[0], where), _seconds(fields[1], where), fields[2], where))
    return {tidy(path.stem): sort_turns(turns)}


def _seconds(value: object, where: str) -> float:
    try:
        number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise KnnError(f"{where} has {value!r} in place of a number.", "Times are seconds.")
    return number


def _turn(start: float, end: float, speaker: str, where: str, confidence: float | None = None) -> Turn:
    if not 0 <= start <= end:
        raise KnnError(
            f"{where} is a turn from {start:g} to {end:g} s.", "It must start at 0 or later and end after that."
        )
    if not tidy(speaker):
        raise KnnError(f"{where} names no speaker.", "Each turn needs one.")
    if confidence is not None and not 0 <= confidence <= 1:
        raise KnnError(f"{where} has a confidence of {confidence:g}.", "It lies between 0 and 1.")
    return Turn(start, end, tidy(speaker), confidence)


def _sorted(found: Mapping[str, Iterable[Turn]]) -> Turns:
    return {name: sort_turns(turns) for name, turns in found.items()}
