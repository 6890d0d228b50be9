"""Poolings: a plain loop, answers by hand, and what must hold for every pooling in the table."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from knn_cli.errors import KnnError
from knn_cli.pooling import MHFA, POOLINGS, MeanPooling

LAYERS, CHANNELS, BATCH, TIME = 4, 6, 3, 11


def random_layers(batch: int = BATCH, time: int = TIME) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(batch, time, CHANNELS, generator=generator) for _ in range(LAYERS)]


def random_mhfa(heads: int = 5, compression: int = 3, dimension: int = 7) -> MHFA:
    torch.manual_seed(1)
    pooling = MHFA(LAYERS, CHANNELS, heads=heads, compression=compression, dimension=dimension)
    with torch.no_grad():
        for parameter in pooling.parameters():
            parameter.normal_()
    return pooling


def mhfa_in_loops(pooling: MHFA, layers: list[Tensor], lengths: list[int]) -> Tensor:
    """Every index written out, in float64."""
    state = {name: value.double() for name, value in pooling.state_dict().items()}

    def shares(weights: Tensor) -> list[float]:
        powers = [math.exp(w) for w in weights.tolist()]
        return [power / sum(powers) for power in powers]

    share_k, share_v = shares(state["weights_k"]), shares(state["weights_v"])
    rows = []
    for clip, length in enumerate(lengths):
        keys, values = [], []
        for t in range(length):
            k = sum(share_k[n] * layer[clip, t].double() for n, layer in enumerate(layers))
            v = sum(share_v[n] * layer[clip, t].double() for n, layer in enumerate(layers))
            keys.append(state["cmp_linear_k.weight"] @ k + state["cmp_linear_k.bias"])
            values.append(state["cmp_linear_v.weight"] @ v + state["cmp_linear_v.bias"])
        heads = []
        for head in range(pooling.heads):
            row, bias = state["att_head.weight"][head], state["att_head.bias"][head]
            powers = [math.exp(float(row @ key + bias)) for key in keys]
            parts = [power / sum(powers) * value for power, value in zip(powers, values, strict=True)]
            heads.append(torch.stack(parts).sum(dim=0))
        rows.append(state["pooling_fc.weight"] @ torch.cat(heads) + state["pooling_fc.bias"])
    return torch.stack(rows).float()


def test_mhfa_equals_plain_loops() -> None:
    pooling, layers = random_mhfa(), random_layers()
    expected = mhfa_in_loops(pooling, layers, [TIME] * BATCH)
    torch.testing.assert_close(pooling(iter(layers)), expected, atol=1e-5, rtol=1e-5)


def test_mhfa_masked_equals_plain_loops_over_the_real_frames() -> None:
    pooling, layers, lengths = random_mhfa(), random_layers(), [11, 1, 6]
    mask = torch.arange(TIME) < torch.tensor(lengths)[:, None]
    expected = mhfa_in_loops(pooling, layers, lengths)
    torch.testing.assert_close(pooling(layers, mask), expected, atol=1e-5, rtol=1e-5)


def test_mhfa_by_hand() -> None:
    """Keys: both layers in even shares; values: the second layer alone; logits log(1) and log(3)."""
    pooling = MHFA(layers=2, channels=1, heads=1, compression=1, dimension=1)
    with torch.no_grad():
        pooling.weights_v.copy_(torch.tensor([0.0, 200.0]))
        for linear in (pooling.cmp_linear_k, pooling.cmp_linear_v, pooling.att_head, pooling.pooling_fc):
            linear.weight.fill_(1.0)
            linear.bias.zero_()
        pooling.pooling_fc.bias.fill_(0.5)
    first = torch.tensor([[[0.0], [2 * math.log(3) - 8.0]]])
    second = torch.tensor([[[0.0], [8.0]]])
    # keys (0 + 0) / 2 = 0 and log 3; values 0 and 8; pooled 3/4 * 8 = 6; + 0.5
    assert pooling([first, second]).item() == pytest.approx(6.5, abs=1e-5)


def test_mhfa_refuses_another_number_of_layers() -> None:
    pooling = random_mhfa()
    for count in (0, LAYERS - 1, LAYERS + 1):
        with pytest.raises(ValueError, match=f"{LAYERS} expected"):
            pooling([torch.zeros(1, 2, CHANNELS)] * count)


def test_mhfa_sizes_below_one_are_refused() -> None:
    with pytest.raises(KnnError, match="heads"):
        POOLINGS.build("mhfa", layers=2, channels=3, heads=0)


class LargestTensor(TorchDispatchMode):
    """Notes the largest result of any operation."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.largest = max(self.largest, leaf.numel())
        return result


def test_mhfa_makes_nothing_larger_than_one_layer() -> None:
    """Neither (L, B, T, C) nor (B, T, H, D): the largest tensor is one running sum, forward and backward."""
    torch.manual_seed(0)
    pooling = MHFA(layers=5, channels=32, heads=16, compression=16, dimension=4)
    layers = [torch.randn(2, 50, 32) for _ in range(5)]
    with LargestTensor() as spy:
        pooling(layers).sum().backward()
    assert spy.largest <= max(2 * 50 * 32, 16 * 16 * 4 * 2)


def test_mean_by_hand_and_stops_asking() -> None:
    asked = []

    def layers() -> Iterator[Tensor]:
        for value in (1.0, 2.0, 3.0):
            asked.append(value)
            yield torch.tensor([[[value], [3 * value], [1000.0]]])

    mask = torch.tensor([[True, True, False]])
    assert MeanPooling(3, 1, layer=1)(layers(), mask).item() == 4.0
    assert asked == [1.0, 2.0]
    assert MeanPooling(3, 1)(layers(), mask).item() == 6.0
    assert MeanPooling(3, 1, layer=-3)(layers()).item() == pytest.approx(1004 / 3)
    with pytest.raises(KnnError, match="layer 3"):
        MeanPooling(3, 1, layer=3)
    with pytest.raises(ValueError, match="ended"):
        MeanPooling(4, 1)(layers())


@pytest.fixture(params=POOLINGS.names())
def pooling(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(2)
    return POOLINGS.build(request.param, layers=LAYERS, channels=CHANNELS)


def test_contract_shape_and_generator(pooling: torch.nn.Module) -> None:
    result = pooling(layer for layer in random_layers())
    assert result.shape == (BATCH, pooling.dimension) and result.dtype == torch.float32
    torch.testing.assert_close(result, pooling(random_layers()), atol=0, rtol=0)


def test_contract_padding_and_single(pooling: torch.nn.Module) -> None:
    """A clip gives the same embedding alone, in a padded batch, and with any garbage in the padding."""
    layers, lengths = random_layers(), torch.tensor([TIME, 1, 6])
    mask = torch.arange(TIME) < lengths[:, None]
    together = pooling(layers, mask)
    garbage = pooling([torch.where(mask[..., None], layer, 1e30) for layer in layers], mask)
    torch.testing.assert_close(garbage, together, atol=1e-6, rtol=1e-6)
    for clip, length in enumerate(lengths.tolist()):
        alone = pooling([layer[clip : clip + 1, :length] for layer in layers])
        torch.testing.assert_close(alone[0], together[clip], atol=1e-6, rtol=1e-6)
        single = pooling([layer[clip : clip + 1] for layer in layers])
        torch.testing.assert_close(pooling(layers)[clip], single[0])


def test_contract_gradient(pooling: torch.nn.Module) -> None:
    """Gradient reaches every parameter and the real frames, none comes from padding, all of it is finite."""
    layers = [layer.requires_grad_() for layer in random_layers()]
    mask = torch.arange(TIME) < torch.tensor([TIME, 4, 6])[:, None]
    pooling(layers, mask).square().sum().backward()
    for name, parameter in pooling.named_parameters():
        if name == "att_head.bias":  # softmax over time does not see what is added to every frame
            assert parameter.grad is not None
            continue
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    gradient = layers[-1].grad
    assert gradient is not None and gradient[mask].abs().sum() > 0 and gradient[~mask].abs().sum() == 0


def test_contract_weights_save_and_load(pooling: torch.nn.Module) -> None:
    other = POOLINGS.build(
        next(name for name in POOLINGS.names() if isinstance(pooling, POOLINGS.get(name))),
        layers=LAYERS,
        channels=CHANNELS,
    )
    other.load_state_dict(pooling.state_dict())
    torch.testing.assert_close(other(random_layers()), pooling(random_layers()), atol=0, rtol=0)
