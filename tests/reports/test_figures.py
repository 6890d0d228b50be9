"""Figures of evaluations: what they say, the numbers behind them, and that they are drawn the same each time."""

from __future__ import annotations

import math
import re
import sys
import types
from dataclasses import replace
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from scipy import stats

from knn_cli.core.values import ScoreTable
from knn_cli.evaluation.evaluate import evaluate
from knn_cli.evaluation.results import DetCurve, Evaluation
from knn_cli.formats.drawing import Plot, render, style, svg_element
from knn_cli.reports import det_figures, embedding_maps, figures
from knn_cli.reports.notes import different_labels_note
from knn_cli.reports.tables import NamedEvaluation, headline_table, recall_intervals
from tests.helpers import evaluations


@pytest.fixture(scope="module")
def model() -> NamedEvaluation:
    return evaluations.named("voice", ("a", "b", "c"), 60, quality=1.5)


@pytest.fixture(scope="module")
def drawn(model: NamedEvaluation) -> list[Plot]:
    other = evaluations.named("other", ("a", "b", "c"), 60, seed=1)
    both = figures.evaluation_figures([model, other], {"voice": evaluations.curve(), "other": evaluations.curve(0.9)})
    return [*both, *embedding_maps.embedding_maps(evaluations.embeddings(model.evaluation.table))]


def test_every_figure_has_a_title_named_axes_and_counts(drawn: list[Plot]) -> None:
    assert [one.name for one in drawn] == [
        "confusion-1-voice", "confusion-2-other", "recall", "det", "reliability", "scores", "curve", "map-pca",
    ]  # fmt: skip
    for one in drawn:
        axes = [panel for panel in one.figure.axes if panel.get_label() != "<colorbar>"]
        assert one.figure.get_suptitle() == one.title
        assert all(panel.get_ylabel() for panel in axes)
        assert axes[-1].get_xlabel()
        texts = [t.get_text() for panel in one.figure.axes for t in (panel.title, *panel.texts)]
        texts += [
            t.get_text() for legend in (*one.figure.legends, axes[0].get_legend()) if legend for t in legend.texts
        ]
        assert re.search(r"60 rows|600 to 100 rows", " ".join([one.title, *texts])), one.name


@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
def test_rendering_gives_the_same_bytes_whatever_the_settings(model: NamedEvaluation, kind: str) -> None:
    before = _settings()
    once = render(figures.recall_bars([model]), kind)
    assert _settings() == before
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": "x"}):
        assert render(figures.recall_bars([model]), kind) == once
    assert b"CreationDate" not in once and b"dc:date" not in once


def test_svg_element_stands_alone(drawn: list[Plot]) -> None:
    for one in drawn:
        root = ElementTree.fromstring(svg_element(one))
        ids = [node.attrib["id"] for node in root.iter() if "id" in node.attrib]
        assert all(name.startswith(f"{one.name}-") for name in ids)
        text = ElementTree.tostring(root, encoding="unicode")
        assert {*re.findall(r'href="#([^"]+)"', text), *re.findall(r"url\(#([^)]+)\)", text)} <= set(ids)


def test_names_are_not_read_as_mathematics() -> None:
    odd = evaluations.named("$\\frac$", ("$x_1$", "<&>", "$"), 30)
    svg = render(figures.recall_bars([odd]), "svg").decode()
    assert "$x_1$" in svg and "&lt;&amp;&gt;" in svg


def test_confusion_numbers(model: NamedEvaluation) -> None:
    rows = {(true, said): (count, share) for true, said, count, share in figures.confusion_matrix(model).table.rows}
    counts = model.evaluation.confusion
    assert rows["a", "b"] == (counts[0, 1], counts[0, 1] / counts[0].sum())
    assert sum(count for count, _ in rows.values()) == 60


def test_confusion_keeps_groups_together_and_shows_absent_labels() -> None:
    table = evaluations.scores(("a", "b", "c", "d"), 30, groups=("x", "y", "x", "y"), skip=("d",))
    plot = figures.confusion_matrix(NamedEvaluation("m", evaluations.evaluation(table)))
    assert [row[0] for row in plot.table.rows[::4]] == ["a", "c", "b", "d"]
    assert "d (0)" in [label.get_text() for label in plot.figure.axes[0].get_yticklabels()]


def test_many_labels_still_fit() -> None:
    rng = np.random.default_rng(0)
    labels = tuple(f"l{n:03d}" for n in range(107))
    found = evaluations.named("m", labels[:3], 15).evaluation
    table = ScoreTable(labels, rng.normal(size=(15, 107)), *(getattr(found.table, c) for c in ("name", "start", "end")))
    counts = np.diag(rng.integers(0, 1500, 107))
    wide = Evaluation(table, found.index, {}, (), (), {}, 0, counts, (), found.reliability)
    plot = figures.confusion_matrix(NamedEvaluation("m", wide))
    width, height = plot.figure.get_size_inches()
    assert max(width, height) < 25
    axes = plot.figure.axes[0]
    cell = 0.17 * 72
    assert all(0.62 * text.get_fontsize() * len(text.get_text()) < cell for text in axes.texts)
    assert all(4 < label.get_fontsize() < cell for label in axes.get_yticklabels())


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


def test_figures_of_several_models_count_each_by_itself() -> None:
    """The second model knows fewer labels, so that fewer rows are its."""
    one, two = evaluations.named("one", ("a", "b", "c"), 60), evaluations.named("two", ("a", "b"), 40)
    for plot in (
        figures.recall_bars([one, two]),
        det_figures.det_curves([one, two]),
        figures.reliability_diagram([one, two]),
    ):
        assert "rows" not in plot.title
        texts = [text.get_text() for legend in plot.figure.legends for text in legend.texts]
        texts += [panel.get_title() for panel in plot.figure.axes]
        for model in (one, two):
            assert [text for text in texts if model.name in text and model.counts in text], (plot.name, model.name)


def test_models_of_different_labels_are_told() -> None:
    one, two = evaluations.named("one", ("a", "b", "c"), 60), evaluations.named("two", ("a", "b"), 40)
    assert (
        different_labels_note([one])
        == different_labels_note([one, evaluations.named("other", ("a", "b", "c"), 30)])
        == ""
    )
    words = different_labels_note([one, two])
    assert "one knows 3 labels, of which 3 occur (c not in all); two knows 2 labels, of which 2 occur." in words
    rival = NamedEvaluation("rival", evaluations.evaluation(evaluations.scores(("a", "b", "z"), 40, skip=("z",))))
    assert "rival knows 3 labels, of which 2 occur (z not in all)" in different_labels_note([two, rival])


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


def test_principal_components_are_those_of_the_covariance() -> None:
    data = np.random.default_rng(1).normal(size=(200, 5)) * [5, 3, 1, 1, 1]
    places, shares = embedding_maps.principal_components(data)
    values = np.linalg.eigvalsh(np.cov(data.T))[::-1]
    assert places.var(axis=0, ddof=1) == pytest.approx(values[:2])
    assert shares == pytest.approx(values[:2] / values.sum())
    assert embedding_maps.principal_components(data)[0] == pytest.approx(places)


def test_umap_is_used_where_installed(model: NamedEvaluation, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, **options: object) -> None:
            assert options["random_state"] == 0

        def fit_transform(self, data: np.ndarray) -> np.ndarray:
            return data[:, :2]

    module = types.ModuleType("umap")
    module.UMAP = Fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", module)
    monkeypatch.setattr(embedding_maps, "find_spec", lambda name: name == "umap")
    names = [one.name for one in embedding_maps.embedding_maps(evaluations.embeddings(model.evaluation.table))]
    assert names == ["map-pca", "map-umap"]


def test_map_draws_a_part_of_many_rows_and_says_so(model: NamedEvaluation) -> None:
    (plot,) = embedding_maps.embedding_maps(evaluations.embeddings(model.evaluation.table), max_rows=20)
    assert "20 of 60 rows" in plot.title and len(plot.table.rows) == 20


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


def test_style_ends_with_its_block() -> None:
    before = matplotlib.rcParams["svg.fonttype"]
    with style():
        assert matplotlib.rcParams["svg.fonttype"] == "none"
    assert matplotlib.rcParams["svg.fonttype"] == before


def _settings() -> dict[str, object]:
    """All but the back end, which matplotlib looks for when first asked."""
    return {name: value for name, value in matplotlib.rcParams.copy().items() if name != "backend"}


def _fields(evaluation: Evaluation) -> dict[str, object]:
    return {name: getattr(evaluation, name) for name in Evaluation.__dataclass_fields__}
