"""Agglomerative clustering: long recordings are condensed, all merges form a tree, and the tree is cut."""

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
from knn_cli.diarization.clustering.memory import remembered

MAX_TREE_POINTS = 3000  # points of a tree; memory: 3 * 8 * MAX_TREE_POINTS^2 bytes

# The linkages, each with the threshold taken when none is given. Means of noisy embeddings lie closer together than the
# embeddings do, so centroid linkage needs a lower threshold than average linkage; Ward's distance is a share of the
# total spread.
LINKAGES = {"average": 0.7, "centroid": 0.3, "ward": 0.04}


@CLUSTERERS.register("ahc")
@dataclass(frozen=True)
class AgglomerativeClustering(BaseClusterer):
    """Agglomerative hierarchical clustering of unit vectors, cut at a distance.

    Where the threshold does not give the requested number of speakers, the tree is cut at the nearest place that does;
    if no cut gives so many clusters of the minimum size, that size is halved until one does. Weights are not used.

    Parameters
    ----------
    linkage : {"average", "centroid", "ward"}
        "average" is the mean cosine distance (1 - cosine) of all pairs, "centroid" half the squared Euclidean distance
        of the means, "ward" the increase of the mean squared distance of all embeddings from the mean of their cluster.
        A threshold t of scipy for unit vectors is t^2 / 2 here for centroid linkage, t^2 / 2 / N for Ward's.
    threshold : float, optional
        Clusters are merged while their distance is at most this, 0 to 2; the default in LINKAGES where None.
    minimum_size : int
        Minimum number of embeddings of a speaker; smaller clusters then join the nearest speaker. It is limited to a
        tenth of all embeddings, so that short recordings keep their speakers.
    limit : int
        Number of embeddings above which blocks are condensed first; memory is about 3 * 8 * limit^2 bytes.

    Raises
    ------
    KnnError
        For an unknown linkage, or a number outside its range.
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
    """All merges of the points that represent N embeddings.

    Attributes
    ----------
    points : (n, D) float64 array
        Means of embeddings.
    weights : (n,) float64 array
        Number of embeddings that each point represents.
    member : (N,) integer array
        The point that represents each embedding.
    merges : (n - 1, 2) int64 array
        Rows (into, gone), see `merge_order`.
    heights : (n - 1,) float64 array
        Distances of the merges.
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
        """(N,) labels after the first `steps` merges: len(points) - steps clusters."""
        labels: Labels = cut(self.merges, len(self.points), steps)[self.member]
        return labels

    def speakers(self, threshold: float, minimum_size: int, bounds: Bounds) -> Labels:
        """(N,) labels at the threshold or at the nearest cut within bounds; small clusters join larger ones."""
        size = max(1, min(minimum_size, round(0.1 * len(self.member))))
        steps, size = nearest_cut(self.merges, self.weights, self.steps(threshold), size, bounds.low, bounds.high)
        clusters = cut(self.merges, len(self.points), steps)
        adopted: Labels = adopt_small(self.points, self.weights, clusters, size)[self.member]
        return adopted


def _blocks(count: int, size: int) -> Iterator[slice]:
    """Consecutive blocks of nearly equal length, none longer than `size`."""
    edges = np.linspace(0, count, math.ceil(count / size) + 1).round().astype(int)
    return (slice(first, last) for first, last in pairwise(edges.tolist()))


def condense(points: Doubles, limit: int) -> tuple[Doubles, Doubles, NDArray[np.integer]]:
    """Condense points to at most `limit` weighted centroids.

    Blocks of `limit` points that follow each other in time are reduced to a quarter by average linkage, as often as
    needed; with noisy embeddings, centroid linkage would collect all speakers in a single cluster. Means are not
    normalized to length 1: their inner products are then the mean cosines of their members, so average and centroid
    linkage continue as if all members were still there.

    Parameters
    ----------
    points : (N, D) float64 array
    limit : int

    Returns
    -------
    centroids : (n, D) float64 array
    weights : (n,) float64 array
        Number of points that each centroid represents.
    member : (N,) integer array
        The centroid of each point.
    """
    weights = np.ones(len(points))
    member = np.arange(len(points))
    while len(points) > limit:
        labels = np.empty(len(points), dtype=np.int64)
        clusters = 0
        for block in _blocks(len(points), limit):
            size = len(points[block])
            left = max(1, size // 4)
            merges, _ = merge_order(points[block], weights[block], "average", steps=size - left)
            labels[block] = clusters + cut(merges, size, size - left)
            clusters += left
        points, weights = weighted_means(points, weights, labels, clusters)
        member = labels[member]
    return points, weights, member


def merge_order(points: Doubles, weights: Doubles, linkage: str, *, steps: int | None = None) -> tuple[Labels, Doubles]:
    """The merges of weighted points, closest pair first.

    A cluster is identified by the point `into` that the others joined. The distance matrix is updated by the formulas
    of Lance and Williams [1]_, and the closest pair is found by Muellner's generic algorithm [2]_ (Fig. 3): each row
    keeps a lower bound of the distance to its nearest neighbour, which is recomputed only when it is the smallest.

    Parameters
    ----------
    points : (n, D) float64 array
    weights : (n,) float64 array
    linkage : {"average", "centroid", "ward"}
    steps : int, optional
        Number of merges m, below n; where None, n - 1, all of them.

    Returns
    -------
    merges : (m, 2) int64 array
        Rows (into, gone).
    heights : (m,) float64 array
        Distances of the merges.

    References
    ----------
    .. [1] G. N. Lance and W. T. Williams, "A general theory of classificatory sorting strategies", The Computer
       Journal 9(4), 1967.
    .. [2] D. Muellner, "Modern hierarchical, agglomerative clustering algorithms", 2011.
    """
    number = max(0, len(points) - 1) if steps is None else steps

    def compute() -> tuple[Labels, Doubles]:
        return _merge_order(points, weights, linkage, number)

    merges, heights = remembered(compute, "merges", points, weights, settings=(linkage, number))
    return merges, heights


def _merge_order(points: Doubles, weights: Doubles, linkage: str, steps: int) -> tuple[Labels, Doubles]:
    """See `merge_order`."""
    count = len(points)
    distance = _distances(points, weights, linkage)
    weights = weights.copy()
    nearest = distance.argmin(axis=1)
    bound = distance[np.arange(count), nearest]
    numbers = np.arange(count)  # the point of each row of `distance`
    merges = np.empty((steps, 2), dtype=np.int64)
    heights = np.empty(steps)
    for step in range(steps):
        if 2 * (count - step) <= len(numbers):  # half of the rows are gone
            left = np.flatnonzero(np.isfinite(bound))
            row_of = np.full(len(numbers), -1)
            row_of[left] = np.arange(len(left))
            nearest = row_of[nearest[left]]
            nearest[nearest < 0] = np.flatnonzero(nearest < 0)  # gone: no finite distance, so found anew when needed
            distance, weights, bound, numbers = distance[np.ix_(left, left)], weights[left], bound[left], numbers[left]
        while True:
            a = int(bound.argmin())
            b = int(nearest[a])
            if distance[a, b] == bound[a]:
                break
            nearest[a] = distance[a].argmin()
            bound[a] = distance[a, nearest[a]]
        a, b = min(a, b), max(a, b)
        merges[step], heights[step] = numbers[[a, b]], distance[a, b]
        row = _updated_row(distance, weights, a, b, linkage)
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


def _distances(points: Doubles, weights: Doubles, linkage: str) -> Doubles:
    """(n, n) distances of weighted points, infinite on the diagonal."""
    distance: Doubles = points @ points.T
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
    return distance


def _updated_row(distance: Doubles, weights: Doubles, a: int, b: int, linkage: str) -> Doubles:
    """(n,) distances of the cluster that `a` and `b` form, by the formulas of Lance and Williams."""
    height = distance[a, b]
    row: Doubles
    if linkage == "ward":
        row = (weights[a] + weights) * distance[a] + (weights[b] + weights) * distance[b] - weights * height
        row /= weights[a] + weights[b] + weights
        return row
    share = weights[a] / (weights[a] + weights[b])
    row = share * distance[a] + (1 - share) * distance[b]
    if linkage == "centroid":
        row -= share * (1 - share) * height
        np.maximum(row, 0.0, out=row)
    return row


def cut(merges: Labels, count: int, steps: int) -> Labels:
    """(count,) labels of points after the first `steps` merges: exactly count - steps clusters."""
    owner = np.arange(count)
    for into, gone in merges[:steps][::-1]:
        owner[gone] = owner[into]  # last merge first, so that `into` has its final owner already
    return by_first_appearance(owner)


def nearest_cut(merges: Labels, weights: Doubles, wanted: int, size: int, low: int, high: int) -> tuple[int, int]:
    """(steps, size) of the cut nearest to `wanted` whose number of clusters of at least `size` is within bounds."""
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
    """(n,) labels after clusters lighter than `size` have joined the heavier one with the most similar centroid."""
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


def merge_close(points: Doubles, weights: Doubles, labels: NDArray[np.integer], threshold: float, low: int) -> Labels:
    """(n,) labels after clusters whose mean cosine distance is at most `threshold` have merged.

    The closest merge first, until `low` are left. Points (n, D) are unit vectors or, condensed, means of such.
    """
    labels = by_first_appearance(labels)
    if int(labels.max()) < low:
        return labels
    means, total = weighted_means(points, weights, labels)
    merges, heights = merge_order(means, total, "average")
    above = np.append(heights > threshold, True)
    merged: Labels = cut(merges, len(total), min(int(above.argmax()), max(0, len(total) - low)))[labels]
    return merged
