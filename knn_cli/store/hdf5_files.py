"""New HDF5 files, which meet a full disk outside libhdf5.

libhdf5 cannot let go of a file that it cannot write: a chunk that does not fit is lost in silence or closes with an
error, and the process crashes when it ends. So files are made in memory and written in one go; large ones are made on
the disk, in space that is taken for them before. Both cost no time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from knn_cli.core.atomic import replacing
from knn_cli.core.output_records import OutputTask

MAX_MEMORY_BYTES = 256 << 20  # of a file that is made in memory

_GROWTH_BYTES = 1 << 20
_SPARE_BYTES = 4 << 20
_SPARE_SHARE = 0.05


@contextmanager
def new_hdf5(path: str | Path, size: int = 0, *, task: OutputTask | None = None) -> Iterator[h5py.File]:
    """Yield an HDF5 file to fill, which replaces `path` if the block succeeds; see `atomic.replacing`.

    Parameters
    ----------
    path : path
    size : int
        As of `filling_hdf5`.
    task : OutputTask, optional
        See `atomic.replacing`.

    Raises
    ------
    KnnError
        If the file cannot be written.
    """
    with replacing(path, task=task) as part, filling_hdf5(part, size) as file:
        yield file


@contextmanager
def filling_hdf5(path: Path, size: int = 0) -> Iterator[h5py.File]:
    """Yield an HDF5 file to fill, which is written to `path` when the block ends.

    Parameters
    ----------
    path : Path
        A new file, such as `atomic.replacing` makes.
    size : int
        Bytes that it will hold, roughly; with more than `MAX_MEMORY_BYTES` it is made on the disk.

    Raises
    ------
    OSError
        If there is no space for it.
    """
    if size <= MAX_MEMORY_BYTES:
        with hdf5_image() as (file, images):
            yield file
        path.write_bytes(images[0])
        return
    with hdf5_image() as (_, images):
        pass
    with path.open("wb") as stream:
        stream.write(images[0])
        stream.flush()
        _reserve(stream.fileno(), size + round(_SPARE_SHARE * size) + _SPARE_BYTES)
    with h5py.File(path, "r+") as file:  # gives back what it does not need
        yield file


@contextmanager
def hdf5_image() -> Iterator[tuple[h5py.File, list[bytes]]]:
    """Yield an HDF5 file in memory to fill, and a list that holds its bytes after the block."""
    images: list[bytes] = []
    # No two files in memory may share their name while they are open.
    with h5py.File(f"{id(images)}", "w", driver="core", backing_store=False, block_size=_GROWTH_BYTES) as file:
        yield file, images
        file.flush()
        images.append(file.id.get_file_image())


def _reserve(file: int, size: int) -> None:
    """Take space on the disk for a file. OSError if there is not so much."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    zeros = bytes(_GROWTH_BYTES)
    os.lseek(file, 0, os.SEEK_END)
    for _ in range(0, size, len(zeros)):
        os.write(file, zeros)
