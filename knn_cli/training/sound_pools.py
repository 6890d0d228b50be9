"""Noises, music and impulse responses for augmentation: a folder of files, or an LMDB of them, as wespeaker makes.

The values of an LMDB are whole files of sound, by key; `__keys__`, a pickled list of the keys, is never read. It needs
the package lmdb, and is opened for reading only, without its lock.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from knn_cli.audio import reading
from knn_cli.audio.flac_bytes import memory_sound
from knn_cli.core.errors import AudioError, KnnError
from knn_cli.core.values import Floats, Segment

DATABASE = "data.mdb"
_KEY_LIST = b"__keys__"


class SoundPool(ABC):
    """Sounds of which augmentation draws one.

    Parameters
    ----------
    count : int
        How many there are.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def draw(self, rate: int, random: np.random.Generator) -> Floats:
        """(S,) float32 samples of one of the sounds, whole."""
        return self._samples(int(random.integers(self.count)), rate, None, random)

    def draw_part(self, count: int, rate: int, random: np.random.Generator) -> Floats:
        """(count,) float32 samples of one of the sounds, from a random place, repeated where it is shorter."""
        return np.resize(self._samples(int(random.integers(self.count)), rate, count / rate, random), count)

    @abstractmethod
    def _samples(self, place: int, rate: int, seconds: float | None, random: np.random.Generator) -> Floats:
        """(S,) float32 samples of a sound: whole, or up to `seconds` from a random place. AudioError if damaged."""


class FolderPool(SoundPool):
    """The audio files of a folder, at any depth. KnnError if there are none."""

    def __init__(self, folder: Path) -> None:
        self._files = reading.find(folder) if folder.is_dir() else []
        if not self._files:
            hint = "Paths start where knn runs."
            raise KnnError(f"The folder {folder} of [augment] is missing or holds no audio.", hint)
        super().__init__(len(self._files))

    def _samples(self, place: int, rate: int, seconds: float | None, random: np.random.Generator) -> Floats:
        path = self._files[place]
        if seconds is None:
            return reading.read(path, rate=rate).samples
        length = reading.info(path).seconds
        start = random.random() * max(0.0, length - seconds) if math.isfinite(length) else 0.0
        return next(iter(reading.crops(path, [Segment(start, start + seconds)], rate=rate)))


class DatabasePool(SoundPool):
    """The sounds of an LMDB. KnnError if it cannot be read or is empty.

    It is opened anew for each sound, in some 0.1 ms: a process may have it open once only, and must not share it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._reading() as reader:
            self._keys = [bytes(key) for key in reader.cursor().iternext(values=False) if bytes(key) != _KEY_LIST]
        if not self._keys:
            raise KnnError(f"The LMDB {path} of [augment] is empty.", "Make it again.")
        super().__init__(len(self._keys))

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        """A transaction that reads."""
        try:
            import lmdb
        except ImportError as error:
            raise KnnError(
                f"{self.path} is an LMDB, which needs the package lmdb.", "pip install 'knn-cli[lmdb]'"
            ) from error
        options = {"readonly": True, "lock": False, "create": False, "readahead": False}
        try:
            with (
                lmdb.open(str(self.path), subdir=self.path.is_dir(), **options) as environment,
                environment.begin() as transaction,
            ):
                yield transaction
        except lmdb.Error as error:
            raise KnnError(f"{self.path} is no LMDB that can be read: {error}.", "Make it again.") from error

    def _samples(self, place: int, rate: int, seconds: float | None, random: np.random.Generator) -> Floats:
        with self._reading() as reader:
            data = bytes(reader.get(self._keys[place]) or b"")
        name = self._keys[place].decode("utf-8", "replace")
        try:
            with memory_sound(data) as sound:
                count = sound.frames if seconds is None else math.ceil(seconds * sound.samplerate)
                sound.seek(int(random.random() * max(0, sound.frames - count)) if seconds is not None else 0)
                samples: Floats = sound.read(count, dtype="float32", always_2d=True).mean(1)
                own_rate = sound.samplerate
        except (soundfile.LibsndfileError, OSError, TypeError) as error:
            raise AudioError(f"{name} in {self.path} is no sound that can be read.", "Make the LMDB again.") from error
        if not len(samples):
            raise AudioError(f"{name} in {self.path} holds no samples.", "Make the LMDB again.")
        return samples if own_rate == rate else soxr.resample(samples, own_rate, rate).astype(np.float32)


def sound_pool(name: str) -> SoundPool | None:
    """Return the sounds of a folder or LMDB, None for ""; see `FolderPool` and `DatabasePool`.

    Raises
    ------
    KnnError
        If there are none, or the package lmdb is missing.
    """
    if not name:
        return None
    path = Path(name)
    if (path / DATABASE).is_file() or (path.is_file() and path.suffix.lower() in (".lmdb", ".mdb")):
        return DatabasePool(path)
    return FolderPool(path)
