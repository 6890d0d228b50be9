"""The numbers that an evaluation report shows, as plain tables: behind every figure, and beside them on the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from knn_cli.core.tables import CellValue, Table
from knn_cli.evaluation.results import Evaluation, MetricValue


@dataclass(frozen=True)
class Named:
    """An evaluation and what its model is called; `name` differs between the models of one report."""

    name: str
    evaluation: Evaluation

    @property
    def rows(self) -> int:
        return len(self.evaluation.table)

    @property
    def recordings(self) -> int:
        return len(np.unique(self.evaluation.table.name))

    @property
    def counts(self) -> str:
        return f"{counted(self.rows, 'row')} of {counted(self.recordings, 'recording')}"


@dataclass(frozen=True)
class Error:
    """A row that the model got wrong.

    log_ratio : natural logarithm of the probability of what was said over that of the truth, above 0
    posterior : probability of what was said, in [0, 1]
    """

    model: str
    name: str
    start: float
    end: float
    truth: str
    said: str
    log_ratio: float
    posterior: float


FIGURES = {  # how each of Evaluation.figures is called, whether it is a share, and what it says
    "accuracy": ("Accuracy", True, "share of rows whose best label is right"),
    "balanced_accuracy": ("Balanced accuracy", True, "mean of the labels' recall"),
    "macro_f1": ("Macro F1", True, "mean of the labels' F1"),
    "cprimary": ("Cprimary", False, "mean of the two Cavg below: cost at thresholds fixed beforehand; 0 is best"),
    "min_cprimary": ("Minimum Cprimary", False, "at the best threshold that all labels share"),
    "min_cprimary_by_label": ("Minimum Cprimary, a threshold a label", False, "at the best threshold of each label"),
    "act_minus_min": ("Actual − minimum", False, "what better calibration could gain"),
    "cavg_1": ("Cavg, β = 1", False, "at the threshold log 1 = 0: target prior 0.5"),
    "cavg_9": ("Cavg, β = 9", False, "at the threshold log 9 = 2.20: target prior 0.1"),
    "min_cavg_1": ("Minimum Cavg, β = 1", False, "at the best threshold that all labels share"),
    "min_cavg_9": ("Minimum Cavg, β = 9", False, "at the best threshold that all labels share"),
    "eer": ("Equal error rate", True, "mean over labels"),
    "cllr": ("Cllr", False, "bits a row, of all labels together; log2 of their number says nothing, more misleads"),
    "ece": ("Calibration error (ECE)", True, "mean gap between probability and share of right answers"),
}


def headline(models: Sequence[Named]) -> Table:
    """One row a figure: its name, then value and ends of the interval of each model."""
    names = dict.fromkeys(name for model in models for name in model.evaluation.metrics)
    order = [*(name for name in FIGURES if name in names), *(name for name in names if name not in FIGURES)]
    columns = [f"{model.name} {part}" for model in models for part in ("value", "low", "high")]
    rows: list[tuple[CellValue, ...]] = []
    for name in order:
        found = [model.evaluation.metrics.get(name, MetricValue(math.nan)) for model in models]
        rows.append((name, *(part for one in found for part in (one.value, one.low, one.high))))
    return Table("Headline figures", ("figure", *columns), tuple(rows))


def class_table(models: Sequence[Named], title: str = "Figures of every label") -> Table:
    """One row a label and model, labels in the order of the first model that has them."""
    labels = dict.fromkeys(one.label for model in models for one in model.evaluation.classes)
    found = {(model.name, one.label): one for model in models for one in model.evaluation.classes}
    ends = {model.name: recall_intervals(model.evaluation) for model in models}
    columns = ("label", "model", "rows", "precision", "recall", "recall low", "recall high", "F1", "EER")
    costs = ("Cdet 1", "min Cdet 1", "Cdet 9", "min Cdet 9")
    rows: list[tuple[CellValue, ...]] = []
    for label in labels:
        for model in models:
            if one := found.get((model.name, label)):
                low, high = ends[model.name][label]
                pairs = [cost for pair in zip(one.cdet, one.min_cdet, strict=True) for cost in pair]
                rows.append(
                    (label, model.name, one.support, one.precision, one.recall, low, high, one.f1, one.eer, *pairs)
                )
    return Table(title, columns + costs, tuple(rows))


def open_set_table(models: Sequence[Named]) -> Table:
    """One row a model and label outside it that occurs: its rows and the share that was taken for a known label."""
    rows: list[tuple[CellValue, ...]] = []
    for model in models:
        if found := model.evaluation.open_set:
            for label, (count, accepted) in sorted(found.by_label.items(), key=lambda one: -one[1][1]):
                rows.append((model.name, label, count, accepted))
    return Table("Labels outside the model", ("model", "label", "rows", "accepted"), tuple(rows))


def worst_errors(model: Named, most: int) -> tuple[Error, ...]:
    """The rows that the model was most wrong about, worst first, at most one of a recording."""
    table, index = model.evaluation.table, model.evaluation.index
    if not len(table):
        return ()
    scores = table.log_likelihood  # (N, C), with the priors
    said = scores.argmax(axis=1)
    rows = np.arange(len(table))
    gaps = scores[rows, said] - scores[rows, index]
    chances = model.evaluation.posteriors[rows, said]
    found: dict[str, Error] = {}
    for row in np.argsort(-gaps, kind="stable"):
        if said[row] == index[row] or len(found) == most:
            break
        name, truth, answer = str(table.name[row]), table.labels[index[row]], table.labels[said[row]]
        start, end = float(table.start[row]), float(table.end[row])
        found.setdefault(name, Error(model.name, name, start, end, truth, answer, gaps[row], chances[row]))
    return tuple(found.values())


def error_table(errors: Sequence[Error]) -> Table:
    columns = ("model", "recording", "start", "end", "truth", "said", "log ratio", "posterior")
    rows = tuple(
        (one.model, one.name, one.start, one.end, one.truth, one.said, float(one.log_ratio), float(one.posterior))
        for one in errors
    )
    return Table("Worst errors", columns, rows)


def recall_intervals(evaluation: Evaluation, confidence: float = 0.95) -> dict[str, tuple[float, float]]:
    """Wilson's interval of the recall of each label that occurs, on its effective number of rows.

    Rows of one recording resemble each other, so they count for less than as many recordings would. The design effect
    is the variance between recordings over the binomial one, both summed over labels; a label's effective number of
    rows is its rows over that, never below its recordings nor above its rows.

    L. Kish, Survey Sampling, 1965 (design effect); E. Korn and B. Graubard, "Confidence intervals for proportions with
    small expected number of positive counts estimated from survey data", Survey Methodology 24 (1998), with the
    interval of E. Wilson, JASA 22 (1927), in place of Clopper's and Pearson's.
    """
    table = evaluation.table
    right = table.log_likelihood.argmax(axis=1) == evaluation.index if len(table) else np.zeros(0, dtype=bool)
    counts: dict[str, tuple[int, int, float]] = {}  # label -> rows, recordings, recall
    between = binomial = 0.0
    for column in np.unique(evaluation.index):
        mine = evaluation.index == column
        names, recording = np.unique(table.name[mine], return_inverse=True)
        size = np.bincount(recording)  # (R,) rows of each recording
        hits = np.bincount(recording, weights=right[mine])
        rows, recordings, share = int(size.sum()), len(names), float(right[mine].mean())
        counts[table.labels[column]] = rows, recordings, share
        if recordings > 1:
            squares = float(((hits - share * size) ** 2).sum())
            between += recordings / (recordings - 1) * squares / rows**2
            binomial += share * (1 - share) / rows
    effect = between / binomial if binomial > 0 else math.inf
    z = float(ndtri(0.5 + confidence / 2))
    found = {}
    for label, (rows, recordings, share) in counts.items():
        n = float(np.clip(rows / max(effect, 1e-9), recordings, rows))
        middle = (share + z * z / (2 * n)) / (1 + z * z / n)
        reach = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
        found[label] = max(0.0, middle - reach), min(1.0, middle + reach)
    return found


def in_title(models: Sequence[Named]) -> str:
    """How many rows of how many recordings, for a title; of several models, of which each may know others, nothing."""
    return f": {models[0].counts}" if len(models) == 1 else ""


def unlike(models: Sequence[Named]) -> str:
    """A sentence where the models' figures are not of the same labels, "" where they are."""
    known = [set(one.evaluation.table.labels) for one in models]
    occur = [{label.label for label in one.evaluation.classes} for one in models]
    if all(one == known[0] for one in known) and all(one == occur[0] for one in occur):
        return ""
    shared, scored = set.intersection(*known), set.intersection(*occur)
    told = []
    for model, labels, own in zip(models, known, occur, strict=True):
        more = sorted(own - scored) or sorted(labels - shared)
        words = f" ({', '.join(more)} not in all)" if more else ""
        told.append(f"{model.name} knows {counted(len(labels), 'label')}, of which {len(own)} occur{words}")
    return (
        "These figures are means over different labels, or against different rivals, so costs, error rates and shares "
        f"cannot be compared as they stand: {'; '.join(told)}."
    )


def prior_words(model: Named, most: int = 12) -> str:
    """A sentence where labels were not alike beforehand, "" where they were."""
    found = model.evaluation
    if not found.priors:
        return ""
    order = np.argsort(-np.array(found.priors), kind="stable")
    told = [f"{found.table.labels[one]} {100 * found.priors[one]:.3g}\u00a0%" for one in order[:most]]
    rest = f" and {len(order) - most} others" if len(order) > most else ""
    return (
        f"{model.name}: labels are as likely before as {', '.join(told)}{rest}. Answers, calibration error and "
        "detection costs are under these priors; Cllr and the threshold of `unknown` are of labels alike."
    )


def counted(count: int, thing: str) -> str:
    """1 row, 1,200 rows."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"
