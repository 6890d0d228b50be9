"""Gaussian linear classifier: one mean a class, one covariance for all, scores by one matrix product.

Martinez, Plchot, Burget, Glembek, Matejka, "Language Recognition in iVectors Space", Interspeech 2011, section 3.1.
The same model is linear discriminant analysis in scikit-learn; the words `fit`, `predict`, `classes_` follow it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg, sparse

from knn_cli.errors import KnnError
from knn_cli.types import Doubles, Texts

BLOCK = 2048  # rows that are worked on at a time: what a processor's cache holds in float64
LOG_2PI = float(np.log(2 * np.pi))


@dataclass(frozen=True)
class Statistics:
    """All that a Gaussian linear classifier needs of its rows; a monoid under `+`, float64, O(C D + D^2).

    classes : (C,) labels, sorted
    weights : (C,) weight of one row of the class in the scatter: 1 pooled, N / (C n_c) balanced
    counts  : (C,) int64 rows of the class
    means   : (C, D) mean of the class
    scatter : (D, D) sum over rows of w_c (x - mean_c)(x - mean_c)'

    Scatters are kept about the class means and merged with the correction of Chan, Golub & LeVeque, "Updating
    Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979, so that a large common offset of the
    rows costs no digits. The weights are fixed before the first row (one pass over the labels, which are small), so
    that balanced statistics need no (C, D, D) array either.
    """

    classes: Texts
    weights: Doubles
    counts: NDArray[np.int64]
    means: Doubles
    scatter: Doubles

    @classmethod
    def empty(cls, labels: ArrayLike, dimension: int, *, balanced: bool = False) -> Statistics:
        """No rows yet, for the rows to come with `labels`: (N,) all of them, those of other processes too."""
        classes, counts = np.unique(np.asarray(labels).astype(np.str_), return_counts=True)
        weights = counts.sum() / (len(classes) * counts) if balanced else np.ones(len(classes))
        zeros = np.zeros((len(classes), dimension))
        return cls(classes, weights, np.zeros(len(classes), np.int64), zeros, np.zeros((dimension, dimension)))

    @classmethod
    def of(cls, X: ArrayLike, y: ArrayLike, *, balanced: bool = False) -> Statistics:
        """The statistics of rows X: (N, D) with labels y: (N,), gone through in blocks of BLOCK rows.

        A caller that streams the same blocks through `add` gets the same bits.
        """
        rows, labels = np.asarray(X), np.asarray(y).astype(np.str_)
        if rows.ndim != 2 or labels.shape != rows.shape[:1]:
            raise KnnError(f"Rows of shape {rows.shape} and labels of shape {labels.shape} do not go together.")
        statistics = cls.empty(labels, rows.shape[1], balanced=balanced)
        for first in range(0, len(rows), BLOCK):
            statistics = statistics.add(rows[first : first + BLOCK], labels[first : first + BLOCK])
        return statistics

    @property
    def rows(self) -> int:
        return int(self.counts.sum())

    @property
    def dimension(self) -> int:
        return int(self.means.shape[1])

    def add(self, X: ArrayLike, y: ArrayLike) -> Statistics:
        """With one more block of rows X: (n, D), labels y: (n,).

        Raises KnnError for NaN or infinite rows, another dimension, or a label that was not announced in `empty`.
        """
        rows, codes = _block(X, self.dimension), class_codes(y, self.classes)
        members = sparse.csr_array(
            (np.ones(len(rows)), codes, np.arange(len(rows) + 1)), (len(rows), len(self.classes))
        )
        counts = np.bincount(codes, minlength=len(self.classes))
        means = (members.T @ rows) / np.maximum(counts, 1)[:, None]  # (C, D)
        centred = rows - means[codes]
        if np.any(self.weights != 1):
            centred *= np.sqrt(self.weights)[codes][:, None]
        return self + replace(self, counts=counts, means=means, scatter=centred.T @ centred)

    def __add__(self, other: Statistics) -> Statistics:
        """The statistics of both sets of rows. ValueError unless both were made for the same classes and weights."""
        if not np.array_equal(self.classes, other.classes) or not np.array_equal(self.weights, other.weights):
            raise ValueError("statistics merge only when they were made for the same classes and weights")
        counts = self.counts + other.counts
        share = other.counts / np.maximum(counts, 1)
        shift = other.means - self.means  # (C, D)
        between = np.sqrt(self.weights * self.counts * share)[:, None] * shift
        return replace(
            self,
            counts=counts,
            means=self.means + share[:, None] * shift,
            scatter=self.scatter + other.scatter + between.T @ between,
        )


class GaussianLinearClassifier:
    """p(x | c) = N(x; mean_c, covariance), with one within-class covariance for all classes.

    balanced  : False: the covariance is pooled over all rows (maximum likelihood, divisor N). True: the mean of the
                classes' own covariances, so that a class with many rows does not outweigh the others.
    shrinkage : s in [0, 1] replaces the covariance S by (1 - s) S + s tr(S)/D I. "auto" takes s from the
                oracle-approximating formula (`oas_shrinkage`): close to 0 for many rows, and what keeps the inverse
                sane where rows are fewer than some five times the dimension. It supposes independent rows; the
                segments of one recording are not, so that it shrinks rather too little than too much.
    priors    : None: all classes alike; "empirical": by their counts; or (C,) positive weights in the order of
                `classes_`. They count in `decision_function`, `predict` and `predict_proba`, not in `log_likelihood`.

    After `fit`: classes_ (C,) sorted str, counts_ (C,) int64, means_ (C, D), covariance_ (D, D) shrunk, shrinkage_
    float, priors_ (C,), and coef_ (C, D), intercept_ (C,) with decision_function(X) = X coef_' + intercept_.
    Labels are turned into text, so numbers sort as text does ("10" < "9").
    """

    def __init__(
        self,
        *,
        balanced: bool = False,
        shrinkage: float | Literal["auto"] = 0.0,
        priors: Literal["empirical"] | Sequence[float] | Doubles | None = None,
    ) -> None:
        self.balanced = balanced
        self.shrinkage = shrinkage
        self.priors = priors

    def fit(self, X: ArrayLike, y: ArrayLike) -> GaussianLinearClassifier:
        """Learn from rows X: (N, D) with labels y: (N,). Raises what `Statistics.add` and `fit_statistics` raise."""
        return self.fit_statistics(Statistics.of(X, y, balanced=self.balanced))

    def fit_statistics(self, statistics: Statistics) -> GaussianLinearClassifier:
        """Learn from statistics, which may come from several passes, blocks or processes.

        Raises KnnError for fewer than two classes, a class without rows, or a covariance that has no inverse;
        ValueError for statistics that were weighted otherwise than `balanced` says.
        """
        counts, rows, dimension = statistics.counts, statistics.rows, statistics.dimension
        if len(counts) < 2:
            found = ", ".join(map(repr, statistics.classes.tolist())) or "none"
            raise KnnError(
                f"A classifier needs at least two classes, there are: {found}.", "Choose another label level."
            )
        if not counts.all():
            raise KnnError(
                f"The class {str(statistics.classes[counts == 0][0])!r} has no rows.", "Leave it out, or add rows."
            )
        expected = rows / (len(counts) * counts) if self.balanced else np.ones(len(counts))
        if not np.allclose(statistics.weights, expected, rtol=1e-9):
            raise ValueError("the statistics' class weights are not those of their counts; see Statistics.empty")
        covariance = statistics.scatter / rows
        shrinkage = self.shrinkage
        if shrinkage == "auto":
            # Kish's effective number of rows under the class weights, less one a class for its mean.
            effective = rows**2 / float(statistics.weights**2 @ counts) * (1 - len(counts) / rows)
            shrinkage = oas_shrinkage(covariance, effective)
        if not isinstance(shrinkage, int | float) or not 0 <= shrinkage <= 1:
            raise KnnError(f"The shrinkage {self.shrinkage!r} is not auto and not a number from 0 to 1.")
        level = np.trace(covariance) / dimension
        covariance = (1 - shrinkage) * covariance
        covariance[np.diag_indices(dimension)] += shrinkage * level
        return self._set(statistics.classes, counts, statistics.means, covariance, float(shrinkage))

    @classmethod
    def restored(
        cls,
        *,
        classes: Texts,
        counts: NDArray[np.int64],
        means: Doubles,
        covariance: Doubles,
        priors: Doubles,
        balanced: bool,
        shrinkage: float,
    ) -> GaussianLinearClassifier:
        """The classifier that had these values after `fit` (`covariance` shrunk already): the same log-likelihoods."""
        return cls(balanced=balanced, shrinkage=shrinkage, priors=priors)._set(
            classes, counts, means, covariance, shrinkage
        )

    def _resolve_priors(self, counts: NDArray[np.int64]) -> Doubles:
        if self.priors is None:
            return np.full(len(counts), 1 / len(counts))
        if isinstance(self.priors, str):
            if self.priors != "empirical":
                raise KnnError(f"The priors {self.priors!r} are not empirical and not numbers.")
            return np.asarray(counts / counts.sum())
        priors = np.asarray(self.priors, dtype=np.float64)
        if priors.shape != counts.shape or not np.isfinite(priors).all() or (priors <= 0).any():
            raise KnnError(f"There are {len(counts)} classes: the priors must be as many positive numbers.")
        return np.asarray(priors / priors.sum())

    def _set(
        self, classes: Texts, counts: NDArray[np.int64], means: Doubles, covariance: Doubles, shrinkage: float
    ) -> GaussianLinearClassifier:
        """Take the learned values and work out what scoring needs: one Cholesky factor."""
        dimension = means.shape[1]
        try:
            factor = linalg.cholesky(covariance, lower=True)
            # Squared pivots are residual variances: relative to the variance itself they do not depend on scale.
            singular = bool((np.diag(factor) ** 2 <= 10 * dimension * np.finfo(float).eps * np.diag(covariance)).any())
        except linalg.LinAlgError:
            singular = True
        if singular:
            raise KnnError(
                f"The within-class covariance of {counts.sum()} rows in {dimension} dimensions has no inverse.",
                "Use shrinkage (auto, or 0.1), or more rows than dimensions, several a class.",
            )
        priors = self._resolve_priors(counts)
        self.classes_, self.counts_, self.means_ = classes, counts, means
        self.covariance_, self.shrinkage_, self.priors_ = covariance, shrinkage, priors
        self._centre = means.mean(axis=0)  # densities are worked out about it, so that offsets cost no digits
        centred = means - self._centre
        self.coef_: Doubles = linalg.cho_solve((factor, True), centred.T).T  # (C, D)
        self._bias = -0.5 * np.einsum("cd,cd->c", centred, self.coef_)
        self.intercept_: Doubles = self._bias + np.log(priors) - self.coef_ @ self._centre
        self._whitener = linalg.solve_triangular(factor, np.eye(dimension), lower=True)
        self._normaliser = -0.5 * dimension * LOG_2PI - float(np.log(np.diag(factor)).sum())
        return self

    def _scores(self, X: ArrayLike, *, density: bool) -> Doubles:
        """log_likelihood (`density`), or decision_function."""
        if not hasattr(self, "coef_"):
            raise RuntimeError("the classifier is not fitted")
        rows = np.asarray(X)
        scores = np.empty((len(rows), len(self.classes_)))
        for first in range(0, len(rows), BLOCK):
            block, out = _block(rows[first : first + BLOCK], self.coef_.shape[1]), scores[first : first + BLOCK]
            if density:
                block = block - self._centre
                np.matmul(block, self.coef_.T, out=out)
                out += self._bias
                white = block @ self._whitener.T  # (n, D)
                out += (self._normaliser - 0.5 * np.einsum("nd,nd->n", white, white))[:, None]
            else:
                np.matmul(block, self.coef_.T, out=out)
                out += self.intercept_
        return scores

    def log_likelihood(self, X: ArrayLike) -> Doubles:
        """(N, C) float64: log N(x; mean_c, covariance_), natural logarithm, the whole density with its constants.

        Differences within a row tell classes apart; the level of a row tells how well any class explains it, which
        open-set decisions need. The level costs a second matrix product, which `decision_function` saves.
        Raises KnnError for another dimension than that of the training rows, or NaN or infinite rows.
        """
        return self._scores(X, density=True)

    def decision_function(self, X: ArrayLike) -> Doubles:
        """(N, C) float64: log posteriors up to a constant a row; one matrix product. Also for two classes (N, 2)."""
        return self._scores(X, density=False)

    def predict(self, X: ArrayLike) -> Texts:
        """(N,) the likeliest class of each row."""
        best = self.decision_function(X).argmax(axis=1)
        return np.asarray(self.classes_[best])

    def predict_proba(self, X: ArrayLike) -> Doubles:
        """(N, C) posteriors under `priors_`; not calibrated."""
        scores = self.decision_function(X)
        for first in range(0, len(scores), BLOCK):
            block = scores[first : first + BLOCK]
            block -= block.max(axis=1, keepdims=True)
            np.exp(block, out=block)
            block /= block.sum(axis=1, keepdims=True)
        return scores


def oas_shrinkage(covariance: Doubles, rows: float) -> float:
    """The weight in [0, 1] of the scaled identity, from the covariance alone.

    Chen, Wiesel, Eldar, Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", IEEE TSP 58(10), 2010, eq. 23.
    `covariance` is (D, D), divisor N; `rows` the number of independent rows behind it.
    """
    dimension = len(covariance)
    square, trace2 = float(np.sum(covariance**2)), float(np.trace(covariance)) ** 2  # tr(S S), tr(S)^2
    above = (1 - 2 / dimension) * square + trace2
    below = (rows + 1 - 2 / dimension) * (square - trace2 / dimension)
    return min(1.0, max(0.0, above / below)) if below > 0 else 1.0


def class_codes(labels: ArrayLike, classes: Texts) -> NDArray[np.int64]:
    """(N,) index of each label in the sorted `classes`; KnnError for a label that is not there."""
    texts = np.asarray(labels).astype(np.str_)
    codes = np.minimum(np.searchsorted(classes, texts), len(classes) - 1)
    if (strange := classes[codes] != texts).any():
        raise KnnError(f"The label {str(texts[strange][0])!r} is none of the {len(classes)} classes.")
    return codes.astype(np.int64)


def cross_log_likelihood(
    classifier: GaussianLinearClassifier,
    X: ArrayLike,
    y: ArrayLike,
    folds: Iterable[tuple[NDArray[np.bool_], NDArray[np.bool_]]],
) -> Doubles:
    """(N, C) log-likelihoods of every row under a classifier that was fitted without its fold.

    `classifier` gives the options only; `folds` are (train, test) masks that cover all rows and leave every class in
    every train mask (`split.folds`). Calibration may be fitted on the result, and the classifier on all rows.
    """
    rows, labels = np.asarray(X), np.asarray(y).astype(np.str_)
    classes = np.unique(labels)
    scores = np.full((len(rows), len(classes)), np.nan)
    for train, test in folds:
        part = GaussianLinearClassifier(balanced=classifier.balanced, shrinkage=classifier.shrinkage)
        part.fit(rows[train], labels[train])
        if not np.array_equal(part.classes_, classes):
            raise KnnError("A fold holds all rows of a class, so that none is left to train it.", "Use split.folds.")
        scores[test] = part.log_likelihood(rows[test])
    if np.isnan(scores).any():
        raise ValueError("the folds do not cover all rows")
    return scores


def _block(X: ArrayLike, dimension: int) -> Doubles:
    """Rows (n, D) in float64, not copied where they are that already; KnnError for another D, NaN or infinity."""
    rows = np.asarray(X, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != dimension:
        raise KnnError(
            f"The classifier takes rows of {dimension} dimensions, these have {rows.shape[-1] if rows.ndim else 0}.",
            "Use embeddings of the model that the classifier was trained with.",
        )
    with np.errstate(invalid="ignore", over="ignore"):
        suspect = not np.isfinite(rows.sum())  # one pass without a copy; looked at closely only where need be
    if suspect and (bad := int(np.sum(~np.isfinite(rows).all(axis=1)))):
        raise KnnError(
            f"NaN or infinite values in {bad} of {len(rows)} embeddings.",
            "Leave these rows out, or embed their recordings again.",
        )
    return rows
