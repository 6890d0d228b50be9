"""The HDF5 schema: audio stores and embedding stores, readable by anyone with h5py.

Both kinds hold one row per segment in plain datasets at the root:

    Name, GroupID, SubgroupID, Speaker   (N,) uint32 codes of the texts in Texts/Name and so on (see `text_tables`)
    Start, End                           (N,) float64 seconds in the recording, NaN where unknown
    Data   (embeddings)                  (N, D) float32
    Audio  (audio)                       (N,) variable-length bytes: 16-bit mono FLAC at the attribute `rate`

and the attributes `schema`, `kind`, `created`, and for embeddings `embedder` (the fingerprint of the bundle that made
them). In schema 1 the columns of texts were UTF-8 themselves; these and files of the legacy format (`Data`, `Name`,
`GroupID`, `SubgroupID` as bytes of shape (N,) or (N, 1), no attributes) are read as they are.

This module reads them; `writer` writes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from knn_cli.audio.flac_bytes import decode_flac
from knn_cli.core.encoded_texts import EncodedTexts
from knn_cli.core.errors import StoreError
from knn_cli.core.folders import is_regular
from knn_cli.core.values import EmbeddingSet, Floats, Waveform
from knn_cli.store import hdf5_reading, row_labels
from knn_cli.store.text_tables import TextReader, holds_codes

SCHEMA = 2
KINDS = ("audio", "embeddings")
SUFFIXES = frozenset([".h5", ".hdf5"])

LABEL_FIELDS = ("group", "subgroup")
TEXT_DATASETS = {"name": "Name", "group": "GroupID", "subgroup": "SubgroupID", "speaker": "Speaker"}
TIME_DATASETS = ("Start", "End")
PAYLOAD_DATASETS = {"audio": "Audio", "embeddings": "Data"}  # by kind

_ROWS_PER_READ = 1 << 12
_TIMES_PER_READ = 1 << 16


@dataclass(frozen=True)
class AudioRow:
    """One segment of an audio store; `start` and `end` are seconds in the recording."""

    waveform: Waveform
    name: str
    group: str
    subgroup: str
    speaker: str
    start: float
    end: float


class Store:
    """An HDF5 store opened for reading; use as a context manager.

    Parameters
    ----------
    path : path
    kind : str, optional
        "audio" or "embeddings", if only that will do.
    rows : (n,) int64 array, optional
        The rows that `segments` yields, by default all.

    Raises
    ------
    StoreError
        If the file is missing, is not HDF5, has an unknown schema, is of another kind, or lacks a dataset.
    """

    def __init__(self, path: Path | str, kind: str | None = None, *, rows: NDArray[np.int64] | None = None) -> None:
        self.path = Path(path)
        self._rows = rows
        if not self.path.exists():
            raise StoreError(f"{self.path} does not exist.", "Make a store with `knn convert` or `knn embed -o`.")
        self._file = hdf5_reading.opened(self.path)
        self._texts = TextReader(self._file, self.path)
        try:
            with self._reading():
                self._check(kind)
        except StoreError:
            self._file.close()
            raise

    def _check(self, kind: str | None) -> None:
        file = self._file
        schema = file.attrs.get("schema", 1)
        if not isinstance(schema, (int, np.integer)):
            raise StoreError(f"{self.path} has the schema {schema!r}, which is no number.", "Make it again.")
        if schema > SCHEMA:
            raise StoreError(f"{self.path} has schema {schema}; this knn reads up to {SCHEMA}.", "Install a newer knn.")
        own_kind = _text(file.attrs.get("kind", "")) or ("embeddings" if "Data" in file else "")
        if own_kind not in KINDS:
            raise StoreError(f"{self.path} holds neither audio nor embeddings that knn knows.")
        if kind is not None and own_kind != kind:
            hint = "Make embeddings of it with `knn embed`." if kind == "embeddings" else "Make one with `knn convert`."
            raise StoreError(f"{self.path} holds {own_kind}, not {kind}.", hint)
        self.kind: str = own_kind
        needed = [PAYLOAD_DATASETS[own_kind], "Name"]
        if missing := [name for name in needed if not isinstance(file.get(name), h5py.Dataset)]:
            raise StoreError(f"{self.path} lacks the dataset {', '.join(missing)}.")
        payload = file[PAYLOAD_DATASETS[own_kind]]
        if not payload.shape or not payload.size:
            shape = "no rows" if payload.shape is None else f"the shape {payload.shape}"
            raise StoreError(f"{self.path} is empty: {payload.name[1:]} has {shape}.", "Make it again.")
        self._check_written(payload)
        if own_kind == "embeddings" and (payload.ndim != 2 or payload.dtype.kind not in "fiu"):
            raise StoreError(
                f"{self.path}: Data is {payload.dtype} of shape {payload.shape}, not numbers (rows, dimensions)."
            )
        if own_kind == "audio" and not isinstance(file.attrs.get("rate"), (int, np.integer)):
            raise StoreError(f"{self.path} lacks its rate in samples per second.", "Convert it again.")
        if own_kind == "audio" and (payload.ndim != 1 or h5py.check_vlen_dtype(payload.dtype) != np.uint8):
            raise StoreError(f"{self.path}: Audio is {payload.dtype} of shape {payload.shape}, not bytes (rows,).")
        for name in (*TEXT_DATASETS.values(), *TIME_DATASETS):
            if name in file:
                self._check_column(name, len(payload))

    def _check_column(self, name: str, rows: int) -> None:
        column = self._file[name]
        if not isinstance(column, h5py.Dataset) or column.shape not in {(rows,), (rows, 1)}:
            raise StoreError(f"{self.path}: {name} must be a dataset of shape {(rows,)}.")
        if name in TIME_DATASETS and column.dtype.kind not in "fiu":
            raise StoreError(f"{self.path}: {name} must be seconds, it is {column.dtype}.")
        if name not in TIME_DATASETS:
            self._texts.check(name)
        if holds_codes(self._file):  # zeros would be a name
            self._check_written(column)

    def _check_written(self, dataset: h5py.Dataset) -> None:
        if (written := _written_share(dataset)) < 1:
            message = f"{written:.0%} of {dataset.name[1:]} in {self.path} was written"
            raise StoreError(f"{message}; the rest would be read as zeros.", "Make it again.")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._file[PAYLOAD_DATASETS[self.kind]])

    @property
    def dimension(self) -> int:
        """Values in one embedding."""
        return int(self._file["Data"].shape[1])

    @property
    def is_virtual(self) -> bool:
        """Whether the embeddings or the sound are in other files."""
        return bool(self._file[PAYLOAD_DATASETS[self.kind]].is_virtual)

    @property
    def rate(self) -> int:
        """Samples per second of an audio store."""
        return int(self._file.attrs["rate"])

    @property
    def embedder(self) -> str:
        """Fingerprint of the bundle that computed the embeddings, "" where unknown."""
        with self._reading():
            return _text(self._file.attrs.get("embedder", ""))

    @property
    def attributes(self) -> dict[str, str]:
        """All attributes of the file as texts."""
        with self._reading():
            return {key: _text(value) for key, value in self._file.attrs.items()}

    def encoded(self, field: str, first: int = 0, last: int | None = None) -> EncodedTexts:
        """Return name, group, subgroup or speaker of all rows or some, as codes and distinct texts; "" for none.

        Ten million rows are 40 MB and their distinct texts. Names in files of other programs that are those of pieces,
        or of files, become those of their recordings.
        """
        rows = range(len(self))[first:last]
        with self._reading():
            foreign = "schema" not in self._file.attrs
            if foreign and field in LABEL_FIELDS and not any(TEXT_DATASETS[one] in self._file for one in LABEL_FIELDS):
                names = self._texts.encoded("Name", rows)
                return names.with_values(row_labels.folder_labels(names.values, field).tolist())
            column = self._texts.encoded(TEXT_DATASETS[field], rows)
            if foreign and field == "name":
                return column.with_values(row_labels.recordings(column.values).tolist())
            return column

    def column(self, field: str, first: int = 0, last: int | None = None) -> NDArray[np.str_]:
        """Return (n,) texts as `encoded` has them; of all rows they take as much memory as the longest, for each."""
        return self.encoded(field, first, last).texts

    def codes(self, field: str) -> NDArray[np.int32]:
        """Return the codes (N,) of all rows as `encoded` has them; where the store has codes, texts are not read."""
        if holds_codes(self._file) and TEXT_DATASETS[field] in self._file:
            with self._reading():
                return self._texts.codes(TEXT_DATASETS[field], range(len(self)))[0]
        return self.encoded(field).codes

    def times(self, first: int = 0, last: int | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (n,) start and (n,) end in seconds, of all rows or some; NaN where unknown."""
        start, end = (
            np.asarray(self._file[name][first:last], dtype=np.float64).reshape(-1)
            if name in self._file
            else np.full(len(range(len(self))[first:last]), np.nan)
            for name in TIME_DATASETS
        )
        return start, end

    def seconds(self) -> NDArray[np.float64]:
        """Return (N,) lengths of all rows, NaN where unknown, in the memory of one column."""
        seconds = np.empty(len(self))
        with self._reading():
            for first in range(0, len(self), _TIMES_PER_READ):
                start, end = self.times(first, first + _TIMES_PER_READ)
                seconds[first : first + _TIMES_PER_READ] = end - start
        return seconds

    def labels(self, first: int = 0, last: int | None = None) -> EmbeddingSet:
        """Return rows of either kind of store without vectors or sound: names, labels, times, and `data` (n, 0)."""
        with self._reading():
            start, end = self.times(first, last)
            texts = {field: self.column(field, first, last) for field in TEXT_DATASETS}
        empty = np.zeros((len(start), 0), np.float32)
        return EmbeddingSet(empty, start=start, end=end, embedder=self.embedder, **texts)

    def data(self, first: int = 0, last: int | None = None) -> Floats:
        """Return (n, D) float32 embeddings of all rows or some. StoreError for NaN or infinite values."""
        with self._reading():
            data: Floats = self._file["Data"][first:last].astype(np.float32, copy=False)
        with np.errstate(invalid="ignore"):
            suspect = not np.isfinite(data.sum(dtype=np.float64))  # one pass without a copy
        if suspect and len(bad := np.flatnonzero(~np.isfinite(data).all(axis=1))):
            row = first + int(bad[0])
            raise StoreError(
                f"{self.path} holds NaN or infinite values in {len(bad)} of {len(data)} embeddings, first in row "
                f"{row} ({self.column('name', row, row + 1)[0]}).",
                "Embed these recordings again.",
            )
        return data

    def blocks(self, size: int) -> Iterator[EmbeddingSet]:
        """Yield the rows of an embedding store, `size` at a time, in the memory of one block."""
        for first in range(0, len(self), size):
            last = first + size
            yield replace(self.labels(first, last), data=self.data(first, last))

    def embeddings(self) -> EmbeddingSet:
        """Return all rows of an embedding store."""
        return replace(self.labels(), data=self.data())

    def segments(self, rows: range | None = None) -> Iterator[AudioRow]:
        """Yield some rows of an audio store, or those that it was opened for. StoreError for a damaged row."""
        first, last = (0, len(self)) if rows is None else (rows.start, rows.stop)
        for at in range(first, last, _ROWS_PER_READ):
            labels = self.labels(at, min(at + _ROWS_PER_READ, last))
            if self._rows is None:
                yield from (self._segment(labels, at, row) for row in range(at, at + len(labels)))
            else:
                wanted = self._rows[(self._rows >= at) & (self._rows < at + len(labels))]
                yield from (self._segment(labels, at, row) for row in wanted.tolist())

    def _segment(self, labels: EmbeddingSet, first: int, row: int) -> AudioRow:
        """A row of an audio store, whose labels are among those of the rows from `first` on."""
        with self._reading(f", row {row},"):
            samples = decode_flac(self.flac(row))
        at = row - first
        name, group, subgroup, speaker = (str(labels.label(field)[at]) for field in TEXT_DATASETS)
        times = float(labels.start[at]), float(labels.end[at])
        return AudioRow(Waveform(samples, self.rate), name, group, subgroup, speaker, *times)

    def find(self, name: str, start: float) -> int | None:
        """Return the (first) row of a recording that begins at `start` seconds, None if there is none."""
        starts, hashes = self._index
        rows = np.flatnonzero((hashes == hash(name)) & np.isclose(starts, start, atol=1e-3))
        return int(rows[0]) if len(rows) else None

    @cached_property
    def _index(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(N,) starts and (N,) hashes of the names, read once: 16 bytes per row however long the names are."""
        names = self.encoded("name")
        hashes = np.fromiter(map(hash, names.values.tolist()), np.int64, len(names.values))
        with self._reading():
            return self.times()[0], hashes[names.codes]

    def flac(self, row: int) -> bytes:
        """Return the sound of a row as a FLAC file."""
        with self._reading(f", row {row},"):
            return bytes(self._file["Audio"][row].tobytes())

    def _reading(self, where: str = "") -> AbstractContextManager[None]:
        """Turn the errors of damaged files into StoreErrors."""
        return hdf5_reading.reading(self.path, where)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _written_share(dataset: h5py.Dataset) -> float:
    """The share of a dataset's chunks that were ever written; HDF5 makes up zeros in place of the others."""
    if dataset.external:
        return 1.0
    if dataset.is_virtual:
        mapped = sum(_mapped_values(dataset.file, source) for source in dataset.virtual_sources())
        return float(mapped / dataset.size)
    if dataset.chunks is None:
        return float(dataset.id.get_storage_size() > 0)
    chunks = math.prod(-(-length // size) for length, size in zip(dataset.shape, dataset.chunks, strict=True))
    return float(dataset.id.get_num_chunks() / chunks)


def _mapped_values(file: h5py.File, source: Any) -> int:
    """How many values of a virtual dataset one of its sources has; none where that is missing or smaller."""
    if source.file_name != ".":
        found = (Path(file.filename).parent / source.file_name).exists() or Path(source.file_name).exists()
        return int(source.vspace.get_select_npoints()) if found else 0
    own = file.get(source.dset_name)
    if not isinstance(own, h5py.Dataset) or own.is_virtual or _written_share(own) < 1:
        return 0
    values = int(source.vspace.get_select_npoints())
    if source.src_space.get_select_type() == h5py.h5s.SEL_ALL:
        return values if own.size >= values else 0
    last = source.src_space.get_select_bounds()[1]
    fits = len(last) == own.ndim and all(place < length for place, length in zip(last, own.shape, strict=True))
    return values if fits else 0


def kind_of(path: Path) -> str | None:
    """Return `audio` or `embeddings` for a store, None for any other file. StoreError for a damaged store."""
    try:
        if not is_regular(path) or not h5py.is_hdf5(path):
            return None
    except OSError:  # one that may not be read; whoever reads it is told
        return None
    with Store(path) as store:
        return store.kind


def is_store(path: Path) -> bool:
    """Return whether a path is an HDF5 store. StoreError for a damaged one, or another file with its suffix."""
    if path.suffix.lower() in SUFFIXES:
        with Store(path):
            return True
    return kind_of(path) is not None


def labels(path: Path | str) -> EmbeddingSet:
    """Read names, labels and times of either kind of store, without vectors or sound; see `Store.labels`."""
    with Store(path) as store:
        return store.labels()


def read(path: Path | str) -> EmbeddingSet:
    """Read a whole embedding store. StoreError as `Store`."""
    with Store(path, "embeddings") as store:
        return store.embeddings()
