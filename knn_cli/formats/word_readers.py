"""Reading what speech recognition heard: segments and words with their times.

JSON of openai-whisper, faster-whisper and its command lines, whisperX, whisper.cpp (with and without tokens), the
pipeline of transformers, OpenAI's API and Vosk; SubRip, WebVTT, Whisper's TSV, and NIST's CTM. A word without times, as
whisperX leaves numbers, lies between its neighbours.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from knn_cli.core.errors import KnnError
from knn_cli.core.input_files import read_bytes
from knn_cli.core.lfs import check_pointer
from knn_cli.core.texts import read_lines, read_table, split_fields, tidy
from knn_cli.formats.captions import read_captions
from knn_cli.formats.transcripts import TranscriptSegment, Word, joined, segments_of_words

Transcripts = dict[str, tuple[TranscriptSegment, ...]]  # by recording

_WORDS = "words of speech recognition"
_EXPECTED = 'Expected is JSON of Whisper: {"segments": [{"start", "end", "text", "words": [...]}]}.'
_OPEN_END_SECONDS = 1.0  # of a last segment whose end the recogniser does not give
_COUNTED_TOKEN = re.compile(r"\[_[A-Z]+_?\d*_?\]")  # of whisper.cpp: [_BEG_], [_TT_150]
# Scripts that are written without blanks, of which Whisper times each character: Thai, Lao, Burmese, kana, Han.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


def read_words(path: Path | str) -> Transcripts:
    """Read the words that speech recognition heard.

    Parameters
    ----------
    path : path
        A file, whose suffix names the format: .json, .srt, .vtt, .tsv or .ctm; or a folder of such files, one for each
        recording. Of several files of one recording, the first in this order counts.

    Returns
    -------
    dict of str to tuple of TranscriptSegment
        By recording. Only CTM names recordings; other files are of the one that they are called by.

    Raises
    ------
    KnnError
        For a file that is not what its suffix says, and for a folder without such files.
    """
    path = Path(path)
    if not path.is_dir():
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            raise KnnError(f"{path} is not known to hold words.", f"Known are {', '.join(_READERS)}.")
        return reader(path)
    found: Transcripts = {}
    files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in _READERS and file.name[0] != "."]
    for file in sorted(files, key=lambda file: [*_READERS].index(file.suffix.lower())):
        for name, segments in _READERS[file.suffix.lower()](file).items():
            found.setdefault(name, segments)
    if not found:
        raise KnnError(f"{path} holds no files of words.", f"Known are {', '.join(_READERS)}.")
    return found


def _read_json(path: Path) -> Transcripts:
    raw = read_bytes(path, _WORDS)
    check_pointer(path, raw)
    try:
        # whisper.cpp cuts characters of several bytes into tokens, which are then no UTF-8
        value = json.loads(raw.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError) as error:
        raise KnnError(f"{path} is not JSON.", _EXPECTED) from error
    segments = _segments(value, path)
    if segments is None:
        raise KnnError(f"{path} holds no segments or words with times.", _EXPECTED)
    return {_name(path): tuple(segments)}


def _segments(value: Any, path: Path) -> list[TranscriptSegment] | None:
    """The segments of any known shape; None for JSON of something else."""
    if isinstance(value, dict):
        if isinstance(value.get("transcription"), list):  # whisper.cpp
            return [_cpp_segment(one, f"Segment {at} of {path}") for at, one in _objects(value["transcription"], path)]
        for key in ("segments", "chunks"):  # whisper and whisperX; transformers
            if isinstance(value.get(key), list) and value[key]:
                return [_segment(one, f"Segment {at} of {path}") for at, one in _objects(value[key], path)]
        for key in ("words", "word_segments", "result"):  # OpenAI's API, whisperX, Vosk
            if isinstance(value.get(key), list):
                return [*segments_of_words(_words(value[key], "", 0.0, math.inf, str(path)))]
        return [] if isinstance(value.get("segments", value.get("chunks")), list) else None
    if not isinstance(value, list):
        return None
    found: list[TranscriptSegment] = []
    for at, one in _objects(value, path):  # segments of faster-whisper, results of Vosk, or plain words
        if isinstance(one.get("result"), list):
            found += segments_of_words(_words(one["result"], "", 0.0, math.inf, str(path)))
        elif "word" in one:
            return [*segments_of_words(_words(value, "", 0.0, math.inf, str(path)))]
        elif "start" in one or "timestamp" in one:
            found.append(_segment(one, f"Segment {at} of {path}"))
        elif one.get("text") != "":  # Vosk's result of silence
            return None
    return found


def _objects(values: Sequence[Any], path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise KnnError(f"Segment {number} of {path} is not an object.", _EXPECTED)
        yield number, value


def _segment(value: Mapping[str, Any], where: str) -> TranscriptSegment:
    times = value["timestamp"] if isinstance(value.get("timestamp"), list) else (value.get("start"), value.get("end"))
    text = value.get("text", "")
    listed = value.get("words") or []
    if len(times) != 2 or not isinstance(text, str) or not isinstance(listed, list):
        raise KnnError(f"{where} is not start, end and text.", _EXPECTED)
    if times[0] is None:
        timed = [word for word in listed if isinstance(word, dict) and word.get("start") is not None]
        times = (timed[0]["start"], timed[-1].get("end")) if timed else times
    start = _seconds(times[0], where)
    end = start + _OPEN_END_SECONDS if times[1] is None else _seconds(times[1], where)
    end = max(start, end)
    words = _words(listed, text, start, end, where)
    return TranscriptSegment(start, end, " ".join(text.split()) or joined(words), words)


def _words(values: Sequence[Any], text: str, start: float, end: float, where: str) -> tuple[Word, ...]:
    """Words of a segment; `text` is what it says, by which it is known where blanks are."""
    found: list[Word] = []
    untimed: list[int] = []
    reached = 0
    for value in values:
        raw = value.get("word", value.get("text")) if isinstance(value, dict) else None
        if not isinstance(raw, str):
            raise KnnError(f"A word of {where} has no text.", _EXPECTED)
        if not (plain := raw.strip()):
            continue
        place = text.find(plain, reached)
        spaced = place < 0 or place > reached
        reached = reached if place < 0 else place + len(plain)
        sure = next((value[key] for key in ("probability", "score", "confidence", "conf") if key in value), None)
        times = (
            value["timestamp"] if isinstance(value.get("timestamp"), list) else (value.get("start"), value.get("end"))
        )
        if any(time is None for time in times):
            untimed.append(len(found))
            times = (start, start)
        first, last = (_seconds(time, where) for time in times)
        probability = min(1.0, max(0.0, _seconds(sure, where))) if isinstance(sure, (int, float)) else None
        found.append(Word(first, max(first, last), plain, probability, spaced))
    return tuple(_placed(found, untimed, start, end))


def _placed(words: list[Word], untimed: Sequence[int], start: float, end: float) -> list[Word]:
    """Words without times share the time between their neighbours evenly."""
    missing = set(untimed)
    for first in untimed:
        if first - 1 in missing:
            continue
        last = first
        while last + 1 in missing:
            last += 1
        before = words[first - 1].end if first else start
        after = words[last + 1].start if last + 1 < len(words) else end if end < math.inf else before
        step = max(0.0, after - before) / (last + 1 - first)
        for place in range(first, last + 1):
            begin = before + (place - first) * step
            words[place] = replace(words[place], start=begin, end=begin + step)
    return words


def _cpp_segment(value: Mapping[str, Any], where: str) -> TranscriptSegment:
    """A segment of whisper.cpp, with its tokens joined into words where they spell its text."""
    times, text, tokens = value.get("offsets"), value.get("text"), value.get("tokens") or []
    if not isinstance(times, dict) or not isinstance(text, str) or not isinstance(tokens, list):
        raise KnnError(f"{where} is not a segment of whisper.cpp.", _EXPECTED)
    start, end = (_seconds(times.get(key), where) / 1000 for key in ("from", "to"))
    parts: list[dict[str, Any]] = []
    for token in tokens:
        raw, at = (token.get(key) for key in ("text", "offsets")) if isinstance(token, dict) else (None, None)
        if not isinstance(raw, str) or not isinstance(at, dict) or _COUNTED_TOKEN.fullmatch(raw.strip()):
            continue
        first, last = (_seconds(at.get(key), where) / 1000 for key in ("from", "to"))
        sure = token.get("p") if isinstance(token.get("p"), (int, float)) else None
        begins = raw[:1].isspace() or (_UNSPACED.match(raw) and parts and _UNSPACED.search(parts[-1]["word"][-1:]))
        if parts and not begins:
            parts[-1]["word"] += raw
            parts[-1]["end"] = max(parts[-1]["end"], last)
            parts[-1]["probability"] = min((p for p in (parts[-1]["probability"], sure) if p is not None), default=None)
        else:
            parts.append({"word": raw, "start": first, "end": last, "probability": sure})
    if "".join(part["word"] for part in parts).strip() != text.strip():  # tokens that are no text, or none
        parts = []
    return TranscriptSegment(start, max(start, end), " ".join(text.split()), _words(parts, text, start, end, where))


def _read_captioned(path: Path) -> Transcripts:
    found = [
        TranscriptSegment(one.start, max(one.start, one.end), " ".join(one.text.split())) for one in read_captions(path)
    ]
    return {_name(path): tuple(segment for segment in found if segment.text)}


def _read_tsv(path: Path) -> Transcripts:
    """Whisper's table: start and end in milliseconds, and text."""
    columns, rows = read_table(path, "a table of Whisper")
    if columns[:3] != ["start", "end", "text"]:
        raise KnnError(f"{path} is not a table of Whisper.", "Its columns are start, end and text.")
    segments = []
    for number, cells in rows:
        start, end = (_seconds(cell, f"Line {number} of {path}") / 1000 for cell in cells[:2])
        segments.append(TranscriptSegment(start, max(start, end), " ".join(cells[2].split())))
    return {_name(path): tuple(segments)}


def _read_ctm(path: Path) -> Transcripts:
    """NIST's CTM: recording, channel, start, duration, word, and perhaps its confidence."""
    found: dict[str, list[Word]] = {}
    for number, line in enumerate(read_lines(path, "a CTM file"), start=1):
        fields = split_fields(line)
        if not fields or fields[0].startswith(";;"):
            continue
        where = f"Line {number} of {path}"
        if len(fields) < 5:
            raise KnnError(f"{where} is not a line of CTM.", "Expected: recording, channel, start, duration, word.")
        start, duration = (_seconds(field, where) for field in fields[2:4])
        sure = _seconds(fields[5], where) if len(fields) > 5 and fields[5].upper() != "NA" else None
        word = Word(start, start + duration, fields[4], None if sure is None else min(1.0, sure))
        found.setdefault(tidy(fields[0]), []).append(word)
    return {name: segments_of_words(words) for name, words in found.items()} or {_name(path): ()}


def _name(path: Path) -> str:
    return tidy(path.stem)


def _seconds(value: Any, where: str) -> float:
    try:
        number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise KnnError(f"{where} has {value!r} in place of a time.", _EXPECTED)
    return number


_READERS: dict[str, Callable[[Path], Transcripts]] = {
    ".json": _read_json,
    ".ctm": _read_ctm,
    ".vtt": _read_captioned,
    ".srt": _read_captioned,
    ".tsv": _read_tsv,
}
