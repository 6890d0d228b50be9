"""Accuracy against duration: embeddings averaged over several consecutive segments of a recording."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, EmbeddingSet, ScoreTable, Texts
from knn_cli.evaluation.evaluate import accuracy_with_interval, evaluate
from knn_cli.evaluation.results import DurationPoint

SegmentScorer = Callable[
    [EmbeddingSet, Doubles], ScoreTable
]  # (N, D) embeddings and (N,) seconds of sound to (N, C) scores


def average_segments(embeddings: EmbeddingSet, segments: int) -> EmbeddingSet:
    """Average every `segments` consecutive rows of a recording into one; the remaining rows make one more.

    A run consists of the rows of one recording with the same group, subgroup and speaker, ordered by start; rows with
    the same or an unknown start keep their order. Rows that hold NaN or infinity contain no speech and are left out
    first. Runs come in the order of their first rows. A new row lasts from its first start to its last end.

    Parameters
    ----------
    embeddings : EmbeddingSet
    segments : int

    Returns
    -------
    EmbeddingSet

    Raises
    ------
    KnnError
        For fewer than one segment.
    """
    return _average(embeddings, segments).rows


def duration_curve(
    embeddings: EmbeddingSet,
    score: SegmentScorer,
    counts: Iterable[int],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    priors: Mapping[str, float] | None = None,
) -> tuple[DurationPoint, ...]:
    """The metrics of scores of rows averaged over each number of consecutive segments (see `average_segments`).

    Seconds, of a point and of what is scored, are those that segments cover: overlapping time counts once, time between
    segments not at all. Costs are NaN where the rows have only one label.

    Parameters
    ----------
    embeddings : EmbeddingSet
    score : callable
        (N, D) embeddings and their (N,) seconds to scores with the true labels, such as `Classifier.score`.
    counts : iterable of int
        Numbers of segments. From the first that leaves every recording whole on nothing changes, so larger ones are
        left out.
    bootstrap : int
        Bootstrap samples of recordings for the interval of the accuracy.
    seed : int
    priors : mapping of str to float, optional
        How likely the labels are beforehand, see `evaluate`.

    Returns
    -------
    tuple of DurationPoint

    Raises
    ------
    KnnError
        As `average_segments` and `evaluate` do.
    """
    points = []
    max_count = None
    for count in counts:
        if max_count is not None and count > max_count:
            continue
        rows, seconds, whole = _average(embeddings, count)
        if whole:
            max_count = count
        table = score(rows, seconds)
        values = evaluate(table, bootstrap=0, priors=priors).metrics
        known = np.isin(table.truth, table.labels)
        points.append(
            DurationPoint(
                segments=count,
                seconds=float(seconds[known].mean()),
                rows=int(known.sum()),
                accuracy=accuracy_with_interval(table, bootstrap=bootstrap, seed=seed, priors=priors),
                cprimary=values["cprimary"].value,
                min_cprimary=values["min_cprimary"].value,
            )
        )
    return tuple(points)


class _Averaged(NamedTuple):
    """Averaged rows, the (M,) seconds that the segments of each of them cover, and whether each run is one row."""

    rows: EmbeddingSet
    seconds: Doubles
    whole: bool


def _average(embeddings: EmbeddingSet, segments: int) -> _Averaged:
    """See `average_segments`."""
    if segments < 1:
        raise KnnError(f"There is no mean of {segments} segments.", "Give 1 or more.")
    rows = embeddings.take(np.isfinite(embeddings.data).all(axis=1))
    if not len(rows):
        return _Averaged(rows, np.zeros(0), True)
    columns = [np.unique(column, return_inverse=True)[1] for column in _labels(rows)]
    _, first, run = np.unique(np.stack(columns), axis=1, return_index=True, return_inverse=True)
    run = first[run.ravel()]  # a run is numbered by its first row
    rows = rows.take(order := np.lexsort([rows.start, run]))  # stable, NaN last
    run = run[order]
    begins = np.flatnonzero(np.diff(run, prepend=-1))
    place = np.arange(len(rows)) - np.repeat(begins, np.diff(begins, append=len(rows)))  # of each row in its run
    edges = np.flatnonzero(place % segments == 0)
    sizes = np.diff(edges, append=len(rows))
    means = np.add.reduceat(rows.data, edges, axis=0, dtype=np.float64) / sizes[:, None]
    # Seconds: (M, segments) of starts and ends, padded so that the padding covers nothing.
    cell = np.repeat(np.arange(len(edges)), sizes), place % segments
    starts, ends = (np.full((len(edges), segments), -np.inf) for _ in range(2))
    starts[cell], ends[cell] = rows.start, rows.end
    reached = np.maximum.accumulate(ends, axis=1)
    before = np.concatenate([np.full((len(edges), 1), -np.inf), reached[:, :-1]], axis=1)
    with np.errstate(invalid="ignore"):  # padding
        covered = np.maximum(0.0, ends - np.maximum(starts, before))
    filled = np.zeros(starts.shape, dtype=bool)
    filled[cell] = True
    seconds = np.where(filled, covered, 0.0).sum(axis=1)
    chosen = rows.take(edges)
    averaged = EmbeddingSet.from_columns(
        means,
        chosen.name,
        group=chosen.group,
        subgroup=chosen.subgroup,
        speaker=chosen.speaker,
        start=chosen.start,
        end=np.maximum.reduceat(rows.end, edges),
        embedder=embeddings.embedder,
    )
    return _Averaged(averaged, seconds, len(edges) == len(begins))


def _labels(rows: EmbeddingSet) -> tuple[Texts, ...]:
    return rows.name, rows.group, rows.subgroup, rows.speaker
