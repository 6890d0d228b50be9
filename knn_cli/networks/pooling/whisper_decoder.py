"""Whisper's text decoder as a pooling: one step from its start token, which attends to the encoder's last layer.

Radford et al., "Robust speech recognition via large-scale weak supervision", 2022 (arXiv:2212.04356). The first token
that Whisper predicts is the language, so the decoder's output at the start token, times the embeddings of the language
tokens (a linear head), gives the logits of the languages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import POOLINGS
from knn_cli.networks.contracts import FramePooling
from knn_cli.networks.pooling.base import check_sizes, last_layer, zero_padding

__all__ = ["WhisperDecoder"]

_HEAD_WIDTH = 64  # channels of a head in every Whisper


class _FoldedLinear(nn.Linear):
    """A linear layer of which only the weight is used, as floats: it is never replaced by one of 8-bit products."""


class _DecoderBlock(nn.Module):
    """Attention to the token itself, attention to the frames, two linear layers; each with a norm and a residual.

    A token that is alone attends to itself with weight 1: only the value projection of self-attention is left.
    """

    def __init__(self, channels: int, heads: int, inner: int) -> None:
        super().__init__()
        self.split = (heads, channels // heads, channels)  # a head's rows of a weight: (H, D, C)
        self.self_norm = nn.LayerNorm(channels)
        self.self_value = nn.Linear(channels, channels)
        self.self_out = nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key = _FoldedLinear(channels, channels, bias=False)
        self.value = _FoldedLinear(channels, channels)
        self.out = nn.Linear(channels, channels)
        self.inner_norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, inner)
        self.narrow = nn.Linear(inner, channels)

    def forward(self, x: Tensor, frames: Tensor, mask: Tensor | None) -> Tensor:
        """A token (B, C), frames (B, T, C) that are 0 outside the mask (B, T) -> (B, C)."""
        x = x + self.self_out(self.self_value(self.self_norm(x)))
        x = x + self.out(self._attend(self.query(self.norm(x)), frames, mask))
        return cast(Tensor, x + self.narrow(F.gelu(self.widen(self.inner_norm(x)))))

    def _attend(self, query: Tensor, frames: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of one query (B, C) to the frames -> (B, C), without a key and a value of each frame.

        With one query, q · (W f) of all frames f is (q W) · f, and the mean of the values is W times the mean frame.
        """
        heads, width, _ = self.split
        queries = query.view(-1, heads, width)  # (B, H, D)
        folded = torch.einsum("bhd,hdc->bhc", queries, self.key.weight.view(self.split))
        logits = folded @ frames.transpose(1, 2) / math.sqrt(width)  # (B, H, T)
        if mask is not None:
            logits = logits.masked_fill(~mask.unsqueeze(1), -math.inf)
        means = logits.softmax(2) @ frames  # (B, H, C)
        values: Tensor = torch.einsum("bhc,hdc->bhd", means, self.value.weight.view(self.split))
        return values.flatten(1) + self.value.bias


@POOLINGS.register("whisper-decoder")
class WhisperDecoder(FramePooling):
    """One step of Whisper's decoder, from its start token, over the encoder's last layer.

    Parameters
    ----------
    layers : int
        Number of layers L of the encoder.
    channels : int
        Width C of a layer, of the decoder, and of the embedding.
    blocks : int
        Number of the decoder's blocks.
    heads : int, optional
        Attention heads of a block; None: one for every 64 channels, as in every Whisper.
    inner : int, optional
        Width between the two linear layers of a block; None: 4 C, as in every Whisper.
    """

    def __init__(
        self, layers: int, channels: int, blocks: int = 4, heads: int | None = None, inner: int | None = None
    ) -> None:
        super().__init__()
        heads = max(1, channels // _HEAD_WIDTH) if heads is None else heads
        inner = 4 * channels if inner is None else inner
        check_sizes("Whisper decoder", layers=layers, channels=channels, blocks=blocks, heads=heads, inner=inner)
        if channels % heads:
            raise KnnError(f"Whisper's {channels} channels are no multiple of its decoder's {heads} heads.")
        self.layers, self.dimension = layers, channels
        self.start = nn.Parameter(torch.empty(channels))  # the start token's embedding plus that of the first position
        nn.init.normal_(self.start)
        self.blocks = nn.ModuleList(_DecoderBlock(channels, heads, inner) for _ in range(blocks))
        self.norm = nn.LayerNorm(channels)

    def frames(self, layers: Iterable[Tensor]) -> Tensor:
        """L layers (B, T, C) -> the last one."""
        return last_layer(layers, self.layers)

    def pool(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """`frames` (B, T, C) under a mask (B, T) as of `forward` -> embeddings (B, C)."""
        frames = zero_padding(frames, mask)
        x = self.start.expand(frames.shape[0], -1)
        for block in self.blocks:
            x = block(x, frames, mask)
        return cast(Tensor, self.norm(x))
