"""Agglomerative clustering: condensing long recordings, the tree of merges, and where it is cut."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import CLUSTERERS
from knn_cli.core.values import Doubles
from knn_cli.core.vectors import l2_normalize
from knn_cli.diarization.clustering.base import BaseClusterer, Bounds, Labels, by_first_appearance, weighted_means

MAX_TREE_POINTS = 3000  # points of one tree: 3 * 8 * MAX_TREE_POINTS^2 bytes

# The linkages, each with the threshold taken when none is given. Means of noisy embeddings lie closer together than the
# embeddings do, so centroid linkage needs a lower one than average linkage; Ward's distance is a share of the spread.
LINKAGES = {"average": 0.7, "centroid": 0.3, "ward": 0.04}


@CLUSTERERS.register("ahc")
@dataclass(frozen=True)
class AgglomerativeClustering(BaseClusterer):
    """Agglomerative hierarchical clustering of unit vectors, cut at a distance.

    linkage      : "average": the mean cosine distance (1 - cosine) of all pairs; "centroid": half the squared
                   Euclidean distance of the means; "ward": by how much a merge raises the mean squared distance of
                   all embeddings from their cluster's mean. Thresholds t of scipy for unit vectors are t^2 / 2 here for
                   centroid linkage, t^2 / 2 / N for Ward's
    threshold    : merge while that distance is at most this, 0 to 2; the linkage's own in LINKAGES when None
    minimum_size : embeddings that make a speaker; smaller clusters go to the nearest speaker afterwards
                   (never more than a tenth of all embeddings, so that short recordings keep their speakers)
    limit        : embeddings above which blocks are condensed first; memory is about 3 * 8 * limit^2 bytes

    A number of speakers that the threshold does not give moves the cut to the nearest place in the tree that gives it;
    where no cut gives so many clusters of the minimum size, that size is halved until one does. Weights are not used.
    """

    linkage: str = "average"
    threshold: float | None = None
    minimum_size: int = 4
    limit: int = MAX_TREE_POINTS

    def __post_init__(self) -> None:
        if self.linkage not in LINKAGES:
            raise KnnError(f"There is no linkage named {self.linkage!r}.", f"Known: {', '.join(LINKAGES)}.")
        if self.threshold is not None and not 0 <= self.threshold <= 2:
            raise KnnError(f"The clustering threshold {self.threshold:g} is no cosine distance.", "Take 0 to 2.")
        if self.minimum_size < 1 or self.limit < 4:
            raise KnnError("The minimum cluster size is below 1 or the limit below 4.", "Take larger numbers.")

    def partition(self, embeddings: Doubles, bounds: Bounds, weights: Doubles | None) -> Labels:
        """See `BaseClusterer.partition`."""
        tree = Tree.grow(l2_normalize(embeddings), self.linkage, self.limit)
        threshold = LINKAGES[self.linkage] if self.threshold is None else self.threshold
        if self.linkage == "ward":
            threshold *= len(embeddings)  # the tree has sums
        return tree.speakers(threshold, self.minimum_size, bounds)


@dataclass(frozen=True, eq=False)
class Tree:
    """All merges of the points that stand for N embeddings.

    points  : (n, D) means of embeddings
    weights : (n,) embeddings that each stands for
    member  : (N,) the point that stands for each embedding
    merges  : (n - 1, 2) rows (into, gone), see `merge_order`
    heights : (n - 1,) their distances
    """

    points: Doubles
    weights: Doubles
    member: NDArray[np.integer]
    merges: Labels
    heights: Doubles

    @classmethod
    def grow(cls, points: Doubles, linkage: str, limit: int) -> Tree:
        """The tree of N unit vectors, condensed to at most `limit`."""
        centroids, weights, member = condense(points, limit)
        return cls(centroids, weights, member, *merge_order(centroids, weights, linkage))

    def steps(self, threshold: float) -> int:
        """Merges before the first whose distance is above the threshold."""
        above = self.heights > threshold
        return int(np.argmax(above)) if above.any() else len(self.heights)

    def labels(self, steps: int) -> Labels:
        """(N,) labels after so many merges: len(points) - steps of them."""
        found: Labels = cut(self.merges, len(self.points), steps)[self.member]
        return found

    def speakers(self, threshold: float, minimum_size: int, bounds: Bounds) -> Labels:
        """(N,) labels at the threshold, or at the nearest place within bounds, small clusters adopted."""
        size = max(1, min(minimum_size, round(0.1 * len(self.member))))
        steps, size = nearest_cut(self.merges, self.weights, self.steps(threshold), size, bounds.low, bounds.high)
        found = cut(self.merges, len(self.points), steps)
        adopted: Labels = adopt_small(self.points, self.weights, found, size)[self.member]
        return adopted


def _blocks(count: int, size: int) -> Iterator[slice]:
    """Consecutive blocks of nearly equal length, none longer than `size`."""
    edges = np.linspace(0, count, math.ceil(count / size) + 1).round().astype(int)
    return (slice(first, last) for first, last in pairwise(edges.tolist()))


def condense(points: Doubles, limit: int) -> tuple[Doubles, Doubles, NDArray[np.integer]]:
    """At most `limit` weighted centroids that stand for all points, and which of them each point belongs to.

    Each block of `limit` neighbours in time is merged down to a quarter, as often as needed, by average linkage:
    centroid linkage would grow one cluster that takes in everybody when embeddings are noisy. Means are not brought
    back to length 1: their products are then the mean cosines of their members, so average and centroid linkage go on
    as if all members were still there.
    """
    weights = np.ones(len(points))
    member = np.arange(len(points))
    while len(points) > limit:
        labels = np.empty(len(points), dtype=np.int64)
        found = 0
        for block in _blocks(len(points), limit):
            size = len(points[block])
            left = max(1, size // 4)
            merges, _ = merge_order(points[block], weights[block], "average")
            labels[block] = found + cut(merges, size, size - left)
            found += left
        points, weights = weighted_means(points, weights, labels, found)
        member = labels[member]
    return points, weights, member


def merge_order(points: Doubles, weights: Doubles, linkage: str) -> tuple[Labels, Doubles]:
    """All merges of weighted points, closest pair first: rows (into, gone) of (n - 1, 2), and their distances.

    A cluster is known by the point `into` that took the others in. The distance matrix is updated by the formulas of
    Lance and Williams (1967); the closest pair is found as in the generic algorithm of D. Muellner, "Modern
    hierarchical, agglomerative clustering algorithms", 2011, Fig. 3: each row keeps a lower bound of the distance to
    its nearest neighbour, which is only made exact when it is the least of all.
    """
    count = len(points)
    distance = points @ points.T  # (n, n)
    if linkage == "average":
        np.subtract(1.0, distance, out=distance)
    else:
        squares = np.diag(distance).copy() / 2
        np.negative(distance, out=distance)
        distance += squares
        distance += squares[:, None]
    if linkage == "ward":
        distance *= 2 / (1 / weights + (1 / weights)[:, None])  # harmonic means; for two single points 1
    np.maximum(distance, 0.0, out=distance)  # rounding
    np.fill_diagonal(distance, np.inf)
    weights = weights.copy()
    nearest = distance.argmin(axis=1)
    bound = distance[np.arange(count), nearest]
    merges = np.empty((max(0, count - 1), 2), dtype=np.int64)
    heights = np.empty(max(0, count - 1))
    for step in range(count - 1):
        while True:
            a = int(bound.argmin())
            b = int(nearest[a])
            if distance[a, b] == bound[a]:
                break
            nearest[a] = distance[a].argmin()
            bound[a] = distance[a, nearest[a]]
        a, b = min(a, b), max(a, b)
        height = distance[a, b]
        merges[step], heights[step] = (a, b), height
        if linkage == "ward":
            row = (weights[a] + weights) * distance[a] + (weights[b] + weights) * distance[b] - weights * height
            row /= weights[a] + weights[b] + weights
        else:
            share = weights[a] / (weights[a] + weights[b])
            row = share * distance[a] + (1 - share) * distance[b]
            if linkage == "centroid":
                row -= share * (1 - share) * height
                np.maximum(row, 0.0, out=row)
        row[[a, b]] = np.inf
        distance[a], distance[:, a] = row, row
        distance[b], distance[:, b] = np.inf, np.inf
        weights[a] += weights[b]
        bound[b] = np.inf
        closer = row < bound
        closer[b] = False
        nearest[closer], bound[closer] = a, row[closer]
        nearest[a] = row.argmin()
        bound[a] = row[nearest[a]]
    return merges, heights


def cut(merges: Labels, count: int, steps: int) -> Labels:
    """Labels 0 .. of `count` points after the first `steps` merges: exactly count - steps clusters."""
    owner = np.arange(count)
    for into, gone in merges[:steps][::-1]:
        owner[gone] = owner[into]  # last merge first, so `into` has its final owner already
    return by_first_appearance(owner)


def nearest_cut(merges: Labels, weights: Doubles, wanted: int, size: int, low: int, high: int) -> tuple[int, int]:
    """The cut nearest to `wanted` whose number of clusters of at least `size` is within bounds; (steps, size)."""
    while size > 1:
        current = weights.copy()
        large = np.empty(len(merges) + 1, dtype=np.int64)  # clusters of that size after each number of merges
        large[0] = np.count_nonzero(current >= size)
        for step, (into, gone) in enumerate(merges):
            before = int(current[into] >= size) + int(current[gone] >= size)
            current[into] += current[gone]
            large[step + 1] = large[step] - before + int(current[into] >= size)
        target = min(max(int(large[wanted]), low, 1), high)
        cuts = np.flatnonzero(large == target)
        if len(cuts):
            return int(cuts[np.abs(cuts - wanted).argmin()]), size
        size //= 2
    count = len(weights)
    return count - min(max(count - wanted, min(low, count)), high), 1


def adopt_small(points: Doubles, weights: Doubles, labels: Labels, size: int) -> Labels:
    """Clusters lighter than `size` join the heavier one whose centroid has the largest cosine with theirs."""
    centroids, total = weighted_means(points, weights, labels, int(labels.max()) + 1)
    large = np.flatnonzero(total >= size)
    if len(large) in (0, len(total)):
        return labels
    units = l2_normalize(centroids)
    taker = np.arange(len(total))
    small = np.flatnonzero(total < size)
    taker[small] = large[(units[small] @ units[large].T).argmax(axis=1)]
    adopted: Labels = taker[labels]
    return adopted
