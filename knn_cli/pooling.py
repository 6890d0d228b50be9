"""Pooling back ends: the layers of an encoder, taken one after the other, to one embedding a clip.

Every pooling is built as `POOLINGS.build(name, layers=L, channels=C, **args)`, has the attribute `dimension`,
and maps L tensors (B, T, C) and an optional mask (B, T), True at real frames, to embeddings (B, dimension).
The layers may come from a generator: no pooling holds more than one of them, so nothing of size (L, B, T, C)
or (B, T, heads, C) exists.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor, nn

from knn_cli.errors import KnnError
from knn_cli.registry import POOLINGS

__all__ = ["MHFA", "POOLINGS", "MeanPooling"]


@POOLINGS.register("mhfa")
class MHFA(nn.Module):
    """Multi-head factorized attentive pooling.

    Peng et al., "An attention-based backend allowing efficient fine-tuning of transformer models for speaker
    verification", SLT 2022 (arXiv:2210.01273), section 3. Keys and values are two softmax-weighted sums over
    layers; the keys say where each head looks, the values what it sees there.

    Parameters have the published names: `weights_k`, `weights_v` (L,), `cmp_linear_k`, `cmp_linear_v`,
    `att_head`, `pooling_fc`.

    Args:
        layers: number of layers that come in.
        channels: width C of a layer.
        heads: number of attention heads H.
        compression: width D to which keys and values are compressed.
        dimension: width E of the embedding.
    """

    def __init__(
        self, layers: int, channels: int, heads: int = 64, compression: int = 128, dimension: int = 256
    ) -> None:
        super().__init__()
        for value, what in (
            (layers, "layers"),
            (channels, "channels"),
            (heads, "heads"),
            (compression, "compression"),
            (dimension, "dimension"),
        ):
            if value < 1:
                raise KnnError(f"MHFA pooling needs {what} of at least 1, not {value}.")
        self.layers, self.channels, self.heads, self.compression = layers, channels, heads, compression
        self.dimension = dimension
        self.weights_k = nn.Parameter(torch.ones(layers))
        self.weights_v = nn.Parameter(torch.ones(layers))
        self.cmp_linear_k = nn.Linear(channels, compression)
        self.cmp_linear_v = nn.Linear(channels, compression)
        self.att_head = nn.Linear(compression, heads)
        self.pooling_fc = nn.Linear(heads * compression, dimension)

    def forward(self, layers: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
        """Embeddings (B, E) float of `layers`, exactly L tensors (B, T, C) float.

        `mask` (B, T) bool is True at real frames, of which each clip has one or more; the others may hold anything.

        Raises:
            ValueError: when another number of layers comes.
        """
        keys, values = self._weighted_sums(layers)
        keys = self.cmp_linear_k(keys)  # (B, T, D)
        values = self.cmp_linear_v(values)  # (B, T, D)
        logits = self.att_head(keys)  # (B, T, H)
        if mask is not None:
            logits = logits.masked_fill(~mask.unsqueeze(-1), float("-inf"))
            values = values.masked_fill(~mask.unsqueeze(-1), 0.0)  # a weight of 0 times infinity would be NaN
        attention = logits.softmax(dim=1)  # (B, T, H), over time
        pooled = torch.bmm(attention.transpose(1, 2), values)  # (B, H, D)
        embeddings: Tensor = self.pooling_fc(pooled.flatten(1))  # (B, H * D) -> (B, E)
        return embeddings

    def _weighted_sums(self, layers: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Both softmax-weighted sums over layers, each (B, T, C), as running sums."""
        share_k = self.weights_k.softmax(dim=0)  # (L,)
        share_v = self.weights_v.softmax(dim=0)  # (L,)
        source = iter(layers)
        first = next(source, None)
        if first is None:
            raise ValueError(f"no layer came, {self.layers} expected")
        keys, values = first * share_k[0], first * share_v[0]
        del first  # else it would live as long as the loop
        count = 1
        for layer in source:
            if count < self.layers:
                keys = torch.addcmul(keys, layer, share_k[count])
                values = torch.addcmul(values, layer, share_v[count])
            count += 1
        if count != self.layers:
            raise ValueError(f"{count} layers came, {self.layers} expected")
        return keys, values


@POOLINGS.register("mean")
class MeanPooling(nn.Module):
    """Mean over time of one layer, without parameters: what an imported encoder has until a head is trained.

    Args:
        layers: number of layers that come in.
        channels: width of a layer, and so of the embedding.
        layer: which one, counted from 0 for the encoder's first output, or from the end (-1 is the last).
    """

    def __init__(self, layers: int, channels: int, layer: int = -1) -> None:
        super().__init__()
        if not -layers <= layer < layers:
            raise KnnError(
                f"Mean pooling cannot take layer {layer} of an encoder that has {layers}.",
                f"Choose from {-layers} to {layers - 1}.",
            )
        self.layers, self.layer, self.dimension = layers, layer % layers, channels

    def forward(self, layers: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
        """Embeddings (B, C) of `layers`; layers after the chosen one are never asked for.

        `mask` (B, T) bool is True at real frames, of which each clip has one or more; the others may hold anything.

        Raises:
            ValueError: when fewer layers come than the chosen one needs.
        """
        chosen = next(islice(layers, self.layer, None), None)
        if chosen is None:
            raise ValueError(f"the layers ended before number {self.layer}")
        if mask is None:
            return chosen.mean(dim=1)
        total = chosen.masked_fill(~mask.unsqueeze(-1), 0.0).sum(dim=1)  # (B, C)
        return total / mask.sum(dim=1, keepdim=True)
