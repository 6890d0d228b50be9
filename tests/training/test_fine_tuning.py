"""Tuning: rates reach the blocks they are meant for, detours change nothing at first, and merge without a trace."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS
from knn_cli.networks.encoders.adapters import adapters_of
from knn_cli.networks.encoders.campplus import CAMPPlus
from knn_cli.networks.encoders.ecapa import EcapaTDNN
from knn_cli.networks.encoders.fbank_tdnn import FbankTDNN
from knn_cli.networks.encoders.resnet import ResNet
from knn_cli.networks.encoders.wavlm import WavLM
from knn_cli.networks.heads.softmax import Softmax
from knn_cli.networks.network import Network
from knn_cli.networks.pooling.mhfa import MHFA
from knn_cli.training.fine_tuning import FineTuner, LayerDrop, depths_below_top, merged_state, parameter_groups
from knn_cli.training.recipe import AdapterConfig, AugmentConfig, LoraConfig, OptimizerConfig, Recipe, TuningConfig
from knn_cli.training.spec_augment import SpecAugment, mask_bands, mask_spans

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
    return Recipe(tuning=TuningConfig(**tuning))


def loss(network: Network) -> torch.Tensor:
    torch.manual_seed(1)
    return network.scores(network(torch.randn(2, 1600))).square().mean()


def test_each_block_learns_at_its_own_rate(network: Network) -> None:
    found = parameter_groups(network, OptimizerConfig(rate=5e-3, encoder_rate=2e-5, layer_decay=0.5, weight_decay=0.1))
    rates = {id(one): (group["lr"], group["weight_decay"]) for group in found for one in group["params"]}
    assert len(rates) == len(list(network.parameters()))
    for name, one in network.named_parameters():
        expected = 5e-3
        if name.startswith("encoder.blocks."):
            expected = 2e-5 * 0.5 ** (3 - int(name.split(".")[2]))
        elif name.startswith("encoder."):
            expected = 2e-5 * 0.5**4
        assert rates[id(one)] == (pytest.approx(expected), 0.1 if one.ndim > 1 else 0.0), name


def test_layer_wise_rates_move_the_weights_by_their_rates(network: Network) -> None:
    """Sign descent by AdamW's first step: every weight with a gradient moves by its group's rate."""
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.AdamW(
        parameter_groups(network, OptimizerConfig(rate=1e-2, encoder_rate=1e-3, layer_decay=0.1, weight_decay=0))
    )
    loss(network).backward()
    optimizer.step()
    moved = {name: float((value - before[name]).abs().max()) for name, value in network.state_dict().items()}
    for number, expected in enumerate((1e-6, 1e-5, 1e-4)):
        assert moved[f"encoder.blocks.{number}.widen.weight"] == pytest.approx(expected, rel=0.05)
    assert moved["encoder.front.projection.weight"] == pytest.approx(1e-7, rel=0.2)
    assert moved["pooling.pooling_fc.weight"] == pytest.approx(1e-2, rel=0.05)


def test_frozen_parts_stay_and_are_in_evaluation_mode(network: Network) -> None:
    tuned = FineTuner(network, recipe(freeze=("encoder.front", "encoder.blocks.0")))
    tuned.train()
    assert not network.encoder.front.training and not network.encoder.blocks[0].training
    assert network.encoder.blocks[1].training
    frozen = {name for name, one in network.named_parameters() if not one.requires_grad}
    assert frozen and all(name.startswith(("encoder.front.", "encoder.blocks.0.")) for name in frozen)
    assert sum(len(group["params"]) for group in parameter_groups(network, OptimizerConfig())) + len(frozen) == len(
        list(network.parameters())
    )
    with pytest.raises(KnnError, match=r"nothing named 'encoder\.frnt'"):
        FineTuner(network, recipe(freeze=("encoder.frnt",)))
    with pytest.raises(KnnError, match="nothing to train"):
        FineTuner(network, recipe(freeze=("encoder", "pooling", "head")))


def test_the_cnn_gradient_is_scaled_and_no_other(network: Network) -> None:
    loss(network).backward()
    before = {name: one.grad.clone() for name, one in network.named_parameters() if one.grad is not None}
    FineTuner(network, recipe(cnn_gradient=0.1)).change_gradients()
    for name, one in network.named_parameters():
        factor = 0.1 if name.startswith(("encoder.front.convolutions", "encoder.front.norms")) else 1.0
        torch.testing.assert_close(one.grad, before[name] * factor)
    with pytest.raises(KnnError, match="convolutions of wavlm"):
        encoder = FbankTDNN(channels=8, hidden=8, dilations=[1])
        FineTuner(Network(encoder, MHFA(2, 8, 2, 4, 8), Softmax(8, 2)), recipe(cnn_gradient=0.1))


def test_the_pull_is_the_gradient_of_its_value(network: Network) -> None:
    tuned = FineTuner(network, recipe(pull=0.3))
    first = [one.detach().clone() for one in network.encoder.parameters()]
    with torch.no_grad():
        for one in network.encoder.parameters():
            one.add_(0.1 * torch.randn_like(one))
    value = 0.3 * sum((one - old).square().sum() for one, old in zip(network.encoder.parameters(), first, strict=True))
    wanted = torch.autograd.grad(value, list(network.encoder.parameters()))
    assert tuned.l2_sp.value() == pytest.approx(float(value.detach()), rel=1e-5)
    for one in network.parameters():
        one.grad = torch.zeros_like(one)
    tuned.change_gradients()
    for one, expected in zip(network.encoder.parameters(), wanted, strict=True):
        torch.testing.assert_close(one.grad, expected)
    assert not any(one.grad.any() for one in network.pooling.parameters())


def test_lora_changes_nothing_at_first_trains_its_own_and_merges(network: Network) -> None:
    plain = copy.deepcopy(network)
    tuned = FineTuner(network, recipe(lora=LoraConfig(rank=2, alpha=4.0, targets=("query", "value"))))
    torch.testing.assert_close(loss(network), loss(plain))
    moving = {name for name, one in network.named_parameters() if one.requires_grad and name.startswith("encoder.")}
    assert len(moving) == 3 * 2 * 2 and all(name.endswith((".0.a", ".0.b")) for name in moving)
    optimizer = torch.optim.AdamW(parameter_groups(network, OptimizerConfig(rate=0.05)))
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
        FineTuner(plain, recipe(lora=LoraConfig(targets=("qurey",))))


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
def test_spec_augment_masks_a_filter_bank_in_training(encoder: nn.Module) -> None:
    wanted = AugmentConfig(mask_share=1.0, mask_bins=4, mask_frames=6)
    spec = SpecAugment(encoder, wanted)
    sound = 0.1 * torch.randn(2, 8000)
    plain = list(encoder.train()(sound))[-1]
    spec.seeds = np.asarray([0, 1])
    masked = list(encoder(sound))[-1]
    assert not torch.allclose(plain[0], masked[0]) and not torch.allclose(plain[1], masked[1])
    features = spec(torch.ones(2, 20, 16))
    for seed, one in enumerate(features):
        times, bins = mask_bands(wanted, 20, 16, np.random.default_rng(seed))
        np.testing.assert_array_equal(one == 0, times[:, None] | bins)
    encoder.eval()
    assert bool((spec(torch.ones(2, 20, 16)) == 1).all())


def test_spec_augment_masks_spans_of_wavlms_frames_and_channels() -> None:
    encoder = WavLM(**SIZES)
    wanted = AugmentConfig(mask_time_share=0.3, mask_time_length=3, mask_feature_share=0.25, mask_feature_length=2)
    spec = SpecAugment(encoder, wanted)
    seen: list[torch.Tensor] = []
    encoder.position.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    sound = 0.1 * torch.randn(2, 9600)
    encoder.train()
    list(encoder(sound))
    spec.seeds = np.asarray([3, 4])
    list(encoder(sound))
    spec.seeds = np.asarray([4])
    list(encoder(sound[1:]))
    encoder.eval()
    list(encoder(sound))
    plain, masked, alone, after = seen
    torch.testing.assert_close(after, plain)
    torch.testing.assert_close(alone[0], masked[1])  # a clip's masks are its own
    zero = masked[0] == 0
    times, channels = zero.all(dim=1), zero.all(dim=0)
    assert 0 < int(times.sum()) < 60 and 0 < int(channels.sum()) < 16
    assert bool((zero == (times[:, None] | channels)).all())  # nothing else is touched
    torch.testing.assert_close(masked[0][~zero], plain[0][~zero])
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], times.int().numpy(), [0]]))))[::2]
    assert runs.min() >= 3
    loss = list(encoder.train()(sound))[-1].square().mean()
    loss.backward()
    assert all(one.grad.isfinite().all() for one in encoder.parameters() if one.grad is not None)


def test_spans_cover_about_their_share_and_bands_come_as_often_as_asked() -> None:
    draws = [
        mask_spans(AugmentConfig(mask_time_share=0.2), 149, 768, np.random.default_rng(seed)) for seed in range(300)
    ]
    assert 0.15 < np.mean([times.mean() for times, _ in draws]) < 0.2  # spans overlap
    assert not any(channels.any() for _, channels in draws)
    one = mask_spans(AugmentConfig(mask_time_share=1.0, mask_time_length=10), 4, 8, np.random.default_rng(0))
    assert one[0].all()
    drawn = [mask_bands(AugmentConfig(mask_share=0.3), 100, 80, np.random.default_rng(seed)) for seed in range(300)]
    assert 0.2 < np.mean([bool(times.any() or bins.any()) for times, bins in drawn]) < 0.35
    assert max(int(bins.sum()) for _, bins in drawn) == 10


@pytest.mark.parametrize(
    ("encoder", "keys", "message"),
    [
        (WavLM(**SIZES), {"mask_share": 0.5}, "mask_share needs an encoder with a filter bank"),
        (ResNet(18, 4, bins=16), {"mask_feature_share": 0.5}, "mask_feature_share needs wavlm"),
        (WavLM(**SIZES), {"mask_share": 0.5, "mask_time_share": 0.1}, "no encoder supports both"),
    ],
)
def test_masks_for_other_features_are_refused(encoder: nn.Module, keys: dict[str, float], message: str) -> None:
    with pytest.raises(KnnError, match=message):
        SpecAugment(encoder, AugmentConfig(**keys))


@pytest.mark.parametrize("kind", ["houlsby", "pfeiffer"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_adapters_change_nothing_at_first_and_only_they_learn(kind: str, norm_first: bool) -> None:
    torch.manual_seed(0)
    plain = WavLM(**SIZES, norm_first=norm_first)
    torch.manual_seed(0)
    encoder = WavLM(**SIZES, norm_first=norm_first, adapters={"bottleneck": 4, "kind": kind})
    sound = 0.1 * torch.randn(2, 1600)
    for one, other in zip(encoder(sound), plain(sound), strict=True):
        assert torch.equal(one, other)
    head = Softmax(8, 2, normalize=False)
    network = Network(encoder, MHFA(encoder.layers, encoder.channels, 2, 4, 8), head)
    tuned = FineTuner(network, recipe(adapters=AdapterConfig(4, kind)))
    tuned.train()
    own = adapters_of(encoder)
    assert len(own) == 3 * (8 if kind == "houlsby" else 4)
    assert {name for name, one in encoder.named_parameters() if one.requires_grad} == set(own)
    assert all(one.requires_grad for part in (network.pooling, head) for one in part.parameters())
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.AdamW(parameter_groups(network, OptimizerConfig(rate=0.05, weight_decay=0.0)))
    for _ in range(2):  # the way down learns once the way up is not 0
        optimizer.zero_grad()
        loss(network).backward()
        optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.removeprefix("encoder.") for name in changed if name.startswith("encoder.")} == set(own)


@pytest.mark.parametrize("kind", ["prefix", "mam"])
def test_prefixes_learn_alone_and_do_not_see_padding(kind: str) -> None:
    torch.manual_seed(0)
    encoder = WavLM(**SIZES, adapters={"kind": kind, "prefix": 3} | ({"bottleneck": 4} if kind == "mam" else {}))
    head = Softmax(8, 2, normalize=False)
    network = Network(encoder, MHFA(encoder.layers, encoder.channels, 2, 4, 8), head)
    FineTuner(network, recipe(adapters=AdapterConfig(4, kind, prefix=3))).train()
    own = adapters_of(encoder)
    assert len(own) == 3 * (6 if kind == "mam" else 2)
    assert {name for name, one in encoder.named_parameters() if one.requires_grad} == set(own)
    loss(network).backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in own.values())
    sound = torch.randn(1, 2400)
    with torch.no_grad():
        alone, padded = network(sound[:, :1600]), network(sound, torch.tensor([1600]))
    torch.testing.assert_close(alone, padded, atol=1e-5, rtol=0)
    with pytest.raises(KnnError, match="no prefix of 0 keys"):
        ENCODERS.build("wavlm", **SIZES, adapters={"kind": kind, "prefix": 0})


def test_adapters_can_take_the_norms_along_and_are_checked(network: Network) -> None:
    encoder = WavLM(**SIZES, adapters={"bottleneck": 4})
    tuned = FineTuner(Network(encoder, network.pooling, network.head), recipe(adapters=AdapterConfig(4, norms=True)))
    moving = {name for name, one in tuned.network.encoder.named_parameters() if one.requires_grad}
    assert len(moving - set(adapters_of(encoder))) == 3 * 4  # two norms a block, of two weights each
    for args, message in (
        ({"bottleneck": 16}, "16 wide are no bottleneck of 16 channels"),
        ({"bottleneck": 0}, "no bottleneck"),
        ({"bottleneck": "4"}, "no bottleneck"),
        ({"bottleneck": 4, "kind": "bapna"}, "no adapters of kind 'bapna'"),
    ):
        with pytest.raises(KnnError, match=message):
            ENCODERS.build("wavlm", **SIZES, adapters=args)
    with pytest.raises(KnnError, match="does not take these arguments"):
        ENCODERS.build("wavlm", **SIZES, adapters={"bottleneck": 4, "sort": "houlsby"})


@pytest.mark.parametrize(
    ("encoder", "steps"),
    [
        (WavLM(**SIZES), {"front.projection.weight": 4, "norm.weight": 4, "blocks.0.widen.weight": 3}),
        (WavLM(**SIZES), {"blocks.2.widen.weight": 1, "distances.values.weight": 4}),
        (WavLM(**SIZES, norm_first=True), {"norm.weight": 0, "front.norm.weight": 4}),
        (FbankTDNN(channels=8, hidden=8, dilations=[1, 1]), {"stem.weight": 3, "blocks.1.inner.weight": 1}),
        (
            EcapaTDNN([8, 8, 8, 8, 16], scale=2, squeeze=4),
            {"mfa.conv.weight": 0, "blocks.3.tdnn1.conv.weight": 1, "blocks.0.conv.weight": 4},
        ),
        (
            CAMPPlus(width=4, channels=8, growth=4, blocks=[1, 1, 1]),
            {"norm.weight": 0, "blocks.2.0.": 1, "transits.0.": 3, "head.conv1.weight": 4},
        ),
        (ResNet(18, 4, bins=16), {"conv1.weight": 1}),
    ],
)
def test_weights_lie_as_deep_as_they_are(encoder: nn.Module, steps: dict[str, int]) -> None:
    found = depths_below_top(encoder)
    assert found.keys() == {name for name, _ in encoder.named_parameters()}
    for start, wanted in steps.items():
        assert {depth for name, depth in found.items() if name.startswith(start)} == {wanted}, start


def test_what_does_nothing_to_a_frozen_encoder_is_refused(network: Network) -> None:
    for tables, key in (
        ({"tuning": TuningConfig(freeze=("encoder",), layer_drop=0.1)}, "tuning.layer_drop"),
        ({"augment": AugmentConfig(mask_time_share=0.1)}, "augment.mask_time_share"),
        ({"tuning": TuningConfig(freeze=("encoder",), pull=0.1)}, "tuning.pull"),
        ({"optimizer": OptimizerConfig(layer_decay=0.9)}, "optimizer.layer_decay"),
    ):
        with pytest.raises(KnnError, match=f"{key} has no effect on an encoder that is completely frozen"):
            FineTuner(network, Recipe(**{"tuning": TuningConfig(freeze=("encoder",)), **tables}))
    with pytest.raises(KnnError, match="cnn_gradient has no effect"):
        FineTuner(network, recipe(freeze=("encoder.front",), cnn_gradient=0.1))
