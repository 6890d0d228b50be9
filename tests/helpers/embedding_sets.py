"""Embeddings of a few overlapping classes, with recordings, speakers and times."""

from __future__ import annotations

import numpy as np

from knn_cli.core.values import EmbeddingSet


def blobs(seed: int = 0, recordings: int = 6, rows: int = 8, spread: float = 1.0, embedder: str = "") -> EmbeddingSet:
    """Three overlapping classes in 5 dimensions, several rows a recording."""
    generator = np.random.default_rng(seed)
    data, name, label = [], [], []
    for index, one in enumerate("abc"):
        for recording in range(recordings):
            centre = 3 * np.eye(5)[index] + 0.3 * generator.normal(size=5)
            data.append(centre + spread * generator.normal(size=(rows, 5)))
            name += [f"{one}{recording}"] * rows
            label += [one] * rows
    return EmbeddingSet.from_columns(np.concatenate(data), name, subgroup=label, embedder=embedder)


def labelled(seed: int = 0, recordings: int = 6, rows: int = 6) -> EmbeddingSet:
    """Five classes in 6 dimensions, with sources, speakers and times; rows in a drawn order."""
    generator = np.random.default_rng(seed)
    data, columns = [], []
    for index, one in enumerate("abcde"):
        for recording in range(recordings):
            centre = 3 * np.eye(6)[index] + 0.4 * generator.normal(size=6)
            data.append(centre + generator.normal(size=(rows, 6)))
            columns += [(f"{one}{recording}", f"g{recording % 3}", one, f"{one}-{recording // 2}")] * rows
    order = generator.permutation(len(columns))
    name, group, subgroup, speaker = zip(*[columns[row] for row in order], strict=True)
    start = generator.uniform(0, 5, size=len(order))
    return EmbeddingSet.from_columns(
        np.concatenate(data)[order],
        name,
        group=group,
        subgroup=subgroup,
        speaker=speaker,
        start=start,
        end=start + generator.uniform(1, 9, size=len(order)),
    )
