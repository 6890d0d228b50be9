"""Tar shards in WebDataset's format: their members, and the names of the recordings in them."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO

import soundfile

from knn_cli.audio.flac_bytes import memory_file
from knn_cli.core.errors import AudioError
from knn_cli.core.input_files import check_regular
from knn_cli.core.lfs import check_pointer
from knn_cli.store import labels
from knn_cli.store.labels import Labels

# Formats of the sounds in shards, which libsndfile reads from memory.
SHARD_SUFFIXES = frozenset(
    ".wav .flac .mp3 .ogg .oga .opus .aif .aiff .aifc .au .snd .caf .w64 .rf64 .sph .nist .voc".split()
)
MAX_MEMBER_BYTES = 1 << 30
MAX_LABEL_BYTES = 1 << 20  # transcripts are texts too
# What tarfile raises for damaged headers, which it documents for some of them only.
_DAMAGED = (tarfile.TarError, OSError, ArithmeticError, LookupError, MemoryError, TypeError, ValueError)
FLAC_HEAD_BYTES = 1 << 16  # in which a FLAC counts its samples


def _member_seconds(shard: Path, member: tarfile.TarInfo, file: IO[bytes]) -> float:
    """Seconds of sound in a member; AudioError if it is no sound, or larger than a clip may be."""
    if member.issparse() or member.size > MAX_MEMBER_BYTES:
        raise AudioError(
            f"{shard}: {member.name} has holes, or more than {MAX_MEMBER_BYTES >> 20} MB.", "Shards hold clips."
        )
    data = file.read(FLAC_HEAD_BYTES if member.name.lower().endswith(".flac") else -1)
    try:
        with memory_file(data) as copy, soundfile.SoundFile(copy.fileno(), closefd=False) as sound:
            return float(sound.frames / sound.samplerate)
    except soundfile.LibsndfileError as error:
        raise unreadable(shard, member.name, error) from error


def _label(shard: Path, member: tarfile.TarInfo, file: IO[bytes]) -> str:
    """The text of a label; AudioError for a member that is larger than any."""
    if member.issparse() or member.size > MAX_LABEL_BYTES:
        message = f"{shard}: {member.name} has holes, or more than {MAX_LABEL_BYTES >> 10} KB."
        raise AudioError(message, "It is no label.")
    return file.read().decode("utf-8").strip()


def members(shard: Path) -> tuple[dict[str, tuple[int, int, float]], dict[str, str]]:
    """Scan a shard: audio path -> (offset and size in bytes, seconds), and key -> text of its label."""
    sounds: dict[str, tuple[int, int, float]] = {}
    texts: dict[str, str] = {}
    check_regular(shard, "a tar shard", error=AudioError)
    check_pointer(shard, error=AudioError)
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file is None:
                    continue
                suffix = PurePosixPath(member.name).suffix.lower()
                if suffix in (".cls", ".txt"):
                    texts[key(member.name)] = _label(shard, member, file)
                elif suffix in SHARD_SUFFIXES:
                    sounds[member.name] = (member.offset_data, member.size, _member_seconds(shard, member, file))
    except _DAMAGED as error:
        raise AudioError(f"{shard} is no tar shard of audio: {error}.", "Shards are not compressed.") from error
    return sounds, texts


def unreadable(shard: Path, path: str, error: Exception) -> AudioError:
    reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
    return AudioError(
        f"{path} in {shard} cannot be read: {reason}.",
        "It is damaged, or its codec is missing here; WAV, FLAC, MP3, OGG and Opus are read.",
    )


def distinct_names(known: Sequence[Labels], members: Sequence[tuple[Path, PurePosixPath]]) -> list[Labels]:
    """Make the recording names that come from file names distinct.

    Names are distinguished by folder, as in `labels.label_all`, and by shard where the same path occurs in several
    shards, which then number their samples separately. Segments of the same recording have different paths in
    different shards, and keep a common name.
    """
    shards_of: dict[PurePosixPath, set[Path]] = {}
    for shard, path in members:
        shards_of.setdefault(path, set()).add(shard)
    file_names = [labels.recording_name(path) for _, path in members]
    repeated = {name for name, (_, path) in zip(file_names, members, strict=True) if len(shards_of[path]) > 1}
    folders = [
        PurePosixPath(shard.stem, path.parent) if name in repeated else path.parent
        for name, (shard, path) in zip(file_names, members, strict=True)
    ]
    names = labels.distinct(file_names, folders)
    return [
        replace(row, name=name) if row.name == file_name else row
        for row, file_name, name in zip(known, file_names, names, strict=True)
    ]


def key(path: str) -> str:
    """The key of a sample: the path up to the first dot of the file name (WebDataset's convention)."""
    folder, _, last = path.rpartition("/")
    return f"{folder}/{last.partition('.')[0]}"
