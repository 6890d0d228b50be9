"""Stores whose embeddings or sound stay in other stores, their parts: an HDF5 virtual data set.

libhdf5 makes up values in the place of a part that is gone, and reads whatever another file of its name holds. So the
group `Parts` of such a store says what each part was, and no value is read unless all of them are still that:

    file    (P,) UTF-8    path of the part, from the folder of the store
    rows    (P,) int64    its rows; parts follow each other as their rows do
    bytes   (P,) int64    its size
    digest  (P,) UTF-8    SHA-256 of 64 pages of 4 KiB, evenly spread over the file, with its first and last

The digest is also why such a store may name other files, which no other store may: it tells nothing of a file whose
content its maker did not know.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from knn_cli.core.errors import StoreError

__all__ = ["GROUP", "StorePart", "check", "names", "part_of", "refer", "write"]

GROUP = "Parts"

_PAGES, _PAGE_BYTES = 64, 4096
_TEXT_TYPE = h5py.string_dtype("utf-8")

_digests: dict[tuple[int, int, int, int], str] = {}  # device, inode, size, time of change


class StorePart(NamedTuple):
    """What is known of a part."""

    file: str
    rows: int
    bytes: int
    digest: str


def part_of(path: Path, rows: int, folder: Path) -> StorePart:
    """Return what a store in a folder notes of a part. OSError where the part cannot be read."""
    file = Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    return StorePart(file, rows, path.stat().st_size, _digest(path))


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        status = os.fstat(stream.fileno())
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in _digests:
            digest = hashlib.sha256()
            for place in np.linspace(0, max(0, status.st_size - _PAGE_BYTES), _PAGES).astype(np.int64).tolist():
                stream.seek(place)
                digest.update(stream.read(_PAGE_BYTES))
            _digests[key] = digest.hexdigest()
    return _digests[key]


def write(file: h5py.File, parts: Sequence[StorePart]) -> None:
    """Note the parts of a new store."""
    group = file.create_group(GROUP)
    for name, values in zip(StorePart._fields, zip(*parts, strict=True), strict=True):
        group.create_dataset(name, data=list(values), dtype=_TEXT_TYPE if name in ("file", "digest") else np.int64)


def refer(file: h5py.File, name: str, shape: tuple[int, ...], parts: Sequence[StorePart], dtype: np.dtype[Any]) -> None:
    """Make a dataset of a new store whose rows are those of a dataset of its parts, in order."""
    layout, first = h5py.VirtualLayout(shape, dtype=dtype), 0
    for part in parts:
        layout[first : first + part.rows] = h5py.VirtualSource(part.file, name, (part.rows, *shape[1:]), dtype=dtype)
        first += part.rows
    file.create_virtual_dataset(name, layout)


def _read(file: h5py.File) -> list[StorePart]:
    group = file[GROUP]
    columns = (group[name].asstr()[:] if name in ("file", "digest") else group[name][:] for name in StorePart._fields)
    return [StorePart(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def names(file: h5py.File) -> frozenset[str]:
    """Return the paths of the parts of a store, as its datasets name them."""
    return frozenset(part.file for part in _read(file)) if GROUP in file else frozenset()


def check(file: h5py.File, path: Path) -> list[Path]:
    """Return the paths of the parts of a store.

    Raises
    ------
    StoreError
        If one of them is gone, or is not what it was.
    """
    if GROUP not in file:
        return []
    hint = "Put its parts where they were, or make it again of the parts that there are."
    found = []
    for part in _read(file):
        place = path.resolve().parent / part.file
        if not place.is_file():
            raise StoreError(f"{path} refers to rows of {place}, which is gone.", hint)
        try:
            same = (place.stat().st_size, _digest(place)) == (part.bytes, part.digest)
        except OSError as error:
            message = f"{path} refers to rows of {place}, which cannot be read: {error.strerror}."
            raise StoreError(message, hint) from error
        if not same:
            raise StoreError(f"{path} refers to rows of {place}, which is not the file that it was.", hint)
        found.append(place)
    return found
