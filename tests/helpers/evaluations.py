"""Evaluations made up for tests of what shows them: scores of known quality, figures by plain arithmetic."""

from __future__ import annotations

import numpy as np

from knn_cli.core.values import EmbeddingSet, ScoreTable
from knn_cli.evaluation.metrics import cavg, confusion, detection_llr, eer, min_cavg
from knn_cli.evaluation.results import (
    ClassMetrics,
    DetCurve,
    DurationPoint,
    Evaluation,
    MetricValue,
    OpenSetMetrics,
    Reliability,
)
from knn_cli.reports.tables import NamedEvaluation


def scores(
    labels: tuple[str, ...],
    rows: int,
    *,
    quality: float = 3.0,
    groups: tuple[str, ...] = (),
    seed: int = 0,
    skip: tuple[str, ...] = (),
    recording: str = "rec{:03d}.wav",
) -> ScoreTable:
    """Gaussian log-likelihoods whose true label is `quality` above the rest; five rows of 4 s a recording."""
    rng = np.random.default_rng(seed)
    used = [column for column, label in enumerate(labels) if label not in skip]
    index = np.array([used[row // 5 % len(used)] for row in range(rows)])
    values = rng.normal(size=(rows, len(labels))) * 1.5
    if groups:  # labels of a group are taken for each other more often
        kin = np.array(groups)[:, None] == np.array(groups)
        values += 1.2 * kin[index]
    values[np.arange(rows), index] += quality
    start = 4.0 * (np.arange(rows) % 5)
    name = np.array([recording.format(row // 5) for row in range(rows)])
    return ScoreTable(labels, values, name, start, start + 4.0, np.array(labels)[index], None, groups)


def evaluation(table: ScoreTable, *, out_of_set: dict[str, int] | None = None, unlabelled: int = 0) -> Evaluation:
    count = len(table.labels)
    index = np.array([table.labels.index(one) for one in table.truth])
    said = table.log_likelihood.argmax(axis=1)
    llr = detection_llr(table.log_likelihood)
    counts = confusion(said, index, count)
    present = sorted(set(index.tolist()))
    classes = []
    detections = [_detection("all", llr[:, present], index[:, None] == np.array(present))]
    for column in present:
        mine = index == column
        hits = counts[column, column]
        precision = hits / counts[:, column].sum() if counts[:, column].sum() else float("nan")
        recall = hits / counts[column].sum()
        f1 = 2 * hits / (counts[:, column].sum() + counts[column].sum())
        rate = eer(llr[mine, column], llr[~mine, column])
        costs = (0.1 + rate, 0.3 + rate)
        classes.append(
            ClassMetrics(table.labels[column], int(mine.sum()), precision, recall, f1, rate, costs, (rate, 0.2 + rate))
        )
        detections.append(_detection(table.labels[column], llr[:, [column]], mine[:, None]))
    accuracy = float((said == index).mean())
    chances = np.exp(table.log_likelihood - np.logaddexp.reduce(table.log_likelihood, axis=1)[:, None])
    reliability = _reliability(chances.max(axis=1), said == index)
    costs = [cavg(llr, index, beta) for beta in (1, 9)]
    least = [min_cavg(llr, index, beta) for beta in (1, 9)]
    figures = {
        "accuracy": MetricValue(accuracy, accuracy - 0.03, accuracy + 0.03),
        "balanced_accuracy": MetricValue(float(np.mean([one.recall for one in classes]))),
        "macro_f1": MetricValue(float(np.mean([one.f1 for one in classes]))),
        "cavg_1": MetricValue(costs[0]),
        "cavg_9": MetricValue(costs[1]),
        "cprimary": MetricValue(sum(costs) / 2, sum(costs) / 2 - 0.02, sum(costs) / 2 + 0.02),
        "min_cprimary": MetricValue(sum(least) / 2),
        "min_cprimary_by_label": MetricValue(0.9 * sum(least) / 2),
        "act_minus_min": MetricValue((sum(costs) - sum(least)) / 2),
        "eer": MetricValue(float(np.mean([one.eer for one in classes]))),
        "cllr": MetricValue(0.3),
        "ece": MetricValue(reliability.ece),
    }
    outside = None
    if out_of_set:
        shares = {label: (rows, 0.1 + 0.1 * rank) for rank, (label, rows) in enumerate(out_of_set.items())}
        outside = OpenSetMetrics(
            1.5, MetricValue(0.05, 0.02, 0.08), MetricValue(0.2), len(table), sum(out_of_set.values()), shares
        )
    grouped = None
    if table.groups:
        names = tuple(dict.fromkeys(table.groups))
        belongs = np.array(table.groups)[:, None] == np.array(names)  # (C, G)
        summed = np.log(np.exp(table.log_likelihood) @ belongs)
        truth = np.array(table.groups)[index]
        grouped = evaluation(ScoreTable(names, summed, table.name, table.start, table.end, truth))
    absent = tuple(label for column, label in enumerate(table.labels) if column not in present)
    return Evaluation(
        table,
        index,
        figures,
        tuple(classes),
        absent,
        out_of_set or {},
        unlabelled,
        counts,
        tuple(detections),
        reliability,
        outside,
        grouped,
    )


def named(
    name: str = "voice", labels: tuple[str, ...] = ("a", "b", "c"), rows: int = 60, **options: object
) -> NamedEvaluation:
    return NamedEvaluation(name, evaluation(scores(labels, rows, **options)))  # type: ignore[arg-type]


def curve(best: float = 0.95) -> tuple[DurationPoint, ...]:
    return tuple(
        DurationPoint(
            n, 4.0 * n, 600 // n, MetricValue(best - 0.2 / n, best - 0.25 / n, best - 0.15 / n), 0.3 / n, 0.25 / n
        )
        for n in (1, 2, 3, 4, 6)
    )


def embeddings(table: ScoreTable, dimension: int = 12, seed: int = 0) -> EmbeddingSet:
    rng = np.random.default_rng(seed)
    centres = {label: rng.normal(size=dimension) * 3 for label in table.labels}
    data = np.stack([centres[str(label)] + rng.normal(size=dimension) for label in table.truth])
    return EmbeddingSet.from_columns(data, table.name, group=table.truth, start=table.start, end=table.end)


def _detection(name: str, llr: np.ndarray, target: np.ndarray) -> DetCurve:
    targets, others = np.sort(llr[target]), np.sort(llr[~target])
    threshold = np.append(np.unique(llr), np.inf)
    miss = np.searchsorted(targets, threshold) / len(targets)
    return DetCurve(
        name, threshold, miss, 1 - np.searchsorted(others, threshold) / len(others), len(targets), len(others)
    )


def _reliability(sure: np.ndarray, right: np.ndarray, bins: int = 10) -> Reliability:
    edges = np.linspace(0, 1, bins + 1)
    place = np.minimum((sure * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, sure, bins) / count
        accuracy = np.bincount(place, right, bins) / count
    ece = float(np.nansum(count * np.abs(confidence - accuracy)) / len(sure))
    return Reliability(edges, count, confidence, accuracy, ece)
