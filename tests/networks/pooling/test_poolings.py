"""Poolings: plain loops, answers by hand, and what must hold for every pooling in the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import POOLINGS
from knn_cli.networks.pooling.base import attended_statistics
from knn_cli.networks.pooling.mean import MeanPooling
from knn_cli.networks.pooling.mhfa import MHFA
from knn_cli.networks.pooling.statistics import Correlation, LayerSpans, Statistics

LAYERS, CHANNELS, BATCH, TIME = 4, 6, 3, 11


def random_layers(batch: int = BATCH, time: int = TIME, channels: int = CHANNELS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(batch, time, channels, generator=generator) for _ in range(LAYERS)]


def randomised(pooling: torch.nn.Module) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in pooling.parameters():
            parameter.normal_()
    return pooling


# Every pooling written out: one clip, one frame, one head at a time, in float64.

State = dict[str, Tensor]
Clip = list[Tensor]  # the L layers of one clip, each (T, C), real frames only


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def summed(state: State, which: str, clip: Clip) -> list[Tensor]:
    """The frames of one weighted sum over layers."""
    shares = softmax(state[f"weights_{which}"].tolist())
    return [
        torch.stack([s * layer[t] for s, layer in zip(shares, clip, strict=True)]).sum(0) for t in range(len(clip[0]))
    ]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return state[f"{name}.weight"].flatten(1) @ x + state[f"{name}.bias"]


def compressed(state: State, which: str, clip: Clip) -> list[Tensor]:
    return [linear(state, f"cmp_linear_{which}", frame) for frame in summed(state, which, clip)]


def weighted(weights: list[float], frames: list[Tensor]) -> tuple[Tensor, Tensor]:
    mean = torch.stack([w * frame for w, frame in zip(weights, frames, strict=True)]).sum(0)
    square = torch.stack([w * frame**2 for w, frame in zip(weights, frames, strict=True)]).sum(0)
    return mean, (square - mean**2).clamp(min=1e-7).sqrt()


def plain(frames: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance, which is 0 of one frame."""
    mean = torch.stack(frames).sum(0) / len(frames)
    return mean, torch.stack([(frame - mean) ** 2 for frame in frames]).sum(0) / max(len(frames) - 1, 1)


def out(state: State, *parts: Tensor) -> Tensor:
    return linear(state, "pooling_fc", torch.cat(parts))


def mhfa(state: State, clip: Clip) -> Tensor:
    keys, values = compressed(state, "k", clip), compressed(state, "v", clip)
    logits = [linear(state, "att_head", key) for key in keys]
    heads = len(logits[0])
    return out(state, *(weighted(softmax([float(x[h]) for x in logits]), values)[0] for h in range(heads)))


def grouped(state: State, clip: Clip) -> Tensor:
    keys, values, width = (
        compressed(state, "k", clip),
        compressed(state, "v", clip),
        state["att_head.0.weight"].shape[1],
    )
    pooled = []
    for group in range(2):
        # the group's part, or the only one
        key, value = ([frame.split(width)[group % (len(frame) // width)] for frame in side] for side in (keys, values))
        logits = [linear(state, f"att_head.{group}", frame) for frame in key]
        pooled += [weighted(softmax([float(x[h]) for x in logits]), value)[0] for h in range(len(logits[0]))]
    return out(state, *pooled)


def context(state: State, clip: Clip, deviation: bool = False) -> Tensor:
    keys, values = compressed(state, "k", clip), compressed(state, "v", clip)
    means, deviations = [], []
    for queries in state["att_head.weight"][:, 0]:  # one group: (window, D)
        side = len(queries) // 2
        logits = [
            sum(float(queries[side + n] @ keys[t + n]) for n in range(-side, side + 1) if 0 <= t + n < len(keys))
            for t in range(len(keys))
        ]
        mean, std = weighted(softmax(logits), values)
        means.append(mean)
        deviations.append(std)
    return out(state, *means, *(deviations if deviation else ()))


def channel_attention(state: State, clip: Clip) -> Tensor:
    keys, values = compressed(state, "k", clip), compressed(state, "v", clip)
    logits = [linear(state, "att_head", key) for key in keys]
    heads = [torch.cat(weighted(softmax([float(x[h]) for x in logits]), values)) for h in range(len(logits[0]))]
    shares = softmax(linear(state, "head_attention", torch.stack(heads).mean(0)).tolist())
    return out(state, sum((s * head for s, head in zip(shares, heads, strict=True)), torch.tensor(0.0)))


def layer_spans(state: State, clip: Clip) -> Tensor:
    frames = compressed(state, "k", clip)
    width = len(frames) // 8
    first = [s * width if width else s * len(frames) // 8 for s in range(8)]
    spans = [plain(frames[start : start + max(width, 1)])[0] for start in first]
    return out(state, torch.stack(spans, dim=1).flatten())  # channel by channel


def statistics(state: State, clip: Clip) -> Tensor:
    mean, variance = plain(compressed(state, "k", clip))
    return out(state, mean, (variance + 1e-7).sqrt())


def attentive(state: State, clip: Clip, last: bool = False) -> Tensor:
    frames = [linear(state, "cmp_linear_k", x) for x in clip[-1]] if last else compressed(state, "k", clip)
    mean, variance = plain(frames)
    beside = torch.cat((mean, (variance + 1e-7).sqrt()))
    logits = [
        linear(state, "linear2", torch.tanh(linear(state, "linear1", torch.cat((frame, beside))))) for frame in frames
    ]
    pairs = [weighted(softmax([float(x[d]) for x in logits]), [frame[d] for frame in frames]) for d in range(len(mean))]
    return out(state, torch.stack([mean for mean, _ in pairs]), torch.stack([std for _, std in pairs]))


def query_key_value(state: State, clip: Clip) -> Tensor:
    queries, keys, values = (compressed(state, which, clip) for which in "qkv")
    width = len(keys[0]) // 2
    seen = []
    for query in queries:
        parts = []
        for head in (slice(0, width), slice(width, None)):
            weights = softmax([float(query[head] @ key[head]) / len(query) ** 0.5 for key in keys])
            parts.append(weighted(weights, [value[head] for value in values])[0])
        seen.append(torch.cat(parts))
    mean, variance = plain(seen)
    return out(state, mean, variance.clamp(min=1e-7).sqrt())


def correlation(state: State, clip: Clip) -> Tensor:
    frames = compressed(state, "k", clip)
    mean, variance = plain(frames)
    normal = [(frame - mean) / (variance.sqrt() + 1e-9) for frame in frames]
    pairs = [(a, b) for a in range(len(mean)) for b in range(a + 1, len(mean))]
    return out(state, torch.stack([sum(x[a] * x[b] for x in normal) / len(normal) for a, b in pairs]))


HEADS = {"heads": 4, "compression": 3}
WRITTEN_OUT: dict[str, tuple[dict[str, int], Callable[[State, Clip], Tensor]]] = {
    "mhfa": ({"heads": 5, "compression": 3}, mhfa),
    "mhfa-grouped": (HEADS, grouped),
    "mhfa-shared-key": (HEADS, grouped),
    "mhfa-shared-value": (HEADS, grouped),
    "mhfa-context": ({"groups": 4, "context": 2, "compression": 3}, context),
    "mhfa-context-statistics": (
        {"groups": 4, "context": 1, "compression": 3},
        lambda state, clip: context(state, clip, deviation=True),
    ),
    "channel-attention": (HEADS, channel_attention),
    "query-key-value": ({"heads": 2, "compression": 4}, query_key_value),
    "layer-average": ({"compression": 3}, lambda state, clip: out(state, plain(compressed(state, "k", clip))[0])),
    "layer-spans": ({"compression": 3}, layer_spans),
    "statistics": ({"compression": 3}, statistics),
    "attentive-statistics": ({"compression": 3, "hidden": 5}, attentive),
    "attentive-statistics-last": (
        {"compression": 3, "hidden": 5},
        lambda state, clip: attentive(state, clip, last=True),
    ),
    "correlation": ({"compression": 4}, correlation),
    "mean": ({}, lambda state, clip: plain(list(clip[-1]))[0]),
}


def test_all_are_written_out() -> None:
    ours = {f"knn_cli.networks.pooling.{module}" for module in ("mean", "mhfa", "statistics")}
    assert {name for name in POOLINGS.names() if POOLINGS.get(name).__module__ in ours} == set(WRITTEN_OUT)


@pytest.mark.parametrize("name", WRITTEN_OUT)
@pytest.mark.parametrize("lengths", [[TIME] * BATCH, [TIME, 1, 6]], ids=["whole", "padded"])
def test_equals_plain_loops(name: str, lengths: list[int]) -> None:
    args, written_out = WRITTEN_OUT[name]
    dimension = {} if name == "mean" else {"dimension": 7}
    pooling = randomised(POOLINGS.build(name, layers=LAYERS, channels=CHANNELS, **args, **dimension))
    layers, state = random_layers(), {key: value.double() for key, value in pooling.state_dict().items()}
    expected = torch.stack(
        [written_out(state, [layer[clip, :length].double() for layer in layers]) for clip, length in enumerate(lengths)]
    )
    mask = torch.arange(TIME) < torch.tensor(lengths)[:, None]
    result = pooling(iter(layers), None if min(lengths) == TIME else mask)
    torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=1e-5)


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


def test_context_of_no_neighbours_is_mhfa() -> None:
    pooling = randomised(MHFA(LAYERS, CHANNELS, heads=5, compression=3, dimension=7))
    state = pooling.state_dict()
    del state["att_head.bias"]
    state["att_head.weight"] = state["att_head.weight"].view(5, 1, 1, 3)
    other = POOLINGS.build(
        "mhfa-context", layers=LAYERS, channels=CHANNELS, groups=5, context=0, compression=3, dimension=7
    )
    other.load_state_dict(state)
    torch.testing.assert_close(other(random_layers()), pooling(random_layers()), atol=1e-5, rtol=1e-5)


def test_the_forks_mhfa_context_is_mhfa_with_the_first_columns() -> None:
    """Its heads see [key, mean, deviation] of the clip; what is the same at all frames, a softmax over time drops."""
    pooling = randomised(MHFA(LAYERS, CHANNELS, heads=5, compression=3, dimension=7))
    state, layers = pooling.state_dict(), random_layers()
    head = torch.cat((state["att_head.weight"], torch.randn(5, 6)), dim=1)  # (H, 3 * D), as the fork has it
    keys, values = (
        torch.einsum("lbtc,l->btc", torch.stack(layers), state[f"weights_{which}"].softmax(0))
        @ state[f"cmp_linear_{which}.weight"].T
        + state[f"cmp_linear_{which}.bias"]
        for which in "kv"
    )
    beside = [(moment + 0 * keys) for moment in (keys.mean(1, keepdim=True), (keys.var(1, keepdim=True) + 1e-7).sqrt())]
    weights = (torch.cat((keys, *beside), dim=2) @ head.T + state["att_head.bias"]).softmax(1)
    expected = torch.einsum("bth,btd->bhd", weights, values).flatten(1) @ state["pooling_fc.weight"].T
    torch.testing.assert_close(pooling(layers), expected + state["pooling_fc.bias"], atol=1e-5, rtol=1e-5)


def test_spans_by_hand() -> None:
    """Frame t holds t. 5 frames in 2 spans: 0 1, 2 3, and 4 unseen; 1 frame in 2 spans: 0, 0."""
    pooling = LayerSpans(layers=1, channels=1, spans=2, compression=1, dimension=2)
    with torch.no_grad():
        pooling.cmp_linear_k.weight.fill_(1.0)
        pooling.cmp_linear_k.bias.zero_()
        pooling.pooling_fc.weight.copy_(torch.eye(2))
        pooling.pooling_fc.bias.zero_()
    layer = torch.arange(5.0).view(1, 5, 1).repeat(2, 1, 1)
    mask = torch.tensor([[True] * 5, [True] + [False] * 4])
    assert pooling([layer]).tolist() == [[0.5, 2.5]] * 2
    assert pooling([layer], mask).tolist() == [[0.5, 2.5], [0.0, 0.0]]


def test_statistics_by_hand() -> None:
    """Of 1 and 5 the mean is 3 and the unbiased deviation √8; a channel and its negative correlate by -(n-1)/n."""
    pooling = Statistics(layers=1, channels=1, compression=1, dimension=2)
    pairs = Correlation(layers=1, channels=2, compression=2, dimension=1)
    with torch.no_grad():
        for linear in (pooling.cmp_linear_k, pooling.pooling_fc, pairs.cmp_linear_k, pairs.pooling_fc):
            linear.weight.copy_(torch.eye(*linear.weight.shape))
            linear.bias.zero_()
    layer = torch.tensor([[[1.0], [5.0]]])
    torch.testing.assert_close(pooling([layer]), torch.tensor([[3.0, 8**0.5]]))
    assert pairs([torch.cat((layer, 7 - 3 * layer), dim=2)]).item() == pytest.approx(-0.5, abs=1e-6)


def test_correlation_dropout_leaves_channels_out_in_training_only() -> None:
    torch.manual_seed(3)
    pooling = Correlation(1, 64, compression=64, dimension=1, dropout=0.5)
    layer = torch.randn(1, 20, 64)
    grads = []
    for training in (True, False):
        pooling.train(training).zero_grad()
        pooling([layer]).sum().backward()
        grads.append(int((pooling.pooling_fc.weight.grad != 0).sum()))
    kept = (1 + math.isqrt(1 + 8 * grads[0])) // 2
    assert kept * (kept - 1) // 2 == grads[0] and 16 < kept < 48 and grads[1] == 64 * 63 // 2


def test_deviation_keeps_its_digits_far_from_zero() -> None:
    """E[v²] - E[v]² of 1000 ± 0.01 has no correct digit in float32; about the mean it has all of them."""
    values = 1000 + 0.01 * torch.randn(1, 200, 4, generator=torch.Generator().manual_seed(0))
    _, deviation = attended_statistics(torch.full((1, 1, 200), 1 / 200), values, None)
    torch.testing.assert_close(deviation[:, 0].double(), values.double().std(1, correction=0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", [name for name in WRITTEN_OUT if name != "mean"])
def test_another_number_of_layers_and_sizes_that_make_no_pooling_are_refused(name: str) -> None:
    pooling = POOLINGS.build(name, layers=LAYERS, channels=CHANNELS)
    for count in (0, LAYERS - 1, LAYERS + 1):
        with pytest.raises(ValueError, match=f"{LAYERS} expected"):
            pooling([torch.zeros(1, 2, CHANNELS)] * count)
    for size in ("layers", "channels", "dimension", "compression"):
        with pytest.raises(KnnError, match=size):
            POOLINGS.build(name, **{"layers": 2, "channels": 3, size: 0})


@pytest.mark.parametrize(
    ("name", "args", "complaint"),
    [
        ("mhfa", {"heads": 0}, "heads"),
        ("mhfa-grouped", {"heads": 5, "groups": 2}, "evenly"),
        ("mhfa-context", {"context": -1}, "neighbours"),
        ("query-key-value", {"heads": 3, "compression": 4}, "evenly"),
        ("correlation", {"dropout": 1.0}, "dropout"),
        ("mhfa", {"window": 3}, "window"),
    ],
)
def test_arguments_that_cannot_be_are_refused(name: str, args: dict[str, float], complaint: str) -> None:
    with pytest.raises(KnnError, match=complaint):
        POOLINGS.build(name, layers=2, channels=3, **args)


class LargestTensor(TorchDispatchMode):
    """Notes the largest result of any operation."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.largest = max(self.largest, leaf.numel())
        return result


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_nothing_is_larger_than_one_layer(name: str, padded: bool) -> None:
    """Neither (L, B, T, C) nor (B, T, H, D) nor (B, H, T, T): the largest tensor is one running sum, also backward."""
    torch.manual_seed(0)
    small = {"heads": 16, "groups": 16, "compression": 16, "hidden": 32, "dimension": 4}
    if name.startswith(("mhfa-grouped", "mhfa-shared")):
        small["groups"] = 2
    args = {key: small[key] for key in (*WRITTEN_OUT[name][0], "dimension") if key in small and name != "mean"}
    pooling = POOLINGS.build(name, layers=LAYERS, channels=32, **args)
    layers = random_layers(2, 50, 32)
    mask = (torch.arange(50) < torch.tensor([50, 30])[:, None]) if padded else None
    with LargestTensor() as spy:
        pooling(layers, mask).requires_grad_().sum().backward()
    assert spy.largest <= max(2 * 50 * 32, *(parameter.numel() for parameter in pooling.parameters()), 0)


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


# The contract, of every pooling with its default arguments.


@pytest.fixture(params=POOLINGS.names())
def pooling(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(2)
    return POOLINGS.build(request.param, layers=LAYERS, channels=CHANNELS).eval()


def test_contract_shape_and_generator(pooling: torch.nn.Module) -> None:
    result = pooling(layer for layer in random_layers())
    assert result.shape == (BATCH, pooling.dimension) and result.dtype == torch.float32
    torch.testing.assert_close(result, pooling(random_layers()), atol=0, rtol=0)


def test_contract_padding_and_single(pooling: torch.nn.Module) -> None:
    """A clip gives the same embedding alone, in a padded batch, and with any garbage in the padding."""
    layers, lengths = random_layers(), torch.tensor([TIME, 1, 6])
    mask = torch.arange(TIME) < lengths[:, None]
    together = pooling(layers, mask)
    for filling in (1e30, math.nan):
        garbage = pooling([torch.where(mask[..., None], layer, filling) for layer in layers], mask)
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
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # what a bias adds to every key, a softmax over time does not see
        assert parameter.grad.abs().sum() > 0 or (name.endswith("bias") and name != "pooling_fc.bias"), name
    gradient = layers[-1].grad
    assert gradient is not None and gradient[mask].abs().sum() > 0 and gradient[~mask].abs().sum() == 0


@pytest.mark.parametrize("time", [1, 2, 9])
def test_contract_gradient_of_clips_in_which_nothing_changes(pooling: torch.nn.Module, time: int) -> None:
    layer = torch.ones(1, time, CHANNELS, requires_grad=True)
    pooling([layer] * LAYERS).square().sum().backward()
    assert layer.grad is not None and layer.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in pooling.parameters())


def test_contract_half_precision(pooling: torch.nn.Module) -> None:
    """Under autocast, and of bfloat16 layers, the same embedding as far as bfloat16 goes."""
    layers = random_layers()
    mask = torch.arange(TIME) < torch.tensor([TIME, 4, 6])[:, None]
    exact = pooling(layers, mask)
    with torch.autocast("cpu", torch.bfloat16):
        for given in (layers, [layer.bfloat16() for layer in layers]):
            rough = pooling(given, mask).float()
            assert (rough - exact).norm() < 0.03 * exact.norm()


def test_contract_weights_save_and_load(pooling: torch.nn.Module, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["pooling"]
    other = POOLINGS.build(name, layers=LAYERS, channels=CHANNELS).eval()
    other.load_state_dict(pooling.state_dict())
    torch.testing.assert_close(other(random_layers()), pooling(random_layers()), atol=0, rtol=0)
