"""The figures of an evaluation: confusion, recall, reliability, accuracy against length; `plots` gives all of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from knn_cli.core.tables import CellValue, Table
from knn_cli.evaluation.results import DurationPoint
from knn_cli.formats.drawing import COLOURS, GREY, HATCHES, LINES, PALE, Plot, add_title, new_figure, style
from knn_cli.reports.score_figures import det, histograms
from knn_cli.reports.tables import Named, counted, in_title, recall_intervals


def plots(models: Sequence[Named], curves: Mapping[str, Sequence[DurationPoint]] | None = None) -> list[Plot]:
    """Every figure that the evaluations give, in the order to be shown: at least one model, names all different."""
    grouped = [Named(one.name, one.evaluation.groups) for one in models if one.evaluation.groups]
    several = len(models) > 1
    made = [confusion(one, f"confusion{_suffix(rank, one, several)}") for rank, one in enumerate(models, 1)]
    made += [
        confusion(one, f"confusion-groups{_suffix(rank, one, several)}", "group") for rank, one in enumerate(grouped, 1)
    ]
    made.append(recall(models))
    if all(one.evaluation.det_curves for one in models):  # else one label alone occurs
        made.append(det(models))
    made += [reliability(models), histograms(models)]
    if curves and any(curves.values()):
        made.append(curve(curves))
    return made


def confusion(model: Named, name: str = "confusion", thing: str = "label") -> Plot:
    """What each true label was taken for: colour is the share of the row, numbers are rows of the test set."""
    found = model.evaluation
    groups = found.table.groups
    order = list(range(len(found.table.labels)))
    if groups:  # labels of a group side by side
        order.sort(key=lambda column: (groups.index(groups[column]), column))
    labels = [found.table.labels[column] for column in order]
    counts = found.confusion[np.ix_(order, order)]
    rows = counts.sum(axis=1)
    shares = np.divide(counts, rows[:, None], out=np.full(counts.shape, np.nan), where=rows[:, None] > 0)
    cell = float(np.clip(5.2 / len(labels), 0.17, 0.75))  # inches
    longest = max(len(label) for label in labels) * 0.075
    side = max(cell * len(labels), 2.2)
    with style():
        figure, (axes,) = new_figure(side + longest + 2.2, side + longest + 0.9)
        axes.set_facecolor("#E6E6E6")
        mesh = axes.pcolormesh(
            np.ma.masked_invalid(shares),
            cmap="Blues",
            vmin=0,
            vmax=1,
            edgecolors="white" if len(labels) <= 40 else "none",
            linewidth=0.5,
            rasterized=len(labels) > 40,
        )
        small = min(9.0, cell * 72 * 0.8 / (0.62 * len(str(counts.max()))))
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.55 else "black"
            text = axes.text(
                column + 0.5, row + 0.5, str(counts[row, column]), ha="center", va="center", size=small, color=colour
            )
            text.set_in_layout(False)  # which would measure each of them
        for edge in range(1, len(labels)) if groups else ():
            if groups[order[edge]] != groups[order[edge - 1]]:
                axes.axhline(edge, color="black", linewidth=0.8)
                axes.axvline(edge, color="black", linewidth=0.8)
        ticks = np.arange(len(labels)) + 0.5
        size = min(9.0, cell * 72 * 0.62)
        axes.set_xticks(ticks, labels, rotation=0 if longest < cell else 90, size=size)
        axes.set_yticks(ticks, [f"{one} ({count:,})" for one, count in zip(labels, rows, strict=True)], size=size)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.set_xlabel(f"predicted {thing}")
        axes.set_ylabel(f"true {thing} (rows)")
        bar = figure.colorbar(mesh, ax=axes, shrink=min(1.0, 4 / side), aspect=25, pad=0.02)
        bar.set_label(f"share of the true {thing}'s rows")
        title = f"Confusion of {thing}s, {model.name}: {model.counts}"
        add_title(figure, title)
    pairs = [
        (labels[row], labels[column], int(counts[row, column]), float(shares[row, column]))
        for row in range(len(labels))
        for column in range(len(labels))
    ]
    off = counts - np.diag(np.diag(counts))
    row, column = np.unravel_index(int(off.argmax()), off.shape)
    worst = f" Most often {labels[row]} is taken for {labels[column]}: {off.max()} rows." if off.any() else ""
    alt = f"Heat map of {len(labels)} true by {len(labels)} predicted {thing}s.{worst}"
    return Plot(name, alt, figure, Table(title, ("true", "predicted", "rows", "share"), tuple(pairs)))


def recall(models: Sequence[Named]) -> Plot:
    """Recall of each label with its interval (`recall_intervals`), best label on top."""
    found = {(model.name, one.label): (model, one) for model in models for one in model.evaluation.classes}
    names = dict.fromkeys(label for _, label in found)
    mean = {
        name: np.mean([found[model.name, name][1].recall for model in models if (model.name, name) in found])
        for name in names
    }
    labels = sorted(names, key=lambda label: (-mean[label], label))
    support = {label: max(one.support for (_, name), (_, one) in found.items() if name == label) for label in labels}
    height = 0.8 / len(models)
    rows: list[tuple[CellValue, ...]] = []
    with style():
        figure, (axes,) = new_figure(7, 1.3 + len(labels) * max(0.17, 0.13 * len(models)))
        for rank, model in enumerate(models):
            mine = [label for label in labels if (model.name, label) in found]
            values = [found[model.name, label][1].recall for label in mine]
            known = recall_intervals(model.evaluation)
            ends = [known[label] for label in mine]
            reach = [[v - low for v, (low, _) in zip(values, ends, strict=True)]]
            reach += [[high - v for v, (_, high) in zip(values, ends, strict=True)]]
            places = [labels.index(label) - 0.4 + height * (rank + 0.5) for label in mine]
            axes.barh(
                places,
                np.multiply(values, 100),
                height,
                xerr=np.clip(reach, 0, None) * 100,
                color=COLOURS[rank % len(COLOURS)],
                hatch=HATCHES[rank % len(HATCHES)],
                edgecolor="white",
                linewidth=0.4,
                error_kw={"ecolor": "black", "elinewidth": 0.8, "capsize": 1.5},
                label=f"{model.name} ({model.counts})",
            )
            rows += [
                (model.name, label, found[model.name, label][1].support, value, low, high)
                for label, value, (low, high) in zip(mine, values, ends, strict=True)
            ]
        axes.set_yticks(range(len(labels)), [f"{label} ({support[label]:,})" for label in labels], size=8)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.set_xlabel("recall / % (line: 95 % interval)")
        axes.set_ylabel("true label (rows)")
        axes.grid(axis="x", color=PALE, linewidth=0.6)
        title = f"Recall of {counted(len(labels), 'label')}{in_title(models)}"
        add_title(figure, title)
        if len(models) > 1:
            figure.legend(loc="outside lower center", ncols=1)
    alt = f"Bars of recall, best {labels[0]} at {mean[labels[0]]:.1%}, worst {labels[-1]} at {mean[labels[-1]]:.1%}."
    columns = ("model", "label", "rows", "recall", "low", "high")
    return Plot("recall", alt, figure, Table(title, columns, tuple(rows)))


def reliability(models: Sequence[Named]) -> Plot:
    """How often the best label is right against how sure the model is, and how many rows are that sure."""
    rows: list[tuple[CellValue, ...]] = []
    with style():
        figure, panels = new_figure(max(4.6, 3.6 * len(models)), 4.8, rows=2, columns=len(models), heights=[3, 1])
        for rank, model in enumerate(models):
            top, bottom = panels[rank], panels[len(models) + rank]
            found = model.evaluation.reliability
            middle, width = (found.edges[:-1] + found.edges[1:]) / 2, np.diff(found.edges)
            colour = COLOURS[rank % len(COLOURS)]
            top.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="calibrated")
            top.plot(
                found.confidence,
                found.accuracy,
                color=colour,
                marker="o",
                markersize=4,
                clip_on=False,
                label="bins of rows",
            )
            counts = f"\n{model.counts}" if len(models) > 1 else ""
            top.set_title(f"{model.name}: ECE {found.ece:.1%}{counts}")
            top.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of right answers")
            top.legend(loc="lower right")
            bottom.bar(middle, found.count, width, color=colour, edgecolor="white", hatch=HATCHES[rank % 4])
            bottom.set(xlim=(0, 1), xlabel="probability of the best label", ylabel="rows")
            columns = (found.edges[:-1], found.edges[1:], found.count, found.confidence, found.accuracy)
            rows += [
                (model.name, float(low), float(high), int(count), float(sure), float(right))
                for low, high, count, sure, right in zip(*columns, strict=True)
            ]
        title = f"Reliability{in_title(models)}"
        add_title(figure, title)
    eces = ", ".join(f"{one.name} {one.evaluation.reliability.ece:.1%}" for one in models)
    alt = f"Reliability diagram. Expected calibration error: {eces}."
    columns_of = ("model", "from", "to", "rows", "confidence", "accuracy")
    return Plot("reliability", alt, figure, Table(title, columns_of, tuple(rows)))


def curve(curves: Mapping[str, Sequence[DurationPoint]]) -> Plot:
    """Accuracy and Cprimary of averages of 1, 2, ... segments, against how long they are."""
    timed = all(math.isfinite(point.seconds) for points in curves.values() for point in points)
    rows: list[tuple[CellValue, ...]] = []
    with style():
        figure, (left, right) = new_figure(9, 4, columns=2)
        for rank, (name, points) in enumerate(curves.items()):
            if not points:
                continue
            along = [point.seconds if timed else point.segments for point in points]
            ends = [(point.accuracy.low, point.accuracy.value, point.accuracy.high) for point in points]
            reach = [[v - low for low, v, _ in ends], [high - v for _, v, high in ends]]
            look: dict[str, Any] = {"color": COLOURS[rank % len(COLOURS)], "marker": "osD^v"[rank % 5], "markersize": 4}
            label = f"{name} ({points[0].rows:,} to {points[-1].rows:,} rows)"
            left.errorbar(
                along,
                [100 * value for _, value, _ in ends],
                100 * np.clip(np.nan_to_num(reach), 0, None),
                linestyle=LINES[rank % 5],
                capsize=2,
                label=label,
                **look,
            )
            right.plot(along, [point.cprimary for point in points], label=f"{name}, actual", **look)
            lowest = [point.min_cprimary for point in points]
            right.plot(along, lowest, linestyle="--", markerfacecolor="white", label=f"{name}, minimum", **look)
            rows += [
                (name, p.segments, p.seconds, p.rows, p.accuracy.value, p.accuracy.low, p.accuracy.high, p.cprimary,
                 p.min_cprimary)
                for p in points
            ]  # fmt: skip
        for axes, what in ((left, "accuracy / % (line: 95 % interval)"), (right, "Cprimary")):
            axes.set(xlabel="mean length of a row / s" if timed else "segments averaged", ylabel=what)
            axes.set_xlim(left=0)
            axes.grid(color=PALE, linewidth=0.5)
            axes.legend(fontsize=8)
        right.set_ylim(bottom=0)
        title = f"How much speech it takes: up to {counted(max(int(row[1] or 0) for row in rows), 'segment')} averaged"
        add_title(figure, title)
    alt = "Accuracy and Cprimary against the length of what is scored: " + "; ".join(
        f"{name} from {p[0].accuracy.value:.1%} to {p[-1].accuracy.value:.1%}" for name, p in curves.items() if p
    )
    columns = ("model", "segments", "seconds", "rows", "accuracy", "low", "high", "Cprimary", "min Cprimary")
    return Plot("curve", alt + ".", figure, Table(title, columns, tuple(rows)))


def _suffix(rank: int, model: Named, several: bool) -> str:
    return f"-{rank}-{re.sub(r'[^A-Za-z0-9._]+', '_', model.name)[:40]}" if several else ""
