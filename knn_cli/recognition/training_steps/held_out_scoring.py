"""The second pass of a training: calibration, and scores of rows that the classifiers were not trained on.

The number of scored rows is bounded, whatever the size of the store; only their embeddings are in memory together.
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
from knn_cli.recognition.calibration import Calibration, smoothing_of
from knn_cli.recognition.open_set_threshold import OpenSetThreshold, choose_threshold
from knn_cli.recognition.splitters import unfit_classes
from knn_cli.recognition.training_steps.cross_validation import Indices, TrainTestSplit
from knn_cli.recognition.training_steps.embedding_source import EmbeddingSource, draw_balanced
from knn_cli.recognition.training_steps.fitting import UncalibratedClassifier
from knn_cli.recognition.training_steps.rows import TrainingRows

MAX_CALIBRATION_ROWS = 50_000  # rows for calibration and threshold, drawn evenly from all classes
MAX_MEASURED_ROWS = 50_000  # held-out rows for the metrics, drawn uniformly
MAX_OUT_OF_SET_ROWS = 20_000  # in each half

CalibrationKind = Literal["affine", "temperature", "none"]


@dataclass(frozen=True)
class CalibrationOptions:
    """How scores are calibrated.

    Parameters
    ----------
    kind : {"affine", "temperature", "none"}
        Scale and offsets, scale alone, or neither.
    duration_aware : bool
        Let the scale depend on the length of a row.
    seed : int
        Seed of the random draw of rows.
    """

    kind: CalibrationKind = "affine"
    duration_aware: bool = False
    seed: int = 0


@dataclass(frozen=True, eq=False)
class HeldOutScores:
    """Calibrated scores of the classifier of one train-test split.

    Attributes
    ----------
    calibration : Calibration
        The calibration of the scores.
    calibrated : bool
        Whether the calibration was learnt; otherwise it is the identity.
    scores : (n, C) float64 array
        Scores of the test rows.
    index : (n,) int array
        The true class of each test row.
    known : (k,) float64 array or None
        The largest detection LLR of rows with known labels, from classifiers that were not trained on them; None: too
        few recordings.
    choosing, reporting : float64 arrays
        The largest detection LLR of the two halves of the out-of-set rows. When a fold of a split is tested, the rows
        outside the fold are in `choosing`, the rows of the fold and of no fold in `reporting`.
    reporting_rows : int array
        Indices of the rows of `reporting`.
    """

    calibration: Calibration
    calibrated: bool
    scores: Doubles
    index: Indices
    known: Doubles | None
    choosing: Doubles
    reporting: Doubles
    reporting_rows: Indices


class HeldOutScorer:
    """Draws the rows to score, reads their embeddings in a single pass, and scores them split by split.

    Parameters
    ----------
    source : EmbeddingSource
        The embeddings.
    rows : TrainingRows
        Classes and keys of the rows.
    parts : sequence of TrainTestSplit
        All splits that will be scored.
    options : CalibrationOptions, optional
        The kind of calibration and the seed.

    Raises
    ------
    KnnError
        The calibration is duration-aware, and the length of no row is known.
    """

    def __init__(
        self,
        source: EmbeddingSource,
        rows: TrainingRows,
        parts: Sequence[TrainTestSplit],
        options: CalibrationOptions | None = None,
    ) -> None:
        self.rows, self._options = rows, options or CalibrationOptions()
        seed = self._options.seed
        used = np.flatnonzero(rows.keys.row >= 0)
        tested = np.any([part.tested for part in parts], axis=0)[rows.keys.row[used]]
        self._calibration_rows = used[draw_balanced(rows.truth[used], MAX_CALIBRATION_ROWS, seed)]
        self._measured_rows = used[tested][_draw(int(tested.sum()), MAX_MEASURED_ROWS, seed)]
        halves = [np.flatnonzero(rows.half == half) for half in (0, 1)]
        self._out_of_set = [half[_draw(len(half), MAX_OUT_OF_SET_ROWS, seed)] for half in halves]
        self._read = np.unique(np.concatenate([self._calibration_rows, self._measured_rows, *self._out_of_set]))
        self._seconds = source.seconds(self._read)
        if self._options.duration_aware and np.isnan(self._seconds).all():
            raise KnnError(
                "The rows have no start and end, so calibration cannot depend on their length.",
                "Train without `duration_aware`, or embed the recordings again.",
            )
        self._data = source.take(self._read)

    def score(self, part: TrainTestSplit, models: Sequence[UncalibratedClassifier]) -> HeldOutScores:
        """Calibrate the classifier of a split and score the rows that it holds out.

        Parameters
        ----------
        part : TrainTestSplit
            The training keys and the test keys.
        models : sequence of UncalibratedClassifier
            The classifier of all training rows, then the classifiers without each calibration fold (see
            `cross_validation.assign_cells`).

        Returns
        -------
        HeldOutScores
            The calibration and the scores.
        """
        keys, rows = self.rows.keys, self.rows
        calibration, known = self._calibrate(part, models)
        tested = self._measured_rows[part.tested[keys.row[self._measured_rows]]]
        choosing, reporting = self._out_of_set
        if part.name in rows.folds:
            fold = rows.folds.index(part.name)
            choosing = choosing[rows.fold[choosing] != fold]
            reporting = reporting[np.isin(rows.fold[reporting], [fold, -1])]
        return HeldOutScores(
            calibration=calibration,
            calibrated=known is not None and self._options.kind != "none",
            scores=self._scores(models[0], calibration, tested),
            index=rows.truth[tested],
            known=known,
            choosing=best_llr(self._scores(models[0], calibration, choosing), rows.classes),
            reporting=best_llr(self._scores(models[0], calibration, reporting), rows.classes),
            reporting_rows=reporting,
        )

    def _calibrate(
        self, part: TrainTestSplit, models: Sequence[UncalibratedClassifier]
    ) -> tuple[Calibration, Doubles | None]:
        """The calibration, learnt by cross-validation, and the largest LLR of each calibration row."""
        keys, classes = self.rows.keys, self.rows.classes
        units, kind = keys.units_of_classes(part.trained), self._options.kind
        smoothing = 0.0 if kind == "none" else smoothing_of([units.get(label, 0) for label in classes.tolist()])
        calibration = Calibration.identity(len(classes), smoothing)
        if part.fold is None:
            return calibration, None
        rows = self._calibration_rows[part.trained[keys.row[self._calibration_rows]]]
        fold, truth = part.fold[keys.row[rows]], self.rows.truth[rows]
        unseen = np.empty((len(rows), len(classes)))
        for number, model in zip(part.folds, models[1:], strict=True):
            unseen[fold == number] = model.log_likelihood(self._vectors(rows[fold == number]))
        seconds = self._lengths(rows)
        if kind != "none":
            calibration = Calibration.fit(
                unseen, classes[truth], classes, kind=kind, seconds=seconds, smoothing=smoothing
            )
        return calibration, best_llr(calibration.bounded(calibration.apply(unseen, seconds)), classes)

    def _scores(self, model: UncalibratedClassifier, calibration: Calibration, rows: Indices) -> Doubles:
        return calibration.bounded(calibration.apply(model.log_likelihood(self._vectors(rows)), self._lengths(rows)))

    def _vectors(self, rows: Indices) -> NDArray[np.float32]:
        return self._data[np.searchsorted(self._read, rows)]

    def _lengths(self, rows: Indices) -> Doubles | None:
        return self._seconds[np.searchsorted(self._read, rows)] if self._options.duration_aware else None


def _draw(count: int, max_rows: int, seed: int) -> Indices:
    """Draw at most `max_rows` of `count` rows, whatever their classes."""
    return draw_balanced(np.zeros(count, np.int64), max_rows, seed)


def best_llr(scores: Doubles, classes: Texts) -> Doubles:
    """The largest detection LLR (N,) of scores (N, C) (see `open_set.best_llr`)."""
    return open_set.best_llr(_table(scores, classes))


def _table(scores: Doubles, classes: Texts) -> ScoreTable:
    unnamed, unknown = np.full(len(scores), ""), np.full(len(scores), np.nan)
    return ScoreTable(tuple(classes.tolist()), scores, unnamed, unknown, unknown)


def operating_point(
    final: HeldOutScores,
    measured: Sequence[HeldOutScores],
    classes: Texts,
    false_reject: float | None,
    disjoint_by: str = "",
    rare: Sequence[str] = (),
) -> OpenSetThreshold | None:
    """Choose the threshold of an open set, and measure the error rates of thresholds chosen likewise on other rows.

    Parameters
    ----------
    final : HeldOutScores
        The scores of the classifier that the threshold is for.
    measured : sequence of HeldOutScores
        The scores of the classifiers whose error rates are measured, each with a separate threshold.
    classes : (C,) str array
        The columns of their scores.
    false_reject : float, optional
        Share of known rows that the threshold may reject; None: equal error rates.
    disjoint_by : str
        The level that choosing and reporting out-of-set rows do not share: "labels", "recordings", ...
    rare : sequence of str
        Classes with fewer recordings than a threshold needs, for the message.

    Returns
    -------
    OpenSetThreshold or None
        None without out-of-set rows, unless `false_reject` is given.

    Raises
    ------
    KnnError
        A class has too few recordings to choose a threshold, no out-of-set row is left to choose it on, or
        `choose_threshold` fails.
    """
    if not len(final.choosing) and false_reject is None:
        return None
    if any(scores.known is None for scores in (final, *measured)):
        fault = "too few recordings to choose the threshold of an open set, which needs three or more"
        if rare:
            raise unfit_classes(rare, fault, "add recordings")
        raise KnnError(f"A fold has {fault} of each class.", "Add recordings, or make another split.")
    chosen = [_choose_threshold(scores, false_reject) for scores in (final, *measured)]
    limits = [point.threshold for point in chosen[1:]]
    rejected = np.concatenate(
        [best_llr(part.scores, classes) < limit for part, limit in zip(measured, limits, strict=True)]
    )
    accepted = np.concatenate([part.reporting >= limit for part, limit in zip(measured, limits, strict=True)])
    # The wording is part of classifier.h5.
    other_labels = f" and strangers of other {disjoint_by}" if disjoint_by else ""
    return OpenSetThreshold(
        threshold=chosen[0].threshold,
        false_accept=float(accepted.mean()) if len(accepted) else float("nan"),
        false_reject=float(rejected.mean()),
        known=len(rejected),
        unknown=len(np.unique(np.concatenate([part.reporting_rows for part in measured]))),
        chosen=f"{chosen[0].chosen}; rates on held-out recordings{other_labels}",
    )


def _choose_threshold(scores: HeldOutScores, false_reject: float | None) -> OpenSetThreshold:
    assert scores.known is not None  # see `operating_point`
    if not len(scores.choosing) and false_reject is None:
        raise KnnError(
            "Outside one of the folds there are no rows of labels outside the closed set to choose a threshold on.",
            "Make another split, or one that ignores these labels.",
        )
    return choose_threshold(scores.known, scores.choosing, false_reject=false_reject)


def group_accuracy(scores: Doubles, index: Indices, groups: Sequence[str]) -> float:
    """Share of rows whose true group has the largest sum of posteriors, with equal priors of the labels.

    Parameters
    ----------
    scores : (N, C) float64 array
        Log-likelihoods.
    index : (N,) int array
        The true label of each row.
    groups : (C,) sequence of str
        The group of each label.
    """
    labels = np.arange(len(groups)).astype(np.str_)
    group_scores, _ = sum_by_group(replace(_table(scores, labels), groups=tuple(groups)))
    best = np.asarray(group_scores.labels)[group_scores.log_likelihood.argmax(axis=1)]
    return float(np.mean(best == np.asarray(groups)[index]))
