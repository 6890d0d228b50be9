"""Tuning: rates reach the blocks they are meant for, detours change nothing at first, and merge without a trace."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from knn_cli.augment import Augmenter
from knn_cli.encoders import FbankTDNN
from knn_cli.errors import KnnError
from knn_cli.heads import Softmax
from knn_cli.network import Network
from knn_cli.pooling import MHFA
from knn_cli.recipe import Augment, Lora, Optimizer, Recipe, Tuning
from knn_cli.resnet import ResNet
from knn_cli.tuning import LayerDrop, SpecAugment, Tuned, groups, merged_state
from knn_cli.wavlm import WavLM

SIZES: dict[str, Any] = {
    "convolutions": [(8, 10, 5), (8, 8, 8), (8, 4, 4)],
    "channels": 16,
    "blocks": 3,
    "heads": 2,
    "inner": 16,
    "position_kernel": 8,
    "position_groups": 2,
}


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    encoder = WavLM(**SIZES)
    return Network(encoder, MHFA(encoder.layers, encoder.channels, 2, 4, 8), Softmax(8, 2, normalize=False))


def recipe(**tuning: Any) -> Recipe:
    return Recipe(tuning=Tuning(**tuning))


def loss(network: Network) -> torch.Tensor:
    torch.manual_seed(1)
    return network.scores(network(torch.randn(2, 1600))).square().mean()


def test_each_block_learns_at_its_own_rate(network: Network) -> None:
    found = groups(network, Optimizer(rate=5e-3, encoder_rate=2e-5, layer_decay=0.5, weight_decay=0.1))
    rates = {id(one): (group["lr"], group["weight_decay"]) for group in found for one in group["params"]}
    assert len(rates) == len(list(network.parameters()))
    for name, one in network.named_parameters():
        expected = 5e-3
        if name.startswith("encoder.blocks."):
            expected = 2e-5 * 0.5 ** (2 - int(name.split(".")[2]))
        elif name.startswith("encoder."):
            expected = 2e-5 * 0.5**4
        assert rates[id(one)] == (pytest.approx(expected), 0.1 if one.ndim > 1 else 0.0), name


def test_layer_wise_rates_move_the_weights_by_their_rates(network: Network) -> None:
    """Sign descent by AdamW's first step: every weight with a gradient moves by its group's rate."""
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.AdamW(
        groups(network, Optimizer(rate=1e-2, encoder_rate=1e-3, layer_decay=0.1, weight_decay=0))
    )
    loss(network).backward()
    optimizer.step()
    moved = {name: float((value - before[name]).abs().max()) for name, value in network.state_dict().items()}
    for number, expected in enumerate((1e-5, 1e-4, 1e-3)):
        assert moved[f"encoder.blocks.{number}.widen.weight"] == pytest.approx(expected, rel=0.05)
    assert moved["encoder.front.projection.weight"] == pytest.approx(1e-7, rel=0.2)
    assert moved["pooling.pooling_fc.weight"] == pytest.approx(1e-2, rel=0.05)


def test_frozen_parts_stay_and_are_in_evaluation_mode(network: Network) -> None:
    tuned = Tuned(network, recipe(freeze=("encoder.front", "encoder.blocks.0")))
    tuned.train()
    assert not network.encoder.front.training and not network.encoder.blocks[0].training
    assert network.encoder.blocks[1].training
    frozen = {name for name, one in network.named_parameters() if not one.requires_grad}
    assert frozen and all(name.startswith(("encoder.front.", "encoder.blocks.0.")) for name in frozen)
    assert sum(len(group["params"]) for group in groups(network, Optimizer())) + len(frozen) == len(
        list(network.parameters())
    )
    with pytest.raises(KnnError, match=r"nothing named 'encoder\.frnt'"):
        Tuned(network, recipe(freeze=("encoder.frnt",)))
    with pytest.raises(KnnError, match="nothing to train"):
        Tuned(network, recipe(freeze=("encoder", "pooling", "head")))


def test_the_cnn_gradient_is_scaled_and_no_other(network: Network) -> None:
    loss(network).backward()
    before = {name: one.grad.clone() for name, one in network.named_parameters() if one.grad is not None}
    Tuned(network, recipe(cnn_gradient=0.1)).change_gradients()
    for name, one in network.named_parameters():
        factor = 0.1 if name.startswith(("encoder.front.convolutions", "encoder.front.norms")) else 1.0
        torch.testing.assert_close(one.grad, before[name] * factor)
    with pytest.raises(KnnError, match="convolutions of wavlm"):
        encoder = FbankTDNN(channels=8, hidden=8, dilations=[1])
        Tuned(Network(encoder, MHFA(2, 8, 2, 4, 8), Softmax(8, 2)), recipe(cnn_gradient=0.1))


def test_the_pull_is_the_gradient_of_its_value(network: Network) -> None:
    tuned = Tuned(network, recipe(pull=0.3))
    first = [one.detach().clone() for one in network.encoder.parameters()]
    with torch.no_grad():
        for one in network.encoder.parameters():
            one.add_(0.1 * torch.randn_like(one))
    value = 0.3 * sum((one - old).square().sum() for one, old in zip(network.encoder.parameters(), first, strict=True))
    wanted = torch.autograd.grad(value, list(network.encoder.parameters()))
    assert tuned.pull.value() == pytest.approx(float(value.detach()), rel=1e-5)
    for one in network.parameters():
        one.grad = torch.zeros_like(one)
    tuned.change_gradients()
    for one, expected in zip(network.encoder.parameters(), wanted, strict=True):
        torch.testing.assert_close(one.grad, expected)
    assert not any(one.grad.any() for one in network.pooling.parameters())


def test_lora_changes_nothing_at_first_trains_its_own_and_merges(network: Network) -> None:
    plain = copy.deepcopy(network)
    tuned = Tuned(network, recipe(lora=Lora(rank=2, alpha=4.0, targets=("query", "value"))))
    torch.testing.assert_close(loss(network), loss(plain))
    moving = {name for name, one in network.named_parameters() if one.requires_grad and name.startswith("encoder.")}
    assert len(moving) == 3 * 2 * 2 and all(name.endswith((".0.a", ".0.b")) for name in moving)
    optimizer = torch.optim.AdamW(groups(network, Optimizer(rate=0.05)))
    for _ in range(3):
        tuned.train()
        optimizer.zero_grad()
        loss(network).backward()
        optimizer.step()
    assert not torch.allclose(loss(network), loss(plain))
    state = merged_state(network)
    assert state.keys() == plain.state_dict().keys()
    changed = {name for name, value in state.items() if not torch.equal(value, plain.state_dict()[name])}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in changed if name.startswith("encoder.")} == {
        "query",
        "value",
    }
    plain.load_state_dict(state)
    torch.testing.assert_close(loss(plain), loss(network))
    with pytest.raises(KnnError, match="no linear layer named 'qurey'"):
        Tuned(plain, recipe(lora=Lora(targets=("qurey",))))


def test_a_dropped_layer_passes_on_what_it_got(network: Network) -> None:
    drop = LayerDrop(network.encoder, 0.5)
    sound = torch.randn(1, 1600)
    network.train()
    drop.kept = [True, False, True]
    layers = list(network.encoder(sound))
    assert torch.equal(layers[1], layers[2]) and not torch.equal(layers[2], layers[3])
    loss(network).backward()
    assert not any(one.grad.any() for one in network.encoder.blocks[1].parameters())
    network.eval()
    layers = list(network.encoder(sound))
    assert not torch.equal(layers[1], layers[2])
    drop.draw(np.random.default_rng(0))
    assert len(drop.kept) == 3
    with pytest.raises(KnnError, match="equal blocks"):
        LayerDrop(ResNet(18, 4), 0.5)


@pytest.mark.parametrize("encoder", [ResNet(18, 4, bins=16), FbankTDNN(channels=8, hidden=8, dilations=[1], bins=16)])
def test_spec_augment_masks_bins_and_frames_in_training(encoder: nn.Module) -> None:
    spec = SpecAugment(encoder, Augment(mask_share=1.0, mask_bins=4, mask_frames=6))
    features = torch.ones(2, 20, 16)
    spec.shares = torch.tensor([[0.999, 0.5, 0.999, 0.5], [0.0, 0.0, 0.0, 0.0]])
    masked = spec(features)
    assert int((masked[0] == 0).all(dim=0).sum()) == 4 and int((masked[0] == 0).all(dim=1).sum()) == 6
    assert bool((masked[1] == 1).all())
    sound = 0.1 * torch.randn(2, 8000)
    first = list(encoder.train()(sound))[-1]
    spec.shares = torch.zeros(2, 4)
    second = list(encoder(sound))[-1]
    assert not torch.allclose(first[0], second[0])
    with pytest.raises(KnnError, match="filter bank"):
        SpecAugment(WavLM(**SIZES), Augment())


def test_masks_follow_the_share() -> None:
    random = np.random.default_rng(0)
    masks = np.stack([Augmenter(Augment(mask_share=0.3), 16000).masks(random) for _ in range(300)])
    assert 0.2 < (masks[:, 0] > 0).mean() < 0.4
