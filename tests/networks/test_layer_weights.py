"""The layers that a pooling listens to: softmax of its weights, by hand; none where it has none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from knn_cli.cli.app import app
from knn_cli.core.errors import KnnError
from knn_cli.networks import bundle
from knn_cli.networks.construction import build_network
from knn_cli.networks.layer_weights import layer_weights
from knn_cli.reports.data_figures import data_histograms, layer_shares
from tests.helpers import evaluations
from tests.helpers.small_networks import WAVLM


def model(folder: Path, pooling: str = "mhfa") -> bundle.Bundle:
    config = {
        "name": "layers", "kind": "embedder", "audio": {"rate": 16000, "scale": 1.0},
        "encoder": {"name": "wavlm", "args": WAVLM}, "pooling": {"name": pooling, "args": {"dimension": 4}},
    }  # fmt: skip
    state = build_network(config).state_dict()
    for place, key in enumerate(("pooling.weights_k", "pooling.weights_v")):
        if key in state:
            state[key] = torch.log(torch.arange(1.0, len(state[key]) + 1)) * (1 - 2 * place)
    return bundle.write(folder, config, state=state)


def test_shares_are_a_softmax(tmp_path: Path) -> None:
    shares = layer_weights(model(tmp_path / "m"))
    counts = np.arange(1.0, len(shares["keys"]) + 1)
    np.testing.assert_allclose(shares["keys"], counts / counts.sum(), rtol=1e-6)
    np.testing.assert_allclose(shares["values"], (1 / counts) / (1 / counts).sum(), rtol=1e-6)
    assert list(shares) == ["keys", "values"]
    text = CliRunner().invoke(app, ["info", str(tmp_path / "m")]).stdout
    assert "layer     keys   values" in text and f"{shares['keys'][0]:.1%}" in text
    plot = layer_shares({"one": shares, "two": {}})
    assert [row[:3] for row in plot.table.rows][:2] == [("one", "keys", 0), ("one", "keys", 1)]
    assert f"keys: layer {len(counts) - 1} most" in plot.alt and "values: layer 0 most" in plot.alt


def test_a_single_sum_is_one_of_the_layers(tmp_path: Path) -> None:
    """Whatever its parameter is called: no keys stand beside values there."""
    shares = layer_weights(model(tmp_path / "m", "layer-average"))
    assert list(shares) == ["layers"] and shares["layers"] == pytest.approx([1 / 6, 2 / 6, 3 / 6])


def test_damaged_and_missing_weights(tmp_path: Path) -> None:
    one = model(tmp_path / "m")
    (one.folder / bundle.WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(KnnError, match="cannot be read"):
        layer_weights(one)
    (one.folder / bundle.WEIGHTS).unlink()
    assert layer_weights(one) == {}


def test_histograms_of_the_data() -> None:
    evaluated = evaluations.named("voice", ("a", "b", "c"), 60)
    plot = data_histograms(evaluated)
    by_label = {row[1]: row[2] for row in plot.table.rows if row[0] == "recordings by label"}
    truth, names = evaluated.evaluation.table.truth, evaluated.evaluation.table.name
    assert by_label == {label: len(set(names[truth == label])) for label in ("a", "b", "c")}
    assert sum(row[2] for row in plot.table.rows if row[0] == "rows by length") == 60
