"""The page of an evaluation report, from `templates/report.html`: it needs no other file and reads without scripts."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from knn_cli.core.display_names import named
from knn_cli.core.tables import CellValue, Table, finite_or_none
from knn_cli.evaluation.results import MetricValue, OpenSetMetrics
from knn_cli.formats.drawing import Plot, svg_element
from knn_cli.formats.html_templates import load_asset, load_template
from knn_cli.reports.contents import ReportContents
from knn_cli.reports.notes import different_labels_note, left_out_note, priors_note, rejection_rule
from knn_cli.reports.tables import METRICS, Error, NamedEvaluation, class_table, open_set_table

if TYPE_CHECKING:
    from markupsafe import Markup

SECTIONS = {  # id -> heading, in the order of the page
    "headline": "Headline",
    "left-out": "What was left out",
    "figures": "Figures",
    "unknown": "Labels outside the model",
    "labels": "Every label",
    "errors": "Worst errors",
    "map": "Map of the embeddings",
    "cards": "Cards",
    "made": "How this was made",
}
MAP_PREFIX = "map-"  # names of figures that stand in the section of the map
_AUDIO_TYPES = {b"fLaC": "audio/flac", b"RIFF": "audio/wav"}
_NOT_KNOWN = "–"
_SHARES = {"precision", "recall", "recall low", "recall high", "F1", "EER", "accepted"}
_TEXT_COLUMNS = {"label", "name", "model"}


class MetricCell(NamedTuple):
    """A metric as text; the interval is "" where there is none."""

    text: str
    interval: str = ""


class Column(NamedTuple):
    name: str
    is_text: bool
    is_row_header: bool


class TableCell(NamedTuple):
    """A value as text, and the text of the number or name that it is sorted by."""

    text: str
    sort_key: str


class SortableTable(NamedTuple):
    caption: str
    columns: list[Column]
    rows: list[list[tuple[Column, TableCell]]]


class OpenSetRow(NamedTuple):
    name: str
    threshold: str
    false_reject: MetricCell
    known: str
    false_accept: MetricCell
    unknown: str
    eer: str


class ErrorRow(NamedTuple):
    """An error with its labels and their names, its place, and its sound as a data URL, "" if there is none."""

    error: Error
    truth: str
    predicted: str
    span: str
    description: str
    audio_url: str


def render_page(contents: ReportContents, plots: Sequence[Plot] = (), errors: Sequence[Error] = ()) -> str:
    """Render the whole page. Every label, name and text is shown as it is, never read as HTML.

    Parameters
    ----------
    contents : ReportContents
    plots : sequence of Plot
        In the order to be shown; those whose names begin with MAP_PREFIX come after the errors.
    errors : sequence of Error
        The worst errors; sound is asked for at most `contents.max_clips` of them.

    Raises
    ------
    ValueError
        For a clip that is neither FLAC nor WAV.
    """
    models = contents.models
    open_sets = [(model.name, model.evaluation.open_set) for model in models if model.evaluation.open_set]
    rules = dict.fromkeys(rejection_rule(model.evaluation) for model in models if model.evaluation.open_set)
    maps = [plot for plot in plots if plot.name.startswith(MAP_PREFIX)]
    figures = [plot for plot in plots if not plot.name.startswith(MAP_PREFIX)]
    empty = {"figures": not figures, "unknown": not open_sets, "map": not maps, "cards": not contents.cards}
    context: dict[str, Any] = {
        "title": "Evaluation of " + " and ".join(model.name for model in models),
        "counts": "; ".join(f"{model.name}: {model.counts}" for model in models),
        "names": [model.name for model in models],
        "sections": {name: heading for name, heading in SECTIONS.items() if not empty.get(name)},
        "warning": different_labels_note(models),
        "prior_notes": [note for note in map(priors_note, models) if note],
        "metric_rows": list(_metric_rows(models)),
        "left_out": [(model.name, left_out_note(model.evaluation)) for model in models],
        "figures": figures,
        "maps": maps,
        "svg": _svg,
        "rejection_rules": ". ".join(rules),
        "open_set_rows": [_open_set_row(name, metrics) for name, metrics in open_sets],
        "open_set_labels": _sortable(open_set_table(models), "Rows of each label outside the model"),
        "class_tables": _class_tables(models),
        "errors": _error_rows(contents, errors),
        "max_clip_seconds": contents.max_clip_seconds,
        "cards": contents.cards,
        "command": contents.command,
        "version": contents.version,
        "date": contents.date,
        "style": load_asset("knn_cli.reports", "report.css"),
        "script": load_asset("knn_cli.reports", "report.js"),
    }
    return load_template("knn_cli.reports", "report.html").render(context).lstrip()


def _svg(plot: Plot) -> Markup:
    from markupsafe import Markup

    return Markup(svg_element(plot))


def _metric_rows(models: Sequence[NamedEvaluation]) -> list[tuple[str, list[MetricCell], str]]:
    """(name, value for each model, description) of each metric that a model has."""
    rows = []
    for key, metric in METRICS.items():
        values = [model.evaluation.metrics.get(key) for model in models]
        if any(values):
            rows.append((metric.title, [_metric_cell(value, metric.is_share) for value in values], metric.description))
    return rows


def _metric_cell(metric: MetricValue | None, is_share: bool) -> MetricCell:
    if metric is None or math.isnan(metric.value):
        return MetricCell(_NOT_KNOWN)
    text = _text(metric.value, is_share)
    if math.isnan(metric.low):
        return MetricCell(text)
    low, high = (_text(end, is_share).removesuffix("\u00a0%") for end in (metric.low, metric.high))
    return MetricCell(text, f"{low}, {high}")


def _text(value: CellValue, is_share: bool = False) -> str:
    """A value as it is shown: shares in percent, other floats to three decimals."""
    if (value := finite_or_none(value)) is None:
        return _NOT_KNOWN
    if isinstance(value, float):
        return f"{100 * value:.1f}\u00a0%" if is_share else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else value


def _open_set_row(name: str, metrics: OpenSetMetrics) -> OpenSetRow:
    return OpenSetRow(
        name,
        _text(metrics.threshold),
        _metric_cell(metrics.false_reject, True),
        f"{metrics.known:,}",
        _metric_cell(metrics.false_accept, True),
        f"{metrics.unknown:,}",
        _text(metrics.eer, True),
    )


def _class_tables(models: Sequence[NamedEvaluation]) -> list[SortableTable]:
    legend = "Recall low and high: 95 % interval. Cdet: detection cost at β = 1 and 9. Click a heading to sort."
    tables = [_sortable(class_table(models), f"Labels. {legend}", single_model=len(models) == 1)]
    grouped = [grouped for model in models if (grouped := model.grouped)]
    if grouped:
        tables.append(_sortable(class_table(grouped), "Groups of labels", single_model=len(models) == 1))
    return tables


def _sortable(table: Table, caption: str, *, single_model: bool = False) -> SortableTable:
    """A table to be sorted by a click; of a single model, the column that names it is left out."""
    shown = [place for place, name in enumerate(table.columns) if not (single_model and name == "model")]
    names = [table.columns[place] for place in shown]
    columns = [Column(name, name in _TEXT_COLUMNS, name == "label") for name in names]
    rows = []
    for row in table.rows:
        values = [finite_or_none(row[place]) for place in shown]
        cells = [
            TableCell(_text(value, column.name in _SHARES), "" if value is None else str(value))
            for column, value in zip(columns, values, strict=True)
        ]
        rows.append(list(zip(columns, cells, strict=True)))
    return SortableTable(caption, columns, rows)


def _error_rows(contents: ReportContents, errors: Sequence[Error]) -> list[ErrorRow]:
    rows: list[ErrorRow] = []
    clips = 0
    for error in errors:
        start = 0.0 if math.isnan(error.start) else error.start
        longest = start + contents.max_clip_seconds
        end = longest if math.isnan(error.end) else min(error.end, longest)
        clip = contents.clip(error.name, start, end) if contents.clip and clips < contents.max_clips else None
        clips += clip is not None
        span = "" if math.isnan(error.start + error.end) else f"{error.start:.1f} to {error.end:.1f} s"
        names = next((model.label_names for model in contents.models if model.name == error.model), {})
        truth, predicted = named(error.truth, names), named(error.predicted, names)
        description = f"{error.name} from {start:.1f} s: is {truth}, called {predicted}"
        rows.append(ErrorRow(error, truth, predicted, span, description, _audio_url(clip) if clip else ""))
    return rows


def _audio_url(data: bytes) -> str:
    if data[:4] not in _AUDIO_TYPES:
        raise ValueError("a clip is a FLAC or WAV file")
    return f"data:{_AUDIO_TYPES[data[:4]]};base64,{base64.b64encode(data).decode()}"
