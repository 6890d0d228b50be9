"""wespeaker's raw lists: a line of JSON for each utterance, with key, wav, spk and, where silence was found, vad."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from knn_cli.core.errors import KnnError
from knn_cli.core.folders import is_regular
from knn_cli.core.texts import read_lines, split_lines, tidy
from knn_cli.core.values import Segment
from knn_cli.store.corpora.recordings import Utterance, class_and_speaker, find_sound, refuse_command
from knn_cli.store.corpora.registry import corpus_reader

_PACKED = b"\x1f\x8b"
MAX_LIST_BYTES = 1 << 32  # of a packed list, unpacked
_FIRST_BYTES = 1 << 20


def first_object(path: Path) -> dict[str, Any]:
    """The JSON object in the first line of a file, packed or not; {} where there is none."""
    if not is_regular(path):
        return {}
    try:
        with path.open("rb") as file:
            packed = file.read(2) == _PACKED
            file.seek(0)
            line = gzip.GzipFile(fileobj=file).readline(_FIRST_BYTES) if packed else file.readline(_FIRST_BYTES)
        found = json.loads(line.decode("utf-8-sig")) if line.lstrip(b"\xef\xbb\xbf \t")[:1] == b"{" else {}
        return found if isinstance(found, dict) else {}
    except (OSError, EOFError, ValueError, RecursionError, zlib.error):
        return {}


def json_lines(path: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place and the object of each line of a list, packed by gzip or not. KnnError for anything else."""
    for number, line in enumerate(_lines(path, what), start=1):
        if not line.strip():
            continue
        place = f"Line {number} of {path}"
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise KnnError(f"{place} is no JSON: {error}.", f"Is it {what}?") from error
        if not isinstance(found, dict):
            raise KnnError(f"{place} is no JSON object.", f"Is it {what}?")
        yield place, found


def _lines(path: Path, what: str) -> list[str]:
    with path.open("rb") as file:
        packed = file.read(2) == _PACKED
    if not packed:
        return read_lines(path, what)
    try:
        with gzip.open(path) as unpacked:
            data = unpacked.read(MAX_LIST_BYTES + 1)
        if len(data) > MAX_LIST_BYTES:
            raise KnnError(f"{path} unpacks to more than {MAX_LIST_BYTES >> 30} GB.", "Divide it.")
        return split_lines(data.decode("utf-8-sig"))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise KnnError(f"{path} is no complete gzip file of text: {error}.", "Copy it again.") from error


def texts_of(found: dict[str, Any], place: str, *names: str) -> list[str]:
    """The texts of several keys; KnnError where one is missing or no text."""
    for name in names:
        if not isinstance(found.get(name), str) or not found[name]:
            raise KnnError(f"{place} has no text {name!r}.", "It needs " + ", ".join(names) + ".")
    return [found[name] for name in names]


def _is_raw_list(path: Path) -> bool:
    return {"key", "wav"} <= first_object(path).keys()


@corpus_reader("a raw list of wespeaker", _is_raw_list)
def _read_raw_list(path: Path) -> Iterable[Utterance]:
    for place, found in json_lines(path, "a raw list"):
        key, wav = texts_of(found, place, "key", "wav")
        refuse_command(wav, place)
        spk = found.get("spk", "")
        if not isinstance(spk, str):
            raise KnnError(f"{place}: spk is {spk!r}, no text.", "Write it between quotes.")
        speech = tuple(_speech(found["vad"], place)) if "vad" in found else None
        yield Utterance(tidy(key), find_sound(wav, path), class_and_speaker("", spk), speech=speech)


def _speech(pairs: Any, place: str) -> list[Segment]:
    try:
        return sorted(Segment(float(start), float(end)) for start, end in pairs)
    except (TypeError, ValueError, KnnError) as error:
        raise KnnError(f"{place}: vad holds no pairs of seconds.", "Write it as [[0.5, 2.25], [3, 7]].") from error
