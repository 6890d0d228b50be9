"""lhotse's manifests: recordings, supervisions and cuts, a line of JSON each, packed or not (lhotse.readthedocs.io).

Only sound in files and at URLs is read: commands are refused, as are changes that lhotse would make when it loads
sound.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from knn_cli.core.errors import KnnError
from knn_cli.core.folders import is_folder
from knn_cli.core.texts import tidy
from knn_cli.core.values import Segment
from knn_cli.store.corpora.recordings import SoundSource, Utterance, class_and_speaker, find_sound
from knn_cli.store.corpora.registry import corpus_reader
from knn_cli.store.corpora.wespeaker_lists import first_object, json_lines, texts_of

_RECORDINGS, _SUPERVISIONS = "recordings", "supervisions"
_CLASSES = ("dialect", "accent", "variety")  # in `custom`, where the language is not all


def _kind(path: Path) -> str:
    """Which manifest a file is, "" for none."""
    found = first_object(path).keys()
    if {"id", "sources"} <= found:
        return _RECORDINGS
    if {"id", "recording_id", "start", "duration"} <= found:
        return _SUPERVISIONS
    return "cuts" if {"id", "start", "duration", "supervisions"} <= found else ""


def _pairs(path: Path) -> list[tuple[Path, Path | None]]:
    """Manifests of recordings, each with that of its supervisions if there is one."""
    if is_folder(path):
        files = sorted(
            file for pattern in ("*.jsonl", "*.jsonl.gz") for file in path.glob(f"*{_RECORDINGS}*{pattern[1:]}")
        )
    else:
        files = [path if _kind(path) == _RECORDINGS else _beside(path, _SUPERVISIONS, _RECORDINGS)]
    found = [(file, _beside(file, _RECORDINGS, _SUPERVISIONS)) for file in files]
    return [(file, beside if beside.is_file() and beside != file else None) for file, beside in found]


def _beside(path: Path, own: str, other: str) -> Path:
    named = path.with_name(path.name.replace(own, other))
    if named.is_file() or own not in path.name:
        return named
    return named.with_suffix("") if named.suffix == ".gz" else named.with_name(f"{named.name}.gz")


def _is_manifest(path: Path) -> bool:
    if is_folder(path):
        return any(_kind(file) == _RECORDINGS for file, _ in _pairs(path))
    return bool(_kind(path))


@corpus_reader("a manifest of lhotse", _is_manifest)
def _read_manifests(path: Path) -> Iterable[Utterance]:
    if not is_folder(path) and _kind(path) == "cuts":
        yield from _cuts(path)
        return
    for recordings, supervisions in _pairs(path):
        if not recordings.is_file():
            raise KnnError(f"{path} has no manifest of recordings beside it.", f"It would be {recordings}.")
        yield from _utterances(recordings, supervisions)


class _Listed(NamedTuple):
    """A recording of a manifest: its sound, and how long it is."""

    sound: SoundSource
    seconds: float


def _utterances(recordings: Path, supervisions: Path | None) -> Iterator[Utterance]:
    known: dict[str, _Listed] = {}
    for place, found in json_lines(recordings, "a manifest of recordings"):
        (name,) = texts_of(found, place, "id")
        known[tidy(name)] = _listed(found, place, recordings)
    if supervisions is None:
        for name, listed in known.items():
            yield Utterance(name, listed.sound, seconds=listed.seconds)
        return
    for place, found in json_lines(supervisions, "a manifest of supervisions"):
        name = tidy(texts_of(found, place, "id", "recording_id")[1])
        if name not in known:
            raise KnnError(f"{place}: the recording {name} is not in {recordings}.", "Add it, or leave this out.")
        yield _supervised(found, place, known[name], name)


def _cuts(path: Path) -> Iterator[Utterance]:
    for place, found in json_lines(path, "a manifest of cuts"):
        recording = found.get("recording")
        if not isinstance(recording, dict):
            raise KnnError(
                f"{place} is of features, of several tracks, or of no recording.", "Name simple cuts of sound."
            )
        (name,) = texts_of(recording, place, "id")
        listed = _listed(recording, place, path)
        start, span = _number(found, "start", place), _span(found, place)
        for supervision in found["supervisions"] if isinstance(found["supervisions"], list) else []:
            line = _supervised(supervision, place, listed, tidy(name))
            assert line.span is not None
            moved = Segment(line.span.start + start, line.span.end + start) & span
            yield replace(line, span=moved)
        if not found["supervisions"]:
            yield Utterance(tidy(str(found["id"])), listed.sound, class_and_speaker("", "", tidy(name)), span)


def _supervised(found: Any, place: str, listed: _Listed, recording: str) -> Utterance:
    if not isinstance(found, dict):
        raise KnnError(f"{place} holds a supervision that is no object.", "Write the manifest again.")
    (key,) = texts_of(found, place, "id")
    details = found.get("custom")
    custom: dict[str, Any] = details if isinstance(details, dict) else {}
    classes = next((str(custom[name]) for name in _CLASSES if custom.get(name)), "")
    stated = class_and_speaker(str(found.get("language") or ""), str(found.get("speaker") or ""), recording)
    if classes:
        stated = replace(stated, group=stated.subgroup or stated.group, subgroup=tidy(classes))
    return Utterance(tidy(key), listed.sound, stated, _span(found, place), seconds=listed.seconds)


def _listed(found: dict[str, Any], place: str, manifest: Path) -> _Listed:
    """The sound of a recording; KnnError unless it is in one file, and used as it is."""
    sources = found.get("sources")
    if not isinstance(sources, list) or not all(isinstance(source, dict) for source in sources) or not sources:
        raise KnnError(f"{place} has no sources.", "Is it a manifest of recordings?")
    kinds = {str(source.get("type")) for source in sources}
    if len(sources) > 1 or not kinds <= {"file", "url"}:
        what = "several sources" if len(sources) > 1 else f"a source of the type {kinds.pop()}"
        raise KnnError(f"{place} has {what}; only one file or URL is read.", "Write it to a file first.")
    if found.get("transforms"):
        raise KnnError(f"{place} is to be changed when it is loaded.", "Write the changed sound to files first.")
    (name,) = texts_of(sources[0], place, "source")
    return _Listed(find_sound(name, manifest), _number(found, "duration", place))


def _span(found: dict[str, Any], place: str) -> Segment:
    start, duration = _number(found, "start", place), _number(found, "duration", place)
    if not 0 <= start < start + duration < float("inf"):
        raise KnnError(f"{place}: {duration:g} s from {start:g} s on are no segment.", "Correct the times.")
    return Segment(start, start + duration)


def _number(found: dict[str, Any], name: str, place: str) -> float:
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise KnnError(f"{place} has no number {name!r}.", "Write the manifest again.")
    return float(value)
