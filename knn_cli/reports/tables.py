"""The numbers of an evaluation report as plain tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import scipy

from knn_cli.core.display_names import display_names
from knn_cli.core.tables import CellValue, Table
from knn_cli.evaluation.results import Evaluation, MetricValue


@dataclass(frozen=True)
class NamedEvaluation:
    """An evaluation, the name of its model, which differs between the models of one report, and names of labels."""

    name: str
    evaluation: Evaluation
    label_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(self.evaluation.table)

    @property
    def recordings(self) -> int:
        return len(np.unique(self.evaluation.table.name))

    @property
    def grouped(self) -> NamedEvaluation | None:
        """The same of groups of labels, where the labels have groups."""
        groups = self.evaluation.groups
        return None if groups is None else replace(self, evaluation=groups)

    @property
    def counts(self) -> str:
        return f"{counted(self.rows, 'row')} of {counted(self.recordings, 'recording')}"


@dataclass(frozen=True)
class Error:
    """A row that the model got wrong.

    Attributes
    ----------
    model, name : str
        Names of the model and of the recording.
    start, end : float
        Seconds in the recording, NaN where unknown.
    truth, predicted : str
        Labels.
    log_ratio : float
        Natural logarithm of the probability of the predicted label over that of the true one, above 0.
    posterior : float
        Probability of the predicted label, in [0, 1].
    """

    model: str
    name: str
    start: float
    end: float
    truth: str
    predicted: str
    log_ratio: float
    posterior: float


class Metric(NamedTuple):
    """How a metric is shown: its name, whether it is a share (in percent), and what it is."""

    title: str
    is_share: bool
    description: str


METRICS = {  # keys of Evaluation.metrics
    "accuracy": Metric("Accuracy", True, "share of rows whose best label is right"),
    "balanced_accuracy": Metric("Balanced accuracy", True, "mean of the labels' recall"),
    "macro_f1": Metric("Macro F1", True, "mean of the labels' F1"),
    "cprimary": Metric("Cprimary", False, "mean of the two Cavg below: cost at thresholds fixed beforehand; 0 is best"),
    "min_cprimary": Metric("Minimum Cprimary", False, "at the best threshold that all labels share"),
    "min_cprimary_by_label": Metric(
        "Minimum Cprimary, a threshold per label", False, "at the best threshold of each label"
    ),
    "act_minus_min": Metric("Actual − minimum", False, "what better calibration could gain"),
    "cavg_1": Metric("Cavg, β = 1", False, "at the threshold log 1 = 0: target prior 0.5"),
    "cavg_9": Metric("Cavg, β = 9", False, "at the threshold log 9 = 2.20: target prior 0.1"),
    "min_cavg_1": Metric("Minimum Cavg, β = 1", False, "at the best threshold that all labels share"),
    "min_cavg_9": Metric("Minimum Cavg, β = 9", False, "at the best threshold that all labels share"),
    "eer": Metric("Equal error rate", True, "mean over labels"),
    "cllr": Metric(
        "Cllr", False, "bits per row, over all labels; log2 of their number is uninformative, more is misleading"
    ),
    "ece": Metric("Calibration error (ECE)", True, "mean gap between probability and share of right answers"),
}


def headline_table(models: Sequence[NamedEvaluation]) -> Table:
    """Return a row per metric: its name, then value and ends of the interval of each model."""
    names = dict.fromkeys(name for model in models for name in model.evaluation.metrics)
    order = [*(name for name in METRICS if name in names), *(name for name in names if name not in METRICS)]
    columns = [f"{model.name} {end}" for model in models for end in ("value", "low", "high")]
    rows: list[tuple[CellValue, ...]] = []
    for name in order:
        values = [model.evaluation.metrics.get(name, MetricValue(math.nan)) for model in models]
        rows.append((name, *(end for value in values for end in (value.value, value.low, value.high))))
    return Table("Headline figures", ("figure", *columns), tuple(rows))


def class_table(models: Sequence[NamedEvaluation], title: str = "Figures of every label") -> Table:
    """Return a row per label and model, labels in the order of the first model that has them.

    Labels that have names, such as languages, have them beside them.
    """
    labels = dict.fromkeys(row.label for model in models for row in model.evaluation.classes)
    metrics = {(model.name, row.label): row for model in models for row in model.evaluation.classes}
    intervals = {model.name: recall_intervals(model.evaluation) for model in models}
    names = display_names(labels, {label: name for model in models for label, name in model.label_names.items()})
    columns = (
        *("label", "name")[: 2 if names else 1],
        *("model", "rows", "precision", "recall", "recall low", "recall high", "F1", "EER"),
    )
    cost_columns = ("Cdet 1", "min Cdet 1", "Cdet 9", "min Cdet 9")
    rows: list[tuple[CellValue, ...]] = []
    for label in labels:
        for model in models:
            if row := metrics.get((model.name, label)):
                interval = intervals[model.name][label]
                costs = [cost for pair in zip(row.cdet, row.min_cdet, strict=True) for cost in pair]
                shares = (row.precision, row.recall, *interval, row.f1, row.eer)
                name = (names.get(label, ""),) if names else ()
                rows.append((label, *name, model.name, row.support, *shares, *costs))
    return Table(title, columns + cost_columns, tuple(rows))


def open_set_table(models: Sequence[NamedEvaluation]) -> Table:
    """Return a row per model and out-of-set label: its rows, and the share of them accepted as a known label."""
    rows: list[tuple[CellValue, ...]] = []
    for model in models:
        if metrics := model.evaluation.open_set:
            by_share = sorted(metrics.by_label.items(), key=lambda item: -item[1][1])
            rows += [(model.name, label, count, accepted) for label, (count, accepted) in by_share]
    return Table("Labels outside the model", ("model", "label", "rows", "accepted"), tuple(rows))


def worst_errors(model: NamedEvaluation, max_errors: int) -> tuple[Error, ...]:
    """Return the errors with the largest log ratio, worst first, at most one per recording."""
    table, truth = model.evaluation.table, model.evaluation.index
    if not len(table):
        return ()
    scores = table.log_likelihood  # (N, C), with the priors
    predicted = scores.argmax(axis=1)
    rows = np.arange(len(table))
    gaps = scores[rows, predicted] - scores[rows, truth]
    posteriors = model.evaluation.posteriors[rows, predicted]
    errors: dict[str, Error] = {}
    for row in np.argsort(-gaps, kind="stable"):
        if predicted[row] == truth[row] or len(errors) == max_errors:
            break
        name, start, end = str(table.name[row]), float(table.start[row]), float(table.end[row])
        labels = table.labels[truth[row]], table.labels[predicted[row]]
        errors.setdefault(name, Error(model.name, name, start, end, *labels, gaps[row], posteriors[row]))
    return tuple(errors.values())


def error_table(errors: Sequence[Error]) -> Table:
    """Return a row per error, in their order."""
    columns = ("model", "recording", "start", "end", "truth", "said", "log ratio", "posterior")
    rows = tuple(
        (
            error.model,
            error.name,
            error.start,
            error.end,
            error.truth,
            error.predicted,
            float(error.log_ratio),
            float(error.posterior),
        )
        for error in errors
    )
    return Table("Worst errors", columns, rows)


def recall_intervals(evaluation: Evaluation, confidence: float = 0.95) -> dict[str, tuple[float, float]]:
    """Wilson's interval of the recall of each label that occurs, on its effective number of rows.

    Rows of one recording resemble each other, so they count for less than as many recordings would. The design effect
    is the variance between recordings over the binomial one, both summed over labels; a label's effective number of
    rows is its rows over that, never below its recordings nor above its rows.

    Returns
    -------
    dict of str to (float, float)
        Label -> low and high end, in [0, 1].

    References
    ----------
    L. Kish, Survey Sampling, 1965 (design effect); E. Korn and B. Graubard, "Confidence intervals for proportions with
    small expected number of positive counts estimated from survey data", Survey Methodology 24 (1998), with the
    interval of E. Wilson, JASA 22 (1927), in place of Clopper's and Pearson's.
    """
    table = evaluation.table
    right = table.log_likelihood.argmax(axis=1) == evaluation.index if len(table) else np.zeros(0, dtype=bool)
    counts: dict[str, tuple[int, int, float]] = {}  # label -> rows, recordings, recall
    between = binomial = 0.0
    for column in np.unique(evaluation.index):
        has_label = evaluation.index == column
        names, recording = np.unique(table.name[has_label], return_inverse=True)
        size = np.bincount(recording)  # (R,) rows of each recording
        hits = np.bincount(recording, weights=right[has_label])
        rows, recordings, share = int(size.sum()), len(names), float(right[has_label].mean())
        counts[table.labels[column]] = rows, recordings, share
        if recordings > 1:
            squares = float(((hits - share * size) ** 2).sum())
            between += recordings / (recordings - 1) * squares / rows**2
            binomial += share * (1 - share) / rows
    effect = between / binomial if binomial > 0 else math.inf
    z = float(scipy.special.ndtri(0.5 + confidence / 2))
    intervals = {}
    for label, (rows, recordings, share) in counts.items():
        n = float(np.clip(rows / max(effect, 1e-9), recordings, rows))
        middle = (share + z * z / (2 * n)) / (1 + z * z / n)
        half_width = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
        intervals[label] = max(0.0, middle - half_width), min(1.0, middle + half_width)
    return intervals


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: 1 row, 1,200 rows."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def counts_in_title(models: Sequence[NamedEvaluation]) -> str:
    """Return rows and recordings for a figure's title; "" with several models, whose rows may differ."""
    return f": {models[0].counts}" if len(models) == 1 else ""
