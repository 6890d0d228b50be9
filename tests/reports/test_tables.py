"""Tables of a report: order, worst errors, intervals of the recall."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from knn_cli.core.values import ScoreTable
from knn_cli.reports.tables import METRICS, NamedEvaluation, headline_table, recall_intervals, worst_errors
from tests.helpers import evaluations


@pytest.fixture(scope="module")
def model() -> NamedEvaluation:
    return evaluations.named("voice", ("a", "b", "c"), 60, quality=1.5)


def test_recall_interval_of_independent_rows_is_wilsons() -> None:
    """A recording a row: 8 of 10 right gives Wilson's [0.490, 0.943]."""
    scores = np.zeros((20, 2))
    scores[:, 0] = [1] * 8 + [-1] * 2 + [1] * 2 + [-1] * 8
    names = np.array([f"r{n}" for n in range(20)])
    table = ScoreTable(("a", "b"), scores, names, np.zeros(20), np.ones(20), np.array(["a"] * 10 + ["b"] * 10))
    low, high = recall_intervals(evaluations.evaluation(table))["a"]
    wilson = stats.binomtest(8, 10).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((wilson.low, wilson.high), abs=1e-9)


def test_recall_interval_of_rows_alike_counts_recordings() -> None:
    """Two rows a recording that agree always say no more than one."""
    once = np.zeros((20, 2))
    once[:, 0] = [1] * 8 + [-1] * 2 + [1] * 2 + [-1] * 8
    names = np.repeat([f"r{n}" for n in range(20)], 2)
    truth = np.repeat(np.array(["a"] * 10 + ["b"] * 10), 2)
    table = ScoreTable(("a", "b"), np.repeat(once, 2, axis=0), names, np.zeros(40), np.ones(40), truth)
    wilson = stats.binomtest(8, 10).proportion_ci(method="wilson")
    assert recall_intervals(evaluations.evaluation(table))["a"] == pytest.approx((wilson.low, wilson.high), abs=1e-9)


def test_headline_is_in_order_and_keeps_figures_it_does_not_know(model: NamedEvaluation) -> None:
    names = [row[0] for row in headline_table([model]).rows]
    assert names[:2] == ["accuracy", "balanced_accuracy"]
    assert set(names) == set(model.evaluation.metrics)


def test_every_metric_has_a_title(model: NamedEvaluation) -> None:
    """The page shows only metrics that METRICS names."""
    assert set(model.evaluation.metrics) <= set(METRICS)


def test_worst_errors_come_first_one_a_recording() -> None:
    model = evaluations.named(quality=0.5)
    found = worst_errors(model, 5)
    gaps = [one.log_ratio for one in found]
    table, index = model.evaluation.table, model.evaluation.index
    brute = table.log_likelihood.max(axis=1) - table.log_likelihood[np.arange(len(table)), index]
    assert gaps[0] == pytest.approx(brute.max())
    assert gaps == sorted(gaps, reverse=True)
    assert len({one.name for one in found}) == 5
    assert all(one.truth != one.predicted for one in found)
