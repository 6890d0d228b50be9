"""Rows of stores as columns, and files that grow by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from knn_cli.audio.flac_bytes import encode_flac
from knn_cli.core.encoded_texts import EncodedTexts
from knn_cli.core.errors import StoreError
from knn_cli.core.values import EmbeddingSet
from knn_cli.store import text_tables
from knn_cli.store.hdf5 import TEXT_DATASETS, AudioRow, Store
from knn_cli.store.text_tables import TextReader, TextTable

__all__ = ["Columns", "RowFile", "audio_columns", "concatenate", "embedding_columns", "label_columns", "stored_labels"]

Columns = dict[str, Any]  # dataset -> values of rows: EncodedTexts, arrays, or a list of FLAC

_BYTES_TYPE = h5py.vlen_dtype(np.uint8)
_AUDIO_CHUNK_ROWS = 1024
_COLUMN_CHUNK_ROWS = 1 << 14  # of codes and times, compressed: codes of neighbours are alike
_CHUNK_BYTES = 256 << 10  # of embeddings, with a checksum: gzip takes 25 times as long to write, and saves a seventh
_COPIED_ROWS = 256  # that are held when some rows of a store are copied


def embedding_columns(rows: EmbeddingSet) -> Columns:
    """Datasets of an embedding store."""
    return {"Data": rows.data, **label_columns(rows)}


def label_columns(rows: EmbeddingSet) -> Columns:
    """Datasets of the names, labels and times of rows."""
    texts = {dataset: EncodedTexts.from_texts(getattr(rows, field)) for field, dataset in TEXT_DATASETS.items()}
    return {**texts, "Start": rows.start, "End": rows.end}


def stored_labels(store: Store, first: int, last: int) -> Columns:
    """`label_columns` of rows of a store."""
    start, end = store.times(first, last)
    texts = {dataset: store.encoded(field, first, last) for field, dataset in TEXT_DATASETS.items()}
    return {**texts, "Start": start, "End": end}


def audio_columns(rows: Iterable[AudioRow]) -> Columns:
    """Datasets of an audio store: the rows, encoded as they come."""
    fields = [*TEXT_DATASETS, "start", "end"]
    flac: list[NDArray[np.uint8]] = []
    values: dict[str, list[Any]] = {field: [] for field in fields}
    for row in rows:
        flac.append(np.frombuffer(encode_flac(row.waveform.samples, row.waveform.rate), dtype=np.uint8))
        for field in fields:
            values[field].append(getattr(row, field))
    texts = {name: EncodedTexts.from_blocks([values[field]]) for field, name in TEXT_DATASETS.items()}
    return {"Audio": flac, **texts, "Start": np.array(values["start"]), "End": np.array(values["end"])}


def concatenate(columns: Sequence[Columns]) -> Columns:
    """Return the rows of one or more sets of columns, in order."""
    joined: Columns = {}
    for name, first in columns[0].items():
        parts = [one[name] for one in columns]
        if isinstance(first, EncodedTexts):
            joined[name] = EncodedTexts.concatenate(parts)
        else:
            joined[name] = [*chain.from_iterable(parts)] if isinstance(first, list) else np.concatenate(parts)
    return joined


class RowFile:
    """An open HDF5 file to which rows are added.

    Parameters
    ----------
    file : h5py.File
        A new file with its attributes.
    """

    def __init__(self, file: h5py.File) -> None:
        self._file = file
        self._tables: dict[str, TextTable] = {}

    def add(self, columns: Columns) -> None:
        """Add rows; the first creates the datasets, in chunks. StoreError for embeddings of another dimension."""
        for name, values in columns.items():
            if name not in self._file:
                self._create(name, values)
            dataset, count = self._file[name], len(values)
            first = len(dataset)
            if name == "Data" and dataset.shape[1] != values.shape[1]:
                width = dataset.shape[1]
                raise StoreError(f"Embeddings of {values.shape[1]} values cannot join embeddings of {width}.")
            dataset.resize(first + count, axis=0)
            if name == "Audio":  # h5py would take items of equal length for a matrix
                for offset, item in enumerate(values):
                    dataset[first + offset] = item
            elif count:
                dataset[first:] = self._table(name).add(values) if isinstance(values, EncodedTexts) else values

    def _table(self, name: str) -> TextTable:
        if name not in self._tables:
            self._tables[name] = TextTable(self._file, name)
        return self._tables[name]

    def _create(self, name: str, values: Any) -> None:
        if name == "Audio":
            self._file.create_dataset(name, (0,), maxshape=(None,), chunks=(_AUDIO_CHUNK_ROWS,), dtype=_BYTES_TYPE)
        elif name == "Data":
            width = values.shape[1]
            chunk = max(1, _CHUNK_BYTES // (4 * width)), width
            self._file.create_dataset(
                name, (0, width), maxshape=(None, width), dtype="f4", chunks=chunk, fletcher32=True
            )
        else:
            dtype = "u4" if isinstance(values, EncodedTexts) else "f8"
            how: Mapping[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
            self._file.create_dataset(name, (0,), maxshape=(None,), dtype=dtype, chunks=(_COLUMN_CHUNK_ROWS,), **how)
            if isinstance(values, EncodedTexts):
                self._table(name)

    def copy(self, rows: h5py.File, kept: Sequence[range] | None = None) -> None:
        """Add the rows of another file, of any schema, or some of them."""
        datasets = {name: rows[name] for name in rows if isinstance(rows[name], h5py.Dataset)}
        if kept is None and not len(self._file) and text_tables.holds_codes(rows):  # as they lie there, compressed
            for name in (*datasets, text_tables.GROUP):
                self._file.copy(rows[name], self._file, name)
            return
        count = len(rows["Start"])
        step = _COPIED_ROWS if kept is not None or not text_tables.holds_codes(rows) else count
        reader = TextReader(rows, Path(rows.filename))
        for part in [range(count)] if kept is None else kept:
            for first in range(part.start, part.stop, step):
                some = range(first, min(first + step, part.stop))
                self.add({name: self._values(reader, datasets[name], some) for name in datasets})

    @staticmethod
    def _values(reader: TextReader, dataset: h5py.Dataset, rows: range) -> Any:
        name = dataset.name[1:]
        is_text = name in TEXT_DATASETS.values()
        return reader.encoded(name, rows) if is_text else dataset[rows.start : rows.stop]
