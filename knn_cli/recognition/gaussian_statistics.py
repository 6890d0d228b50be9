"""Sufficient statistics of classes with a shared covariance: streamed block by block, merged with `+`.

References
----------
T. Chan, G. Golub, R. LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, Texts
from knn_cli.recognition.row_checks import check_dimension, class_codes, refuse_nonfinite

BLOCK_ROWS = 16384  # rows added at a time, with one correction for all of them; the size to stream in
CHUNK_ROWS = 1024  # rows worked on at a time: what fits in a processor's cache in float64
MIN_SPREAD_RATIO = 1 / 16  # of the variance about the means to that about the pivot: below, digits are lost


@dataclass(frozen=True)
class GaussianStatistics:
    """All that a Gaussian linear classifier needs of its rows: a monoid under `+`, float64, O(C D + D^2) memory.

    Scatters are kept about the class means and merged with the correction of Chan et al., so that a large common offset
    of the rows costs no digits. The weights are fixed before the first row (by one pass over the labels, which are
    small), so that balanced statistics need no (C, D, D) array either.

    Attributes
    ----------
    classes : (C,) str
        Labels, sorted.
    weights : (C,) float64
        Weight w_c of one row of the class in the scatter: 1 if pooled, N / (C n_c) if balanced.
    counts : (C,) int64
        Rows of the class, n_c.
    means : (C, D) float64
        Mean of the class.
    scatter : (D, D) float64
        Sum over rows of w_c (x - mean_c)(x - mean_c)'.
    """

    classes: Texts
    weights: Doubles
    counts: NDArray[np.int64]
    means: Doubles
    scatter: Doubles

    @classmethod
    def empty(cls, labels: ArrayLike, dimension: int, *, balanced: bool = False) -> GaussianStatistics:
        """The statistics of no rows yet.

        Parameters
        ----------
        labels : (N,) array_like
            Labels of all rows to come, those of other processes too.
        dimension : int
        balanced : bool
            Weigh rows so that every class counts alike.
        """
        label_counts = Counter(np.asarray(labels).astype(np.str_, copy=False).reshape(-1).tolist())
        classes = np.asarray(sorted(label_counts), dtype=np.str_)
        counts = np.asarray([label_counts[label] for label in classes.tolist()], dtype=np.int64)
        weights = counts.sum() / (len(classes) * counts) if balanced else np.ones(len(classes))
        zeros = np.zeros((len(classes), dimension))
        return cls(classes, weights, np.zeros(len(classes), np.int64), zeros, np.zeros((dimension, dimension)))

    @classmethod
    def from_rows(cls, X: ArrayLike, y: ArrayLike, *, balanced: bool = False) -> GaussianStatistics:
        """The statistics of rows X: (N, D) with labels y: (N,), added in blocks of BLOCK_ROWS rows.

        A caller that streams the same blocks through `add` gets the same bits.
        """
        rows, labels = np.asarray(X), np.asarray(y).astype(np.str_, copy=False)
        if rows.ndim != 2 or labels.shape != rows.shape[:1]:
            raise KnnError(f"Rows of shape {rows.shape} and labels of shape {labels.shape} do not go together.")
        statistics = cls.empty(labels, rows.shape[1], balanced=balanced)
        codes = class_codes(labels, statistics.classes)
        for first in range(0, len(rows), BLOCK_ROWS):
            statistics = statistics._add(rows[first : first + BLOCK_ROWS], codes[first : first + BLOCK_ROWS])
        return statistics

    @property
    def rows(self) -> int:
        return int(self.counts.sum())

    @property
    def dimension(self) -> int:
        return int(self.means.shape[1])

    def add(self, X: ArrayLike, y: ArrayLike) -> GaussianStatistics:
        """Return the statistics with one more block of rows X: (n, D), labels y: (n,).

        Raises
        ------
        KnnError
            For NaN or infinite rows, another dimension, or a label that was not announced in `empty`.
        """
        rows, codes = check_dimension(X, self.dimension), class_codes(y, self.classes)
        if codes.shape != rows.shape[:1]:
            raise KnnError(f"Rows of shape {rows.shape} and labels of shape {codes.shape} do not go together.")
        return self._add(rows, codes)

    def _add(self, rows: NDArray[Any], codes: NDArray[np.int64]) -> GaussianStatistics:
        counts = np.bincount(codes, minlength=len(self.classes))
        size = np.maximum(counts, 1)[:, None]
        # First about one point near all rows: one pass and no copy. Where the classes lie so far apart that the
        # difference of the two squares would cost digits, again about the means found: the corrected two-pass
        # algorithm.
        sample = rows[:: max(1, len(rows) // 256)]
        with np.errstate(invalid="ignore", over="ignore"):
            means = np.asarray(np.sum(sample, axis=0, dtype=np.float64) / max(len(sample), 1))
        scatter = products = np.zeros(0)
        for _ in range(2):
            sums, products = self._moments(rows, codes, means)
            if not np.isfinite(sums).all():
                refuse_nonfinite(rows)
            means = means + sums / size  # (C, D)
            correction = np.sqrt(self.weights[:, None] / size) * sums
            scatter = products - correction.T @ correction
            if (np.diag(scatter) >= MIN_SPREAD_RATIO * np.diag(products)).all():
                break
        return self + replace(self, counts=counts, means=means, scatter=scatter)

    def _moments(self, rows: NDArray[Any], codes: NDArray[np.int64], about: Doubles) -> tuple[Doubles, Doubles]:
        """(C, D) sums and (D, D) weighted second moment of rows less a point (D,) or the one of their class (C, D)."""
        sums, products = np.zeros(self.means.shape), np.zeros(self.scatter.shape, order="F")
        buffer = np.empty((CHUNK_ROWS, self.dimension))
        roots = np.sqrt(self.weights) if np.any(self.weights != 1) else None
        with np.errstate(invalid="ignore", over="ignore"):  # the caller checks the sums
            for first in range(0, len(rows), CHUNK_ROWS):
                chunk_codes = codes[first : first + CHUNK_ROWS]
                chunk = buffer[: len(chunk_codes)]
                np.copyto(chunk, rows[first : first + CHUNK_ROWS])
                chunk -= about if about.ndim == 1 else about[chunk_codes]
                shape = len(chunk_codes), len(self.classes)
                sums += (
                    scipy.sparse.csr_array(
                        (np.ones(len(chunk_codes)), chunk_codes, np.arange(len(chunk_codes) + 1)), shape
                    ).T
                    @ chunk
                )
                if roots is not None:
                    chunk *= roots[chunk_codes][:, None]
                products = scipy.linalg.blas.dsyrk(1.0, chunk.T, beta=1.0, c=products, overwrite_c=1)  # upper triangle
        return sums, np.triu(products) + np.triu(products, 1).T

    def __add__(self, other: GaussianStatistics) -> GaussianStatistics:
        """The statistics of both sets of rows; ValueError unless both are for the same classes and weights."""
        if not np.array_equal(self.classes, other.classes) or not np.array_equal(self.weights, other.weights):
            raise ValueError("statistics merge only if they are for the same classes and weights")
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
