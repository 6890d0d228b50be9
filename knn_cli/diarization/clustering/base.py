"""Who is who: embeddings (N, D) to speaker labels (N,). Every method is one class under CLUSTERERS.

A method is built with its settings and called with embeddings:

    CLUSTERERS.build("ahc", threshold=0.5)(embeddings, min_speakers=2) -> (N,) int64

Labels are 0 .. K-1 in order of first appearance. The number of speakers asked for is obeyed exactly (N where there
are fewer embeddings than that). Methods are deterministic, and need memory bounded by their `limit`: beyond so many
embeddings, consecutive blocks are first condensed to weighted centroids (`linkage.condense`).

This room holds what they share. The methods are in `linkage`, `spectral`, `density` and `vbx`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles
from knn_cli.core.vectors import l2_normalize

Labels = NDArray[np.int64]

# Settings by a name of their own: (method, settings). pyannote's pipeline cuts centroid linkage of unit vectors at a
# Euclidean distance of 0.7046; ours is half the squared distance, 0.7046^2 / 2 = 0.2482.
PRESETS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "pyannote-3.1": (
            "ahc",
            MappingProxyType({"linkage": "centroid", "threshold": 0.7045654963945799**2 / 2, "minimum_size": 12}),
        )
    }
)


class Bounds(NamedTuple):
    """The least and the most clusters that a method may find; `capped` where the user gave the most."""

    low: int
    high: int
    capped: bool


@dataclass(frozen=True, kw_only=True)
class Clusterer(ABC):
    """What every method does before and after its own work.

    reliable : weight (seconds of clean speech) from which an embedding has a say in the clusters; those with less join
               the speaker whose centroid has the largest cosine with theirs. Without weights all have a say, as they
               do where fewer than two, or than the speakers asked for, have so much
    """

    reliable: float = 0.0

    @abstractmethod
    def partition(self, embeddings: Doubles, bounds: Bounds, weights: Doubles | None) -> NDArray[np.integer]:
        """(N, D) embeddings, N > 1, to labels (N,) in any order, at most `bounds.high` of them."""

    def __call__(
        self,
        embeddings: NDArray[np.floating],
        *,
        num_speakers: int | None = None,
        min_speakers: int | None = None,
        max_speakers: int | None = None,
        weights: NDArray[np.floating] | None = None,
    ) -> Labels:
        """Cluster embeddings (N, D) into labels (N,); see the module's head for what is promised.

        weights : (N,) seconds of clean speech behind each embedding, which a method may use
        Raises KnnError for numbers of speakers that exclude each other, ValueError for arrays that are none.
        """
        rows = np.asarray(embeddings, dtype=np.float64)
        if rows.ndim != 2 or not np.isfinite(rows).all():
            raise ValueError("embeddings are a matrix (N, D) of finite numbers")
        seconds = None if weights is None else np.asarray(weights, dtype=np.float64)
        if seconds is not None and (seconds.shape != rows.shape[:1] or not (seconds >= 0).all()):
            raise ValueError("weights are one number, 0 or more, an embedding")
        low, high = bounds(len(rows), num_speakers, min_speakers, max_speakers)
        wanted = Bounds(low, high, num_speakers is not None or max_speakers is not None)
        if len(rows) < 2:
            return np.zeros(len(rows), dtype=np.int64)
        heard = np.ones(len(rows), dtype=bool) if seconds is None else seconds >= self.reliable
        points = l2_normalize(rows)
        if heard.all() or np.count_nonzero(heard) < max(low, 2):
            labels = self.partition(rows, wanted, seconds)
        else:
            fewer = wanted._replace(high=min(high, int(np.count_nonzero(heard))))
            labels = np.empty(len(rows), dtype=np.int64)
            labels[heard] = in_order(self.partition(rows[heard], fewer, None if seconds is None else seconds[heard]))
            centroids, _ = means(points[heard], np.ones(len(rows))[heard], labels[heard])
            labels[~heard] = (points[~heard] @ l2_normalize(centroids).T).argmax(axis=1)
        return in_order(split_up_to(points, labels, low))


def bounds(count: int, number: int | None, least: int | None, most: int | None) -> tuple[int, int]:
    """The least and the most clusters that `count` embeddings may get."""
    low, high = (1 if least is None else least), (count if most is None else most)
    if number is not None:
        if (least is not None and number < least) or (most is not None and number > most):
            raise KnnError(f"{number} speakers are not within the minimum and maximum given.", "Give the number alone.")
        low = high = number
    if low < 1 or (most is not None and most < 1):
        raise KnnError("The number of speakers must be 1 or more.", "Leave it out to have it estimated.")
    if most is not None and low > high:
        raise KnnError(
            f"At least {low} and at most {high} speakers exclude each other.", "Swap or drop one of the two."
        )
    return min(low, count), min(high, count)


def in_order(labels: NDArray[np.integer]) -> Labels:
    """Renumber labels 0 .. K-1 by first appearance."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def means(points: Doubles, weights: Doubles, labels: NDArray[np.integer], count: int = 0) -> tuple[Doubles, Doubles]:
    """Weighted mean (K, D) and summed weight (K,) of each label's points; K is `count`, or as many as there are."""
    total = np.bincount(labels, weights=weights, minlength=count).astype(np.float64)
    ones = sparse.csr_matrix((weights, (labels, np.arange(len(labels)))), shape=(len(total), len(labels)))
    sums: Doubles = ones @ points
    return sums / np.maximum(total, 1e-300)[:, None], total


def split_up_to(points: Doubles, labels: NDArray[np.integer], low: int) -> NDArray[np.integer]:
    """Split the largest cluster until there are `low`: what is left to do when points are condensed or coincide.

    The cut is at the widest gap along the direction from the cluster's mean to its farthest point.
    """
    labels = in_order(labels)
    for new in range(int(labels.max()) + 1, low):
        rows = np.flatnonzero(labels == np.bincount(labels).argmax())
        spread = points[rows] - points[rows].mean(axis=0)
        position = spread @ spread[np.square(spread).sum(axis=1).argmax()]
        order = np.argsort(position, kind="stable")
        gap = int(np.diff(position[order]).argmax())
        labels[rows[order[gap + 1 :]]] = new
    return labels
