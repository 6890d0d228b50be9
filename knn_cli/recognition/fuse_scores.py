"""Training of a fusion, with figures of rows that it was not trained on, and fused scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, ScoreTable, Texts
from knn_cli.evaluation.evaluate import evaluate
from knn_cli.evaluation.metrics import prior_weights
from knn_cli.evaluation.verification_metrics import verification_metrics
from knn_cli.recognition import splitters
from knn_cli.recognition.fusion import Fusion
from knn_cli.recognition.fusion_file import FusionModel
from knn_cli.recognition.split_file import Split
from knn_cli.recognition.system_scores import SystemScores
from knn_cli.recognition.trials import Trials

__all__ = ["FOLDS", "FusedScores", "FusionFigures", "TrainedFusion", "fuse", "fused_figures", "train_fusion"]

FOLDS = 5
_LABEL_FIGURES = ("accuracy", "cavg_1", "min_cavg_1", "cllr", "eer")

FusedScores = ScoreTable | tuple[Trials, Doubles]  # of labels, or log-likelihood ratios (T,) of trials
Masks = list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]  # of what is trained on and tested


@dataclass(frozen=True)
class FusionFigures:
    """Figures of scores of the rows that were held out.

    Attributes
    ----------
    name : str
        A system, or "fusion".
    scores : {"as given", "calibrated", "without quality", "fused"}
    weight : float or None
        Of the system in the fusion of all rows, at the mean of the quality measures.
    figures : dict
        Metric -> value, as `evaluation` names them.
    """

    name: str
    scores: str
    weight: float | None
    figures: dict[str, float]


@dataclass(frozen=True, eq=False)
class TrainedFusion:
    """A fusion of all rows, and what one of some of the rows does on the others.

    Attributes
    ----------
    model : FusionModel
    figures : tuple of FusionFigures
        Empty where nothing was held out.
    tested : int
        Rows or trials that the figures are of.
    """

    model: FusionModel
    figures: tuple[FusionFigures, ...]
    tested: int


def train_fusion(
    systems: SystemScores,
    *,
    quality: tuple[Sequence[str], Doubles] | None = None,
    priors: Mapping[str, float] | Literal["empirical"] | None = None,
    folds: int | Split = FOLDS,
    seed: int = 0,
) -> TrainedFusion:
    """Train a fusion on all rows that have a true label, after measuring it on rows that were held out.

    Rows are held out by recordings, trials by speakers, which are the recordings that target trials join: the trials
    of a fold are those whose both sides are of its speakers, and they are scored by the fusion of trials whose both
    sides are of others.

    Parameters
    ----------
    systems : SystemScores
    quality : (sequence of Q str, (N, Q) float64), optional
        Names and values of quality measures.
    priors : mapping of str to float or "empirical", optional
        Weights of the labels in training, as in `metrics.prior_weights`, or by their rows; None: all alike.
    folds : int or Split
        How many, 0 to hold nothing out; or the folds or sides of a split of the recordings.
    seed : int
        Of the folds.

    Returns
    -------
    TrainedFusion

    Raises
    ------
    KnnError
        For rows of fewer than two labels, labels that the systems do not know, or rows that make no folds.
    """
    known = systems.truth != ""
    if not known.any():
        raise KnnError("The scores have no true labels to train a fusion on.", "Give them, or a file of true labels.")
    names, measures = ((), np.zeros((len(systems), 0))) if quality is None else quality
    systems, measures = systems.take(known), measures[known]
    training = _Training(systems, measures, _weights(priors, systems))
    masks = _masks(systems, folds, seed)
    figures, tested = training.held_out_figures(masks) if masks else ((), 0)
    fusion = training.fit(np.ones(len(systems), dtype=bool))
    kind = "trials" if systems.are_trials else "labels"
    figures = tuple(
        replace(row, weight=float(fusion.weights[systems.systems.index(row.name), 0])) if row.name in systems.systems
        else row
        for row in figures
    )  # fmt: skip
    measured = {"rows": len(systems), "tested": tested, "figures": [vars(row) for row in figures]}
    model = FusionModel(kind, systems.systems, systems.labels, tuple(names), fusion, measured)
    return TrainedFusion(model, figures, tested)


def fuse(model: FusionModel, systems: SystemScores, quality: Doubles | None = None) -> FusedScores:
    """Fuse scores.

    Parameters
    ----------
    model : FusionModel
    systems : SystemScores
        Of the same systems in the same order.
    quality : (N, Q) float64, optional
        The model's quality measures.

    Returns
    -------
    FusedScores
        Calibrated log-likelihoods of the labels, or log-likelihood ratios of the trials.

    Raises
    ------
    KnnError
        For scores of another kind, other labels, or another number of systems.
    """
    if systems.are_trials != (model.kind == "trials"):
        raise KnnError(f"The fusion is of {model.kind}, the scores are not.", "Give scores as those it was trained on.")
    if len(systems.systems) != len(model.systems):
        raise KnnError(
            f"The fusion is of {len(model.systems)} systems, {', '.join(model.systems)}, and there are "
            f"{len(systems.systems)} files of scores.",
            "Give those of the same systems, in the same order.",
        )
    if differing := sorted(set(model.labels) ^ set(systems.labels)):
        raise KnnError(f"The fusion and the scores have different labels: {', '.join(differing[:3])}.")
    columns = [systems.labels.index(label) for label in model.labels]
    fused = model.fusion.apply(systems.scores[:, :, columns], quality)
    return _as_scores(systems, model.labels, fused)


def _weights(priors: Mapping[str, float] | Literal["empirical"] | None, systems: SystemScores) -> Doubles | None:
    """(C,) weights of the labels; None: all alike."""
    if priors != "empirical":
        return None if priors is None else prior_weights(priors, systems.labels)
    counts = [int((systems.truth == label).sum()) for label in systems.labels]
    return np.maximum(np.asarray(counts, dtype=np.float64), 1)  # those of labels without rows are not used


@dataclass(frozen=True, eq=False)
class _Training:
    """All rows with true labels: scores, measures (N, Q) and weights of the labels (C,) or None."""

    systems: SystemScores
    measures: Doubles
    priors: Doubles | None

    def fit(self, rows: NDArray[np.bool_], systems: Sequence[int] | None = None, quality: bool = True) -> Fusion:
        """The fusion of some rows, and of all or some systems."""
        scores = self.systems.scores if systems is None else self.systems.scores[list(systems)]
        return Fusion.fit(
            scores[:, rows],
            self.systems.truth[rows],
            self.systems.labels,
            quality=self.measures[rows] if quality else None,
            priors=self.priors,
        )

    def held_out_figures(self, masks: Masks) -> tuple[tuple[FusionFigures, ...], int]:
        """The figures of each system as given and calibrated, and of the fusion, and of how many rows they are."""
        tested = np.zeros(len(self.systems), dtype=bool)
        for _, test in masks:
            tested |= test
        names, figures = self.systems.systems, []
        for number, name in enumerate(names):
            figures.append(FusionFigures(name, "as given", None, self._figures(self.systems.scores[number], tested)))
            if len(names) > 1:
                figures.append(FusionFigures(name, "calibrated", None, self._held_out(masks, tested, [number], False)))
        if self.measures.shape[1]:
            figures.append(FusionFigures("fusion", "without quality", None, self._held_out(masks, tested, None, False)))
        figures.append(FusionFigures("fusion", "fused", None, self._held_out(masks, tested, None, True)))
        return tuple(figures), int(tested.sum())

    def _held_out(
        self, masks: Masks, tested: NDArray[np.bool_], systems: Sequence[int] | None, quality: bool
    ) -> dict[str, float]:
        """Figures of rows that were fused by what other rows say."""
        scores = self.systems.scores if systems is None else self.systems.scores[list(systems)]
        fused = np.zeros(scores.shape[1:])
        for train, test in masks:
            fusion = self.fit(train, systems, quality)
            fused[test] = fusion.apply(scores[:, test], self.measures[test] if quality else None)
        return self._figures(fused, tested)

    def _figures(self, scores: Doubles, tested: NDArray[np.bool_]) -> dict[str, float]:
        return fused_figures(_as_scores(self.systems.take(tested), self.systems.labels, scores[tested]))


def fused_figures(fused: FusedScores) -> dict[str, float]:
    """Figures of scores whose true labels or keys are known; none where they are not, or are of one label alone."""
    if not isinstance(fused, ScoreTable):
        trials, scores = fused
        if trials.is_target is None or trials.is_target.all() or not trials.is_target.any():
            return {}
        metrics = verification_metrics(scores, trials.is_target, llr=True)
        costs = {f"min_dcf_{prior:g}": cost for prior, cost in metrics.min_dcf.items()}
        actual = {f"dcf_{prior:g}": cost for prior, cost in metrics.dcf.items()}
        return {"eer": metrics.eer, **costs, **actual, "cllr": float(metrics.cllr or 0.0)}
    if not np.isin(fused.truth, fused.labels).any():
        return {}
    values = evaluate(replace(fused, threshold=None), bootstrap=0).metrics
    return {name: values[name].value for name in _LABEL_FIGURES}


def _as_scores(systems: SystemScores, labels: tuple[str, ...], scores: Doubles) -> FusedScores:
    """Scores (N, C) of the rows as they are written."""
    if isinstance(systems.rows, Trials):
        return systems.rows, scores[:, 0] - scores[:, 1]
    return replace(systems.rows, labels=labels, log_likelihood=scores)


def _masks(systems: SystemScores, folds: int | Split, seed: int) -> Masks:
    if isinstance(folds, int) and not folds:
        return []
    if isinstance(systems.rows, Trials):
        return _trial_masks(systems.rows, folds, seed)
    if isinstance(folds, Split):
        return [(train, test) for _, train, test in folds.masks(systems.rows.name)]
    return splitters.folds(systems.rows.name, systems.truth, count=folds, seed=seed)


def _trial_masks(trials: Trials, folds: int | Split, seed: int) -> Masks:
    """Trials among the speakers of each fold, against those among all others."""
    left = np.asarray(trials.enroll, dtype=np.str_)[trials.pairs[:, 0]]
    right = np.asarray(trials.test, dtype=np.str_)[trials.pairs[:, 1]]
    if isinstance(folds, Split):
        parts = folds.part_of(left), folds.part_of(right)
        names = folds.parts if folds.has_folds else ("test",)
        return [_of_fold(*(part == name for part in parts), *(part != "" for part in parts)) for name in names]
    speaker_of = _speakers(left, right, trials.is_target)
    speakers = np.unique([*speaker_of.values()])
    number = dict(zip(np.random.default_rng(seed).permutation(speakers).tolist(), range(len(speakers)), strict=True))
    sides = [np.asarray([number[speaker_of[name]] % folds for name in side.tolist()]) for side in (left, right)]
    masks = [_of_fold(*(side == fold for side in sides)) for fold in range(folds)]
    target = trials.is_target
    for train, test in masks:
        for chosen in (train, test):
            if target is None or not target[chosen].any() or target[chosen].all():
                raise KnnError(
                    f"{len(speakers)} speakers are too few for {folds} folds, in each of which are trials of both "
                    "kinds.",
                    "Take fewer folds, or none.",
                )
    return masks


def _of_fold(
    left: NDArray[np.bool_], right: NDArray[np.bool_], *used: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """What is trained on and tested, from whether each side of the trials is in the fold, and in any."""
    return np.logical_and.reduce([~left, ~right, *used]), left & right


def _speakers(left: Texts, right: Texts, is_target: NDArray[np.bool_] | None) -> dict[str, str]:
    """Recording -> one name for all that target trials, and enrolments of several recordings, join."""
    joined = np.zeros(len(left), dtype=bool) if is_target is None else is_target
    parts = [(part, text) for text in np.unique(left).tolist() for part in text.split(",")]
    names = np.asarray([*left.tolist(), *right.tolist(), *(part for part, _ in parts)], dtype=np.str_)
    units = np.asarray([*left.tolist(), *np.where(joined, left, right).tolist(), *(text for _, text in parts)])
    return dict(zip(names.tolist(), splitters.merge_units(names, units).tolist(), strict=True))
