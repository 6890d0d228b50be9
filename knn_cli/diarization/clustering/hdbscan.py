"""HDBSCAN: clusters in dense regions of embeddings. It needs scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import numpy as np

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import CLUSTERERS
from knn_cli.core.values import Doubles
from knn_cli.core.vectors import l2_normalize
from knn_cli.diarization.clustering.ahc import (
    MAX_TREE_POINTS,
    AgglomerativeClustering,
    condense,
    cut,
    merge_close,
    merge_order,
)
from knn_cli.diarization.clustering.base import BaseClusterer, Bounds, Labels, by_first_appearance, weighted_means


@CLUSTERERS.register("hdbscan")
@dataclass(frozen=True)
class HDBSCANClustering(BaseClusterer):
    """Density-based clustering of unit vectors [1]_, as implemented by scikit-learn.

    Embeddings that HDBSCAN labels as noise join the nearest speaker; clusters near each other are merged. Too many
    speakers are merged by average linkage of their centroids; where there are too few, average linkage of all
    embeddings is used instead. Weights are not used.

    Parameters
    ----------
    minimum_size : int
        Minimum number of embeddings of a speaker, limited to a tenth of all embeddings.
    same_speaker_threshold : float
        Clusters whose mean cosine distance is at most this are one speaker. Dense regions are often words of a speaker,
        in short recordings above all.
    limit : int
        Number of embeddings above which blocks are condensed first.

    Raises
    ------
    KnnError
        Where scikit-learn is not installed, or for a number outside its range.

    References
    ----------
    .. [1] R. Campello, D. Moulavi and J. Sander, "Density-based clustering based on hierarchical density estimates",
       PAKDD 2013.
    """

    minimum_size: int = 5
    same_speaker_threshold: float = 0.65
    limit: int = MAX_TREE_POINTS

    def __post_init__(self) -> None:
        if self.minimum_size < 2 or self.limit < 4:
            raise KnnError("The minimum cluster size is below 2 or the limit below 4.", "Take larger numbers.")
        try:
            import_module("sklearn.cluster")
        except ImportError as error:
            raise KnnError("HDBSCAN needs scikit-learn.", "Install it: pip install 'knn-cli[hdbscan]'.") from error

    def partition(self, embeddings: Doubles, bounds: Bounds, weights: Doubles | None) -> Labels:
        """See `BaseClusterer.partition`."""
        points = l2_normalize(embeddings)
        centroids, counts, member = condense(points, self.limit)
        size = max(2, min(self.minimum_size, round(0.1 * len(centroids))))
        clusters = np.full(len(centroids), -1)
        if len(centroids) > size:
            hdbscan = import_module("sklearn.cluster").HDBSCAN(min_cluster_size=size, copy=True)
            clusters = hdbscan.fit_predict(centroids)
        dense = clusters >= 0
        if not dense.any():
            labels = np.zeros(len(clusters), dtype=np.int64)
        else:
            middles, _ = weighted_means(centroids[dense], counts[dense], clusters[dense])
            labels = np.where(dense, clusters, (centroids @ l2_normalize(middles).T).argmax(axis=1))
        labels = by_first_appearance(labels)
        if labels.max() + 1 < bounds.low:
            return AgglomerativeClustering(limit=self.limit)(points, num_speakers=bounds.low)
        labels = merge_close(centroids, counts, labels, self.same_speaker_threshold, bounds.low)
        middles, total = weighted_means(centroids, counts, labels)
        merges, _ = merge_order(middles, total, "average")
        merged: Labels = cut(merges, len(total), max(0, len(total) - bounds.high))[labels][member]
        return merged
