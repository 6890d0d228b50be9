"""The decoder step: a decoder written out with keys and values of every frame, and sizes that make none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from knn_cli.core.errors import KnnError
from knn_cli.networks.contracts import FramePooling
from knn_cli.networks.pooling.whisper_decoder import WhisperDecoder
from tests.helpers.encoder_contract import shaken

LAYERS, CHANNELS, HEADS, TIME = 2, 12, 3, 9


def decoder(**args: Any) -> Any:
    torch.manual_seed(0)
    return shaken(WhisperDecoder(LAYERS, CHANNELS, **{"blocks": 2, "heads": HEADS, "inner": 20, **args}))


def written_out(pooling: WhisperDecoder, frames: Tensor) -> Tensor:
    """The decoder's output (C,) for one clip (T, C), as its definition says, in float64."""
    state = {key: value.double() for key, value in pooling.state_dict().items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    x = state["start"]
    for block in (f"blocks.{number}." for number in range(len(pooling.blocks))):
        x = x + linear(f"{block}self_out", linear(f"{block}self_value", norm(f"{block}self_norm", x)))
        query = linear(f"{block}query", norm(f"{block}norm", x)).split(CHANNELS // HEADS)
        keys = linear(f"{block}key", frames).split(CHANNELS // HEADS, dim=1)
        values = linear(f"{block}value", frames).split(CHANNELS // HEADS, dim=1)
        seen = [(k @ q / (CHANNELS / HEADS) ** 0.5).softmax(0) @ v for q, k, v in zip(query, keys, values, strict=True)]
        x = x + linear(f"{block}out", torch.cat(seen))
        x = x + linear(f"{block}narrow", F.gelu(linear(f"{block}widen", norm(f"{block}inner_norm", x))))
    return norm("norm", x)


@pytest.mark.parametrize("lengths", [[TIME] * 3, [TIME, 1, 6]], ids=["whole", "padded"])
def test_equals_attention_with_a_key_and_a_value_of_every_frame(lengths: list[int]) -> None:
    pooling = decoder()
    layers = [torch.randn(3, TIME, CHANNELS) for _ in range(LAYERS)]
    mask = torch.arange(TIME) < torch.tensor(lengths)[:, None]
    result = pooling(iter(layers), None if min(lengths) == TIME else mask)
    expected = torch.stack(
        [written_out(pooling, layers[-1][clip, :length].double()) for clip, length in enumerate(lengths)]
    )
    torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=1e-5)


def test_frames_are_pooled_under_many_masks() -> None:
    pooling = decoder()
    assert isinstance(pooling, FramePooling) and pooling.dimension == CHANNELS
    layers = [torch.randn(1, TIME, CHANNELS) for _ in range(LAYERS)]
    masks = torch.arange(TIME) < torch.tensor([[4], [7]])
    together = pooling.pool(pooling.frames(layers).expand(2, -1, -1), masks)
    for row, count in enumerate((4, 7)):
        torch.testing.assert_close(together[row], pooling([layer[:, :count] for layer in layers])[0])


def test_sizes_that_make_no_decoder_and_another_number_of_layers_are_refused() -> None:
    for size in ("layers", "channels", "blocks", "heads", "inner"):
        with pytest.raises(KnnError, match=size):
            WhisperDecoder(**{"layers": 2, "channels": 4, size: 0})
    with pytest.raises(KnnError, match="12 channels are no multiple of its decoder's 5 heads"):
        decoder(heads=5)
    with pytest.raises(ValueError, match=f"{LAYERS} expected"):
        decoder()([torch.zeros(1, 2, CHANNELS)])


@pytest.mark.parametrize(("channels", "heads"), [(384, 6), (1280, 20), (6, 1)])
def test_sizes_are_those_of_every_whisper_unless_they_are_given(channels: int, heads: int) -> None:
    with torch.device("meta"):
        pooling: Any = WhisperDecoder(2, channels, blocks=1)
    assert pooling.blocks[0].split[0] == heads and pooling.blocks[0].widen.out_features == 4 * channels
