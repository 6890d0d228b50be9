"""Figures of what was evaluated and with what: lengths and recordings of the rows, layers of the networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from knn_cli.core.display_names import named
from knn_cli.core.encoded_texts import EncodedTexts
from knn_cli.core.tables import CellValue, Table
from knn_cli.formats.drawing import COLOURS, HATCHES, PALE, Plot, add_title, new_figure, style
from knn_cli.reports.tables import NamedEvaluation, counted
from knn_cli.store.row_counts import duration_counts, recordings_by_label

LayerShares = Mapping[str, Sequence[float]]  # sum -> share of each layer


def data_histograms(model: NamedEvaluation) -> Plot:
    """Draw how many rows have which length, and how many recordings each true label has."""
    table = model.evaluation.table
    lengths = duration_counts(table.end - table.start)
    recordings = recordings_by_label(EncodedTexts.from_texts(table.name).codes, EncodedTexts.from_texts(table.truth))
    with style():
        figure, (left, right) = new_figure(9, max(3.2, 1.3 + 0.17 * len(recordings)), columns=2)
        left.bar(range(len(lengths)), list(lengths.values()), color=COLOURS[0], edgecolor="white")
        left.set_xticks(range(len(lengths)), list(lengths), rotation=45, ha="right", size=8)
        left.set(xlabel="length" if lengths else "length (not known)", ylabel="rows")
        right.barh(range(len(recordings)), list(recordings.values()), color=COLOURS[1], edgecolor="white")
        right.set_yticks(range(len(recordings)), [named(label, model.label_names) for label in recordings], size=8)
        right.invert_yaxis()
        right.set(xlabel="recordings", ylabel="true label")
        left.grid(axis="y", color=PALE, linewidth=0.5)
        right.grid(axis="x", color=PALE, linewidth=0.5)
        for axes in (left, right):
            axes.set_axisbelow(True)
        title = f"What was evaluated: {model.counts}"
        add_title(figure, title)
    rows: list[tuple[CellValue, ...]] = [("rows by length", name, count) for name, count in lengths.items()]
    rows += [("recordings by label", label, count) for label, count in recordings.items()]
    labels = counted(len(recordings), "label")
    alt = f"Histogram of the lengths of {model.counts}, and bars of the recordings of {labels}."
    return Plot("data", alt, figure, Table(title, ("quantity", "of", "count"), tuple(rows)))


def layer_shares(models: Mapping[str, LayerShares]) -> Plot:
    """Draw the share of each layer of the encoder in the sums that a pooling makes of them.

    Parameters
    ----------
    models : mapping of str to mapping
        Name of a model -> its sums, see `networks.layer_weights.layer_weights`; at least one has any.
    """
    bars = [(name, sum_name, shares) for name, sums in models.items() for sum_name, shares in sums.items()]
    layers = max(len(shares) for _, _, shares in bars)
    width = 0.8 / len(bars)
    rows: list[tuple[CellValue, ...]] = []
    with style():
        figure, (axes,) = new_figure(max(5.0, 1.5 + layers * 0.12 * (len(bars) + 1)), 3.6)
        for rank, (name, sum_name, shares) in enumerate(bars):
            places = np.arange(len(shares)) - 0.4 + width * (rank + 0.5)
            label = f"{name}: {sum_name}" if len(models) > 1 else sum_name
            look: dict[str, Any] = {
                "color": COLOURS[rank % len(COLOURS)],
                "hatch": HATCHES[rank % len(HATCHES)],
                "edgecolor": "white",
            }
            axes.bar(places, np.multiply(shares, 100), width, label=label, **look)
            rows += [(name, sum_name, layer, float(share)) for layer, share in enumerate(shares)]
        axes.set_xticks(range(layers))
        axes.set(xlabel="layer of the encoder (0: what the first block hears)", ylabel="share / %")
        axes.grid(axis="y", color=PALE, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.legend(fontsize=8)
        title = f"Layers that the pooling listens to: {', '.join(name for name, sums in models.items() if sums)}"
        add_title(figure, title)
    best = "; ".join(f"{name}, {sum_name}: layer {int(np.argmax(shares))} most" for name, sum_name, shares in bars)
    table = Table(title, ("model", "sum", "layer", "share"), tuple(rows))
    return Plot("layers", f"Bars of layers' shares. {best}.", figure, table)
