"""WavLM against transformers on shared random weights, a batch against its clips alone, and what it refuses."""

from __future__ import annotations

import json
import weakref
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from knn_cli.core.errors import AudioError, KnnError
from knn_cli.core.registry import ENCODERS
from knn_cli.networks.encoders import wavlm_blocks, wavlm_front_end
from knn_cli.networks.encoders.wavlm import WavLM
from knn_cli.networks.encoders.wavlm_blocks import PositionConvolution, RelativePositions
from knn_cli.networks.encoders.wavlm_sizes import SIZES, WavLMSizes
from knn_cli.networks.importers.weight_names import HUGGING_FACE
from tests.helpers.oracles import load_transformers

SMALL = {
    "convolutions": [(24, 10, 5), *[(24, 3, 2)] * 4, *[(24, 2, 2)] * 2],
    "channels": 32,
    "blocks": 3,
    "heads": 4,
    "inner": 40,
    "position_kernel": 16,
    "position_groups": 4,
    "distance": 100,
}
SMALL_LARGE = {
    **SMALL,
    "convolution_norm": "layer",
    "convolution_bias": True,
    "norm_first": True,
    "normalize": True,
    "position_kernel": 15,
}
MODES = pytest.mark.parametrize("sizes", [SMALL, SMALL_LARGE], ids=["base", "large"])


def transformers_wavlm(sizes: WavLMSizes) -> Any:
    """A transformers.WavLMModel of these sizes, all of its weights random, in evaluation mode."""
    load_transformers()
    from transformers import WavLMConfig, WavLMModel

    channels, kernels, strides = zip(*sizes.convolutions, strict=True)
    torch.manual_seed(3)
    model = WavLMModel(
        WavLMConfig(
            conv_dim=channels,
            conv_kernel=kernels,
            conv_stride=strides,
            conv_bias=sizes.convolution_bias,
            feat_extract_norm=sizes.convolution_norm,
            hidden_size=sizes.channels,
            num_hidden_layers=sizes.blocks,
            num_attention_heads=sizes.heads,
            intermediate_size=sizes.inner,
            num_conv_pos_embeddings=sizes.position_kernel,
            num_conv_pos_embedding_groups=sizes.position_groups,
            num_buckets=sizes.buckets,
            max_bucket_distance=sizes.distance,
            do_stable_layer_norm=sizes.norm_first,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def pair(**sizes: Any) -> tuple[Any, WavLM]:
    """The oracle and our network with its weights."""
    ours = WavLM(**sizes)
    reference = transformers_wavlm(ours.sizes)
    parts = {"original0": "weight_g", "original1": "weight_v"}
    state = {}
    for name, value in reference.state_dict().items():
        head, _, part = name.partition(".parametrizations.weight.")
        state[f"{head}.{parts[part]}" if part else name] = value
    ours.load_state_dict({name: state[HUGGING_FACE.source_name(name)] for name in ours.state_dict()})
    return reference, ours.eval()


def reference_layers(model: Any, waveforms: Tensor, normalize: bool) -> list[Tensor]:
    if normalize:
        waveforms = F.layer_norm(waveforms, waveforms.shape[1:])
    out = model(waveforms, output_hidden_states=True)
    return [*out.hidden_states[:-1], out.last_hidden_state]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7)) * 0.1


def assert_layers_close(ours: list[Tensor], reference: list[Tensor], tolerance: float) -> None:
    assert len(ours) == len(reference)
    for number, (layer, other) in enumerate(zip(ours, reference, strict=True)):
        difference = (layer - other).abs().max().item()
        assert layer.shape == other.shape and difference <= tolerance, f"layer {number}: {difference}"


@MODES
@torch.no_grad()
def test_equals_transformers_in_all_layers(sizes: dict[str, Any]) -> None:
    reference, ours = pair(**sizes)
    waveforms = noise(2, 40000)
    expected = reference_layers(reference, waveforms, ours.sizes.normalize)
    assert len(expected) == ours.layers == 4
    assert_layers_close(list(ours(waveforms)), expected, 1e-4)


@torch.no_grad()
def test_full_size_base_equals_transformers_in_all_layers() -> None:
    reference, ours = pair(size="base")
    waveforms = noise(1, 16000)
    expected = reference_layers(reference, waveforms, normalize=False)
    assert len(expected) == ours.layers == 13 and expected[0].shape == (1, 49, 768)
    assert_layers_close(list(ours(waveforms)), expected, 1e-4)


@MODES
def test_gradients_equal_those_of_transformers(sizes: dict[str, Any]) -> None:
    reference, ours = pair(**sizes)
    waveforms = noise(2, 8000)
    gradients = []
    for layers in (reference_layers(reference, waveforms, ours.sizes.normalize), list(ours(waveforms))):
        sum(layer.pow(3).mean() for layer in layers).backward()  # type: ignore[union-attr]
    for name, parameter in ours.named_parameters():
        other = dict(reference.named_parameters()).get(HUGGING_FACE.source_name(name))
        if other is None:
            assert name.startswith("position.")  # a parametrization there
            continue
        if name == "front.convolutions.0.bias" and ours.front.folds:
            continue
        assert parameter.grad is not None and other.grad is not None, name
        gradients.append(name)
        scale = other.grad.abs().max().clamp(min=1e-3)
        assert ((parameter.grad - other.grad).abs().max() / scale).item() < 1e-3, name
    assert len(gradients) > 50


@MODES
@torch.no_grad()
def test_blocks_of_frames_and_queries_change_nothing(sizes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network, waveforms, lengths = WavLM(**sizes).eval(), noise(2, 20000), torch.tensor([20000, 9000])
    whole = list(network(waveforms, lengths))
    real = torch.arange(whole[0].shape[1]) < network.frames(lengths)[:, None]
    for frames, scores in ((7, 5000), (62, 2**22), (1, 1)):
        monkeypatch.setitem(wavlm_front_end.MAX_FRAMES, "cpu", frames)
        monkeypatch.setitem(wavlm_blocks.MAX_SCORES, "cpu", scores)
        for layer, other in zip(network(waveforms, lengths), whole, strict=True):
            torch.testing.assert_close(layer[real], other[real], atol=1e-5, rtol=0)


@MODES
@torch.no_grad()
def test_a_clip_in_a_padded_batch_is_the_clip_alone(sizes: dict[str, Any]) -> None:
    torch.manual_seed(1)
    network = WavLM(**sizes).eval()
    lengths = torch.tensor([32000, 20000, 400, 31900, 4321])  # 32000 and 31900 have the same number of frames
    waveforms = noise(5, 32000) + 0.05  # a norm over time must not see where the offset ends
    for clip, length in enumerate(lengths.tolist()):
        waveforms[clip, length:] = float("nan")  # nothing may look there
    together = list(network(waveforms, lengths))
    for clip, length in enumerate(lengths.tolist()):
        alone = list(network(waveforms[clip : clip + 1, :length]))
        frames = network.frames(length)
        assert_layers_close([layer[clip : clip + 1, :frames] for layer in together], alone, 1e-5)


@torch.no_grad()
def test_padding_longer_than_every_clip() -> None:
    network, waveforms = WavLM(**SMALL).eval(), noise(1, 5000)
    padded = list(network(F.pad(waveforms, (0, 3000)), torch.tensor([5000])))
    assert padded[0].shape[1] == network.frames(8000)
    assert_layers_close([layer[:, : network.frames(5000)] for layer in padded], list(network(waveforms)), 1e-5)


@torch.no_grad()
def test_norm_over_time_is_exact_where_little_of_the_clip_passes() -> None:
    """A loud low tone that the first kernel takes away all but a 10,000th of: statistics in float32 would be noise."""
    _, network = pair(**SMALL)
    time = torch.arange(32000) / 16000
    waveforms = (0.9 * torch.sin(2 * torch.pi * 50 * time) + 1e-4 * noise(32000))[None]
    first = network.front.convolutions[0]
    first.weight.copy_(torch.randn(24, 1, 10))
    first.weight.sub_(first.weight.mean(dim=2, keepdim=True))
    expected = F.conv1d(waveforms[:, None].double(), first.weight.double(), stride=5)
    norm = network.front.norms[0]
    expected = F.group_norm(expected, 24, norm.weight.double(), norm.bias.double(), norm.eps)
    kernels, biases = network.front._folded_kernels(waveforms, [32000])
    result = F.conv1d(waveforms[:, None].double(), kernels.double(), biases.double(), stride=5)
    assert (result - expected).abs().max() < 1e-4


def test_frames_are_exact() -> None:
    network = WavLM(**{**SMALL, "blocks": 1}).eval()
    samples = [400, 401, 719, 720, 721, 1039, 1040, 1680, 16000, 16079, 16080]
    with torch.no_grad():
        counts = [next(iter(network(noise(1, count)))).shape[1] for count in samples]
    assert [network.frames(count) for count in samples] == counts
    assert network.frames(torch.tensor(samples)).tolist() == counts
    assert [network.frames(count) for count in (0, 9, 399, 400)] == [0, 0, 0, 1]
    assert network.frames(torch.tensor([0, 399, 400])).tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("size", "layers", "channels", "million"),
    [("base", 13, 768, 94), ("base-plus", 13, 768, 94), ("large", 25, 1024, 315)],
)
def test_named_sizes(size: str, layers: int, channels: int, million: int) -> None:
    with torch.device("meta"):
        network = ENCODERS.build("wavlm", size=size)
    assert (network.layers, network.channels, network.stride, network.minimum) == (layers, channels, 320, 400)
    assert sum(parameter.numel() for parameter in network.parameters()) // 10**6 == million


def test_sizes_survive_json() -> None:
    sizes = WavLM(**SMALL_LARGE).sizes
    assert WavLMSizes(**json.loads(json.dumps(asdict(sizes)))) == sizes
    assert WavLMSizes(**json.loads(json.dumps(asdict(SIZES["large"])))) == SIZES["large"]


def test_relative_position_buckets() -> None:
    """By hand: 320 buckets, half a direction, 80 exact, then logarithmic up to 800 frames; then by transformers."""
    positions = RelativePositions(heads=2, buckets=320, distance=800)
    offsets = torch.tensor([0, -1, -79, -80, -5000, 1, 79, 80, 253, 799, 800, 5000])
    # 253: 80 + 80 * log(253 / 80) / log(10) = 80 + 40.00...
    assert positions.bucket(offsets).tolist() == [0, 1, 79, 80, 159, 161, 239, 240, 280, 319, 319, 319]
    attention = transformers_wavlm(WavLM(**{**SMALL, "blocks": 1, "distance": 800}).sizes).encoder.layers[0].attention
    offsets = torch.arange(-3000, 3001)
    assert torch.equal(positions.bucket(offsets), attention._relative_positions_bucket(offsets))


@torch.no_grad()
def test_layers_come_when_asked_and_go_when_done() -> None:
    network = WavLM(**SMALL).eval()
    calls: list[int] = []
    for number, block in enumerate(network.blocks):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    layers = network(noise(1, 4000))
    assert calls == []
    first = weakref.ref(next(layers))
    assert calls == [] and first() is not None
    next(layers)
    assert calls == [0] and first() is None
    next(layers)
    assert calls == [0, 1]


class LargestTensor(TorchDispatchMode):
    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and "unfold" not in str(func):  # a view
                self.largest = max(self.largest, leaf.untyped_storage().nbytes() // leaf.element_size())
        return result


@torch.no_grad()
def test_nothing_is_quadratic_and_no_convolution_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    network, samples = WavLM(**SMALL).eval(), 16000 * 8
    frames = network.frames(samples)
    monkeypatch.setitem(wavlm_front_end.MAX_FRAMES, "cpu", 20)
    monkeypatch.setitem(wavlm_blocks.MAX_SCORES, "cpu", 2**14)
    with LargestTensor() as spy:
        for _ in network(noise(1, samples)):
            pass
    windows = 10 * samples // 5  # of the clip, for the norm over time
    assert windows < 24 * samples // 5 / 2  # the first convolution's output
    assert windows < 4 * frames**2 / 2  # heads x frames x frames
    assert spy.largest <= windows


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"heads": 5}, "heads must divide"),
        ({"position_groups": 5}, "position_groups must divide"),
        ({"blocks": 0}, "at least 1"),
        ({"buckets": 30}, "multiple of 4"),
        ({"distance": 80}, "distance must be above"),
        ({"convolutions": []}, "there must be a convolution"),
        ({"convolutions": [(8, 10)]}, "3 sizes"),
        ({"convolution_norm": "batch"}, '"group" or "layer"'),
        ({"dropout": 0.1}, "dropout"),
        ({"size": "huge"}, "no WavLM of size 'huge'.*base, base-plus, large"),
    ],
)
def test_refused_sizes(change: dict[str, Any], why: str) -> None:
    with pytest.raises(KnnError, match=why):
        ENCODERS.build("wavlm", **{**SMALL, **change})


def test_refused_clips() -> None:
    network = WavLM(**SMALL)
    with pytest.raises(AudioError, match=r"399 samples is too short.*400"):
        network(noise(1, 399))
    with pytest.raises(AudioError, match="too short"):
        network(noise(2, 800), torch.tensor([800, 3]))
    for lengths in ([800], [800, 801]):
        with pytest.raises(ValueError, match="do not fit"):
            network(noise(2, 800), torch.tensor(lengths))


@pytest.mark.parametrize(("kernel", "groups", "frames"), [(128, 2, 300), (16, 4, 1), (5, 1, 40)])
def test_positions_by_spectra(kernel: int, groups: int, frames: int) -> None:
    """Several blocks of frames, a single frame, an odd kernel; gradients go through the taps themselves."""
    torch.manual_seed(0)
    layer = PositionConvolution(8, kernel, groups)
    layer.bias.data.normal_()
    x = torch.randn(3, frames, 8)
    names = layer.state_dict().keys()
    with torch.inference_mode():
        plain = layer(x)
        layer.fold()
        folded = layer(x)
    assert folded.shape == plain.shape and not torch.equal(folded, plain)
    torch.testing.assert_close(folded, plain, atol=1e-5, rtol=1e-5)
    assert layer.state_dict().keys() == names
    assert layer(x).requires_grad
