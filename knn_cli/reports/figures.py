"""The figures of an evaluation: confusion, recall, reliability, accuracy against length; and all of them in order."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.display_names import named
from knn_cli.core.tables import CellValue, Table
from knn_cli.core.values import Doubles
from knn_cli.evaluation.results import DurationPoint
from knn_cli.formats.drawing import COLOURS, GREY, HATCHES, LINES, PALE, Plot, add_title, new_figure, style
from knn_cli.reports.det_figures import det_curves, score_histograms
from knn_cli.reports.tables import NamedEvaluation, counted, counts_in_title, recall_intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

MAX_VECTOR_LABELS = 40  # of a confusion matrix; larger ones are drawn as pixels


def evaluation_figures(
    models: Sequence[NamedEvaluation], curves: Mapping[str, Sequence[DurationPoint]] | None = None
) -> list[Plot]:
    """All figures of one or more evaluations, whose names differ, in the order to be shown."""
    grouped = [grouped for model in models if (grouped := model.grouped)]
    several = len(models) > 1
    figures = [
        confusion_matrix(model, f"confusion{_name_suffix(rank, model, several)}")
        for rank, model in enumerate(models, 1)
    ]
    figures += [
        confusion_matrix(model, f"confusion-groups{_name_suffix(rank, model, several)}", "group")
        for rank, model in enumerate(grouped, 1)
    ]
    figures.append(recall_bars(models))
    if all(model.evaluation.det_curves for model in models):  # else only one label occurs
        figures.append(det_curves(models))
    figures += [reliability_diagram(models), score_histograms(models)]
    if curves and any(curves.values()):
        figures.append(duration_curve(curves))
    return figures


def confusion_matrix(model: NamedEvaluation, name: str = "confusion", noun: str = "label") -> Plot:
    """Draw the predicted labels of each true label: colour is the share of its rows, numbers are rows.

    Parameters
    ----------
    model : NamedEvaluation
    name : str
        Of the figure.
    noun : str
        What the labels are called, such as "group".
    """
    evaluation = model.evaluation
    groups = evaluation.table.groups
    order = list(range(len(evaluation.table.labels)))
    if groups:  # labels of a group are adjacent
        order.sort(key=lambda column: (groups.index(groups[column]), column))
    labels = [evaluation.table.labels[column] for column in order]
    shown = [named(label, model.label_names) for label in labels]
    counts = evaluation.confusion[np.ix_(order, order)]
    rows = counts.sum(axis=1)
    shares = np.divide(counts, rows[:, None], out=np.full(counts.shape, np.nan), where=rows[:, None] > 0)
    cell = float(np.clip(5.2 / len(labels), 0.17, 0.75))  # inches
    longest = max(len(label) for label in shown) * 0.075
    side = max(cell * len(labels), 2.2)
    with style():
        figure, (axes,) = new_figure(side + longest + 2.2, side + longest + 0.9)
        mesh = _draw_matrix(axes, counts, shares, cell)
        for edge in range(1, len(labels)) if groups else ():
            if groups[order[edge]] != groups[order[edge - 1]]:
                axes.axhline(edge, color="black", linewidth=0.8)
                axes.axvline(edge, color="black", linewidth=0.8)
        ticks = np.arange(len(labels)) + 0.5
        size = min(9.0, cell * 72 * 0.62)
        axes.set_xticks(ticks, shown, rotation=0 if longest < cell else 90, size=size)
        axes.set_yticks(ticks, [f"{label} ({count:,})" for label, count in zip(shown, rows, strict=True)], size=size)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.set_xlabel(f"predicted {noun}")
        axes.set_ylabel(f"true {noun} (rows)")
        bar = figure.colorbar(mesh, ax=axes, shrink=min(1.0, 4 / side), aspect=25, pad=0.02)
        bar.set_label(f"share of the true {noun}'s rows")
        title = f"Confusion of {noun}s, {model.name}: {model.counts}"
        add_title(figure, title)
    pairs = [
        (labels[row], labels[column], int(counts[row, column]), float(shares[row, column]))
        for row in range(len(labels))
        for column in range(len(labels))
    ]
    off_diagonal = counts - np.diag(np.diag(counts))
    row, column = np.unravel_index(int(off_diagonal.argmax()), off_diagonal.shape)
    worst = f" Most often {shown[row]} is taken for {shown[column]}: {off_diagonal.max()} rows."
    alt = f"Heat map of {len(labels)} true by {len(labels)} predicted {noun}s.{worst if off_diagonal.any() else ''}"
    return Plot(name, alt, figure, Table(title, ("true", "predicted", "rows", "share"), tuple(pairs)))


def _draw_matrix(axes: Axes, counts: NDArray[np.int64], shares: Doubles, cell: float) -> QuadMesh:
    """Cells in the colour of their share, with their counts; `cell` is the side of a cell in inches."""
    axes.set_facecolor("#E6E6E6")
    mesh = axes.pcolormesh(
        np.ma.masked_invalid(shares),
        cmap="Blues",
        vmin=0,
        vmax=1,
        edgecolors="white" if len(counts) <= MAX_VECTOR_LABELS else "none",
        linewidth=0.5,
        rasterized=len(counts) > MAX_VECTOR_LABELS,
    )
    size = min(9.0, cell * 72 * 0.8 / (0.62 * len(str(counts.max()))))
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.55 else "black"
        text = axes.text(
            column + 0.5, row + 0.5, str(counts[row, column]), ha="center", va="center", size=size, color=colour
        )
        text.set_in_layout(False)  # the layout would measure each of them
    return mesh


def recall_bars(models: Sequence[NamedEvaluation]) -> Plot:
    """Draw the recall of each label with its interval (see `recall_intervals`), the best label on top."""
    metrics = {(model.name, row.label): row for model in models for row in model.evaluation.classes}
    names = dict.fromkeys(label for _, label in metrics)
    mean = {
        label: np.mean([metrics[model.name, label].recall for model in models if (model.name, label) in metrics])
        for label in names
    }
    labels = sorted(names, key=lambda label: (-mean[label], label))
    shown_names = {label: name for model in models for label, name in model.label_names.items()}
    support = {label: max(row.support for (_, name), row in metrics.items() if name == label) for label in labels}
    height = 0.8 / len(models)
    rows: list[tuple[CellValue, ...]] = []
    with style():
        figure, (axes,) = new_figure(7, 1.3 + len(labels) * max(0.17, 0.13 * len(models)))
        for rank, model in enumerate(models):
            shown = [label for label in labels if (model.name, label) in metrics]
            values = [metrics[model.name, label].recall for label in shown]
            intervals = recall_intervals(model.evaluation)
            ends = [intervals[label] for label in shown]
            errors = [[value - low for value, (low, _) in zip(values, ends, strict=True)]]
            errors += [[high - value for value, (_, high) in zip(values, ends, strict=True)]]
            axes.barh(
                [labels.index(label) - 0.4 + height * (rank + 0.5) for label in shown],
                np.multiply(values, 100),
                height,
                xerr=np.clip(errors, 0, None) * 100,
                color=COLOURS[rank % len(COLOURS)],
                hatch=HATCHES[rank % len(HATCHES)],
                edgecolor="white",
                linewidth=0.4,
                error_kw={"ecolor": "black", "elinewidth": 0.8, "capsize": 1.5},
                label=f"{model.name} ({model.counts})",
            )
            rows += [
                (model.name, label, metrics[model.name, label].support, value, low, high)
                for label, value, (low, high) in zip(shown, values, ends, strict=True)
            ]
        axes.set_yticks(
            range(len(labels)), [f"{named(label, shown_names)} ({support[label]:,})" for label in labels], size=8
        )
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.set_xlabel("recall / % (line: 95 % interval)")
        axes.set_ylabel("true label (rows)")
        axes.grid(axis="x", color=PALE, linewidth=0.6)
        title = f"Recall of {counted(len(labels), 'label')}{counts_in_title(models)}"
        add_title(figure, title)
        if len(models) > 1:
            figure.legend(loc="outside lower center", ncols=1)
    best, worst = (
        f"{word} {named(label, shown_names)} at {mean[label]:.1%}"
        for word, label in (("best", labels[0]), ("worst", labels[-1]))
    )
    alt = f"Bars of recall, {best}, {worst}."
    columns = ("model", "label", "rows", "recall", "low", "high")
    return Plot("recall", alt, figure, Table(title, columns, tuple(rows)))


def reliability_diagram(models: Sequence[NamedEvaluation]) -> Plot:
    """Draw how often the predicted label is right against its probability, and how many rows have that probability."""
    rows: list[tuple[CellValue, ...]] = []
    with style():
        figure, panels = new_figure(max(4.6, 3.6 * len(models)), 4.8, rows=2, columns=len(models), heights=[3, 1])
        for rank, model in enumerate(models):
            top, bottom = panels[rank], panels[len(models) + rank]
            bins = model.evaluation.reliability
            middle, width = (bins.edges[:-1] + bins.edges[1:]) / 2, np.diff(bins.edges)
            colour = COLOURS[rank % len(COLOURS)]
            top.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="calibrated")
            top.plot(
                bins.confidence,
                bins.accuracy,
                color=colour,
                marker="o",
                markersize=4,
                clip_on=False,
                label="bins of rows",
            )
            counts = f"\n{model.counts}" if len(models) > 1 else ""
            top.set_title(f"{model.name}: ECE {bins.ece:.1%}{counts}")
            top.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of right answers")
            top.legend(loc="lower right")
            bottom.bar(middle, bins.count, width, color=colour, edgecolor="white", hatch=HATCHES[rank % len(HATCHES)])
            bottom.set(xlim=(0, 1), xlabel="probability of the best label", ylabel="rows")
            values = (bins.edges[:-1], bins.edges[1:], bins.count, bins.confidence, bins.accuracy)
            rows += [
                (model.name, float(low), float(high), int(count), float(confidence), float(accuracy))
                for low, high, count, confidence, accuracy in zip(*values, strict=True)
            ]
        title = f"Reliability{counts_in_title(models)}"
        add_title(figure, title)
    eces = ", ".join(f"{model.name} {model.evaluation.reliability.ece:.1%}" for model in models)
    alt = f"Reliability diagram. Expected calibration error: {eces}."
    columns = ("model", "from", "to", "rows", "confidence", "accuracy")
    return Plot("reliability", alt, figure, Table(title, columns, tuple(rows)))


def duration_curve(curves: Mapping[str, Sequence[DurationPoint]]) -> Plot:
    """Draw accuracy and Cprimary of averages of 1, 2, ... segments against their length.

    Parameters
    ----------
    curves : mapping of str to sequence of DurationPoint
        By the model's name; at least one has points.
    """
    has_seconds = all(math.isfinite(point.seconds) for points in curves.values() for point in points)
    rows: list[tuple[CellValue, ...]] = []
    with style():
        figure, (left, right) = new_figure(9, 4, columns=2)
        for rank, (name, points) in enumerate(curves.items()):
            if points:
                _draw_duration_curve((left, right), rank, name, points, has_seconds)
            rows += [
                (
                    *(name, point.segments, point.seconds, point.rows),
                    *(point.accuracy.value, point.accuracy.low, point.accuracy.high),
                    *(point.cprimary, point.min_cprimary),
                )
                for point in points
            ]
        for axes, quantity in ((left, "accuracy / % (line: 95 % interval)"), (right, "Cprimary")):
            axes.set(xlabel="mean length of a row / s" if has_seconds else "segments averaged", ylabel=quantity)
            axes.set_xlim(left=0)
            axes.grid(color=PALE, linewidth=0.5)
            axes.legend(fontsize=8)
        right.set_ylim(bottom=0)
        title = f"How much speech it takes: up to {counted(max(int(row[1] or 0) for row in rows), 'segment')} averaged"
        add_title(figure, title)
    alt = "Accuracy and Cprimary against the length of what is scored: " + "; ".join(
        f"{name} from {points[0].accuracy.value:.1%} to {points[-1].accuracy.value:.1%}"
        for name, points in curves.items()
        if points
    )
    columns = ("model", "segments", "seconds", "rows", "accuracy", "low", "high", "Cprimary", "min Cprimary")
    return Plot("curve", alt + ".", figure, Table(title, columns, tuple(rows)))


def _draw_duration_curve(
    axes: tuple[Axes, Axes], rank: int, name: str, points: Sequence[DurationPoint], has_seconds: bool
) -> None:
    """Accuracy of a model at the left, Cprimary at the right."""
    left, right = axes
    lengths = [point.seconds if has_seconds else point.segments for point in points]
    accuracies = [point.accuracy for point in points]
    errors = [[a.value - a.low for a in accuracies], [a.high - a.value for a in accuracies]]
    look: dict[str, Any] = {"color": COLOURS[rank % len(COLOURS)], "marker": "osD^v"[rank % 5], "markersize": 4}
    left.errorbar(
        lengths,
        [100 * accuracy.value for accuracy in accuracies],
        100 * np.clip(np.nan_to_num(errors), 0, None),
        linestyle=LINES[rank % len(LINES)],
        capsize=2,
        label=f"{name} ({points[0].rows:,} to {points[-1].rows:,} rows)",
        **look,
    )
    right.plot(lengths, [point.cprimary for point in points], label=f"{name}, actual", **look)
    minima = [point.min_cprimary for point in points]
    right.plot(lengths, minima, linestyle="--", markerfacecolor="white", label=f"{name}, minimum", **look)


def _name_suffix(rank: int, model: NamedEvaluation, several: bool) -> str:
    """What tells figures of several models by their names."""
    return f"-{rank}-{re.sub(r'[^A-Za-z0-9._]+', '_', model.name)[:40]}" if several else ""
