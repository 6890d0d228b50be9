"""Texts of the rows of a store: a table of the distinct texts of each column, and a code for each row.

Since schema 2 the datasets `Name`, `GroupID`, `SubgroupID` and `Speaker` of a store hold codes, and the datasets of the
same names in the group `Texts` what these stand for: distinct texts in the order of their first rows, tidy (see
`core.texts`). So the texts of rows are, for anyone with h5py,

    texts = file["Texts/Name"].asstr()[:]
    names = texts[file["Name"][:]]

Before, and in files of other programs, these datasets hold the texts themselves.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from knn_cli.core.encoded_texts import EncodedTexts
from knn_cli.core.errors import StoreError
from knn_cli.core.texts import tidy
from knn_cli.store.row_texts import holds_texts, row_texts

__all__ = ["GROUP", "TextReader", "TextTable", "holds_codes"]

GROUP = "Texts"
FIRST_SCHEMA = 2  # whose columns are codes

_TEXT_TYPE = h5py.string_dtype("utf-8")
_TEXT_CHUNK_ROWS = 1024
_ROWS_PER_READ = 1 << 16
_PAGE_TEXTS = 4096  # of a table, which are read together
_KEPT_PAGES = 16

Codes = NDArray[np.int32]


def holds_codes(file: h5py.File) -> bool:
    """Whether the text columns of a store are codes."""
    return int(file.attrs.get("schema", 1)) >= FIRST_SCHEMA


class TextReader:
    """Reads the text columns of an open store of any schema, a part at a time.

    Parameters
    ----------
    file : h5py.File
    path : Path
        For messages.
    """

    def __init__(self, file: h5py.File, path: Path) -> None:
        self._file, self._path = file, path
        self._pages: dict[tuple[str, int], list[str]] = {}

    def check(self, name: str) -> None:
        """Raise StoreError for a column that holds neither texts nor codes of texts."""
        column = self._file[name]
        if not holds_codes(self._file):
            if not holds_texts(column.dtype):
                raise StoreError(f"{self._path}: {name} must be texts, it is {column.dtype}.")
            return
        table = self._file.get(f"{GROUP}/{name}")
        if not isinstance(table, h5py.Dataset) or table.ndim != 1 or h5py.check_string_dtype(table.dtype) is None:
            raise StoreError(f"{self._path} lacks {GROUP}/{name}, the texts of {name}.", "Make it again.")
        if column.dtype.kind not in "ui":
            raise StoreError(f"{self._path}: {name} must be codes, it is {column.dtype}.")

    def codes(self, name: str, rows: range) -> tuple[Codes, NDArray[np.int64]]:
        """Read a column of codes.

        Returns
        -------
        codes : (n,) int32 array
            Into the second.
        places : (v,) int64 array
            In the table of texts, of those that have a row among these, ascending.

        Raises
        ------
        StoreError
            If a code stands for no text.
        """
        codes, size = self._file[name][rows.start : rows.stop].reshape(-1), len(self._file[GROUP][name])
        if len(codes) and not (codes.min() >= 0 and codes.max() < size):
            raise StoreError(f"{self._path}: {name} has codes without a text in {GROUP}/{name}.", "Make it again.")
        if len(codes) < size:
            places, codes = np.unique(codes, return_inverse=True)
            return codes.astype(np.int32), places.astype(np.int64)
        used = np.bincount(codes, minlength=size) > 0
        codes = codes.astype(np.int32) if used.all() else (np.cumsum(used, dtype=np.int32) - 1)[codes]
        return codes, np.flatnonzero(used)

    def encoded(self, name: str, rows: range) -> EncodedTexts:
        """Read a column of codes or of texts; `values` are in the order of the table, or of their first rows."""
        if name not in self._file:
            return EncodedTexts(np.zeros(len(rows), np.int32), np.zeros(min(1, len(rows)), dtype=np.str_))
        if not holds_codes(self._file):
            firsts = range(rows.start, rows.stop, _ROWS_PER_READ)
            return EncodedTexts.from_blocks(
                self._texts(name, first, min(first + _ROWS_PER_READ, rows.stop)) for first in firsts
            )
        codes, places = self.codes(name, rows)
        return EncodedTexts(codes, np.zeros(0, np.str_)).with_values(self._texts_at(name, places))

    def _texts(self, name: str, first: int, last: int) -> list[str]:
        texts = self._file[name][first:last].reshape(-1)
        return row_texts(texts, f"{self._path}, {name}", first)

    def _texts_at(self, name: str, places: NDArray[np.int64]) -> list[str]:
        """Texts of a table at some places, ascending. Neighbours have been written together, and are read together."""
        found: list[str] = []
        pages = np.unique(places // _PAGE_TEXTS).tolist()
        cuts = np.searchsorted(places, [page * _PAGE_TEXTS for page in pages[1:]])
        for page, part in zip(pages, np.split(places, cuts), strict=False):
            texts = self._page(name, page)
            found += [texts[place] for place in (part - page * _PAGE_TEXTS).tolist()]
        return found

    def _page(self, name: str, page: int) -> list[str]:
        if (name, page) not in self._pages:
            if len(self._pages) >= _KEPT_PAGES:
                self._pages.clear()
            first = page * _PAGE_TEXTS
            self._pages[name, page] = self._texts(f"{GROUP}/{name}", first, first + _PAGE_TEXTS)
        return self._pages[name, page]


class TextTable:
    """The distinct texts of one column of an open file, which grow with its rows.

    Which texts are there is known by digests of 16 bytes, so that they need not be held.

    Parameters
    ----------
    file : h5py.File
        Open for writing; texts that it has already keep their codes.
    name : str
        The dataset of the column.
    """

    def __init__(self, file: h5py.File, name: str) -> None:
        self._runs: list[tuple[NDArray[np.bytes_], NDArray[np.int64]]] = []  # digests in sorted order, their codes
        self._count = 0
        key = f"{GROUP}/{name}"
        if key not in file:
            file.create_dataset(key, (0,), maxshape=(None,), chunks=(_TEXT_CHUNK_ROWS,), dtype=_TEXT_TYPE)
        self._table = file[key]
        for first in range(0, len(self._table), _ROWS_PER_READ):
            self._number(row_texts(self._table[first : first + _ROWS_PER_READ], key, first))

    def add(self, column: EncodedTexts) -> Codes:
        """Return the codes (n,) of rows that are about to be added; new texts are numbered by their first rows."""
        tidied = column.with_values([tidy(text) for text in column.values.tolist()])
        first = tidied.first_rows()
        order = np.argsort(first)
        texts = tidied.values[order].tolist()
        codes, is_new = self._number(texts)
        if new := [text for text, one in zip(texts, is_new.tolist(), strict=True) if one]:
            self._table.resize(self._count, axis=0)
            self._table[self._count - len(new) :] = np.array(new, dtype=object)
        of_value = np.empty(len(order), np.int32)
        of_value[order] = codes
        return of_value[tidied.codes]

    def _number(self, texts: list[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Codes (n,) of distinct texts, and which of them are new."""
        if not texts:
            return np.zeros(0, np.int64), np.zeros(0, np.bool_)
        digested = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts)
        digests = np.frombuffer(b"".join(digested), dtype="S16")
        codes = np.full(len(texts), -1, dtype=np.int64)
        for known, numbers in self._runs:
            place = np.minimum(np.searchsorted(known, digests), len(known) - 1)
            found = known[place] == digests
            codes[found] = numbers[place[found]]
        is_new = codes < 0
        codes[is_new] = self._count + np.arange(is_new.sum())
        self._count += int(is_new.sum())
        run = digests[is_new], codes[is_new]
        while self._runs and len(self._runs[-1][0]) <= len(run[0]):  # few runs, and each digest moves seldom
            last = self._runs.pop()
            run = np.concatenate([last[0], run[0]]), np.concatenate([last[1], run[1]])
        if len(run[0]):
            order = np.argsort(run[0])
            self._runs.append((run[0][order], run[1][order]))
        return codes, is_new
