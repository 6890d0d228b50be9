"""Tar shards in WebDataset's format, as wespeaker writes them too: members with the same key belong together."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO

import soundfile

from knn_cli.audio import fetched
from knn_cli.audio.flac_bytes import memory_sound
from knn_cli.core.errors import AudioError
from knn_cli.core.input_files import check_regular
from knn_cli.core.lfs import check_pointer

# Formats of the sounds in shards, which libsndfile reads from memory.
SHARD_SUFFIXES = frozenset(
    ".wav .flac .mp3 .ogg .oga .opus .aif .aiff .aifc .au .snd .caf .w64 .rf64 .sph .nist .voc".split()
)
FEATURE_SUFFIXES = frozenset([".npy", ".npz", ".pt", ".pth", ".ark", ".feat", ".pkl"])
FEATURES_HINT = (
    "Features cannot be heard, augmented, or given to a network that takes others: name the sound that they are of."
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
        with memory_sound(data) as sound:
            return float(sound.frames / sound.samplerate)
    except soundfile.LibsndfileError as error:
        raise unreadable(shard, member.name, error) from error


TEXT_SUFFIXES = (".cls", ".txt", ".spk")


def _label(shard: Path, member: tarfile.TarInfo, file: IO[bytes]) -> str:
    """The text of a label; AudioError for a member that is larger than any."""
    if member.issparse() or member.size > MAX_LABEL_BYTES:
        message = f"{shard}: {member.name} has holes, or more than {MAX_LABEL_BYTES >> 10} KB."
        raise AudioError(message, "It is no label.")
    return file.read().decode("utf-8").strip()


def members(shard: Path) -> tuple[dict[str, tuple[int, int, float]], dict[str, str]]:
    """Scan a shard, also at a URL: audio path -> (offset and size in bytes, seconds), path of a label -> its text.

    AudioError if it is damaged, compressed, or holds features in place of sound.
    """
    with fetched.opened(shard) as file:
        return _members(file)


def _members(shard: Path) -> tuple[dict[str, tuple[int, int, float]], dict[str, str]]:
    sounds: dict[str, tuple[int, int, float]] = {}
    texts: dict[str, str] = {}
    features = ""
    check_regular(shard, "a tar shard", error=AudioError)
    check_pointer(shard, error=AudioError)
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file is None:
                    continue
                suffix = PurePosixPath(member.name).suffix.lower()
                if suffix in TEXT_SUFFIXES:
                    texts[member.name] = _label(shard, member, file)
                elif suffix in SHARD_SUFFIXES:
                    sounds[member.name] = (member.offset_data, member.size, _member_seconds(shard, member, file))
                elif suffix in FEATURE_SUFFIXES:
                    features = member.name
    except _DAMAGED as error:
        raise AudioError(f"{shard} is no tar shard of audio: {error}.", "Shards are not compressed.") from error
    if features and not sounds:
        raise AudioError(f"{shard} holds features, such as {features}, and no sound.", FEATURES_HINT)
    return sounds, texts


def label_of(path: str, texts: Mapping[str, str], suffix: str) -> str:
    """The text of a member's label: that of wespeaker's key, the path up to its last dot, else of WebDataset's."""
    folder, _, last = path.rpartition("/")
    for stem in (path.rpartition(".")[0], f"{folder}/{last.partition('.')[0]}".lstrip("/")):
        if (text := texts.get(stem + suffix)) is not None:
            return text
    return ""


def unreadable(shard: Path, path: str, error: Exception) -> AudioError:
    reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
    return AudioError(
        f"{path} in {shard} cannot be read: {reason}.",
        "It is damaged, or its codec is missing here; WAV, FLAC, MP3, OGG and Opus are read.",
    )
