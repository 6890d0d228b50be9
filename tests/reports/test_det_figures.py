"""DET curves and score histograms: what is drawn, and the numbers behind it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from knn_cli.evaluation.evaluate import evaluate
from knn_cli.evaluation.results import DetCurve, Evaluation
from knn_cli.reports import det_figures
from knn_cli.reports.tables import NamedEvaluation
from tests.helpers import evaluations


def test_det_is_drawn_in_probits() -> None:
    half = DetCurve("all", np.array([-np.inf, 0.0, np.inf]), np.array([0, 0.1, 1]), np.array([1, 0.3, 0]), 10, 10)
    model = evaluations.named()
    changed = Evaluation(**{**_fields(model.evaluation), "det_curves": (half,)})
    axes = det_figures.det_curves([NamedEvaluation("m", changed)]).figure.axes[0]
    line = next(one for one in axes.lines if one.get_linewidth() == 2)
    assert line.get_xydata()[1] == pytest.approx(stats.norm.ppf([0.3, 0.1]))


@pytest.mark.parametrize("priors", [None, {"a": 5.0}])
def test_marks_of_det_are_the_operating_points(priors: dict[str, float] | None) -> None:
    """Few rows with ties, so that curves have corners apart: each mark's rates give the cost at its threshold."""
    table = evaluations.scores(("a", "b", "c", "d"), 60, quality=0.7, skip=("d",))
    found = evaluate(replace(table, log_likelihood=table.log_likelihood.round()), bootstrap=0, priors=priors)
    axes = det_figures.det_curves([NamedEvaluation("m", found)]).figure.axes[0]
    for beta, marker in ((1.0, "o"), (9.0, "s")):
        miss, alarm = det_figures.operating_point(found, beta)
        assert miss + beta * alarm == pytest.approx(found.metrics[f"cavg_{beta:g}"].value)
        mark = next(line for line in axes.lines if line.get_marker() == marker)
        assert mark.get_xydata()[0] == pytest.approx(stats.norm.ppf(np.clip([alarm, miss], 2e-4, 1 - 2e-4)))
        every = found.det_curves[0]
        at = int(np.searchsorted(every.threshold, math.log(beta) - 1e-9, side="right")) - 1
        assert min(every.miss[at : at + 2]) - 1e-9 <= miss <= max(every.miss[at : at + 2]) + 1e-9


def test_det_of_millions_of_trials_is_thinned() -> None:
    miss = np.linspace(0, 1, 200_001)
    plot = det_figures.det_curves(
        [NamedEvaluation("m", Evaluation(**{**_fields(evaluations.named().evaluation), "det_curves": (
            DetCurve("all", np.linspace(-9, 9, 200_001), miss, 1 - miss, 1, 1),)}))]
    )  # fmt: skip
    assert 300 < len(plot.table.rows) <= 400


def test_histograms_count_every_trial_of_labels_that_occur() -> None:
    table = evaluations.scores(("a", "b", "c", "d"), 30, skip=("d",))
    plot = det_figures.score_histograms([NamedEvaluation("m", evaluations.evaluation(table))])
    assert sum(row[3] for row in plot.table.rows) == 30
    assert sum(row[4] for row in plot.table.rows) == 60


def _fields(evaluation: Evaluation) -> dict[str, object]:
    return {name: getattr(evaluation, name) for name in Evaluation.__dataclass_fields__}
