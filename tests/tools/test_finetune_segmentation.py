"""Fine-tuning of segmentation networks: targets by hand, and runs that go on where they stopped."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("scipy")

from knn_cli.core.values import Floats
from knn_cli.networks import bundle
from knn_cli.networks.segmenters.pyannet import PyanNet
from tools.shipped_models import finetune_segmentation
from tools.shipped_models.finetune_segmentation import FROZEN, Windows, divergence, export, targets, train
from tools.shipped_models.segmentation_errors import load

SIZES = {"filters": 8, "widths": [6, 6], "hidden": 4, "depth": 2, "linear": [8], "duration": 1.0, "dropout": 0.5}


def test_targets_are_classes_of_the_three_most_active_speakers() -> None:
    active = np.zeros((9, 4), dtype=bool)
    active[:6, 2], active[2:5, 0], active[4:6, 3], active[6, 1] = True, True, True, True
    classes = targets(active)  # speakers in order of activity: 2, 0, 3; speaker 1 is left out
    assert classes[[0, 2, 5, 7]].argmax(1).tolist() == [1, 4, 5, 0]
    np.testing.assert_array_equal(classes.sum(1), [1, 1, 1, 1, 0, 1, 0, 1, 1])  # three at once; speaker 1
    np.testing.assert_array_equal(targets(active[:, :0])[:, 0], np.ones(9))


def test_divergence_is_that_of_the_formula() -> None:
    original, other = torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[0.9, 0.1]]])
    expected = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    assert divergence(other.log(), original.log()).item() == pytest.approx(expected)
    assert divergence(other.log(), other.log()).item() == pytest.approx(0)


@pytest.fixture
def original(tmp_path: Path) -> bundle.Bundle:
    torch.manual_seed(0)
    config = {
        "name": "original",
        "kind": "segmenter",
        "audio": {"rate": 16000, "scale": 1.0},
        "segmenter": {"name": "pyannet", "args": SIZES},
    }
    return bundle.write(tmp_path / "original", config, state=PyanNet(**SIZES).state_dict())


class Interrupted(Windows):
    """Windows that stop a run after three steps of two."""

    drawn = 0

    def draw(self, generator: np.random.Generator) -> tuple[Floats, Floats]:
        self.drawn += 1
        if self.drawn > 6:
            raise KeyboardInterrupt
        return super().draw(generator)


def test_runs_go_on_from_their_checkpoint_and_leave_the_filters_alone(
    tmp_path: Path, original: bundle.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune_segmentation, "EVERY", 2)
    network = load(original.folder)
    noise = np.random.default_rng(0).normal(0, 0.1, 32000)
    for number in range(2):
        soundfile.write(tmp_path / f"{number:04d}.flac", noise * (1 + number), 16000)
        (tmp_path / f"{number:04d}.rttm").write_text(f"SPEAKER {number:04d} 1 0.5 0.7 <NA> <NA> a <NA> <NA>\n")
    arguments = argparse.Namespace(steps=5, batch=2, rate=1e-2, weight=0.5)
    whole, legs = tmp_path / "whole", tmp_path / "legs"
    whole.mkdir(), legs.mkdir()
    trained = train(network, Windows(tmp_path, 2, network), whole, arguments).state_dict()
    with pytest.raises(KeyboardInterrupt):
        train(network, Interrupted(tmp_path, 2, network), legs, arguments)
    resumed = train(network, Windows(tmp_path, 2, network), legs, arguments)
    for key, value in resumed.state_dict().items():
        assert torch.equal(value, trained[key])
    moved = [key for key, value in network.state_dict().items() if not torch.equal(value, trained[key])]
    assert moved and not [key for key in moved if key.startswith(FROZEN)]
    written = export(resumed, original, tmp_path / "new", {"steps": 5})
    assert torch.equal(load(written.folder).classifier.bias, trained["classifier.bias"])
    assert written.config["training"]["from"] == original.fingerprint
