"""Labelled audio for training: an audio store, or recordings of any corpus (`store.corpora`), read clip by clip.

A corpus holds the labels and lengths of its rows, and decodes a row only when a clip of it is requested. The clips of
an epoch and their start times depend only on (seed, epoch, position in the epoch), so that they are the same in a
resumed training and for any number of processes and workers.
"""

from __future__ import annotations

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from knn_cli.audio import reading
from knn_cli.audio.flac_bytes import decode_flac, memory_sound
from knn_cli.audio.segments import total_seconds
from knn_cli.core.errors import AudioError, StoreError
from knn_cli.core.values import Floats, Segment, Texts
from knn_cli.formats.speech_lists import restricted
from knn_cli.store import labels
from knn_cli.store.corpora import registry, tar_shards
from knn_cli.store.corpora.recordings import CorpusRecording, SoundSource
from knn_cli.store.hdf5 import Store, is_store
from knn_cli.store.labels import Labels

Rows = NDArray[np.int64]

MAX_DIGEST_ROWS = 4096  # whose sound a training is recognized by

MAX_LENGTH_ERROR = 0.02  # share of a recording, for containers whose counts are estimates
_END_BYTES = 1 << 18


@dataclass(frozen=True)
class CorpusColumns:
    """Labels and lengths of the rows of a corpus.

    Attributes
    ----------
    name, group, subgroup, speaker : (N,) str arrays
        The labels of each row, as in an audio store.
    seconds : (N,) float64 array
        The length of each row.
    """

    name: Texts
    group: Texts
    subgroup: Texts
    speaker: Texts
    seconds: NDArray[np.float64]


class Corpus(ABC):
    """Rows of labelled audio.

    Parameters
    ----------
    source : Path
        The path of the corpus, for error messages.
    rate : int
        Samples per second.
    columns : CorpusColumns
        Labels and lengths of the rows.
    """

    def __init__(self, source: Path, rate: int, columns: CorpusColumns) -> None:
        self.source, self.rate, self.columns = source, rate, columns

    def __len__(self) -> int:
        return len(self.columns.name)

    @cached_property
    def identity(self) -> str:
        """A hash of all labels and lengths, by which a resumed training recognizes its corpus."""
        digest = hashlib.sha256(str(self.rate).encode())
        for column in vars(self.columns).values():
            digest.update("\0".join(map(str, column.tolist())).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    @cached_property
    def sound_digest(self) -> str:
        """A hash of the sound of all rows, by which a resumed training recognizes it; of large corpora, a sample.

        Of at most `MAX_DIGEST_ROWS` rows, evenly spread, the encoded sound is read; of long ones, both ends. So it
        does not depend on where the corpus lies or when it was copied, and takes seconds.
        """
        rows = np.unique(np.linspace(0, len(self) - 1, min(len(self), MAX_DIGEST_ROWS)).astype(np.int64))
        digest = hashlib.sha256()
        for row in rows.tolist():
            sound = self.encoded(row)
            digest.update(len(sound).to_bytes(8, "little") + sound)
        self.close()
        return digest.hexdigest()

    @abstractmethod
    def encoded(self, row: int) -> bytes:
        """The sound of a row as the corpus holds it; of long rows in files, the beginning and the end."""

    @abstractmethod
    def samples(self, row: int, start: float, seconds: float) -> Floats:
        """(S,) float32 samples of a row from the time `start`, for `seconds` or up to the end of the row."""

    def close(self) -> None:  # noqa: B027 - most corpora have nothing to close
        """Close open files, for example before a fork, so that processes do not share them; reading reopens them."""

    def clip(self, row: int, count: int, position: float) -> Floats:
        """Cut a clip of fixed length out of a row.

        Parameters
        ----------
        row : int
            The number of the row.
        count : int
            The number of samples.
        position : float
            The relative position of the clip in [0, 1): its start time divided by the latest possible start time.

        Returns
        -------
        (count,) float32 array
            The samples; a row that is shorter is repeated.

        Raises
        ------
        AudioError
            The row holds no samples.
        """
        seconds = count / self.rate
        start = position * max(0.0, float(self.columns.seconds[row]) - seconds)
        clip = self.samples(row, start, seconds + 1 / self.rate)
        if not len(clip):
            raise AudioError(f"Row {row} of {self.source} holds no samples.", "Make the corpus again.")
        return np.resize(clip, count) if len(clip) < count else clip[:count]


class StoreCorpus(Corpus):
    """The rows of an audio store, which each process opens for itself."""

    def __init__(self, path: Path) -> None:
        with Store(path, "audio") as store:
            first, last = store.times()
            seconds = last - first
            for row in np.flatnonzero(~np.isfinite(seconds)):
                seconds[row] = len(_decode(store, int(row))) / store.rate
            texts = {field: store.column(field) for field in labels.FIELDS}
            super().__init__(path, store.rate, CorpusColumns(**texts, seconds=seconds))
        self._opened: tuple[int, Store] | None = None

    def encoded(self, row: int) -> bytes:
        """See `Corpus.encoded`."""
        return self._store().flac(row)

    def _store(self) -> Store:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), Store(self.source, "audio")
        return self._opened[1]

    def samples(self, row: int, start: float, seconds: float) -> Floats:
        """See `Corpus.samples`."""
        first = round(start * self.rate)
        return _decode(self._store(), row)[first : first + round(seconds * self.rate)]

    def close(self) -> None:
        """See `Corpus.close`."""
        if self._opened is not None and self._opened[0] == os.getpid():
            self._opened[1].__exit__()
        self._opened = None

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_opened": None}  # an open file cannot be pickled


def _decode(store: Store, row: int) -> Floats:
    dataset: h5py.Dataset = store._file["Audio"]
    try:
        return decode_flac(dataset[row].tobytes())
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"Row {row} of {store.path} cannot be read.", "Make the store again.") from error


class RecordingCorpus(Corpus):
    """The utterances of recordings in files and in tar shards, a row each.

    Parameters
    ----------
    recordings : sequence of CorpusRecording
        See `store.corpora`.
    source : Path
        The corpus, for messages.
    rate : int
        Samples per second.

    Raises
    ------
    AudioError
        If a recording cannot be read, or is not as long as its corpus says.
    """

    def __init__(self, recordings: Sequence[CorpusRecording], source: Path, rate: int) -> None:
        self._rows: list[tuple[SoundSource, list[Segment]]] = []  # what of a sound is used, sorted by start
        known: list[Labels] = []
        for recording in recordings:
            seconds = _seconds(recording)
            for part in recording.parts:
                self._rows.append((recording.sound, part.used(seconds)))
                known.append(part.labels)
        super().__init__(source, rate, _columns(known, [total_seconds(spans) for _, spans in self._rows]))

    def encoded(self, row: int) -> bytes:
        """See `Corpus.encoded`."""
        sound, spans = self._rows[row]
        ends = _ends(sound.path, sound.offset, sound.size) if sound.member else _ends(sound.path)
        return ends + repr(spans).encode()

    def samples(self, row: int, start: float, seconds: float) -> Floats:
        """See `Corpus.samples`; parts of a row follow each other without what lies between."""
        sound, spans = self._rows[row]
        parts = []
        for span in spans:
            part = Segment(span.start + max(start, 0.0), min(span.end, span.start + start + seconds))
            if part.start < part.end:
                parts.append(part)
            start -= span.duration
        if sound.member:
            pieces = [_member_samples(sound, part, self.rate) for part in parts]
        else:
            pieces = list(reading.crops(sound.path, parts, rate=self.rate))
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.float32)


def _member_samples(sound: SoundSource, span: Segment, rate: int) -> Floats:
    """(S,) float32 samples of a part of a tar file's member."""
    try:
        with sound.path.open("rb") as file:
            file.seek(sound.offset)
            data = file.read(sound.size)
        with memory_sound(data) as opened:
            own_rate = opened.samplerate
            opened.seek(min(round(span.start * own_rate), opened.frames))
            count = math.ceil(span.duration * own_rate - 1e-6)  # times are sums of floats
            samples: Floats = opened.read(count, dtype="float32", always_2d=True).mean(1)
    except (soundfile.LibsndfileError, OSError) as error:
        raise tar_shards.unreadable(sound.path, sound.member, error) from error
    return samples if own_rate == rate else soxr.resample(samples, own_rate, rate).astype(np.float32)


def _seconds(recording: CorpusRecording) -> float:
    """How long a recording is; AudioError if its corpus says something else."""
    if recording.sound.member:
        return recording.seconds or 0.0
    path = recording.sound.path
    found = reading.info(path).seconds
    seconds = found if math.isfinite(found) else sum(block.seconds for block in reading.blocks(path))
    stated = recording.seconds
    if stated is not None and abs(stated - seconds) > max(MAX_LENGTH_ERROR * seconds, 0.5):
        raise AudioError(
            f"{path} has {seconds:.2f} s, its corpus says {stated:.2f} s.", "Correct the list, or the file."
        )
    return seconds


def open_corpus(
    source: Path, *, rule: str = "folder", speech: Path | str | None = None, rate: int = reading.RATE
) -> Corpus:
    """Open the corpus at a path: an audio store, or what `store.corpora` reads.

    Parameters
    ----------
    source : Path
        The path.
    rule : str
        The rule by which recordings are labelled (see `corpora.recordings.gathered`).
    speech : path, optional
        A list of what is used of recordings, see `speech_lists.restricted`; a store has its own rows.
    rate : int
        Samples per second; a store must have this rate.

    Returns
    -------
    Corpus
        A `StoreCorpus` or `RecordingCorpus`.

    Raises
    ------
    StoreError
        The path is not a corpus, or it is a store of another kind or rate.
    AudioError
        A folder or shard holds no audio, or some that cannot be read.
    """
    if is_store(source):
        if speech is not None:
            raise StoreError(f"{source} is a store, whose rows are cut already.", "Give the list when it is converted.")
        corpus = StoreCorpus(source)
        if corpus.rate != rate:
            raise StoreError(
                f"{source} holds sound at {corpus.rate} Hz, the network takes {rate} Hz.",
                f"Convert again with `rate={rate}`.",
            )
        return corpus
    recordings = registry.read_corpus(source, rule)
    if speech is not None:
        recordings = restricted(recordings, speech)
    return RecordingCorpus(recordings, source, rate)


def epoch_rows(classes: Rows, *, count: int, balance: float, seed: int, epoch: int) -> Rows:
    """Draw the rows of an epoch.

    Parameters
    ----------
    classes : (N,) int64 array
        The class of each row.
    count : int
        The number of rows to draw.
    balance : float
        0 draws from all rows without replacement, so that no row occurs twice before each has occurred once. Above 0,
        the probability of a class is proportional to its number of rows to the power of 1 - balance, and rows are
        drawn without replacement within the class.
    seed, epoch : int
        Seeds of the random draw.

    Returns
    -------
    (count,) int64 array
        Indices into `classes`, in the order of the epoch.
    """
    random = np.random.default_rng([seed, epoch, 0])
    if balance == 0:
        return _rounds(np.arange(len(classes)), count, random)
    sizes = np.bincount(classes)
    weights = np.where(sizes > 0, sizes.astype(np.float64) ** (1 - balance), 0.0)
    drawn = random.choice(len(sizes), size=count, p=weights / weights.sum())
    rows = np.zeros(count, dtype=np.int64)
    for label in np.unique(drawn):
        mask = drawn == label
        rows[mask] = _rounds(np.flatnonzero(classes == label), int(mask.sum()), random)
    return rows


def _rounds(rows: Rows, count: int, random: np.random.Generator) -> Rows:
    """Draw `count` of `rows` in random order; when all have been drawn they are shuffled again."""
    rounds = [random.permutation(rows) for _ in range(-(-count // len(rows)))]
    return np.concatenate(rounds)[:count]


def _ends(path: Path, offset: int = 0, size: int | None = None) -> bytes:
    """A part of a file, by default all of it; where it is long, its beginning, its end and its size."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size if size is None else size
            file.seek(offset)
            if size <= 2 * _END_BYTES:
                return file.read(size)
            first = file.read(_END_BYTES)
            file.seek(offset + size - _END_BYTES)
            return first + file.read(_END_BYTES) + size.to_bytes(8, "little")
    except OSError as error:
        raise AudioError(f"{path} cannot be read: {error.strerror}.", "Check it.") from error


def _columns(known: Sequence[Labels], seconds: Sequence[float]) -> CorpusColumns:
    texts = {field: np.asarray([getattr(row, field) for row in known], dtype=np.str_) for field in labels.FIELDS}
    return CorpusColumns(**texts, seconds=np.asarray(seconds, dtype=np.float64))
