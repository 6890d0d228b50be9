"""Gaussian linear classifier: one mean a class, one covariance for all, scores by one matrix product.

Martinez, Plchot, Burget, Glembek, Matejka, "Language Recognition in iVectors Space", Interspeech 2011, section 3.1.
The same model is linear discriminant analysis in scikit-learn; the words `fit`, `predict`, `classes_` follow it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg, sparse
from scipy.linalg import blas

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, Texts

BLOCK = 16384  # rows that are added at a time, one correction for all of them: what to stream
CHUNK = 1024  # rows that are worked on at a time: what a processor's cache holds in float64
LANES = 16  # columns of scores come in multiples of it: matrix products are slow at ragged edges
TINY = 1e-250  # sums of odds above have lost no digits to underflow
LEAST = 1 / 16  # of the spread about the pivot that is left about the means: below, digits are lost
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
        found = Counter(np.asarray(labels).astype(np.str_, copy=False).reshape(-1).tolist())
        classes = np.asarray(sorted(found), dtype=np.str_)
        counts = np.asarray([found[one] for one in sorted(found)], dtype=np.int64)
        weights = counts.sum() / (len(classes) * counts) if balanced else np.ones(len(classes))
        zeros = np.zeros((len(classes), dimension))
        return cls(classes, weights, np.zeros(len(classes), np.int64), zeros, np.zeros((dimension, dimension)))

    @classmethod
    def of(cls, X: ArrayLike, y: ArrayLike, *, balanced: bool = False) -> Statistics:
        """The statistics of rows X: (N, D) with labels y: (N,), gone through in blocks of BLOCK rows.

        A caller that streams the same blocks through `add` gets the same bits.
        """
        rows, labels = np.asarray(X), np.asarray(y).astype(np.str_, copy=False)
        if rows.ndim != 2 or labels.shape != rows.shape[:1]:
            raise KnnError(f"Rows of shape {rows.shape} and labels of shape {labels.shape} do not go together.")
        statistics = cls.empty(labels, rows.shape[1], balanced=balanced)
        codes = class_codes(labels, statistics.classes)
        for first in range(0, len(rows), BLOCK):
            statistics = statistics._add(rows[first : first + BLOCK], codes[first : first + BLOCK])
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
        rows, codes = _shaped(X, self.dimension), class_codes(y, self.classes)
        if codes.shape != rows.shape[:1]:
            raise KnnError(f"Rows of shape {rows.shape} and labels of shape {codes.shape} do not go together.")
        return self._add(rows, codes)

    def _add(self, rows: NDArray[Any], codes: NDArray[np.int64]) -> Statistics:
        counts = np.bincount(codes, minlength=len(self.classes))
        size = np.maximum(counts, 1)[:, None]
        # About one point near all rows: one pass and no copy. Where the classes lie so far apart that the difference
        # of the two squares would cost digits, about the means that it found: the corrected two-pass algorithm.
        some = rows[:: max(1, len(rows) // 256)]
        with np.errstate(invalid="ignore", over="ignore"):
            means = np.asarray(np.sum(some, axis=0, dtype=np.float64) / max(len(some), 1))
        scatter = left = products = np.zeros(0)
        for _ in range(2):
            sums, products = self._moments(rows, codes, means)
            if not np.isfinite(sums).all():
                _refuse_bad(rows)
            means = means + sums / size  # (C, D)
            left = np.sqrt(self.weights[:, None] / size) * sums
            scatter = products - left.T @ left
            if (np.diag(scatter) >= LEAST * np.diag(products)).all():
                break
        return self + replace(self, counts=counts, means=means, scatter=scatter)

    def _moments(self, rows: NDArray[Any], codes: NDArray[np.int64], about: Doubles) -> tuple[Doubles, Doubles]:
        """Of rows (n, D) less a point (D,) or their class's (C, D): sums (C, D), weighted second moment (D, D)."""
        sums, products = np.zeros(self.means.shape), np.zeros(self.scatter.shape, order="F")
        buffer = np.empty((CHUNK, self.dimension))
        roots = np.sqrt(self.weights) if np.any(self.weights != 1) else None
        with np.errstate(invalid="ignore", over="ignore"):  # the caller looks at the sums
            for first in range(0, len(rows), CHUNK):
                own = codes[first : first + CHUNK]
                chunk = buffer[: len(own)]
                np.copyto(chunk, rows[first : first + CHUNK])
                chunk -= about if about.ndim == 1 else about[own]
                shape = len(own), len(self.classes)
                sums += sparse.csr_array((np.ones(len(own)), own, np.arange(len(own) + 1)), shape).T @ chunk
                if roots is not None:
                    chunk *= roots[own][:, None]
                products = blas.dsyrk(1.0, chunk.T, beta=1.0, c=products, overwrite_c=1)  # upper triangle
        return sums, np.triu(products) + np.triu(products, 1).T

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
        factor = cholesky(covariance)
        if factor is None:
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
        self._weights = np.zeros((dimension + 1, -(-len(means) // LANES) * LANES))
        self._weights[:-1, : len(means)] = self.coef_.T
        self._weights[-1, : len(means)] = self.intercept_
        self._whitener = np.asfortranarray(linalg.solve_triangular(factor, np.eye(dimension), lower=True))
        self._normaliser = -0.5 * dimension * LOG_2PI - float(np.log(np.diag(factor)).sum())
        return self

    def _fitted(self) -> Doubles:
        if not hasattr(self, "coef_"):
            raise RuntimeError("the classifier is not fitted")
        return self.coef_

    def _chunks(self, X: ArrayLike, *, density: bool = False) -> Iterator[tuple[slice, Doubles]]:
        """CHUNK rows after CHUNK rows: which, and their (n, C) log densities or decision function, to be written to."""
        classes, dimension = self._fitted().shape
        rows = _shaped(X, dimension)
        scores = np.empty((CHUNK, self._weights.shape[1]))
        if density:
            buffer, weights = np.empty((CHUNK, dimension)), self._weights[:-1]
        else:  # a column of ones takes the intercept along
            buffer, weights = np.ones((CHUNK, dimension + LANES))[:, : dimension + 1], self._weights
        for first in range(0, len(rows), CHUNK):
            where = slice(first, min(first + CHUNK, len(rows)))
            chunk, wide = buffer[: where.stop - first], scores[: where.stop - first]
            np.copyto(chunk[:, :dimension], rows[where])
            with np.errstate(invalid="ignore", over="ignore"):
                if density:
                    chunk -= self._centre
                np.matmul(chunk, weights, out=wide)
                if not np.isfinite(wide[:, 0].sum()):  # NaN and infinity spoil every score of their row
                    _refuse_bad(rows)
            out = wide[:, :classes]
            if density:
                out += self._bias
                white = blas.dtrmm(1.0, self._whitener, chunk.T, lower=1, overwrite_b=1).T  # (n, D)
                out += (self._normaliser - 0.5 * np.einsum("nd,nd->n", white, white))[:, None]
            yield where, out

    def log_likelihood(self, X: ArrayLike) -> Doubles:
        """(N, C) float64: log N(x; mean_c, covariance_), natural logarithm, the whole density with its constants.

        Differences within a row tell classes apart; the level of a row tells how well any class explains it, which
        open-set decisions need. The level costs a second matrix product, which `decision_function` saves.
        Raises KnnError for another dimension than that of the training rows, or NaN or infinite rows.
        """
        scores = np.empty((len(np.asarray(X)), len(self._fitted())))
        for where, chunk in self._chunks(X, density=True):
            scores[where] = chunk
        return scores

    def decision_function(self, X: ArrayLike) -> Doubles:
        """(N, C) float64: log posteriors up to a constant a row; one matrix product. Also for two classes (N, 2)."""
        scores = np.empty((len(np.asarray(X)), len(self._fitted())))
        for where, chunk in self._chunks(X):
            scores[where] = chunk
        return scores

    def predict(self, X: ArrayLike) -> Texts:
        """(N,) the likeliest class of each row."""
        best = np.empty(len(np.asarray(X)), dtype=np.int64)
        for where, chunk in self._chunks(X):
            best[where] = chunk.argmax(axis=1)
        return np.asarray(self.classes_[best])

    def predict_proba(self, X: ArrayLike) -> Doubles:
        """(N, C) posteriors under `priors_`; not calibrated."""
        odds = np.empty((len(np.asarray(X)), len(self._fitted())))
        ones = np.ones(odds.shape[1])
        for where, chunk in self._chunks(X):
            out = odds[where]
            with np.errstate(over="ignore", under="ignore"):
                total = np.exp(chunk, out=out) @ ones
            if not (total.min() > TINY and total.max() < np.inf):  # seldom, so that others need not pay for it
                total = np.exp(chunk - chunk.max(axis=1, keepdims=True), out=out) @ ones
            out /= total[:, None]
        return odds


def cholesky(covariance: Doubles) -> Doubles | None:
    """The lower factor (D, D) of a covariance, None where it has no inverse in this precision."""
    try:
        factor: Doubles = linalg.cholesky(covariance, lower=True)
    except linalg.LinAlgError:
        return None
    # Squared pivots are residual variances: relative to the variance itself they do not depend on scale.
    least = 10 * len(covariance) * np.finfo(float).eps * np.diag(covariance)
    return None if (np.diag(factor) ** 2 <= least).any() else factor


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
    """(N,) index of each label in `classes`; KnnError for a label that is not there."""
    texts = np.asarray(labels).astype(np.str_, copy=False).tolist()
    columns = {label: column for column, label in enumerate(classes.tolist())}
    try:
        return np.fromiter(map(columns.__getitem__, texts), dtype=np.int64, count=len(texts))
    except KeyError as error:
        raise KnnError(f"The label {error.args[0]!r} is none of the {len(classes)} classes.") from error


def cross_validated_log_likelihood(
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


def float64_rows(X: ArrayLike, dimension: int) -> Doubles:
    """Rows (n, D) in float64, not copied where they are that already; KnnError for another D, NaN or infinity."""
    rows: Doubles = _shaped(X, dimension).astype(np.float64, copy=False)
    with np.errstate(invalid="ignore", over="ignore"):
        suspect = not np.isfinite(rows.sum())  # one pass without a copy; looked at closely only where need be
    if suspect:
        _refuse_bad(rows)
    return rows


def _shaped(X: ArrayLike, dimension: int) -> NDArray[Any]:
    rows = np.asarray(X)
    if rows.ndim != 2 or rows.shape[1] != dimension:
        raise KnnError(
            f"The classifier takes rows of {dimension} dimensions, these have {rows.shape[-1] if rows.ndim else 0}.",
            "Use embeddings of the model that the classifier was trained with.",
        )
    return rows


def _refuse_bad(rows: NDArray[Any]) -> None:
    """KnnError if there are NaN or infinite values; none of large ones, whose sum alone is infinite."""
    if bad := int(np.sum(~np.isfinite(rows).all(axis=1))):
        raise KnnError(
            f"NaN or infinite values in {bad} of {len(rows)} embeddings.",
            "Leave these rows out, or embed their recordings again.",
        )
