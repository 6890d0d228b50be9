"""w2v-BERT 2.0: what every encoder keeps, its features, its positions in blocks of queries, and what it refuses."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS
from knn_cli.networks.encoders import wavlm_blocks
from knn_cli.networks.encoders.conformer import attention_of, distance_sinusoids
from knn_cli.networks.encoders.conformer_sizes import POSITIONS, W2vBertSizes
from knn_cli.networks.encoders.w2v_bert import StackedMel, W2vBert
from knn_cli.networks.pooling.mean import MeanPooling
from tests.helpers.encoder_contract import check_frames, check_gradient, check_padding, shaken, sound
from tests.helpers.oracles import load_transformers

SMALL: dict[str, Any] = {
    "channels": 24,
    "blocks": 2,
    "heads": 3,
    "inner": 20,
    "kernel": 5,
    "left": 6,
    "right": 2,
}
ABOVE = {"adapters_above": 2, "adapter_channels": 12, "between": True}
KINDS = [*({"positions": kind} for kind in POSITIONS), ABOVE, {"adapters": {"bottleneck": 4, "kind": "parallel"}}]


def network(**sizes: Any) -> W2vBert:
    torch.manual_seed(3)
    encoder: W2vBert = ENCODERS.build("w2v-bert", **{**SMALL, **sizes})
    return encoder


@pytest.mark.parametrize("sizes", [{}, ABOVE], ids=["blocks", "layers above"])
def test_frames(sizes: dict[str, Any]) -> None:
    check_frames(shaken(network(**sizes)))


@pytest.mark.parametrize("sizes", KINDS, ids=str)
def test_a_clip_in_a_padded_batch_is_the_clip_alone(sizes: dict[str, Any]) -> None:
    encoder = shaken(network(**sizes))
    check_padding(encoder, MeanPooling(encoder.layers, encoder.channels))


@pytest.mark.parametrize("sizes", KINDS[:-1], ids=str)
def test_gradient_reaches_every_weight(sizes: dict[str, Any]) -> None:
    encoder = network(**sizes)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    check_gradient(encoder, MeanPooling(encoder.layers, encoder.channels))


@pytest.mark.parametrize("bins", [80, 40])
def test_features_are_those_of_transformers(bins: int) -> None:
    extractor = load_transformers().SeamlessM4TFeatureExtractor(feature_size=bins, num_mel_bins=bins)
    clips = [sound(length)[0] * gain for length, gain in ((16000, 1.0), (9999, 1e-3), (560, 1.0))]
    inputs = extractor([clip.numpy() for clip in clips], sampling_rate=16000, return_tensors="pt")
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    front = StackedMel(bins)
    features = front(batch, torch.tensor([len(clip) for clip in clips]))
    counts = [front.frames(len(clip)) for clip in clips]
    assert counts == inputs["attention_mask"].sum(1).tolist() and features.shape == inputs["input_features"].shape
    for row, count in enumerate(counts):
        np.testing.assert_allclose(features[row, :count], inputs["input_features"][row, :count], atol=2e-4)


@pytest.mark.parametrize("kind", ["key", "relative"])
@torch.no_grad()
def test_blocks_of_queries_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, clips, lengths = shaken(network(positions=kind)), sound(9000, 4000), torch.tensor([9000, 4000])
    whole = list(encoder(clips, lengths))
    for scores in (1, 1000):
        monkeypatch.setitem(wavlm_blocks.MAX_SCORES, "cpu", scores)
        for layer, other in zip(encoder(clips, lengths), whole, strict=True):
            torch.testing.assert_close(layer, other, atol=1e-5, rtol=0)


class Largest(TorchDispatchMode):
    """Notes the number of values of the largest tensor that is made within."""

    values = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        self.values = max(
            self.values, *(each.numel() for each in tree_leaves(made) if isinstance(each, torch.Tensor)), 0
        )
        return made


@pytest.mark.parametrize("kind", ["key", "relative"])
def test_products_with_positions_are_made_for_few_queries_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = W2vBertSizes(**SMALL, positions=kind)
    attention, frames = attention_of(sizes), torch.zeros(1, 300, sizes.channels)
    bias = distance_sinusoids(300, sizes.channels, frames.device) if kind == "relative" else None
    monkeypatch.setitem(wavlm_blocks.MAX_SCORES, "cpu", 3 * 300 * 4)
    with torch.no_grad(), Largest() as largest:
        attention(frames, bias, None)
    table = 3 * 8 * 599  # of all positions
    assert largest.values <= table


@torch.no_grad()
def test_layers_above_the_blocks_let_go_of_those_below() -> None:
    encoder = shaken(network(blocks=4, adapters_above=1))
    outputs: list[weakref.ref[torch.Tensor]] = []
    held: list[int] = []

    def note(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        held.append(sum(each() is not None for each in outputs))
        outputs.append(weakref.ref(output))

    for block in encoder.blocks:
        block.register_forward_hook(note)
    list(encoder(sound(4000)))
    assert held == [0, 1, 1, 1]


def test_the_release_has_600_million_weights() -> None:
    with torch.device("meta"):
        encoder = ENCODERS.build("w2v-bert")
    assert (encoder.layers, encoder.channels, encoder.stride, encoder.minimum) == (25, 1024, 320, 560)
    assert sum(parameter.numel() for parameter in encoder.parameters()) // 10**6 == 580


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"heads": 5}, "heads must divide"),
        ({"adapters_above": 1, "adapter_channels": 16}, "heads must divide"),
        ({"kernel": 4}, "kernel must be odd"),
        ({"blocks": 0}, "at least 1"),
        ({"left": -1}, "at least 0"),
        ({"positions": "absolute"}, "key, relative, rotary, none"),
        ({"channels": 27, "positions": "rotary"}, "even width"),
        ({"activation": "tanh"}, "relu, gelu, swish"),
        ({"between": True}, "needs adapters_above"),
        ({"adapters_above": 1, "adapter_stride": 4}, "the same half"),
        ({"size": "3.0"}, "no w2v-BERT 2.0 of size"),
        ({"dropout": 0.1}, "dropout"),
    ],
    ids=str,
)
def test_refused_sizes(change: dict[str, Any], why: str) -> None:
    with pytest.raises(KnnError, match=why):
        network(**change)
