"""Classifiers of many parts of the same rows, which may be larger than memory, in as few passes as can be.

A cross-validation wants a classifier without each fold. Rows are sorted into cells, the parts that no training set
tells apart; one pass makes the statistics of every cell, and those of a training set are the sum of its cells'
(`GaussianStatistics` is a monoid). Transforms, and class-balanced statistics, whose weights depend on the training set,
are not sums over cells: each training set then has statistics of its own, in the same single pass, behind as many
passes a training set as `transforms.fit_transforms` takes.

Rows come in blocks of a size that the dimension alone decides, so that a store and the same rows in memory give the
same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.values import Doubles, EmbeddingSet, Floats, Texts
from knn_cli.recognition import transforms
from knn_cli.recognition.cross_validation import Column, Indices
from knn_cli.recognition.gaussian_statistics import BLOCK_ROWS, GaussianStatistics
from knn_cli.recognition.glc import GaussianLinearClassifier
from knn_cli.recognition.splits import Mask
from knn_cli.recognition.transforms import TransformChain, TransformSpec
from knn_cli.store.hdf5 import Store

Priors = Literal["empirical"] | Doubles | None

_VALUES_A_BLOCK = 1 << 23  # 32 MiB of float32
_LABELS_A_BLOCK = 1 << 15


class Source:
    """Embeddings with their labels, in memory or in a store; a store is only ever read a block at a time.

    Raises StoreError as `Store`.
    """

    def __init__(self, rows: EmbeddingSet | Path | str) -> None:
        self._rows = rows if isinstance(rows, EmbeddingSet) else None
        self._path = None if isinstance(rows, EmbeddingSet) else Path(rows)
        self.part = slice(None)  # columns of the embedding that are used
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
        return len(range(self.width)[self.part])

    def column(self, level: str) -> Column:
        """(N,) labels of a level."""
        if self._rows is not None:
            return Column.of([self._rows.label(level)])
        with self._open() as store:
            firsts = range(0, len(store), _LABELS_A_BLOCK)
            return Column.of(store.column(level, first, first + _LABELS_A_BLOCK) for first in firsts)

    def seconds(self, rows: Indices) -> Doubles:
        """(n,) how long the rows (n,), ascending, are; NaN where unknown."""
        if self._rows is not None:
            return self._rows.end[rows] - self._rows.start[rows]
        parts = [np.zeros(0)]
        with self._open() as store:
            for first in range(0, len(store), _LABELS_A_BLOCK):
                last = first + _LABELS_A_BLOCK
                a, b = np.searchsorted(rows, [first, last])
                start, end = store.times(first, last)
                parts.append((end - start)[rows[a:b] - first])
        return np.concatenate(parts)

    def blocks(self, wanted: Mask) -> Iterator[tuple[Indices, Floats]]:
        """(row numbers (n,), embeddings (n, D)) of the wanted rows (N,), n > 0, in order."""
        size = min(1 << 15, max(BLOCK_ROWS, _VALUES_A_BLOCK // max(1, self.width) // BLOCK_ROWS * BLOCK_ROWS))
        if self._rows is not None:
            yield from self._blocks(wanted, size, lambda first, last: self._data[first:last])
            return
        with self._open() as store:
            yield from self._blocks(wanted, size, store.data)

    @property
    def _data(self) -> Floats:
        assert self._rows is not None
        return self._rows.data

    def _blocks(self, wanted: Mask, size: int, read: Callable[[int, int], Floats]) -> Iterator[tuple[Indices, Floats]]:
        for first in range(0, len(self), size):
            here = np.flatnonzero(wanted[first : first + size])
            if len(here):
                yield first + here, read(first, first + size)[here, self.part]

    def take(self, rows: Indices) -> Floats:
        """(n, D) embeddings of the rows (n,), ascending."""
        wanted = np.zeros(len(self), dtype=np.bool_)
        wanted[rows] = True
        parts = [block for _, block in self.blocks(wanted)]
        return np.concatenate(parts) if parts else np.zeros((0, self.dimension), np.float32)


@dataclass(frozen=True)
class Options:
    """How classifiers are fitted; see `glc.GaussianLinearClassifier`. priors: by class, or how to count them."""

    balanced: bool = False
    priors: Priors = None
    transforms: tuple[TransformSpec, ...] = ()


@dataclass(frozen=True, eq=False)
class Model:
    """A classifier with what is done to embeddings before, and the pooled statistics behind it where it has them."""

    chain: TransformChain
    classifier: GaussianLinearClassifier
    statistics: GaussianStatistics

    def log_likelihood(self, X: Floats) -> Doubles:
        """(N, C) of embeddings (N, D); not calibrated."""
        return self.classifier.log_likelihood(self.chain.apply(X) if self.chain.steps else X)


def fit(
    source: Source, truth: Indices, classes: Texts, cell: Indices, sets: Sequence[Sequence[int]], options: Options
) -> list[Model]:
    """One model a training set.

    truth : (N,) index into classes; anything where cell is -1
    cell  : (N,) cell of each row, -1 for rows of none
    sets  : the cells of each training set; every class has rows in every set

    Raises KnnError as `GaussianLinearClassifier.fit_statistics` and `transforms.fit_transforms`.
    """
    chains = [TransformChain()] * len(sets)
    if options.transforms:
        chains = [_chain(source, truth, classes, np.isin(cell, one), options) for one in sets]
    if options.transforms or options.balanced:
        found = _apart(source, truth, classes, cell, sets, chains, options.balanced)
    else:
        found = _merged(source, truth, classes, cell, sets)
    classifier = (
        GaussianLinearClassifier(balanced=options.balanced, shrinkage="auto", priors=options.priors) for _ in sets
    )
    return [
        Model(chain, one.fit_statistics(statistics), statistics)
        for chain, one, statistics in zip(chains, classifier, found, strict=True)
    ]


def pooled(source: Source, truth: Indices, classes: Texts, wanted: Mask, chain: TransformChain) -> GaussianStatistics:
    """Pooled statistics of the wanted rows behind a chain, in one pass: what PLDA is fitted on."""
    cell = np.where(wanted, 0, -1)
    return _apart(source, truth, classes, cell, [[0]], [chain], balanced=False)[0]


def _chain(source: Source, truth: Indices, classes: Texts, wanted: Mask, options: Options) -> TransformChain:
    # `GaussianStatistics.empty` counts the labels for weights that balance, and else asks only which there are.
    labels = np.repeat(classes, _counts(truth, wanted, classes)) if options.balanced else classes
    blocks = lambda: ((X, classes[truth[rows]]) for rows, X in source.blocks(wanted))  # noqa: E731
    return transforms.fit_transforms(list(options.transforms), blocks, labels, balanced=options.balanced)


def _counts(truth: Indices, wanted: Mask, classes: Texts) -> NDArray[np.int64]:
    """(C,) wanted rows of each class."""
    return np.bincount(truth[wanted], minlength=len(classes))


def _merged(
    source: Source, truth: Indices, classes: Texts, cell: Indices, sets: Sequence[Sequence[int]]
) -> list[GaussianStatistics]:
    nothing = GaussianStatistics.empty(classes, source.dimension)
    cells = [nothing] * (int(cell.max(initial=-1)) + 1)
    for rows, X in source.blocks(cell >= 0):
        labels, which = classes[truth[rows]], cell[rows]
        for one in np.unique(which).tolist():
            here = which == one
            cells[one] = cells[one].add(X[here], labels[here])
    found = []
    for own in sets:
        total = nothing
        for one in own:
            total = total + cells[one]
        found.append(total)
    return found


def _apart(
    source: Source,
    truth: Indices,
    classes: Texts,
    cell: Indices,
    sets: Sequence[Sequence[int]],
    chains: Sequence[TransformChain],
    balanced: bool,
) -> list[GaussianStatistics]:
    found = []
    for own, chain in zip(sets, chains, strict=True):
        nothing = GaussianStatistics.empty(classes, chain.output_dimension or source.dimension)
        if balanced:
            counts = _counts(truth, np.isin(cell, own), classes)
            nothing = replace(nothing, weights=counts.sum() / (len(classes) * counts))
        found.append(nothing)
    for rows, X in source.blocks(cell >= 0):
        labels, which = classes[truth[rows]], cell[rows]
        for number, (own, chain) in enumerate(zip(sets, chains, strict=True)):
            here = np.isin(which, own)
            if here.any():
                block = chain.apply(X[here]) if chain.steps else X[here]
                found[number] = found[number].add(block, labels[here])
    return found


def draw(codes: Indices, most: int, seed: int) -> Indices:
    """(n,) ascending positions of at most `most` of the codes (N,), drawn so that every code has as many as it can.

    All of them where they are that few. Codes with fewer rows than their share leave the rest of it to the others.
    """
    if len(codes) <= most:
        return np.arange(len(codes))
    rank = np.random.default_rng(seed).permutation(len(codes))
    order = np.lexsort((rank, codes))  # by code, in drawn order within
    sizes = np.bincount(codes)
    place = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within its code
    # The share is the largest whose sum does not pass `most`.
    share, left, others = 0, most, np.sort(sizes[sizes > 0])
    while len(others) and left >= len(others):
        step = min(int(others[0]), left // len(others))
        share, left, others = share + step, left - step * len(others), others - step
        others = others[others > 0]
    return np.sort(order[place < share])
