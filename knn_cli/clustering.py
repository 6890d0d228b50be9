"""Who is who: embeddings (N, D) to speaker labels (N,). Every method is one class under CLUSTERERS.

A method is built with its settings and called with embeddings:

    CLUSTERERS.build("ahc", threshold=0.5)(embeddings, min_speakers=2) -> (N,) int64

Labels are 0 .. K-1 in order of first appearance. The number of speakers asked for is obeyed exactly (N where there
are fewer embeddings than that). Methods look at directions only, are deterministic, and need memory bounded by their
`limit`: beyond so many embeddings, consecutive blocks are first condensed to weighted centroids.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from knn_cli.errors import KnnError
from knn_cli.registry import CLUSTERERS
from knn_cli.types import Doubles

Labels = NDArray[np.int64]

# The linkages, each with the threshold taken when none is given. Means of noisy embeddings lie closer together than the
# embeddings do, so centroid linkage needs the lower one.
LINKAGES = {"average": 0.8, "centroid": 0.3}


@CLUSTERERS.register("ahc")
@dataclass(frozen=True)
class AgglomerativeClustering:
    """Agglomerative hierarchical clustering of unit vectors, cut at a distance.

    linkage      : "average": the mean cosine distance (1 - cosine) of all pairs; "centroid": half the squared
                   Euclidean distance of the means, which for two single embeddings is their cosine distance too
    threshold    : merge while that distance is at most this, 0 to 2; the linkage's own in LINKAGES when None
    minimum_size : embeddings that make a speaker; smaller clusters go to the nearest speaker afterwards
                   (never more than a tenth of all embeddings, so that short recordings keep their speakers)
    limit        : embeddings above which blocks are condensed first; memory is about 3 * 8 * limit^2 bytes

    A number of speakers that the threshold does not give moves the cut to the nearest place in the tree that gives it;
    where no cut gives so many clusters of the minimum size, that size is halved until one does.
    """

    linkage: str = "average"
    threshold: float | None = None
    minimum_size: int = 4
    limit: int = 3000

    def __post_init__(self) -> None:
        if self.linkage not in LINKAGES:
            raise KnnError(f"There is no linkage named {self.linkage!r}.", f"Known: {', '.join(LINKAGES)}.")
        if self.threshold is not None and not 0 <= self.threshold <= 2:
            raise KnnError(f"The clustering threshold {self.threshold:g} is no cosine distance.", "Take 0 to 2.")
        if self.minimum_size < 1 or self.limit < 4:
            raise KnnError("The minimum cluster size is below 1 or the limit below 4.", "Take larger numbers.")

    def __call__(
        self,
        embeddings: NDArray[np.floating],
        *,
        num_speakers: int | None = None,
        min_speakers: int | None = None,
        max_speakers: int | None = None,
    ) -> Labels:
        """Cluster embeddings (N, D) into labels (N,); see the module's head for what is promised."""
        points = _unit(embeddings)
        low, high = _bounds(len(points), num_speakers, min_speakers, max_speakers)
        if len(points) < 2:
            return np.zeros(len(points), dtype=np.int64)
        centroids, weights, member = _condense(points, self.limit)
        merges, heights = _merge_order(centroids, weights, self.linkage)
        size = max(1, min(self.minimum_size, round(0.1 * len(points))))
        above = heights > (LINKAGES[self.linkage] if self.threshold is None else self.threshold)
        cut = int(np.argmax(above)) if above.any() else len(merges)
        cut, size = _nearest_cut(merges, weights, cut, size, low, high)
        labels = _adopt_small(centroids, weights, _cut(merges, len(centroids), cut), size)
        return _in_order(_split_up_to(points, labels[member], low))


@CLUSTERERS.register("spectral")
@dataclass(frozen=True)
class SpectralClustering:
    """Spectral clustering of a pruned cosine graph; the number of speakers is where the eigenvalues leap.

    Each embedding keeps the edges to its nearest neighbours, weighted by max(cosine, 0); the symmetric graph's
    normalised Laplacian gives eigenvalues and rows for k-means (Ng, Jordan and Weiss, NIPS 2001; eigen-gap as in von
    Luxburg, "A tutorial on spectral clustering", 2007, section 8.3).

    neighbours         : share of all embeddings that each keeps as neighbours, 0 to 1
    minimum_neighbours : and at least so many
    most               : most speakers considered where no maximum is asked for
    limit              : embeddings above which blocks are condensed first; memory is about 5 * 8 * limit^2 bytes
    """

    neighbours: float = 0.05
    minimum_neighbours: int = 10
    most: int = 10
    limit: int = 1500

    def __post_init__(self) -> None:
        if not 0 < self.neighbours <= 1:
            raise KnnError(f"The share of neighbours {self.neighbours:g} is no share.", "Take above 0, up to 1.")
        if min(self.minimum_neighbours, self.most) < 1 or self.limit < 4:
            raise KnnError("A setting of spectral clustering is too small.", "Take larger numbers.")

    def __call__(
        self,
        embeddings: NDArray[np.floating],
        *,
        num_speakers: int | None = None,
        min_speakers: int | None = None,
        max_speakers: int | None = None,
    ) -> Labels:
        """Cluster embeddings (N, D) into labels (N,); see the module's head for what is promised."""
        points = _unit(embeddings)
        low, high = _bounds(len(points), num_speakers, min_speakers, max_speakers)
        if len(points) < 2:
            return np.zeros(len(points), dtype=np.int64)
        centroids, weights, member = _condense(points, self.limit)
        count = len(centroids)
        low_here = min(low, count)
        high_here = min(high, count)
        if max_speakers is None and num_speakers is None:
            high_here = min(high_here, max(low_here, self.most))
        values, vectors = self._spectrum(centroids, weights, min(high_here + 1, count))
        # k speakers leave k eigenvalues near zero; a gap after the last one computed cannot be seen.
        gaps = np.diff(values, append=values[-1])[low_here - 1 : high_here]
        speakers = low_here + int(np.argmax(gaps))
        rows = vectors[:, :speakers]
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        labels = _k_means(rows, weights, speakers)
        return _in_order(_split_up_to(points, labels[member], low))

    def _spectrum(self, points: Doubles, weights: Doubles, count: int) -> tuple[Doubles, Doubles]:
        """The `count` least eigenvalues of the normalised Laplacian and their vectors: (count,), (n, count)."""
        affinity = points @ points.T  # (n, n)
        norms = np.sqrt(np.maximum(np.diag(affinity), 1e-24))
        affinity = np.maximum(affinity / norms / norms[:, None], 0.0)
        np.fill_diagonal(affinity, 1.0)
        kept = min(len(points), max(self.minimum_neighbours, math.ceil(self.neighbours * len(points))) + 1)
        if kept < len(points):
            # The kept-th largest of each row; equal ones stay together, so that the order of rows plays no part.
            least = np.partition(affinity, len(points) - kept, axis=1)[:, len(points) - kept]
            affinity[affinity < least[:, None]] = 0.0
        affinity = (affinity + affinity.T) / 2
        # A point of weight w stands for w equal points: the graph with all of them has these leading eigenvectors.
        degree = affinity @ weights
        scale = np.sqrt(weights / degree)
        affinity *= scale * scale[:, None]
        last = len(points) - 1
        values, vectors = eigh(affinity, subset_by_index=(last - count + 1, last), overwrite_a=True)
        return 1.0 - values[::-1], vectors[:, ::-1]


# ---- what methods share ----


def _unit(embeddings: NDArray[np.floating]) -> Doubles:
    """(N, D) -> (N, D) float64 rows of length 1; rows of zeros stay."""
    points = np.asarray(embeddings, dtype=np.float64)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise ValueError("embeddings are a matrix (N, D) of finite numbers")
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    unit: Doubles = points / np.where(lengths > 0, lengths, 1.0)
    return unit


def _bounds(count: int, number: int | None, least: int | None, most: int | None) -> tuple[int, int]:
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


def _in_order(labels: NDArray[np.integer]) -> Labels:
    """Renumber labels 0 .. K-1 by first appearance."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


def _means(points: Doubles, weights: Doubles, labels: NDArray[np.integer], count: int) -> tuple[Doubles, Doubles]:
    """Weighted mean (count, D) and summed weight (count,) of each label's points."""
    total = np.bincount(labels, weights=weights, minlength=count).astype(np.float64)
    means = np.zeros((count, points.shape[1]))
    np.add.at(means, labels, points * weights[:, None])
    return means / np.maximum(total, 1e-300)[:, None], total


def _blocks(count: int, size: int) -> Iterator[slice]:
    """Consecutive blocks of nearly equal length, none longer than `size`."""
    edges = np.linspace(0, count, math.ceil(count / size) + 1).round().astype(int)
    return (slice(first, last) for first, last in pairwise(edges.tolist()))


def _condense(points: Doubles, limit: int) -> tuple[Doubles, Doubles, NDArray[np.integer]]:
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
            merges, _ = _merge_order(points[block], weights[block], "average")
            labels[block] = found + _cut(merges, size, size - left)
            found += left
        points, weights = _means(points, weights, labels, found)
        member = labels[member]
    return points, weights, member


# ---- the tree ----


def _merge_order(points: Doubles, weights: Doubles, linkage: str) -> tuple[Labels, Doubles]:
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


def _cut(merges: Labels, count: int, steps: int) -> Labels:
    """Labels 0 .. of `count` points after the first `steps` merges: exactly count - steps clusters."""
    owner = np.arange(count)
    for into, gone in merges[:steps][::-1]:
        owner[gone] = owner[into]  # last merge first, so `into` has its final owner already
    return _in_order(owner)


def _nearest_cut(merges: Labels, weights: Doubles, wanted: int, size: int, low: int, high: int) -> tuple[int, int]:
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


def _adopt_small(points: Doubles, weights: Doubles, labels: Labels, size: int) -> Labels:
    """Clusters lighter than `size` join the heavier one whose centroid has the largest cosine with theirs."""
    centroids, total = _means(points, weights, labels, int(labels.max()) + 1)
    large = np.flatnonzero(total >= size)
    if len(large) in (0, len(total)):
        return labels
    units = _unit(centroids)
    taker = np.arange(len(total))
    small = np.flatnonzero(total < size)
    taker[small] = large[(units[small] @ units[large].T).argmax(axis=1)]
    adopted: Labels = taker[labels]
    return adopted


def _split_up_to(points: Doubles, labels: NDArray[np.integer], low: int) -> NDArray[np.integer]:
    """Split the largest cluster until there are `low`: what is left to do when points are condensed or coincide.

    The cut is at the widest gap along the direction from the cluster's mean to its farthest point.
    """
    labels = _in_order(labels)
    for new in range(int(labels.max()) + 1, low):
        rows = np.flatnonzero(labels == np.bincount(labels).argmax())
        spread = points[rows] - points[rows].mean(axis=0)
        position = spread @ spread[np.square(spread).sum(axis=1).argmax()]
        order = np.argsort(position, kind="stable")
        gap = int(np.diff(position[order]).argmax())
        labels[rows[order[gap + 1 :]]] = new
    return labels


def _k_means(points: Doubles, weights: Doubles, count: int) -> Labels:
    """Lloyd's k-means from the farthest-first start, which needs no chance: (n, d) -> (n,) labels below `count`."""
    middle = (points * weights[:, None]).sum(axis=0) / weights.sum()
    start = [int(np.square(points - middle).sum(axis=1).argmin())]
    reach = np.square(points - points[start[0]]).sum(axis=1)
    while len(start) < count:
        start.append(int(reach.argmax()))
        reach = np.minimum(reach, np.square(points - points[start[-1]]).sum(axis=1))
    centres = points[start]
    labels = np.full(len(points), -1, dtype=np.int64)
    for _ in range(100):
        distances = np.square(centres).sum(axis=1) - 2 * points @ centres.T  # (n, count), less a constant a row
        nearest = distances.argmin(axis=1)
        if (nearest == labels).all():
            break
        labels = nearest
        means, total = _means(points, weights, labels, count)
        centres = np.where(total[:, None] > 0, means, centres)
    return labels
