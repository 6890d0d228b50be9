"""Recomputation in the backward pass: gradients equal those of plain autograd, and little is stored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F

from knn_cli.networks.encoders import gradient_checkpointing, wavlm_blocks, wavlm_front_end
from knn_cli.networks.encoders.gradient_checkpointing import (
    ConvolutionOfActivation,
    NormalizedConvolution,
    gated_attention,
)
from knn_cli.networks.encoders.wavlm import WavLM

SMALL = {
    "convolutions": [(12, 10, 5), *[(12, 3, 2)] * 2, (12, 2, 2)],
    "channels": 24,
    "blocks": 2,
    "heads": 3,
    "inner": 40,
    "position_kernel": 16,
    "position_groups": 2,
    "distance": 100,
}
LARGE = {"convolution_norm": "layer", "convolution_bias": True, "norm_first": True, "position_kernel": 15}
MODES = pytest.mark.parametrize("sizes", [SMALL, {**SMALL, **LARGE}], ids=["base", "large"])


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("taps", "stride"), [(3, 2), (2, 2), (5, 2), (2, 3), (1, 1), (4, 1)])
def test_convolution_of_activation(taps: int, stride: int) -> None:
    torch.manual_seed(0)
    x, gain, kernels, bias = random(2, 9, 4), random(4), random(3, 4, taps), random(3)

    def activation(x: Tensor, gain: Tensor) -> Tensor:
        return F.gelu(x * gain)

    def ours(x: Tensor, gain: Tensor, kernels: Tensor, bias: Tensor) -> Tensor:
        matrix = kernels.permute(2, 1, 0).flatten(0, 1)
        return ConvolutionOfActivation.apply(activation, matrix, bias, taps, stride, x, gain)

    expected = F.conv1d(activation(x, gain).transpose(1, 2), kernels, bias, stride).transpose(1, 2)
    torch.testing.assert_close(ours(x, gain, kernels, bias), expected)
    assert gradcheck(ours, (x, gain, kernels, bias))


@pytest.mark.parametrize(
    ("channels", "groups", "taps", "time"), [(6, 3, 16, 7), (4, 2, 15, 5), (4, 1, 3, 20), (4, 4, 9, 1)]
)
def test_normalized_convolution(channels: int, groups: int, taps: int, time: int) -> None:
    torch.manual_seed(0)
    inputs = random(2, time, channels), random(channels, channels // groups, taps), random(1, 1, taps)
    x, direction, magnitude = inputs
    weight = direction * magnitude / direction.norm(dim=(0, 1), keepdim=True)
    expected = F.conv1d(x.transpose(1, 2), weight, padding=taps // 2, groups=groups)[..., :time].transpose(1, 2)
    torch.testing.assert_close(NormalizedConvolution.apply(*inputs), expected)
    assert gradcheck(NormalizedConvolution.apply, inputs)


@pytest.mark.parametrize("max_scores", [1, 30, 10**6])
@pytest.mark.parametrize("padded", [False, True])
def test_gated_attention(padded: bool, max_scores: int) -> None:
    torch.manual_seed(0)
    batch, heads, time, width = 2, 2, 5, 3
    inputs = *(random(batch, heads, time, width) for _ in range(3)), random(batch, heads, time, 1), random(heads, 9)
    padding = torch.arange(time) >= torch.tensor([[5], [3]]) if padded else None
    query, key, value, gate, bias = inputs
    offsets = torch.arange(time) - torch.arange(time)[:, None] + time - 1
    scores = query @ key.transpose(2, 3) / width**0.5 + gate * bias[:, offsets]
    if padding is not None:
        scores = scores.masked_fill(padding[:, None, None], float("-inf"))
    result = gated_attention(*inputs, padding, max_scores)
    torch.testing.assert_close(result, scores.softmax(-1) @ value)
    with torch.no_grad():
        torch.testing.assert_close(gated_attention(*inputs, padding, max_scores), result)
    assert gradcheck(lambda *inputs: gated_attention(*inputs, padding, max_scores), inputs)


def gradients(network: WavLM, waveforms: Tensor, lengths: Tensor | None) -> dict[str, Tensor]:
    network.zero_grad()
    waveforms = waveforms.clone().requires_grad_()
    real = torch.arange(network.frames(waveforms.shape[1])) < network.frames(
        torch.full((len(waveforms),), waveforms.shape[1]) if lengths is None else lengths
    ).unsqueeze(1)
    sum(layer[real].pow(3).mean() for layer in network(waveforms, lengths)).backward()  # type: ignore[union-attr]
    gradients = {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}
    assert waveforms.grad is not None
    return {**gradients, "waveforms": waveforms.grad}


@MODES
@pytest.mark.parametrize("lengths", [None, [3000, 1500]], ids=["whole", "padded"])
def test_gradients_equal_plain_autograd(
    sizes: dict[str, Any], lengths: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network, waveforms = WavLM(**sizes), torch.randn(2, 3000)
    given = None if lengths is None else torch.tensor(lengths)
    monkeypatch.setattr(wavlm_front_end, "MAX_FRAMES_BACKWARD", 17)
    ours = gradients(network, waveforms, given)
    for module in (wavlm_front_end, wavlm_blocks):
        monkeypatch.setattr(module, "trains_on_cpu", lambda x: False)
    monkeypatch.setattr(wavlm_blocks, "gated_attention", gradient_checkpointing._attend)
    monkeypatch.setattr(wavlm_blocks, "checkpoint", lambda function, x, **_: function(x))
    plain = gradients(network, waveforms, given)
    assert ours.keys() == plain.keys() and len(ours) > 50
    for name, gradient in plain.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_half_precision_trains() -> None:
    torch.manual_seed(0)
    network, waveforms = WavLM(**SMALL), torch.randn(2, 3000)
    exact = gradients(network, waveforms, None)
    with torch.autocast("cpu", torch.bfloat16):
        rough = gradients(network, waveforms, None)
    for name in ("blocks.1.narrow.weight", "blocks.0.attention.value.weight", "front.projection.weight"):
        assert (rough[name] - exact[name]).norm() < 0.1 * exact[name].norm(), name


class Kept:
    """Notes the sizes of what is saved for the way back."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __enter__(self) -> Kept:
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.hooks.__exit__(*error)

    def _pack(self, saved: Tensor) -> Tensor:
        if not isinstance(saved, torch.nn.Parameter):
            self.sizes.append(saved.numel())
        return saved


@MODES
def test_neither_scores_nor_the_first_convolution_are_kept(sizes: dict[str, Any]) -> None:
    network = WavLM(**{**sizes, "inner": 8, "position_kernel": 3})
    samples = 16000
    frames, first = network.frames(samples), 12 * (samples // 5 - 1)
    with Kept() as kept:
        layers = list(network(torch.randn(1, samples)))
    assert len(layers) == 3 and first > max(kept.sizes) and 3 * frames**2 > max(kept.sizes)
    network.front.requires_grad_(False)
    with Kept() as less:
        list(network(torch.randn(1, samples)))
    assert sum(less.sizes) < sum(kept.sizes) - first / 2  # of the convolutions nothing is kept when they stay


def test_memory_is_given_back_where_there_is_much(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(gradient_checkpointing, "_malloc_trim", lambda: lambda pad: calls.append(pad) or 1)
    network, waveforms = WavLM(**SMALL), torch.randn(1, 3000)
    sum(layer.mean() for layer in network(waveforms)).backward()  # type: ignore[union-attr]
    assert calls == []
    monkeypatch.setattr(gradient_checkpointing, "MIN_BYTES", 1)
    with torch.no_grad():
        list(network(waveforms))
    assert calls == []
    sum(layer.mean() for layer in network(waveforms)).backward()  # type: ignore[union-attr]
    assert len(calls) == 3  # after the front end, and before the way back of two of the three layers
    monkeypatch.setattr(gradient_checkpointing, "_malloc_trim", lambda: None)  # another C library
    sum(layer.mean() for layer in network(waveforms)).backward()  # type: ignore[union-attr]
