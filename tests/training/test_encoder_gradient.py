"""Factors on gradients, and one of two augmentations."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch

from knn_cli.training.augmentation import Augmenter
from knn_cli.training.fine_tuning import FineTuner
from knn_cli.training.model_builder import ModelBuilder
from knn_cli.training.recipe import AugmentConfig
from knn_cli.training.recipe_reader import parse

TABLES = {"encoder": {"name": "resnet", "depth": 18, "width": 4, "bins": 16}, "pooling": {"name": "resnet"}}


def test_the_gradient_of_the_encoder_is_scaled_and_of_nothing_else() -> None:
    """As multiplying the gradient of its output does, which is linear in it."""
    gradients = []
    for factor in (1.0, 0.08):
        recipe = parse({**TABLES, "head": {"name": "softmax"}, "tuning": {"encoder_gradient": factor}})
        network = ModelBuilder(recipe).build(["a", "b"], None, 1)
        tuner = FineTuner(network, recipe)
        sound = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 8000)).astype(np.float32))
        network.head.loss(network(sound), torch.tensor([0, 1])).backward()
        tuner.change_gradients()
        gradients.append({name: weight.grad for name, weight in network.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient * (0.08 if name.startswith("encoder.") else 1.0))


def test_one_of_reverberation_and_noise(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """`one_share` of the clips are changed, half of them by each; the shares of their own do not count."""
    random = np.random.default_rng(0)
    for folder in ("noise", "rir"):
        (tmp_path / folder).mkdir()
        sound = random.normal(size=1600) if folder == "noise" else np.r_[np.zeros(10), 1.0, np.zeros(20), 0.5]
        soundfile.write(tmp_path / folder / "a.wav", sound * 0.3, 16000, subtype="FLOAT")
    config = AugmentConfig(noise=str(tmp_path / "noise"), rir=str(tmp_path / "rir"), one_share=0.6, noise_share=1.0)
    augmenter, counts = Augmenter(config, 16000), {"same": 0, "noise": 0, "room": 0}
    clip = np.zeros(1600, dtype=np.float32)
    clip[100] = 1.0  # a click: silence before it stays silent in a room
    for _ in range(400):
        changed = augmenter(clip, random)
        kind = "same" if np.array_equal(changed, clip) else "noise" if np.abs(changed[:100]).max() > 1e-4 else "room"
        counts[kind] += 1
    assert counts["same"] == pytest.approx(160, abs=35)
    assert counts["noise"] == pytest.approx(120, abs=35) and counts["room"] == pytest.approx(120, abs=35)
