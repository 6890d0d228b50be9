"""Figures of evaluations: what they say, the numbers behind them, and that they are drawn the same each time."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from knn_cli.core.values import ScoreTable
from knn_cli.evaluation.results import Evaluation
from knn_cli.formats.drawing import Plot, render, style, svg_element
from knn_cli.reports import det_figures, embedding_maps, figures
from knn_cli.reports.tables import NamedEvaluation
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
    rows = {
        (true, predicted): (count, share)
        for true, predicted, count, share in figures.confusion_matrix(model).table.rows
    }
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


def test_style_ends_with_its_block() -> None:
    before = matplotlib.rcParams["svg.fonttype"]
    with style():
        assert matplotlib.rcParams["svg.fonttype"] == "none"
    assert matplotlib.rcParams["svg.fonttype"] == before


def _settings() -> dict[str, object]:
    """All but the back end, which matplotlib looks for when first asked."""
    return {name: value for name, value in matplotlib.rcParams.copy().items() if name != "backend"}
