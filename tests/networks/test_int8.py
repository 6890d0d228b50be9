"""8-bit weights and products: hand answers, how far rounding goes, and bundles that hold them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from knn_cli.core.errors import BundleError, KnnError
from knn_cli.embedding.embedder import Embedder
from knn_cli.networks import bundle
from knn_cli.networks.bundle_weights import read_weights
from knn_cli.networks.construction import build_network
from knn_cli.networks.conversion import convert
from knn_cli.networks.int8 import (
    SCALE,
    Int8Convolution,
    Int8Linear,
    dequantised,
    linears,
    quantised,
    with_int8_products,
)

CONFIG = {
    "name": "small",
    "kind": "classifier",
    "audio": {"rate": 16000, "scale": 1.0},
    "encoder": {
        "name": "whisper",
        "args": {"channels": 64, "blocks": 2, "heads": 4, "inner": 96, "silence": 0.1, "merge_after": 1},
    },
    "pooling": {"name": "whisper-decoder", "args": {"blocks": 2}},
    "head": {"name": "softmax", "args": {"normalize": False}, "labels": ["cs", "sk", "zxx"]},
}


def int8_of(layer: nn.Module) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The layer with 8-bit products, and its weights in 8 bits."""
    state = quantised({f"encoder.{key}": value for key, value in layer.state_dict().items()})
    holder = nn.ModuleDict({"encoder": layer})
    with_int8_products(holder, state)
    return holder["encoder"], state


@pytest.fixture
def small(tmp_path: Path) -> bundle.Bundle:
    """A Whisper of random weights."""
    torch.manual_seed(0)
    return bundle.write(tmp_path / "small", CONFIG, state=build_network(CONFIG).state_dict())


@pytest.fixture
def small8(small: bundle.Bundle, tmp_path: Path) -> bundle.Bundle:
    """The same in 8 bits."""
    result = convert(small.folder, tmp_path / "small8", int8=True)
    assert (result.kind, result.rows) == ("bundle", sum(p.numel() for p in bundle.load_network(small).parameters()))
    return bundle.find(tmp_path / "small8")


def test_matrices_and_convolutions_become_int8_and_come_back() -> None:
    generator = torch.Generator().manual_seed(0)
    state = {
        "encoder.a.weight": torch.randn(5, 40, generator=generator),
        "pooling.b.weight": torch.randn(3, 16, 2, generator=generator),
        "encoder.norm.weight": torch.randn(40, generator=generator),
        "encoder.tiny.weight": torch.randn(4, 10, generator=generator),
        "encoder.zero.weight": torch.zeros(2, 32),
        "head.weight": torch.randn(3, 40, generator=generator),
    }
    stored = quantised(state)
    made = {key for key, value in stored.items() if value.dtype == torch.int8}
    assert made == {"encoder.a.weight", "pooling.b.weight", "encoder.zero.weight"}
    back = dequantised(stored)
    assert back.keys() == state.keys()
    for key, value in state.items():
        step = stored[key + SCALE].view(-1, *[1] * (value.ndim - 1)) if key in made else torch.zeros(1)
        assert bool(((back[key] - value).abs() <= step * 0.501).all()), key
    assert quantised(stored).keys() == stored.keys()


def test_products_are_those_of_rounded_rows() -> None:
    """Against the definition: each row rounded to 63 steps of its largest value, times the int8 weight."""
    torch.manual_seed(0)
    plain = nn.Linear(40, 7)
    ours, state = int8_of(plain)
    assert isinstance(ours, Int8Linear)
    x = torch.randn(2, 5, 40) * torch.tensor([1e-3, 1.0])[:, None, None]
    x[1, 2] = 0
    step = (x.abs().amax(2, keepdim=True) / 63).clamp_min(1e-12)
    expected = F.linear((x / step).round() * step, dequantised(state)["encoder.weight"], plain.bias)
    torch.testing.assert_close(ours(x), expected, atol=1e-5, rtol=1e-5)
    for output, alone in zip(linears(x, ours, ours), (ours(x), ours(x)), strict=True):
        assert torch.equal(output, alone)


def test_the_largest_products_do_not_overflow() -> None:
    """Sums of two products, which some processors hold in 16 bits, stay within them."""
    plain = nn.Linear(64, 3, bias=False)
    plain.weight.data[:] = torch.tensor([1.0, -1.0, 0.5])[:, None]
    ours, _ = int8_of(plain)
    torch.testing.assert_close(ours(torch.full((1, 64), 2.0)), torch.tensor([[128.0, -128.0, 64.0]]), atol=0.5, rtol=0)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (4, 3, 0)])
def test_convolutions_are_products_of_the_frames_they_cover(kernel: int, stride: int, padding: int) -> None:
    torch.manual_seed(0)
    plain = nn.Conv1d(16, 5, kernel, stride=stride, padding=padding)
    ours, _ = int8_of(plain)
    assert isinstance(ours, Int8Convolution)
    x = torch.randn(2, 16, 23)
    expected = plain(x)
    assert ours(x).shape == expected.shape
    torch.testing.assert_close(ours(x), expected, atol=0.03, rtol=0)
    grouped, _ = int8_of(nn.Conv1d(64, 64, 3, groups=2))
    assert type(grouped) is nn.Conv1d


def test_a_bundle_in_8_bits(small: bundle.Bundle, small8: bundle.Bundle) -> None:
    """It is near the bundle of floats, an embedder of its own, and gives a clip one embedding in any company."""
    assert (small8.folder / bundle.WEIGHTS).stat().st_size < 0.35 * (small.folder / bundle.WEIGHTS).stat().st_size
    assert small8.precision == "int8" and not bundle.same_embedder(small.fingerprint, small8.fingerprint)
    network, floats = bundle.load_network(small8), bundle.load_network(small8, float_products=True)
    kinds = {type(module) for module in network.modules()}
    assert {Int8Linear, Int8Convolution} <= kinds and nn.Conv1d not in kinds
    assert not {type(module) for module in floats.modules()} & {Int8Linear, Int8Convolution}
    generator = np.random.default_rng(0)
    clips = [generator.normal(0, 0.1, size).astype(np.float32) for size in (9000, 4000, 9000, 12345)]
    together = Embedder(small8)(clips)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            alone = np.stack([Embedder(small8)([clip])[0] for clip in clips])
            assert np.array_equal(together, alone)
    finally:
        torch.set_num_threads(before)
    exact = Embedder(small)(clips)
    assert np.abs(together - exact).max() < 0.1 * np.abs(exact).max()


def test_without_fbgemm_products_are_of_floats(small8: bundle.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("knn_cli.networks.int8._ENGINE", "none")
    clip = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0)) * 0.1
    network, floats = bundle.load_network(small8), bundle.load_network(small8, float_products=True)
    with torch.inference_mode():
        torch.testing.assert_close(network(clip), floats(clip), atol=1e-5, rtol=1e-5)


def test_what_cannot_be_in_8_bits(small: bundle.Bundle, tmp_path: Path) -> None:
    state = quantised(read_weights(small.folder / bundle.WEIGHTS, small.config["weights_sha256"]))
    del state["encoder.first.weight_scale"]
    broken = bundle.write(tmp_path / "broken", {**CONFIG, "products": "int8"}, state=state)
    with pytest.raises(BundleError, match=r"1 keys differ \(encoder.first.weight is int8 without scales\)"):
        bundle.load_network(broken)
    with pytest.raises(BundleError, match="products can only be 'int8'"):
        bundle.write(tmp_path / "newer", {**CONFIG, "products": "int4"}, state=state)
    for source, target, message in (
        (small.folder, "a.h5", "no ONNX file and no model's folder"),
        (tmp_path / "weights.pt", "a", "is a checkpoint"),
        (tmp_path / "nothing", "a", "There is no model"),
    ):
        with pytest.raises(KnnError, match=message):
            convert(source, tmp_path / target, int8=True)
    with pytest.raises(KnnError, match="only `int8` and `force` apply"):
        convert(small.folder, tmp_path / "a", int8=True, rate=8000)
