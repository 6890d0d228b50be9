"""Multi-head factorized attentive pooling (MHFA) and its relatives, in which learnt queries attend to the frames.

Parameters have the names of the public wespeaker forks wherever the arithmetic is the same (docs/numerics.md lists the
corresponding classes).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import POOLINGS
from knn_cli.networks.contracts import FramePooling, Pooling
from knn_cli.networks.pooling.base import attended_statistics, attention_weights, check_sizes, layer_sums, zero_padding

__all__ = [
    "MHFA",
    "ChannelAttention",
    "ContextMHFA",
    "ContextStatisticsMHFA",
    "GroupedMHFA",
    "SharedKeyMHFA",
    "SharedValueMHFA",
]


@POOLINGS.register("mhfa")
class MHFA(FramePooling):
    """Multi-head factorized attentive pooling.

    Peng et al., "An attention-based backend allowing efficient fine-tuning of transformer models for speaker
    verification", SLT 2022 (arXiv:2210.01273), section 3. Keys and values are two softmax-weighted sums over
    layers; the keys determine each head's attention weights, the values are averaged with them.

    Parameters have the published names: `weights_k`, `weights_v` (L,), `cmp_linear_k`, `cmp_linear_v`,
    `att_head`, `pooling_fc`.

    Parameters
    ----------
    layers : int
        Number of layers L of the encoder.
    channels : int
        Width C of a layer.
    heads : int
        Number of attention heads H.
    compression : int
        Width D to which keys and values are compressed.
    dimension : int
        Width E of the embedding.
    """

    def __init__(
        self, layers: int, channels: int, heads: int = 64, compression: int = 128, dimension: int = 256
    ) -> None:
        super().__init__()
        check_sizes("MHFA", layers=layers, channels=channels, heads=heads, compression=compression, dimension=dimension)
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

        `mask` (B, T) bool is True at real frames, of which each clip has at least one; the others may have any value.

        Raises
        ------
        ValueError
            The number of layers is not L.
        """
        return self.pool(self.frames(layers), mask)

    def frames(self, layers: Iterable[Tensor]) -> Tensor:
        """L tensors (B, T, C) -> (B, T, H + D): each head's attention logits and the compressed values.

        Frames of several clips may be concatenated, and pooled repeatedly under different masks.
        """
        return self.look(*layer_sums(layers, self.weights_k, self.weights_v))

    def look(self, keys: Tensor, values: Tensor) -> Tensor:
        """The result of `frames`, from the two weighted sums over the layers, (B, T, C) each."""
        return torch.cat([self.att_head(self.cmp_linear_k(keys)), self.cmp_linear_v(values)], dim=2)

    def pool(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """`frames` (B, T, H + D) under a mask as of `forward` -> embeddings (B, E)."""
        pooled = attention_weights(frames[..., : self.heads], mask) @ zero_padding(
            frames[..., self.heads :], mask
        )  # (B, H, T) @ (B, T, D)
        embeddings: Tensor = self.pooling_fc(pooled.flatten(1))  # (B, H * D) -> (B, E)
        return embeddings


@POOLINGS.register("mhfa-grouped")
class GroupedMHFA(Pooling):
    """MHFA in groups of heads, each with separate keys and values (`MHFA_Group` of the public forks).

    Parameters
    ----------
    layers : int
        Number of layers L of the encoder.
    channels : int
        Width C of a layer.
    heads : int
        Number of attention heads H of all groups together.
    compression : int
        Width D of the keys and of the values of a group.
    dimension : int
        Width E of the embedding.
    groups : int
        Number of groups G, which divides `heads`.
    """

    separate_keys: ClassVar[bool] = True
    separate_values: ClassVar[bool] = True

    def __init__(
        self,
        layers: int,
        channels: int,
        heads: int = 64,
        compression: int = 128,
        dimension: int = 256,
        groups: int = 2,
    ) -> None:
        super().__init__()
        check_sizes("Grouped MHFA", layers=layers, channels=channels, heads=heads, compression=compression)
        check_sizes("Grouped MHFA", dimension=dimension, groups=groups)
        if heads % groups:
            raise KnnError(f"Grouped MHFA pooling cannot share {heads} heads among {groups} groups evenly.")
        self.dimension = dimension
        self.weights_k = nn.Parameter(torch.ones(layers))
        self.weights_v = nn.Parameter(torch.ones(layers))
        self.cmp_linear_k = nn.Linear(channels, compression * (groups if self.separate_keys else 1))
        self.cmp_linear_v = nn.Linear(channels, compression * (groups if self.separate_values else 1))
        self.att_head = nn.ModuleList(nn.Linear(compression, heads // groups) for _ in range(groups))
        self.pooling_fc = nn.Linear(heads * compression, dimension)

    def forward(self, layers: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
        """Embeddings (B, E); see `contracts.Pooling.forward`."""
        groups = len(self.att_head)
        keys, values = layer_sums(layers, self.weights_k, self.weights_v)
        keys = self.cmp_linear_k(keys)  # (B, T, G * D), or (B, T, D) when shared
        values = zero_padding(self.cmp_linear_v(values), mask)  # (B, T, G * D), or (B, T, D) when shared
        group_keys = keys.chunk(groups, dim=2) if self.separate_keys else (keys,) * groups  # each (B, T, D)
        group_values = values.chunk(groups, dim=2) if self.separate_values else (values,) * groups
        pooled = torch.cat(
            [
                attention_weights(head(key), mask) @ value  # (B, H / G, D)
                for head, key, value in zip(self.att_head, group_keys, group_values, strict=True)
            ],
            dim=1,
        )  # (B, H, D)
        embeddings: Tensor = self.pooling_fc(pooled.flatten(1))  # (B, H * D) -> (B, E)
        return embeddings


@POOLINGS.register("mhfa-shared-key")
class SharedKeyMHFA(GroupedMHFA):
    """Grouped MHFA with values for each group and keys that all groups share (`MHFA_Group_MQ_SK_MV`)."""

    separate_keys = False


@POOLINGS.register("mhfa-shared-value")
class SharedValueMHFA(GroupedMHFA):
    """Grouped MHFA with keys for each group and values that all groups share (`MHFA_Group_MQ_MK_SV`)."""

    separate_values = False


@POOLINGS.register("mhfa-context")
class ContextMHFA(Pooling):
    """CA-MHFA: factorized attention whose learnt queries compare a frame together with its neighbours.

    Peng et al., "CA-MHFA: a context-aware multi-head factorized attentive pooling for SSL-based speaker verification",
    ICASSP 2025 (arXiv:2409.15234), section 2. A group holds one query for each position in a window of frames; the
    products with the keys there, which are 0 outside the clip, are summed. This is a convolution over time,
    stored as `att_head.weight` (G, 1, window, D) without bias, as in the published code (`MHFA_Group_Conv2D`), which
    omits the paper's factor 1 / window. With a window of one frame it is MHFA with G heads.

    Parameters
    ----------
    layers : int
        Number of layers L of the encoder.
    channels : int
        Width C of a layer.
    groups : int
        Number of groups of queries G.
    context : int
        Neighbours on each side, in frames; the window has 2 * context + 1 frames.
    compression : int
        Width D to which keys and values are compressed.
    dimension : int
        Width E of the embedding.
    """

    statistics: ClassVar[int] = 1

    def __init__(
        self,
        layers: int,
        channels: int,
        groups: int = 64,
        context: int = 2,
        compression: int = 128,
        dimension: int = 256,
    ) -> None:
        super().__init__()
        check_sizes("Context-aware MHFA", layers=layers, channels=channels, groups=groups, compression=compression)
        check_sizes("Context-aware MHFA", dimension=dimension)
        if context < 0:
            raise KnnError(f"Context-aware MHFA pooling cannot see {context} neighbours.", "Give 0 or more.")
        self.dimension, self.context = dimension, context
        self.weights_k = nn.Parameter(torch.ones(layers))
        self.weights_v = nn.Parameter(torch.ones(layers))
        self.cmp_linear_k = nn.Linear(channels, compression)
        self.cmp_linear_v = nn.Linear(channels, compression)
        self.att_head = nn.Conv2d(1, groups, (2 * context + 1, compression), bias=False)
        self.pooling_fc = nn.Linear(groups * compression * self.statistics, dimension)

    def forward(self, layers: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
        """Embeddings (B, E); see `contracts.Pooling.forward`."""
        keys, values = layer_sums(layers, self.weights_k, self.weights_v)
        keys = zero_padding(self.cmp_linear_k(keys), mask)  # (B, T, D)
        queries = self.att_head.weight.squeeze(1).transpose(1, 2)  # (G, D, window)
        # Equal to the two-dimensional convolution, but three times as fast on a CPU.
        logits = F.conv1d(keys.transpose(1, 2), queries, padding=self.context)  # (B, G, T)
        pooled = self._pool(
            attention_weights(logits.transpose(1, 2), mask), zero_padding(self.cmp_linear_v(values), mask), mask
        )
        embeddings: Tensor = self.pooling_fc(pooled)
        return embeddings

    def _pool(self, weights: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        return (weights @ values).flatten(1)  # (B, G * D)


@POOLINGS.register("mhfa-context-statistics")
class ContextStatisticsMHFA(ContextMHFA):
    """CA-MHFA with the standard deviation as well as the mean (`MHFA_Group_Conv2D_MeanStd` of the public forks)."""

    statistics = 2

    def _pool(self, weights: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        mean, deviation = attended_statistics(weights, values, mask)  # each (B, G, D)
        return torch.cat((mean.flatten(1), deviation.flatten(1)), dim=1)  # (B, 2 * G * D)


@POOLINGS.register("channel-attention")
class ChannelAttention(Pooling):
    """MHFA with statistics, whose heads are averaged with weights that depend on the clip (`MHFA_ChannelAtt`).

    Parameters
    ----------
    layers : int
        Number of layers L of the encoder.
    channels : int
        Width C of a layer.
    heads : int
        Number of attention heads H.
    compression : int
        Width D to which keys and values are compressed.
    dimension : int
        Width E of the embedding.
    """

    def __init__(
        self, layers: int, channels: int, heads: int = 64, compression: int = 256, dimension: int = 256
    ) -> None:
        super().__init__()
        check_sizes("Channel attention", layers=layers, channels=channels, heads=heads, compression=compression)
        check_sizes("Channel attention", dimension=dimension)
        self.dimension = dimension
        self.weights_k = nn.Parameter(torch.ones(layers))
        self.weights_v = nn.Parameter(torch.ones(layers))
        self.cmp_linear_k = nn.Linear(channels, compression)
        self.cmp_linear_v = nn.Linear(channels, compression)
        self.att_head = nn.Linear(compression, heads)
        self.head_attention = nn.Linear(2 * compression, heads)
        self.pooling_fc = nn.Linear(2 * compression, dimension)

    def forward(self, layers: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
        """Embeddings (B, E); see `contracts.Pooling.forward`."""
        keys, values = layer_sums(layers, self.weights_k, self.weights_v)
        weights = attention_weights(self.att_head(self.cmp_linear_k(keys)), mask)  # (B, H, T)
        heads = torch.cat(attended_statistics(weights, self.cmp_linear_v(values), mask), dim=2)  # (B, H, 2 * D)
        head_weights = self.head_attention(heads.mean(dim=1)).softmax(dim=1)  # (B, H)
        pooled = (head_weights.unsqueeze(1) @ heads).squeeze(1)  # (B, 2 * D)
        embeddings: Tensor = self.pooling_fc(pooled)
        return embeddings
