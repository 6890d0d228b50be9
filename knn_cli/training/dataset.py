"""Labelled audio for training: an audio store, a folder of recordings or tar shards, read clip by clip.

A corpus knows its rows' labels and lengths, and decodes a row when a clip of it is asked for. Which clips an epoch
has, and where they begin, follows from (seed, epoch, place in the epoch) alone, so that it is the same in a resumed
training, and for any number of processes and workers.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import h5py
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from knn_cli.audio import reading
from knn_cli.core.errors import AudioError, KnnError, StoreError
from knn_cli.core.values import Floats, Segment, Texts
from knn_cli.recognition import splitters
from knn_cli.store import labels
from knn_cli.store.hdf5 import Store, kind_of
from knn_cli.store.labels import Labels
from knn_cli.training.recipe import DataConfig

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class CorpusColumns:
    """What is known of a corpus's rows, each (N,): texts as in a store, and how many seconds a row has."""

    name: Texts
    group: Texts
    subgroup: Texts
    speaker: Texts
    seconds: NDArray[np.float64]


class Corpus(ABC):
    """Rows of labelled sound at `rate` samples a second."""

    def __init__(self, source: Path, rate: int, columns: CorpusColumns) -> None:
        self.source, self.rate, self.columns = source, rate, columns

    def __len__(self) -> int:
        return len(self.columns.name)

    @cached_property
    def identity(self) -> str:
        """A hash of all labels and lengths, by which an interrupted training knows its corpus again."""
        digest = hashlib.sha256(str(self.rate).encode())
        for column in vars(self.columns).values():
            digest.update("\0".join(map(str, column.tolist())).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    @abstractmethod
    def samples(self, row: int, start: float, seconds: float) -> Floats:
        """(S,) float32 of a row from `start` on, as much of `seconds` as there is."""

    def close(self) -> None:  # noqa: B027 - most have nothing to close
        """Let go of open files, as before processes are made that would share them; reading opens them again."""

    def clip(self, row: int, count: int, place: float) -> Floats:
        """(count,) float32 of a row, repeated where it is shorter; `place` in [0, 1) says where the clip begins."""
        seconds = count / self.rate
        start = place * max(0.0, float(self.columns.seconds[row]) - seconds)
        clip = self.samples(row, start, seconds + 1 / self.rate)
        if not len(clip):
            raise AudioError(f"Row {row} of {self.source} holds no samples.", "Make the corpus again.")
        return np.resize(clip, count) if len(clip) < count else clip[:count]


class StoreCorpus(Corpus):
    """The rows of an audio store. The file is opened again in every process that reads from it."""

    def __init__(self, path: Path) -> None:
        with Store(path, "audio") as store:
            first, last = store.times()
            seconds = last - first
            for row in np.flatnonzero(~np.isfinite(seconds)):
                seconds[row] = len(_decode(store, int(row))) / store.rate
            texts = {field: store.column(field) for field in labels.FIELDS}
            super().__init__(path, store.rate, CorpusColumns(**texts, seconds=seconds))
        self._opened: tuple[int, Store] | None = None

    def samples(self, row: int, start: float, seconds: float) -> Floats:
        """As `Corpus.samples`."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), Store(self.source, "audio")
        first = round(start * self.rate)
        return _decode(self._opened[1], row)[first : first + round(seconds * self.rate)]

    def close(self) -> None:
        """As `Corpus.close`."""
        if self._opened is not None and self._opened[0] == os.getpid():
            self._opened[1].__exit__()
        self._opened = None

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_opened": None}  # an open file does not travel to another process


def _decode(store: Store, row: int) -> Floats:
    dataset: h5py.Dataset = store._file["Audio"]
    try:
        return reading.decode_flac(dataset[row].tobytes())
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"Row {row} of {store.path} cannot be read.", "Make the store again.") from error


class FolderCorpus(Corpus):
    """The audio files of a folder, labelled by a rule (see `labels`)."""

    def __init__(self, folder: Path, rule: str, rate: int) -> None:
        apply = labels.rule(rule)
        self._files = reading.find(folder)
        if not self._files:
            raise AudioError(f"{folder} holds no audio files.", "Audio is found at any depth, by suffix.")
        below = [PurePosixPath(file.relative_to(folder).as_posix()) for file in self._files]
        known = labels.label_all(apply, below)
        super().__init__(folder, rate, _columns(known, [_seconds(file) for file in self._files]))

    def samples(self, row: int, start: float, seconds: float) -> Floats:
        """As `Corpus.samples`."""
        return next(iter(reading.crops(self._files[row], [Segment(start, start + seconds)], rate=self.rate)))


class TarCorpus(Corpus):
    """Shards as WebDataset writes them: files of one stem belong together, `key.flac` and its label.

    The label is the text of `key.cls` or `key.txt`, or, without such, what the rule makes of the sound's path. Names
    of recordings come from the keys; where a key is in several shards, which then number their own samples, the
    shard's name stands in front.
    """

    def __init__(self, shards: Sequence[Path], source: Path, rule: str, rate: int) -> None:
        apply = labels.rule(rule)
        self._members: list[tuple[Path, str, int, int]] = []  # shard, path in it, first byte, bytes
        known: list[Labels] = []
        seconds: list[float] = []
        for shard in shards:
            sounds, texts = _members(shard)
            for path, (offset, size, length) in sounds.items():
                name = labels.recording_name(PurePosixPath(path))
                label = texts.get(_key(path))
                known.append(Labels(name, label.split("-")[0], label) if label else apply(PurePosixPath(path)))
                seconds.append(length)
                self._members.append((shard, path, offset, size))
        known = _distinct_names(known, [(shard, PurePosixPath(path)) for shard, path, _, _ in self._members])
        if not known:
            raise AudioError(f"{source} holds no audio.", "Shards hold pairs such as 000.flac and 000.cls.")
        super().__init__(source, rate, _columns(known, seconds))

    def samples(self, row: int, start: float, seconds: float) -> Floats:
        """As `Corpus.samples`."""
        shard, path, offset, size = self._members[row]
        try:
            with shard.open("rb") as file:
                file.seek(offset)
                data = io.BytesIO(file.read(size))
            with soundfile.SoundFile(data) as sound:
                rate, count = sound.samplerate, math.ceil(seconds * sound.samplerate)
                sound.seek(min(round(start * rate), sound.frames))
                samples: Floats = sound.read(count, dtype="float32", always_2d=True).mean(1)
        except (soundfile.LibsndfileError, OSError) as error:
            raise _unreadable(shard, path, error) from error
        return samples if rate == self.rate else soxr.resample(samples, rate, self.rate).astype(np.float32)


def open_corpus(source: Path, *, rule: str = "folder", rate: int = reading.RATE) -> Corpus:
    """The corpus at a path: an audio store, a tar shard, a folder of shards, or a folder of recordings.

    Parameters
    ----------
    source
        The path.
    rule
        How recordings and shards are labelled (see `store.labels`).
    rate
        Samples per second; a store must have this rate.

    Raises
    ------
    StoreError
        If it is another kind of store, or has another rate.
    AudioError
        If a folder holds no audio.
    """
    if source.is_dir():
        shards = sorted(source.glob("*.tar"))
        return TarCorpus(shards, source, rule, rate) if shards else FolderCorpus(source, rule, rate)
    if source.suffix.lower() == ".tar" and source.is_file():
        return TarCorpus([source], source, rule, rate)
    if not source.is_file() or kind_of(source) is None:
        raise StoreError(f"{source} is no corpus.", "Name an audio store, a folder of recordings, or .tar shards.")
    corpus = StoreCorpus(source)
    if corpus.rate != rate:
        raise StoreError(
            f"{source} holds sound at {corpus.rate} Hz, the network takes {rate} Hz.",
            f"Convert again with `rate={rate}`.",
        )
    return corpus


def epoch_rows(classes: Rows, *, count: int, balance: float, seed: int, epoch: int) -> Rows:
    """(count,) int64 places in `classes` (N,) that an epoch draws, in its order.

    Parameters
    ----------
    classes : (N,) int64
        Class of each row.
    count
        Rows to draw.
    balance
        0 draws from all rows without replacement, so that none comes twice before each came once; above 0, each
        class's share of the draws is its share of the rows to the power of 1 - balance, without replacement in it.
    seed, epoch
        Seeds of the draw.
    """
    random = np.random.default_rng([seed, epoch, 0])
    if balance == 0:
        return _rounds(np.arange(len(classes)), count, random)
    sizes = np.bincount(classes)
    weights = np.where(sizes > 0, sizes.astype(np.float64) ** (1 - balance), 0.0)
    drawn = random.choice(len(sizes), size=count, p=weights / weights.sum())
    rows = np.zeros(count, dtype=np.int64)
    for label in np.unique(drawn):
        here = drawn == label
        rows[here] = _rounds(np.flatnonzero(classes == label), int(here.sum()), random)
    return rows


def _rounds(rows: Rows, count: int, random: np.random.Generator) -> Rows:
    """`count` of `rows`: shuffled, and shuffled again when all have come."""
    rounds = [random.permutation(rows) for _ in range(-(-count // len(rows)))]
    return np.concatenate(rounds)[:count]


def _columns(known: Sequence[Labels], seconds: Sequence[float]) -> CorpusColumns:
    texts = {field: np.asarray([getattr(row, field) for row in known], dtype=np.str_) for field in labels.FIELDS}
    return CorpusColumns(**texts, seconds=np.asarray(seconds, dtype=np.float64))


def _seconds(path: Path) -> float:
    seconds = reading.info(path).seconds
    return seconds if math.isfinite(seconds) else sum(block.seconds for block in reading.blocks(path))


def _members(shard: Path) -> tuple[dict[str, tuple[int, int, float]], dict[str, str]]:
    """Of one shard: path of a sound -> (first byte, bytes, seconds), and key -> text of its label."""
    sounds: dict[str, tuple[int, int, float]] = {}
    texts: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file is None:
                    continue
                suffix = PurePosixPath(member.name).suffix.lower()
                if suffix in (".cls", ".txt"):
                    texts[_key(member.name)] = file.read().decode("utf-8").strip()
                elif suffix in reading.NATIVE_SUFFIXES:
                    try:
                        length = soundfile.info(file).duration  # reads the header, not the sound
                    except soundfile.LibsndfileError as error:
                        raise _unreadable(shard, member.name, error) from error
                    sounds[member.name] = (member.offset_data, member.size, float(length))
    except (tarfile.TarError, OSError, UnicodeDecodeError) as error:
        raise AudioError(f"{shard} is no tar shard of sound: {error}.", "Shards are not compressed.") from error
    return sounds, texts


def _unreadable(shard: Path, path: str, error: Exception) -> AudioError:
    reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
    return AudioError(
        f"{path} in {shard} cannot be read: {reason}.",
        "It is damaged, or its codec is missing here; WAV, FLAC, MP3, OGG and Opus are read.",
    )


def _distinct_names(known: Sequence[Labels], members: Sequence[tuple[Path, PurePosixPath]]) -> list[Labels]:
    """Labels of the sounds at these paths of shards, whose names that come from their files are made distinct.

    Names are told apart by folders as `labels.label_all` does, and by shards where these number their own samples:
    where a path stands in several. Pieces of one recording that lie in several shards have paths of their own there,
    and stay one recording.
    """
    homes: dict[PurePosixPath, set[Path]] = {}
    for shard, path in members:
        homes.setdefault(path, set()).add(shard)
    file_names = [labels.recording_name(path) for _, path in members]
    repeated = {name for name, (_, path) in zip(file_names, members, strict=True) if len(homes[path]) > 1}
    folders = [
        PurePosixPath(shard.stem, path.parent) if name in repeated else path.parent
        for name, (shard, path) in zip(file_names, members, strict=True)
    ]
    names = labels.distinct(file_names, folders)
    return [
        replace(row, name=name) if row.name == file_name else row
        for row, file_name, name in zip(known, file_names, names, strict=True)
    ]


def _key(path: str) -> str:
    """What files of one sample share: the path up to the first dot of its last part (WebDataset's convention)."""
    folder, _, last = path.rpartition("/")
    return f"{folder}/{last.partition('.')[0]}"


def usable_rows(corpus: Corpus, *, level: str, ignore: Sequence[str], minimum: float, maximum: float | None) -> Rows:
    """Numbers of the rows that have a label of this level, not an ignored one, and as many seconds as are asked for.

    Raises KnnError when fewer than two labels are left.
    """
    texts: Texts = getattr(corpus.columns, level)
    seconds = corpus.columns.seconds
    kept = (texts != "") & ~np.isin(texts, list(ignore)) & (seconds >= minimum)
    if maximum is not None:
        kept &= seconds <= maximum
    rows = np.flatnonzero(kept)
    classes = sorted(set(texts[rows].tolist()))
    if len(classes) < 2:
        there = f"only {classes[0]!r}" if classes else "none"
        raise KnnError(
            f"Training needs two labels or more at the level {level}, there is {there} in rows that can be used.",
            "`knn info` shows what a store holds; data.label, data.ignore and data.minimum choose from it.",
        )
    return rows


@dataclass(frozen=True)
class TrainingSplit:
    """Classes of a corpus, and which rows are trained on and which are held out.

    Attributes
    ----------
    corpus : Corpus
    labels : tuple of str
        Sorted names of the classes.
    classes : (N,) int64
        Class of every row of the corpus, -1 for rows that are not used.
    train_rows, held_out_rows : (M,) int64
        Numbers of rows.
    """

    corpus: Corpus
    labels: tuple[str, ...]
    classes: Rows
    train_rows: Rows
    held_out_rows: Rows


def split_corpus(corpus: Corpus, data: DataConfig, seed: int) -> TrainingSplit:
    """Classes and a split, as a recipe's table [data] asks for. Raises KnnError as `usable_rows` and `held_out`."""
    rows = usable_rows(corpus, level=data.label, ignore=data.ignore, minimum=data.minimum, maximum=data.maximum)
    texts: Texts = getattr(corpus.columns, data.label)[rows]
    labels, codes = np.unique(texts, return_inverse=True)
    classes = np.full(len(corpus), -1, dtype=np.int64)
    classes[rows] = codes
    train_rows, held_out_rows = rows, rows[:0]
    if data.held_out:
        units = None if data.unit == "recording" else getattr(corpus.columns, data.unit)[rows]
        keep, test = splitters.held_out(
            corpus.columns.name[rows], texts, fraction=data.held_out, seed=seed, units=units
        )
        train_rows, held_out_rows = rows[keep], rows[test]
    return TrainingSplit(corpus, tuple(labels.tolist()), classes, train_rows, held_out_rows)
