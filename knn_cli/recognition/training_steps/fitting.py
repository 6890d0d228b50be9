"""Classifiers of many training sets of the same rows, which may be larger than memory, in as few passes as possible.

A cross-validation needs a classifier without each fold. Rows are sorted into cells, the groups that no training set
tells apart; one pass computes the statistics of every cell, and those of a training set are the sum of its cells'.
Transforms, and class-balanced statistics, whose weights depend on the training set, are not sums over cells: each
training set then has statistics of its own, made in one pass after as many passes per training set as
`transforms.fit_transforms` takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.values import Doubles, Floats, Texts
from knn_cli.recognition import transforms
from knn_cli.recognition.gaussian_statistics import GaussianStatistics
from knn_cli.recognition.glc import GaussianLinearClassifier, Shrinkage
from knn_cli.recognition.splitters import Mask
from knn_cli.recognition.training_steps.cross_validation import Indices
from knn_cli.recognition.training_steps.embedding_source import EmbeddingSource
from knn_cli.recognition.transforms import TransformChain, TransformSpec

LEAF_BLOCKS = 8  # of the source, whose statistics are collected one after the other

Priors = Literal["empirical"] | Doubles | None


@dataclass(frozen=True)
class FitOptions:
    """How classifiers are fitted.

    Parameters
    ----------
    balanced : bool
        Average the within-class covariance over classes, not rows (see `glc.GaussianLinearClassifier`).
    priors : (C,) array, "empirical" or None
        See `glc.GaussianLinearClassifier`.
    shrinkage : float or "auto"
        See there.
    transforms : tuple of TransformSpec
        Steps before the classifier, learnt anew for each training set.
    """

    balanced: bool = False
    priors: Priors = None
    shrinkage: Shrinkage = "auto"
    transforms: tuple[TransformSpec, ...] = ()


@dataclass(frozen=True, eq=False)
class UncalibratedClassifier:
    """A classifier of one training set.

    Attributes
    ----------
    chain : TransformChain
        Transforms of embeddings before the classifier.
    classifier : GaussianLinearClassifier
    statistics : GaussianStatistics
        What it was fitted to.
    """

    chain: TransformChain
    classifier: GaussianLinearClassifier
    statistics: GaussianStatistics

    def log_likelihood(self, X: Floats) -> Doubles:
        """(N, C) of embeddings (N, D); not calibrated."""
        return self.classifier.log_likelihood(self.chain.apply(X) if self.chain.steps else X)


@dataclass(frozen=True, eq=False)
class FitRows:
    """The rows of all training sets.

    Attributes
    ----------
    source : EmbeddingSource
    truth : (N,) int array
        Index into `classes`; of any value where `cell` is -1.
    classes : (C,) str array
        Sorted.
    cell : (N,) int array
        The cell of each row, -1 for rows of no training set.
    """

    source: EmbeddingSource
    truth: Indices
    classes: Texts
    cell: Indices


def fit_classifiers(
    rows: FitRows, training_sets: Sequence[Sequence[int]], options: FitOptions
) -> list[UncalibratedClassifier]:
    """Fit a classifier to each training set.

    Parameters
    ----------
    rows : FitRows
        The rows, sorted into cells.
    training_sets : sequence of sequences of int
        The cells of each training set; every class has rows in every set.
    options : FitOptions
        How they are fitted.

    Returns
    -------
    list of UncalibratedClassifier
        In the order of `training_sets`.

    Raises
    ------
    KnnError
        As `GaussianLinearClassifier.fit_statistics` and `transforms.fit_transforms`.
    """
    chains = [TransformChain()] * len(training_sets)
    if options.transforms:
        chains = [_fit_chain(rows, cells, options) for cells in training_sets]
    if options.transforms or options.balanced:
        statistics = _statistics_of_each(rows, training_sets, chains, balanced=options.balanced)
    else:
        statistics = _statistics_by_cells(rows, training_sets)
    return [
        UncalibratedClassifier(
            chain,
            GaussianLinearClassifier(
                balanced=options.balanced, shrinkage=options.shrinkage, priors=options.priors
            ).fit_statistics(own),
            own,
        )
        for chain, own in zip(chains, statistics, strict=True)
    ]


def pooled_statistics(rows: FitRows, chain: TransformChain) -> GaussianStatistics:
    """Pooled statistics of all rows that have a cell, behind a chain, in one pass: what PLDA is fitted to."""
    one_cell = replace(rows, cell=np.where(rows.cell >= 0, 0, -1))
    return _statistics_of_each(one_cell, [[0]], [chain], balanced=False)[0]


def _fit_chain(rows: FitRows, cells: Sequence[int], options: FitOptions) -> TransformChain:
    """The transforms, learnt from the rows of some cells."""
    return transforms.learnt_transforms(
        options.transforms,
        lambda chain: _statistics_of_each(rows, [cells], [chain], balanced=options.balanced)[0],
    )


def _class_counts(rows: FitRows, wanted: Mask) -> NDArray[np.int64]:
    """(C,) wanted rows of each class."""
    return np.bincount(rows.truth[wanted], minlength=len(rows.classes))


def _statistics_by_cells(rows: FitRows, training_sets: Sequence[Sequence[int]]) -> list[GaussianStatistics]:
    """GaussianStatistics of each training set as the sum of its cells'."""
    cells = [[cell] for cell in range(int(rows.cell.max(initial=-1)) + 1)]
    of_cell = _statistics_of_each(rows, cells, [TransformChain()] * len(cells), balanced=False)
    empty = GaussianStatistics.empty(rows.classes, rows.source.dimension)
    return [sum((of_cell[cell] for cell in training_set), start=empty) for training_set in training_sets]


@dataclass(frozen=True, eq=False)
class _Wanted:
    """What is collected in a pass: the statistics of some cells, behind a chain, with weights of the classes."""

    cells: Sequence[int]
    chain: TransformChain
    weights: Doubles


@dataclass(frozen=True, eq=False)
class _Leaf:
    """Consecutive rows, from `first` on, with their classes and cells (n,)."""

    first: int
    truth: Indices
    cell: Indices


def _statistics_of_each(
    rows: FitRows,
    training_sets: Sequence[Sequence[int]],
    chains: Sequence[TransformChain],
    *,
    balanced: bool,
) -> list[GaussianStatistics]:
    """GaussianStatistics of each training set behind its chain, in one pass over the rows.

    Leaves are of so many rows whatever does the work, and merged in a tree that their number determines, so that the
    result is the same for any number of workers.
    """
    wanted = []
    for cells, chain in zip(training_sets, chains, strict=True):
        weights = np.ones(len(rows.classes))
        if balanced:
            counts = _class_counts(rows, np.isin(rows.cell, cells))
            weights = counts.sum() / (len(rows.classes) * counts)
        wanted.append(_Wanted(cells, chain, weights))
    size = LEAF_BLOCKS * rows.source.block_rows
    firsts = range(0, max(1, len(rows.cell)), size)
    leaves = (_Leaf(first, rows.truth[first : first + size], rows.cell[first : first + size]) for first in firsts)
    return rows.source.reduce(partial(_collect, rows.source.elsewhere(), rows.classes, wanted), leaves, _merge)


def _collect(
    source: EmbeddingSource, classes: Texts, wanted: Sequence[_Wanted], leaf: _Leaf
) -> list[GaussianStatistics]:
    """The statistics of the rows of a leaf, perhaps in a worker."""
    totals = []
    for one in wanted:
        empty = GaussianStatistics.empty(classes, one.chain.output_dimension or source.dimension)
        totals.append(replace(empty, weights=one.weights))
    for numbers, X in source.blocks(leaf.cell >= 0, leaf.first):
        places = numbers - leaf.first
        labels, cells = classes[leaf.truth[places]], leaf.cell[places]
        for place, one in enumerate(wanted):
            inside = np.isin(cells, one.cells)
            if inside.any():
                block = one.chain.apply(X[inside]) if one.chain.steps else X[inside]
                totals[place] = totals[place].add(block, labels[inside])
    return totals


def _merge(left: list[GaussianStatistics], right: list[GaussianStatistics]) -> list[GaussianStatistics]:
    return [one + other for one, other in zip(left, right, strict=True)]
