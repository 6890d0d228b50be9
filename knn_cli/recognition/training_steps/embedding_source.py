"""The rows that a classifier is trained on, in memory or in a store that may be larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path

import numpy as np

from knn_cli.core.encoded_texts import EncodedTexts
from knn_cli.core.tree_reduction import TreeReduction, reduced_here
from knn_cli.core.values import Doubles, EmbeddingSet, Floats
from knn_cli.recognition.gaussian_statistics import BLOCK_ROWS
from knn_cli.recognition.splitters import Mask
from knn_cli.recognition.training_steps.cross_validation import Indices
from knn_cli.store.hdf5 import Store

MAX_BLOCK_VALUES = 1 << 23  # 32 MiB of float32
LABEL_BLOCK_ROWS = 1 << 15


class EmbeddingSource:
    """Embeddings with their labels, in memory or in a store, which is read block by block.

    The block size depends only on the dimension, so that a store and the same rows in memory give identical results.

    Parameters
    ----------
    rows : EmbeddingSet, Path or str
        Rows in memory, or the path of an embedding store.
    reduce : TreeReduction
        What goes through the rows of a store, here or on a cluster; rows in memory stay here.

    Raises
    ------
    StoreError
        The store cannot be opened, or is of another kind (see `Store`).
    """

    def __init__(self, rows: EmbeddingSet | Path | str, *, reduce: TreeReduction = reduced_here) -> None:
        self._rows = rows if isinstance(rows, EmbeddingSet) else None
        self._path = None if isinstance(rows, EmbeddingSet) else Path(rows)
        self.reduce = reduced_here if isinstance(rows, EmbeddingSet) else reduce
        self.view = slice(None)  # the values of the embedding that are used
        if self._rows is not None:
            self.embedder, self.width, self._count = self._rows.embedder, self._rows.dimension, len(self._rows)
        else:
            with self._open() as store:
                self.embedder, self.width, self._count = store.embedder, store.dimension, len(store)

    def __len__(self) -> int:
        return self._count

    def _open(self) -> Store:
        assert self._path is not None
        return Store(self._path, "embeddings")

    @property
    def dimension(self) -> int:
        """Values of an embedding that are used."""
        return len(range(self.width)[self.view])

    def column(self, level: str) -> EncodedTexts:
        """The labels (N,) of a level, with sorted values."""
        if self._rows is not None:
            return EncodedTexts.from_texts(self._rows.label(level)).sorted()
        with self._open() as store:
            return store.encoded(level).sorted()

    def seconds(self, rows: Indices) -> Doubles:
        """The lengths (n,) in seconds of rows (n,), given in ascending order; NaN if unknown."""
        if self._rows is not None:
            return self._rows.end[rows] - self._rows.start[rows]
        parts = [np.zeros(0)]
        with self._open() as store:
            for first in range(0, len(store), LABEL_BLOCK_ROWS):
                last = first + LABEL_BLOCK_ROWS
                a, b = np.searchsorted(rows, [first, last])
                start, end = store.times(first, last)
                parts.append((end - start)[rows[a:b] - first])
        return np.concatenate(parts)

    @property
    def block_rows(self) -> int:
        """Rows that are read at once."""
        return min(1 << 15, max(BLOCK_ROWS, MAX_BLOCK_VALUES // max(1, self.width) // BLOCK_ROWS * BLOCK_ROWS))

    def blocks(self, wanted: Mask, first: int = 0) -> Iterator[tuple[Indices, Floats]]:
        """Yield row indices (n,) and embeddings (n, D), n > 0, of the rows in the mask `wanted`, in order.

        The mask (M,) begins with the row `first`, a multiple of `block_rows`.
        """
        if self._rows is not None:
            yield from self._blocks(wanted, first, lambda begin, end: self._data[begin:end])
            return
        with self._open() as store:
            yield from self._blocks(wanted, first, store.data)

    def elsewhere(self) -> EmbeddingSource:
        """The same source for other processes, whose working folder may be another."""
        found = copy(self)
        found._path, found.reduce = self._path and self._path.absolute(), reduced_here
        return found

    @property
    def _data(self) -> Floats:
        assert self._rows is not None
        return self._rows.data

    def _blocks(self, wanted: Mask, first: int, read: Callable[[int, int], Floats]) -> Iterator[tuple[Indices, Floats]]:
        size = self.block_rows
        for begin in range(0, len(wanted), size):
            selected = np.flatnonzero(wanted[begin : begin + size])
            if len(selected):
                row = first + begin
                yield row + selected, read(row, row + size)[selected, self.view]

    def take(self, rows: Indices) -> Floats:
        """The embeddings (n, D) of rows (n,), given in ascending order."""
        wanted = np.zeros(len(self), dtype=np.bool_)
        wanted[rows] = True
        parts = [block for _, block in self.blocks(wanted)]
        return np.concatenate(parts) if parts else np.zeros((0, self.dimension), np.float32)


def draw_balanced(codes: Indices, max_rows: int, seed: int) -> Indices:
    """Draw rows, about the same number of every class.

    Parameters
    ----------
    codes : (N,) int array
        The class of each row.
    max_rows : int
        The maximum number of rows; if there are no more, all are drawn.
    seed : int
        Seed of the random draw.

    Returns
    -------
    (n,) int array
        Indices of the rows, ascending. Classes with fewer rows than their share leave the remainder to other classes.
    """
    if len(codes) <= max_rows:
        return np.arange(len(codes))
    rank = np.random.default_rng(seed).permutation(len(codes))
    order = np.lexsort((rank, codes))  # by code, in drawn order within a code
    sizes = np.bincount(codes)
    place = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within its code
    # The share is the largest whose sum does not exceed `max_rows`.
    share, left, others = 0, max_rows, np.sort(sizes[sizes > 0])
    while len(others) and left >= len(others):
        step = min(int(others[0]), left // len(others))
        share, left, others = share + step, left - step * len(others), others - step
        others = others[others > 0]
    return np.sort(order[place < share])
