"""The second pass of a training: what its classifiers say of rows that they have not seen.

Only so many rows are scored as calibration and figures need, whatever the size of the store: the vectors of these, and
no others, are in memory together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, ScoreTable, Texts
from knn_cli.evaluation import open_set
from knn_cli.evaluation.groups import sum_by_group
from knn_cli.recognition.calibration import Calibration
from knn_cli.recognition.cross_validation import Indices, Keys, Part
from knn_cli.recognition.fitting import Model, Source, draw
from knn_cli.recognition.open_set_threshold import OpenSetThreshold, choose_threshold

CALIBRATING = 50_000  # rows that calibration and threshold are learnt from at most, as many a class as can be
MEASURED = 50_000  # held-out rows that the figures are of at most, drawn alike from all
STRANGERS = 20_000  # rows of labels outside the model at most, in each half

CalibrationKind = Literal["affine", "temperature", "none"]


@dataclass(frozen=True, eq=False)
class Rows:
    """What the rows (N,) of a training are.

    classes : (C,) sorted
    truth   : (N,) column of the class, 0 for rows that are not trained on (those without a key)
    keys    : of the rows that are trained on
    half    : (N,) 0: rows of strangers that choose the threshold, 1: those that report on it, -1: all others
    fold    : (N,) for strangers that a fold of a split holds out, its place in `folds`; -1: all others
    folds   : names of these folds
    """

    classes: Texts
    truth: Indices
    keys: Keys
    half: Indices
    fold: Indices
    folds: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Outcome:
    """What the classifier of one part does, calibrated.

    scores, index  : (n, C), (n,) of the rows that it is tested on
    known, choosing, reporting : the largest detection LLR of rows of known labels under classifiers that did not see
        them (None: too few recordings), and of the two halves of the strangers; where the part is a fold, the first
        are those outside of it, the second those inside and those of no fold
    reported       : numbers of the rows of `reporting`
    """

    calibration: Calibration
    calibrated: bool
    scores: Doubles
    index: Indices
    known: Doubles | None
    choosing: Doubles
    reporting: Doubles
    reported: Indices


class Scoring:
    """Draws the rows that are scored and reads their vectors, in one pass; then scores them part by part."""

    def __init__(
        self,
        source: Source,
        rows: Rows,
        parts: Sequence[Part],
        *,
        kind: CalibrationKind = "affine",
        duration_aware: bool = False,
        seed: int = 0,
    ) -> None:
        self._rows, self._kind = rows, kind
        used = np.flatnonzero(rows.keys.row >= 0)
        tested = np.any([part.tested for part in parts], axis=0)[rows.keys.row[used]]
        self._calibrating = used[draw(rows.truth[used], CALIBRATING, seed)]
        self._measured = used[tested][draw(np.zeros(int(tested.sum()), np.int64), MEASURED, seed)]
        strange = [np.flatnonzero(rows.half == half) for half in (0, 1)]
        self._strange = [one[draw(np.zeros(len(one), np.int64), STRANGERS, seed)] for one in strange]
        self._read = np.unique(np.concatenate([self._calibrating, self._measured, *self._strange]))
        self._seconds = source.seconds(self._read)
        if duration_aware and np.isnan(self._seconds).all():
            raise KnnError(
                "The rows have no start and end, so calibration cannot tell how long they are.",
                "Leave --duration-aware out, or embed again from sound.",
            )
        self._aware = duration_aware
        self._data = source.take(self._read)

    def part(self, part: Part, models: Sequence[Model]) -> Outcome:
        """Score what a part has: `models` are its own, then those without each fold (`partition.cells`)."""
        keys, rows, classes = self._rows.keys, self._rows, self._rows.classes
        calibration, known = Calibration.identity(len(classes)), None
        if part.fold is not None:
            own = self._calibrating[part.trained[keys.row[self._calibrating]]]
            fold, truth = part.fold[keys.row[own]], rows.truth[own]
            crossed = np.empty((len(own), len(classes)))
            for number, model in zip(part.folds, models[1:], strict=True):
                crossed[fold == number] = model.log_likelihood(self._vectors(own[fold == number]))
            seconds = self._lengths(own)
            if self._kind != "none":
                calibration = Calibration.fit(crossed, classes[truth], classes, kind=self._kind, seconds=seconds)
            known = self._best(calibration.apply(crossed, seconds))
        tested = self._measured[part.tested[keys.row[self._measured]]]
        strange = self._strange
        if part.name in rows.folds:
            held = rows.folds.index(part.name)
            strange = [
                strange[0][rows.fold[strange[0]] != held],
                strange[1][np.isin(rows.fold[strange[1]], [held, -1])],
            ]
        choosing, reporting = (self._best(self._score(models[0], calibration, one)) for one in strange)
        return Outcome(
            calibration,
            known is not None and self._kind != "none",
            self._score(models[0], calibration, tested),
            rows.truth[tested],
            known,
            choosing,
            reporting,
            strange[1],
        )

    def _score(self, model: Model, calibration: Calibration, rows: Indices) -> Doubles:
        return calibration.apply(model.log_likelihood(self._vectors(rows)), self._lengths(rows))

    def _vectors(self, rows: Indices) -> NDArray[np.float32]:
        return self._data[np.searchsorted(self._read, rows)]

    def _lengths(self, rows: Indices) -> Doubles | None:
        return self._seconds[np.searchsorted(self._read, rows)] if self._aware else None

    def _best(self, scores: Doubles) -> Doubles:
        return best_llr(scores, self._rows.classes)


def best_llr(scores: Doubles, classes: Texts) -> Doubles:
    """(N,) `open_set.best_llr` of scores (N, C)."""
    return open_set.best_llr(_table(scores, classes))


def _table(scores: Doubles, classes: Texts) -> ScoreTable:
    blank, none = np.full(len(scores), ""), np.full(len(scores), np.nan)
    return ScoreTable(tuple(classes.tolist()), scores, blank, none, none)


def operating_point(
    final: Outcome, measured: Sequence[Outcome], classes: Texts, false_reject: float | None, apart: str = ""
) -> OpenSetThreshold | None:
    """The threshold of the final classifier, with the rates of the measured ones on rows that did not choose theirs.

    apart : what the strangers that choose do not share with those that report: labels, recordings, speakers, ...

    None without strangers, unless `false_reject` says what to lose. Raises KnnError where a class has too few
    recordings to choose a threshold, and as `choose_threshold`.
    """
    if not len(final.choosing) and false_reject is None:
        return None
    chosen = []
    for one in (final, *measured):
        if one.known is None:
            raise KnnError(
                "A class has too few recordings to choose the threshold of an open set.",
                "Each needs three or more; add recordings, or leave the class out (--ignore).",
            )
        if not len(one.choosing) and false_reject is None:
            raise KnnError(
                "Outside one of the folds there are no rows of labels outside the closed set to choose a threshold on.",
                "Leave them out of the split (--ignore of `knn split`), or make another one.",
            )
        chosen.append(choose_threshold(one.known, one.choosing, false_reject=false_reject))
    limits = [one.threshold for one in chosen[1:]]
    rejected = np.concatenate(
        [best_llr(one.scores, classes) < limit for one, limit in zip(measured, limits, strict=True)]
    )
    accepted = np.concatenate([one.reporting >= limit for one, limit in zip(measured, limits, strict=True)])
    return OpenSetThreshold(
        threshold=chosen[0].threshold,
        false_accept=float(accepted.mean()) if len(accepted) else float("nan"),
        false_reject=float(rejected.mean()),
        known=len(rejected),
        unknown=len(np.unique(np.concatenate([one.reported for one in measured]))),
        chosen=f"{chosen[0].chosen}; rates on held-out recordings" + (f" and strangers of other {apart}" * bool(apart)),
    )


def group_accuracy(scores: Doubles, index: Indices, groups: Sequence[str]) -> float:
    """Share of rows whose group (C,) has the largest sum of posteriors, labels all alike beforehand."""
    labels = np.arange(len(groups)).astype(np.str_)
    whole, _ = sum_by_group(replace(_table(scores, labels), groups=tuple(groups)))
    best = np.asarray(whole.labels)[whole.log_likelihood.argmax(axis=1)]
    return float(np.mean(best == np.asarray(groups)[index]))
