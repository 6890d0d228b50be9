"""Classifiers of many training sets of the same rows, which may be larger than memory, in as few passes as possible.

A cross-validation needs a classifier without each fold. Rows are sorted into cells, the groups that no training set
tells apart; one pass computes the statistics of every cell, and those of a training set are the sum of its cells'.
Transforms, and class-balanced statistics, whose weights depend on the training set, are not sums over cells: each
training set then has statistics of its own, made in one pass after as many passes per training set as
`transforms.fit_transforms` takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
        chains = [_fit_chain(rows, np.isin(rows.cell, cells), options) for cells in training_sets]
    if options.transforms or options.balanced:
        statistics = _statistics_of_each(rows, training_sets, chains, options.balanced)
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


def _fit_chain(rows: FitRows, wanted: Mask, options: FitOptions) -> TransformChain:
    """The transforms, learnt from the wanted rows (N,)."""
    # `GaussianStatistics.empty` counts the labels for weights that balance, and else asks only which there are.
    counts = _class_counts(rows, wanted)
    labels = np.repeat(rows.classes, counts) if options.balanced else rows.classes

    def blocks() -> Iterator[tuple[Floats, Texts]]:
        for numbers, X in rows.source.blocks(wanted):
            yield X, rows.classes[rows.truth[numbers]]

    return transforms.fit_transforms(list(options.transforms), blocks, labels, balanced=options.balanced)


def _class_counts(rows: FitRows, wanted: Mask) -> NDArray[np.int64]:
    """(C,) wanted rows of each class."""
    return np.bincount(rows.truth[wanted], minlength=len(rows.classes))


def _statistics_by_cells(rows: FitRows, training_sets: Sequence[Sequence[int]]) -> list[GaussianStatistics]:
    """GaussianStatistics of each training set as the sum of its cells'."""
    empty = GaussianStatistics.empty(rows.classes, rows.source.dimension)
    of_cell = [empty] * (int(rows.cell.max(initial=-1)) + 1)
    for numbers, X in rows.source.blocks(rows.cell >= 0):
        labels, cells = rows.classes[rows.truth[numbers]], rows.cell[numbers]
        for cell in np.unique(cells).tolist():
            inside = cells == cell
            of_cell[cell] = of_cell[cell].add(X[inside], labels[inside])
    totals = []
    for training_set in training_sets:
        total = empty
        for cell in training_set:
            total = total + of_cell[cell]
        totals.append(total)
    return totals


def _statistics_of_each(
    rows: FitRows, training_sets: Sequence[Sequence[int]], chains: Sequence[TransformChain], balanced: bool
) -> list[GaussianStatistics]:
    """GaussianStatistics of each training set behind its chain, for what is no sum over cells."""
    totals = []
    for training_set, chain in zip(training_sets, chains, strict=True):
        empty = GaussianStatistics.empty(rows.classes, chain.output_dimension or rows.source.dimension)
        if balanced:
            counts = _class_counts(rows, np.isin(rows.cell, training_set))
            empty = replace(empty, weights=counts.sum() / (len(rows.classes) * counts))
        totals.append(empty)
    for numbers, X in rows.source.blocks(rows.cell >= 0):
        labels, cells = rows.classes[rows.truth[numbers]], rows.cell[numbers]
        for place, (training_set, chain) in enumerate(zip(training_sets, chains, strict=True)):
            inside = np.isin(cells, training_set)
            if inside.any():
                block = chain.apply(X[inside]) if chain.steps else X[inside]
                totals[place] = totals[place].add(block, labels[inside])
    return totals
