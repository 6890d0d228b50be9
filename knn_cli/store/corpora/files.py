"""Sound by itself: a file, a folder of files at any depth, and tar shards, one or a folder of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from knn_cli.audio import reading
from knn_cli.core.errors import AudioError
from knn_cli.core.folders import files_below, is_folder, is_regular
from knn_cli.core.texts import read_lines
from knn_cli.core.urls import UrlPath
from knn_cli.store import embedding_readers
from knn_cli.store.corpora import tar_shards
from knn_cli.store.corpora.recordings import SoundSource, Utterance, class_and_speaker, find_sound
from knn_cli.store.corpora.registry import SOUND, corpus_reader
from knn_cli.store.row_labels import KeyPath

SHARD = ".tar"


def _is_shards(path: Path) -> bool:
    if is_folder(path):
        return bool(_shards_in(path))
    return path.suffix.lower() == SHARD and is_regular(path)


def _shards_in(folder: Path) -> list[Path]:
    if isinstance(folder, UrlPath):
        return [shard for shard in files_below(folder, {SHARD}) if shard.parent == folder]
    return sorted(folder.glob(f"*{SHARD}"))


@corpus_reader("tar shards", _is_shards)
def _read_shards(path: Path) -> Iterable[Utterance]:
    return of_shards(_shards_in(path) if is_folder(path) else [path], path)


def _is_shard_list(path: Path) -> bool:
    """Whether the first line of a text file names a tar file."""
    if not is_regular(path) or path.suffix.lower() in {SHARD, *reading.SUFFIXES}:
        return False
    return first_line(path).endswith(SHARD)


@corpus_reader("a list of shards", _is_shard_list)
def _read_shard_list(path: Path) -> Iterable[Utterance]:
    lines = [line.strip() for line in read_lines(path, "a list of tar files")]
    return of_shards([find_sound(line, path).path for line in lines if line], path)


def first_line(path: Path) -> str:
    """The first line of a text file, "" where a file is none; of long lines the beginning."""
    try:
        with path.open("rb") as file:
            return file.readline(1 << 16).decode("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def of_shards(shards: Sequence[Path], source: Path) -> Iterator[Utterance]:
    """The utterances of tar shards: `.cls` and `.txt` hold the class, `.spk` wespeaker's, which may be a speaker.

    A path that occurs in several shards, which then number their samples separately, is told apart by the shard.
    AudioError for a shard that cannot be read, and where there is no sound in any.
    """
    scanned = [(shard, *tar_shards.members(shard)) for shard in shards]
    if not any(sounds for _, sounds, _ in scanned):
        raise AudioError(f"{source} holds no audio.", "Shards hold pairs such as 000.flac and 000.cls.")
    count = Counter(path for _, sounds, _ in scanned for path in sounds)
    for shard, sounds, texts in scanned:
        for path, (offset, size, seconds) in sounds.items():
            stem = path.rpartition(".")[0]
            key = stem if KeyPath(stem).suffix.lower() in reading.SUFFIXES else path
            classes = tar_shards.label_of(path, texts, ".cls") or tar_shards.label_of(path, texts, ".txt")
            name = f"{shard.stem}/{key}" if count[path] > 1 else ""
            stated = class_and_speaker(classes, tar_shards.label_of(path, texts, ".spk"), name)
            yield Utterance(key, SoundSource(shard, path, offset, size), stated, seconds=seconds)


def _is_sound(path: Path) -> bool:
    if is_folder(path):
        return bool(reading.find(path))
    return path.suffix.lower() not in embedding_readers.READERS.names()


@corpus_reader(SOUND, _is_sound)
def _read_files(path: Path) -> Iterable[Utterance]:
    root, files = (path, reading.find(path)) if is_folder(path) else (path.parent, [path])
    for file in files:
        yield Utterance(file.relative_to(root).as_posix(), SoundSource(file))
