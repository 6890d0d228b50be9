"""Several segments of a recording in one embedding: longer speech, and the accuracy that it brings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, EmbeddingSet, ScoreTable, Texts
from knn_cli.evaluation.evaluate import accuracy_with_interval, evaluate
from knn_cli.evaluation.results import DurationPoint

Score = Callable[[EmbeddingSet, Doubles], ScoreTable]  # (N, D) embeddings and (N,) seconds of sound to (N, C) scores


def average(embeddings: EmbeddingSet, segments: int) -> EmbeddingSet:
    """Each `segments` consecutive rows of a recording as one row, their mean; what remains is a row of its own.

    A run is the rows of one recording that have the same group, subgroup and speaker, by start; rows that start at the
    same time or at none known keep their order. Rows that hold NaN or infinity hold no speech: they are left out first.
    Runs come in the order of their first rows. A new row lasts from its first start to its last end.
    Raises KnnError for fewer than one segment.
    """
    return _averaged(embeddings, segments).rows


def curve(
    embeddings: EmbeddingSet,
    score: Score,
    counts: Iterable[int],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    priors: Mapping[str, float] | None = None,
) -> tuple[DurationPoint, ...]:
    """How good the scores are of rows of each count of consecutive segments (see `average`).

    score     : embeddings and how long each is to scores with the truth beside them, such as `Classifier.score`
    counts    : beyond the first that leaves every recording whole nothing changes, so those are left out
    bootstrap : draws of recordings for the interval of the accuracy
    priors    : how likely the labels are beforehand, see `evaluation.evaluate`

    Seconds, of a point and of what is scored, are those that segments cover: time that they share counts once, time
    between them not at all. Costs are NaN where the rows have one label alone.
    Raises KnnError as `average` and `evaluation.evaluate`.
    """
    points = []
    most = None
    for count in counts:
        if most is not None and count > most:
            continue
        rows, seconds, whole = _averaged(embeddings, count)
        if whole:
            most = count
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
    """What `average` gives, the (M,) seconds that the segments of each row cover, and whether each run is one row."""

    rows: EmbeddingSet
    seconds: Doubles
    whole: bool


def _averaged(embeddings: EmbeddingSet, segments: int) -> _Averaged:
    if segments < 1:
        raise KnnError(f"Nothing is the mean of {segments} segments.", "Give 1 or more.")
    rows = embeddings.take(np.isfinite(embeddings.data).all(axis=1))
    if not len(rows):
        return _Averaged(rows, np.zeros(0), True)
    columns = [np.unique(column, return_inverse=True)[1] for column in _labels(rows)]
    _, first, run = np.unique(np.stack(columns), axis=1, return_index=True, return_inverse=True)
    run = first[run.ravel()]  # a run is called by its first row
    rows = rows.take(order := np.lexsort([rows.start, run]))  # stable, NaN last
    run = run[order]
    begins = np.flatnonzero(np.diff(run, prepend=-1))
    place = np.arange(len(rows)) - np.repeat(begins, np.diff(begins, append=len(rows)))  # of each row in its run
    edges = np.flatnonzero(place % segments == 0)
    sizes = np.diff(edges, append=len(rows))
    means = np.add.reduceat(rows.data, edges, axis=0, dtype=np.float64) / sizes[:, None]
    # Seconds: (M, segments) of starts and ends, padded by what covers nothing.
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
    made = EmbeddingSet.from_columns(
        means,
        chosen.name,
        group=chosen.group,
        subgroup=chosen.subgroup,
        speaker=chosen.speaker,
        start=chosen.start,
        end=np.maximum.reduceat(rows.end, edges),
        embedder=embeddings.embedder,
    )
    return _Averaged(made, seconds, len(edges) == len(begins))


def _labels(rows: EmbeddingSet) -> tuple[Texts, ...]:
    return rows.name, rows.group, rows.subgroup, rows.speaker
