"""Names of labels in a report: beside the codes in figures, tables, errors and LaTeX; data keep the codes alone."""

from __future__ import annotations

import io

import pytest

from knn_cli.core.display_names import named
from knn_cli.reports import figures
from knn_cli.reports.contents import ReportContents
from knn_cli.reports.det_figures import det_curves
from knn_cli.reports.embedding_maps import embedding_maps
from knn_cli.reports.html_page import render_page
from knn_cli.reports.latex import write_latex
from knn_cli.reports.tables import NamedEvaluation, class_table, worst_errors
from tests.helpers import evaluations

NAMES = {"a": "Alpine", "c": "Coastal"}


@pytest.fixture(scope="module")
def model() -> NamedEvaluation:
    plain = evaluations.named("voice", ("a", "b", "c"), 60, quality=0.5)
    return NamedEvaluation(plain.name, plain.evaluation, NAMES)


def test_figures_show_names_and_their_data_codes(model: NamedEvaluation) -> None:
    heat_map = figures.confusion_matrix(model)
    axes = heat_map.figure.axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a Alpine", "b", "c Coastal"]
    assert axes.get_yticklabels()[0].get_text().startswith("a Alpine (")
    assert {row[0] for row in heat_map.table.rows} == {"a", "b", "c"}
    bars = figures.recall_bars([model])
    assert {tick.get_text().partition(" (")[0] for tick in bars.figure.axes[0].get_yticklabels()} == {
        "a Alpine", "b", "c Coastal",
    }  # fmt: skip
    assert any("c Coastal" in text.get_text() for text in det_curves([model]).figure.legends[0].texts)
    rows = evaluations.embeddings(model.evaluation.table)
    legend = embedding_maps(rows, names=NAMES)[0].figure.legends[0]
    assert sorted(text.get_text().partition(" (")[0] for text in legend.texts) == ["a Alpine", "b", "c Coastal"]


def test_tables_and_errors_show_names(model: NamedEvaluation) -> None:
    table = class_table([model])
    assert table.columns[:3] == ("label", "name", "model")
    assert {row[:2] for row in table.rows} == {("a", "Alpine"), ("b", ""), ("c", "Coastal")}
    errors = worst_errors(model, 20)
    page = render_page(ReportContents([model]), errors=errors)
    cells = {
        f'<td class="text">{named(label, NAMES)}</td>' for error in errors for label in (error.truth, error.predicted)
    }
    assert len(cells) == 3 and all(cell in page for cell in cells)
    stream = io.StringIO()
    write_latex([model], stream)
    assert "a & Alpine & voice & " in stream.getvalue()


def test_groups_have_the_names_of_their_model() -> None:
    grouped = evaluations.named("voice", ("a", "b", "c"), 60, groups=("x", "x", "y"))
    model = NamedEvaluation("voice", grouped.evaluation, {"x": "inland"})
    assert model.grouped is not None and model.grouped.label_names == {"x": "inland"}
    assert {row[:2] for row in class_table([model.grouped]).rows} == {("x", "inland"), ("y", "")}
