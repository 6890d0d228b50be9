"""The contract of clustering methods and the code that they share.

Every method is a class in CLUSTERERS: a `BaseClusterer`, built with its settings and called with embeddings.

    CLUSTERERS.build("ahc", threshold=0.5)(embeddings, min_speakers=2) -> (N,) int64

Methods are deterministic, and their memory is bounded by their `limit`: above this number of embeddings, consecutive
blocks are first condensed to weighted centroids (`ahc.condense`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles
from knn_cli.core.vectors import l2_normalize

Labels = NDArray[np.int64]
SUMMED_COLUMNS = 32  # of points, that are copied at once


class Bounds(NamedTuple):
    """Minimum and maximum number of clusters; `capped` where the user gave the maximum."""

    low: int
    high: int
    capped: bool


class Clusterer(Protocol):
    """A clustering method: embeddings to speaker labels."""

    def __call__(
        self,
        embeddings: NDArray[np.floating],
        *,
        num_speakers: int | None = None,
        min_speakers: int | None = None,
        max_speakers: int | None = None,
        weights: NDArray[np.floating] | None = None,
    ) -> Labels:
        """Cluster embeddings.

        Parameters
        ----------
        embeddings : (N, D) array
        num_speakers, min_speakers, max_speakers : int, optional
            Number of speakers; a number that is given is obeyed exactly (N where there are fewer embeddings).
        weights : (N,) array, optional
            Seconds of clean speech behind each embedding, which a method may use.

        Returns
        -------
        (N,) int64 array
            Labels 0 .. K-1 by first appearance.

        Raises
        ------
        KnnError
            For numbers of speakers that exclude each other.
        ValueError
            For embeddings that are not a finite matrix, or weights below 0.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class BaseClusterer(ABC):
    """Base class of clustering methods: bounds, unreliable embeddings and the order of labels.

    Parameters
    ----------
    reliable : float
        Minimum weight (seconds of clean speech) of an embedding that takes part in clustering; the others then join the
        speaker whose centroid has the largest cosine with theirs. All take part where there are no weights, or where
        fewer than two embeddings, or fewer than the requested speakers, are reliable.
    """

    reliable: float = 0.0

    @abstractmethod
    def partition(self, embeddings: Doubles, bounds: Bounds, weights: Doubles | None) -> NDArray[np.integer]:
        """(N,) labels of (N, D) embeddings, N > 1, in any order, at most `bounds.high` different ones."""

    def __call__(
        self,
        embeddings: NDArray[np.floating],
        *,
        num_speakers: int | None = None,
        min_speakers: int | None = None,
        max_speakers: int | None = None,
        weights: NDArray[np.floating] | None = None,
    ) -> Labels:
        """Cluster embeddings (N, D) into labels (N,); see `Clusterer`."""
        rows = np.asarray(embeddings)
        if rows.ndim != 2 or not np.isfinite(rows).all():
            raise ValueError("embeddings are a matrix (N, D) of finite numbers")
        seconds = None if weights is None else np.asarray(weights, dtype=np.float64)
        if seconds is not None and (seconds.shape != rows.shape[:1] or not (seconds >= 0).all()):
            raise ValueError("weights are one number, 0 or more, per embedding")
        low, high = bounds(len(rows), num_speakers, min_speakers, max_speakers)
        wanted = Bounds(low, high, num_speakers is not None or max_speakers is not None)
        if len(rows) < 2:
            return np.zeros(len(rows), dtype=np.int64)
        reliable = np.ones(len(rows), dtype=bool) if seconds is None else seconds >= self.reliable
        if np.count_nonzero(reliable) < max(low, 2):
            reliable = np.ones(len(rows), dtype=bool)
        some = not reliable.all()
        if some:
            fewer = wanted._replace(high=min(high, int(np.count_nonzero(reliable))))
            labels = np.empty(len(rows), dtype=np.int64)
            labels[reliable] = by_first_appearance(
                self.partition(rows[reliable].astype(np.float64), fewer, None if seconds is None else seconds[reliable])
            )
        else:
            labels = by_first_appearance(self.partition(rows.astype(np.float64), wanted, seconds))
        points = l2_normalize(rows.astype(np.float64))  # only now, so that methods have the memory
        if some:
            centroids, _ = weighted_means(points[reliable], np.ones(len(rows))[reliable], labels[reliable])
            labels[~reliable] = (points[~reliable] @ l2_normalize(centroids).T).argmax(axis=1)
        return by_first_appearance(split_largest(points, labels, low))


def bounds(count: int, number: int | None, min_speakers: int | None, max_speakers: int | None) -> tuple[int, int]:
    """Minimum and maximum number of clusters of `count` embeddings. KnnError for numbers that exclude each other."""
    low, high = (1 if min_speakers is None else min_speakers), (count if max_speakers is None else max_speakers)
    if number is not None:
        if (min_speakers is not None and number < min_speakers) or (max_speakers is not None and number > max_speakers):
            raise KnnError(f"{number} speakers are not within the minimum and maximum given.", "Give the number alone.")
        low = high = number
    if low < 1 or (max_speakers is not None and max_speakers < 1):
        raise KnnError("The number of speakers must be 1 or more.", "Leave it out to have it estimated.")
    if max_speakers is not None and low > high:
        raise KnnError(
            f"At least {low} and at most {high} speakers exclude each other.", "Swap or drop one of the two."
        )
    return min(low, count), min(high, count)


def by_first_appearance(labels: NDArray[np.integer]) -> Labels:
    """Renumber labels 0 .. K-1 by first appearance."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def weighted_means(
    points: Doubles, weights: Doubles, labels: NDArray[np.integer], count: int = 0
) -> tuple[Doubles, Doubles]:
    """Weighted mean (K, D) and summed weight (K,) of each label's points; K is `count` or the number of labels."""
    total = np.bincount(labels, weights=weights, minlength=count).astype(np.float64)
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    sums = np.zeros((len(total), points.shape[1]))
    if len(present):
        for at in range(0, points.shape[1], SUMMED_COLUMNS):  # so that copies of all points need little memory
            columns = slice(at, at + SUMMED_COLUMNS)
            sums[present, columns] = np.add.reduceat(points[order, columns] * weights[order, None], starts, axis=0)
    return sums / np.maximum(total, 1e-300)[:, None], total


def split_largest(points: Doubles, labels: NDArray[np.integer], low: int) -> NDArray[np.integer]:
    """Split the largest cluster until there are `low`, which is needed where points are condensed or coincide.

    It is split at the widest gap along the direction from the cluster's mean to its farthest point.
    """
    labels = by_first_appearance(labels)
    for new in range(int(labels.max()) + 1, low):
        rows = np.flatnonzero(labels == np.bincount(labels).argmax())
        spread = points[rows] - points[rows].mean(axis=0)
        position = spread @ spread[np.square(spread).sum(axis=1).argmax()]
        order = np.argsort(position, kind="stable")
        gap = int(np.diff(position[order]).argmax())
        labels[rows[order[gap + 1 :]]] = new
    return labels
