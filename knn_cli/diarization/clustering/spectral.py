"""Spectral clustering: k-means on the leading eigenvectors of a graph of embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import CLUSTERERS
from knn_cli.core.values import Doubles
from knn_cli.core.vectors import l2_normalize
from knn_cli.diarization.clustering.ahc import AgglomerativeClustering, condense, merge_close
from knn_cli.diarization.clustering.base import BaseClusterer, Bounds, Labels, weighted_means
from knn_cli.diarization.clustering.memory import remembered

SMALL_RECORDING = 150  # embeddings
SMALL_MATRIX = 64  # rows of which all eigenvectors are found sooner than scipy's solver of a few is imported


@CLUSTERERS.register("spectral")
@dataclass(frozen=True)
class SpectralClustering(BaseClusterer):
    """Spectral clustering of a pruned cosine graph; the number of speakers is taken from the largest eigenvalue gap.

    Each embedding keeps the edges to its nearest neighbours, weighted by max(cosine, 0). The eigenvectors of the
    symmetric graph's normalised Laplacian are clustered by k-means [1]_, and the number of speakers is chosen by the
    eigengap heuristic ([2]_, section 8.3); clusters as near as one speaker's are then merged. Weights are not used.

    Parameters
    ----------
    neighbours : float
        Share of all embeddings that each embedding keeps as neighbours, 0 to 1.
    min_share_of_small : float
        Minimum number of neighbours, as a share of SMALL_RECORDING (or of all embeddings where they are fewer): short
        recordings have few speakers, and their graphs are disconnected with fewer neighbours.
    minimum_neighbours : int
        Minimum number of neighbours.
    single_speaker_threshold : float
        The gap after the first eigenvalue, which is always 0, is not informative: where it is the largest, the number
        of speakers is that of average linkage cut at this cosine distance.
    same_speaker_threshold : float
        Clusters whose mean cosine distance is at most this are one speaker. Words that are repeated give groups of
        nearly equal embeddings, which the eigengap takes for speakers; of one voice, they are still near each other.
    max_estimated : int
        Maximum number of speakers where the caller gives none.
    limit : int
        Number of embeddings above which blocks are condensed first; memory is about 5 * 8 * limit^2 bytes.

    Raises
    ------
    KnnError
        For a number outside its range.

    References
    ----------
    .. [1] A. Ng, M. Jordan and Y. Weiss, "On spectral clustering: analysis and an algorithm", NIPS 2001.
    .. [2] U. von Luxburg, "A tutorial on spectral clustering", Statistics and Computing 17(4), 2007.
    """

    neighbours: float = 0.05
    min_share_of_small: float = 0.26
    minimum_neighbours: int = 8
    single_speaker_threshold: float = 0.75
    same_speaker_threshold: float = 0.5
    max_estimated: int = 10
    limit: int = 1500

    def __post_init__(self) -> None:
        for share in (self.neighbours, self.min_share_of_small):
            if not 0 < share <= 1:
                raise KnnError(f"The share of neighbours {share:g} is not a share.", "Take above 0, up to 1.")
        if min(self.minimum_neighbours, self.max_estimated) < 1 or self.limit < 4:
            raise KnnError("A setting of spectral clustering is too small.", "Take larger numbers.")

    def partition(self, embeddings: Doubles, bounds: Bounds, weights: Doubles | None) -> Labels:
        """See `BaseClusterer.partition`."""
        centroids, counts, member = condense(l2_normalize(embeddings), self.limit)
        low, high = (min(bound, len(centroids)) for bound in bounds[:2])
        if not bounds.capped:
            high = min(high, max(low, self.max_estimated))
        # As many whatever is asked for, so that what is remembered of one number of speakers serves all.
        count = min(max(high, self.max_estimated) + 1, len(centroids))
        settings = (self.neighbours, self.min_share_of_small, self.minimum_neighbours, count)
        values, vectors = remembered(
            lambda: self._spectrum(centroids, counts, count), "spectrum", centroids, counts, settings=settings
        )
        # k speakers leave k eigenvalues near zero; a gap after the last one computed cannot be seen.
        gaps = np.diff(values, append=values[-1])[low - 1 : high]
        speakers = low + int(np.argmax(gaps))
        if speakers == 1 < high:
            tree = AgglomerativeClustering(threshold=self.single_speaker_threshold)
            speakers = min(high, int(tree.partition(embeddings, bounds, weights).max()) + 1)
        rows = vectors[:, :speakers]
        rows = l2_normalize(rows, min_norm=1e-12)
        clusters = k_means(rows, counts, speakers)
        labels: Labels = merge_close(centroids, counts, clusters, self.same_speaker_threshold, low)[member]
        return labels

    def _spectrum(self, points: Doubles, weights: Doubles, count: int) -> tuple[Doubles, Doubles]:
        """The `count` smallest eigenvalues of the normalised Laplacian (count,) and their eigenvectors (n, count)."""
        affinity = points @ points.T  # (n, n)
        norms = np.sqrt(np.maximum(np.diag(affinity), 1e-24))
        affinity = np.maximum(affinity / norms / norms[:, None], 0.0)
        np.fill_diagonal(affinity, 1.0)
        share = max(self.neighbours * len(points), self.min_share_of_small * min(len(points), SMALL_RECORDING))
        kept = min(len(points), max(self.minimum_neighbours, math.ceil(share)) + 1)
        if kept < len(points):
            # The kept-th largest of each row; equal ones stay together, so that the order of rows has no influence.
            smallest_kept = np.partition(affinity, len(points) - kept, axis=1)[:, len(points) - kept]
            affinity[affinity < smallest_kept[:, None]] = 0.0
        affinity = (affinity + affinity.T) / 2
        # A point of weight w represents w equal points: the graph with all of them has these leading eigenvectors.
        degree = affinity @ weights
        scale = np.sqrt(weights / degree)
        affinity *= scale * scale[:, None]
        values, vectors = _largest(affinity, count)
        return 1.0 - values[::-1], vectors[:, ::-1]


def _largest(matrix: Doubles, count: int) -> tuple[Doubles, Doubles]:
    """The `count` largest eigenvalues of a symmetric matrix (n, n), ascending, and their eigenvectors (n, count)."""
    if len(matrix) <= SMALL_MATRIX:
        values, vectors = np.linalg.eigh(matrix)
        return values[-count:], vectors[:, -count:]
    from scipy.linalg import eigh

    last = len(matrix) - 1
    some: tuple[Doubles, Doubles] = eigh(matrix, subset_by_index=(last - count + 1, last), overwrite_a=True)
    return some


def k_means(points: Doubles, weights: Doubles, count: int) -> Labels:
    """Lloyd's k-means from a farthest-first start, which is deterministic: (n, d) -> (n,) labels below `count`."""
    middle = (points * weights[:, None]).sum(axis=0) / weights.sum()
    start = [int(np.square(points - middle).sum(axis=1).argmin())]
    reach = np.square(points - points[start[0]]).sum(axis=1)
    while len(start) < count:
        start.append(int(reach.argmax()))
        reach = np.minimum(reach, np.square(points - points[start[-1]]).sum(axis=1))
    centres = points[start]
    labels = np.full(len(points), -1, dtype=np.int64)
    for _ in range(100):
        distances = np.square(centres).sum(axis=1) - 2 * points @ centres.T  # (n, count), up to a constant per row
        nearest = distances.argmin(axis=1)
        if (nearest == labels).all():
            break
        labels = nearest
        middles, total = weighted_means(points, weights, labels, count)
        centres = np.where(total[:, None] > 0, middles, centres)
    return labels
