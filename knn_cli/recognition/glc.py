"""Gaussian linear classifier: one mean per class, one covariance shared by all, scores by one matrix product.

The same model is linear discriminant analysis in scikit-learn; `fit`, `predict` and `classes_` follow its conventions.

References
----------
D. Martinez, O. Plchot, L. Burget, O. Glembek, P. Matejka, "Language Recognition in iVectors Space", Interspeech 2011,
section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, Texts
from knn_cli.recognition.covariance import LOG_2PI, cholesky, oas_shrinkage
from knn_cli.recognition.gaussian_statistics import CHUNK_ROWS, GaussianStatistics
from knn_cli.recognition.row_checks import check_dimension, refuse_nonfinite

Shrinkage = float | Literal["auto"]
COLUMN_MULTIPLE = 16  # scores are padded to a multiple of this many columns: other widths make products slow
MIN_ODDS_SUM = 1e-250  # sums of odds above have lost no digits to underflow


class GaussianLinearClassifier:
    """p(x | c) = N(x; mean_c, covariance), with one within-class covariance for all classes.

    Labels are turned into text, so numbers sort as text does ("10" < "9").

    Parameters
    ----------
    balanced : bool
        False: the covariance is pooled over all rows (maximum likelihood, divisor N). True: it is the mean of the
        covariances of the classes, so that a class with many rows does not outweigh the others.
    shrinkage : float or "auto"
        s in [0, 1] replaces the covariance S by (1 - s) S + s tr(S)/D I. "auto" takes s from the oracle approximating
        formula (`oas_shrinkage`): close to 0 for many rows, and enough to keep the inverse stable where rows are fewer
        than about five times the dimension. It assumes independent rows, which the segments of one recording are not,
        so it shrinks too little rather than too much.
    priors : "empirical", sequence of C floats or None
        None: all classes alike; "empirical": by their counts; or positive weights in the order of `classes_`. They
        enter `decision_function`, `predict` and `predict_proba`, but not `log_likelihood`.

    Attributes
    ----------
    classes_ : (C,) str
        Sorted.
    counts_ : (C,) int64
    means_ : (C, D) float64
    covariance_ : (D, D) float64
        After shrinkage.
    shrinkage_ : float
    priors_ : (C,) float64
    coef_ : (C, D) float64
    intercept_ : (C,) float64
        decision_function(X) = X coef_' + intercept_.
    """

    def __init__(
        self,
        *,
        balanced: bool = False,
        shrinkage: Shrinkage = 0.0,
        priors: Literal["empirical"] | Sequence[float] | Doubles | None = None,
    ) -> None:
        self.balanced = balanced
        self.shrinkage = shrinkage
        self.priors = priors

    def fit(self, X: ArrayLike, y: ArrayLike) -> GaussianLinearClassifier:
        """Learn from rows X: (N, D) with labels y: (N,); raises as `GaussianStatistics.add` and `fit_statistics` do."""
        return self.fit_statistics(GaussianStatistics.from_rows(X, y, balanced=self.balanced))

    def fit_statistics(self, statistics: GaussianStatistics) -> GaussianLinearClassifier:
        """Learn from statistics, which may come from several passes, blocks or processes.

        Raises
        ------
        KnnError
            For fewer than two classes, a class without rows, or a covariance that has no inverse.
        ValueError
            The statistics are not weighted as `balanced` says.
        """
        counts, rows, dimension = statistics.counts, statistics.rows, statistics.dimension
        if len(counts) < 2:
            classes = ", ".join(map(repr, statistics.classes.tolist())) or "none"
            raise KnnError(
                f"A classifier needs at least two classes, there are: {classes}.", "Choose another label level."
            )
        if not counts.all():
            raise KnnError(
                f"The classes {', '.join(map(repr, statistics.classes[counts == 0].tolist()))} have no rows.",
                "Leave them out, or add rows.",
            )
        expected = rows / (len(counts) * counts) if self.balanced else np.ones(len(counts))
        if not np.allclose(statistics.weights, expected, rtol=1e-9):
            raise ValueError(
                "the statistics' class weights are not those of their counts; see GaussianStatistics.empty"
            )
        covariance = statistics.scatter / rows
        shrinkage = self.shrinkage
        if shrinkage == "auto":
            # Kish's effective number of rows under the class weights, less one per class for its mean.
            effective = rows**2 / float(statistics.weights**2 @ counts) * (1 - len(counts) / rows)
            shrinkage = oas_shrinkage(covariance, effective)
        if not isinstance(shrinkage, int | float) or not 0 <= shrinkage <= 1:
            raise KnnError(f"The shrinkage {self.shrinkage!r} is not auto and not a number from 0 to 1.")
        mean_variance = np.trace(covariance) / dimension
        covariance = (1 - shrinkage) * covariance
        covariance[np.diag_indices(dimension)] += shrinkage * mean_variance
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
        """The classifier with these learned values, `covariance` after shrinkage: it gives the same log-likelihoods."""
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
        """Set the learned attributes and compute what scoring needs, from one Cholesky factor."""
        dimension = means.shape[1]
        factor = cholesky(covariance)
        if factor is None:
            hint = "Give more rows than dimensions, several of each class, or shrink the covariance."
            if not np.trace(covariance) > np.finfo(float).eps * np.square(means).sum():
                hint = "Give rows that differ: those of each class are all alike."
            raise KnnError(
                f"The within-class covariance of {counts.sum()} rows in {dimension} dimensions has no inverse.", hint
            )
        priors = self._resolve_priors(counts)
        self.classes_, self.counts_, self.means_ = classes, counts, means
        self.covariance_, self.shrinkage_, self.priors_ = covariance, shrinkage, priors
        self._centre = means.mean(axis=0)  # densities are computed about it, so that offsets cost no digits
        centred = means - self._centre
        self.coef_: Doubles = scipy.linalg.cho_solve((factor, True), centred.T).T  # (C, D)
        self._bias = -0.5 * np.einsum("cd,cd->c", centred, self.coef_)
        self.intercept_: Doubles = self._bias + np.log(priors) - self.coef_ @ self._centre
        self._weights = np.zeros((dimension + 1, -(-len(means) // COLUMN_MULTIPLE) * COLUMN_MULTIPLE))
        self._weights[:-1, : len(means)] = self.coef_.T
        self._weights[-1, : len(means)] = self.intercept_
        self._whitener = np.asfortranarray(scipy.linalg.solve_triangular(factor, np.eye(dimension), lower=True))
        self._normaliser = -0.5 * dimension * LOG_2PI - float(np.log(np.diag(factor)).sum())
        return self

    def _fitted(self) -> Doubles:
        if "coef_" not in vars(self):
            raise RuntimeError("the classifier is not fitted")
        return self.coef_

    def _chunks(self, X: ArrayLike, *, density: bool = False) -> Iterator[tuple[slice, Doubles]]:
        """Slices of CHUNK_ROWS rows, and their (n, C) log densities or decision function in a buffer to write to."""
        classes, dimension = self._fitted().shape
        rows = check_dimension(X, dimension)
        scores = np.empty((CHUNK_ROWS, self._weights.shape[1]))
        if density:
            buffer, weights = np.empty((CHUNK_ROWS, dimension)), self._weights[:-1]
        else:  # a column of ones takes the intercept along
            buffer, weights = np.ones((CHUNK_ROWS, dimension + COLUMN_MULTIPLE))[:, : dimension + 1], self._weights
        for first in range(0, len(rows), CHUNK_ROWS):
            where = slice(first, min(first + CHUNK_ROWS, len(rows)))
            chunk, wide = buffer[: where.stop - first], scores[: where.stop - first]
            np.copyto(chunk[:, :dimension], rows[where])
            with np.errstate(invalid="ignore", over="ignore"):
                if density:
                    chunk -= self._centre
                np.matmul(chunk, weights, out=wide)
                if not np.isfinite(wide[:, 0].sum()):  # NaN and infinity reach every score of their row
                    refuse_nonfinite(rows)
            out = wide[:, :classes]
            if density:
                out += self._bias
                white = scipy.linalg.blas.dtrmm(1.0, self._whitener, chunk.T, lower=1, overwrite_b=1).T  # (n, D)
                out += (self._normaliser - 0.5 * np.einsum("nd,nd->n", white, white))[:, None]
            yield where, out

    def log_likelihood(self, X: ArrayLike) -> Doubles:
        """Log N(x; mean_c, covariance_), natural logarithm, the density with all its constants.

        Differences within a row tell classes apart; the level of a row shows how well any class explains it, which
        open-set decisions need. The level costs a second matrix product, which `decision_function` saves.

        Parameters
        ----------
        X : (N, D) array_like

        Returns
        -------
        (N, C) float64

        Raises
        ------
        KnnError
            For another dimension than that of the training rows, or NaN or infinite rows.
        """
        scores = np.empty((len(np.asarray(X)), len(self._fitted())))
        for where, chunk in self._chunks(X, density=True):
            scores[where] = chunk
        return scores

    def decision_function(self, X: ArrayLike) -> Doubles:
        """(N, C) float64: log posteriors up to a constant per row, by one matrix product; (N, 2) for two classes."""
        scores = np.empty((len(np.asarray(X)), len(self._fitted())))
        for where, chunk in self._chunks(X):
            scores[where] = chunk
        return scores

    def predict(self, X: ArrayLike) -> Texts:
        """(N,) the most likely class of each row."""
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
            if not (total.min() > MIN_ODDS_SUM and total.max() < np.inf):  # rare: shift by the maximum only here
                total = np.exp(chunk - chunk.max(axis=1, keepdims=True), out=out) @ ones
            out /= total[:, None]
        return odds


def cross_validated_log_likelihood(
    classifier: GaussianLinearClassifier,
    X: ArrayLike,
    y: ArrayLike,
    folds: Iterable[tuple[NDArray[np.bool_], NDArray[np.bool_]]],
) -> Doubles:
    """(N, C) log-likelihoods of every row under a classifier that was fitted without its fold.

    Calibration may be fitted on the result, and the classifier on all rows.

    Parameters
    ----------
    classifier : GaussianLinearClassifier
        Only its parameters are used.
    X : (N, D) array_like
    y : (N,) array_like
        Labels.
    folds : iterable of ((N,) bool, (N,) bool)
        (train, test) masks that cover all rows and leave every class in every train mask, as `splits.folds` gives.

    Returns
    -------
    (N, C) float64

    Raises
    ------
    KnnError
        A fold holds all rows of a class.
    """
    rows, labels = np.asarray(X), np.asarray(y).astype(np.str_)
    classes = np.unique(labels)
    scores = np.full((len(rows), len(classes)), np.nan)
    for train, test in folds:
        fitted = GaussianLinearClassifier(balanced=classifier.balanced, shrinkage=classifier.shrinkage)
        fitted.fit(rows[train], labels[train])
        if not np.array_equal(fitted.classes_, classes):
            raise KnnError("A fold holds all rows of a class, so that none is left to train it.", "Use `splits.folds`.")
        scores[test] = fitted.log_likelihood(rows[test])
    if np.isnan(scores).any():
        raise ValueError("the folds do not cover all rows")
    return scores
