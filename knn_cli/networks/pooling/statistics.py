"""Poolings by statistics over time: means, spans, standard deviations, attentive statistics and correlations.

Parameters have the names of the public wespeaker forks; each docstring names the corresponding class.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import POOLINGS
from knn_cli.networks.contracts import Pooling
from knn_cli.networks.pooling.base import (
    MIN_VARIANCE,
    check_sizes,
    last_layer,
    layer_sums,
    time_mean,
    time_variance,
    zero_padding,
)

__all__ = [
    "AttentiveStatistics",
    "Correlation",
    "LastAttentiveStatistics",
    "LayerAverage",
    "LayerSpans",
    "QueryKeyValue",
    "Statistics",
]


@POOLINGS.register("layer-average")
class LayerAverage(Pooling):
    """Mean over time of the layers' weighted sum, compressed (`LWAP_Mean`).

    Mean, sum and compression are linear, so the mean is computed first: only (B, C) is kept of each layer.

    Parameters
    ----------
    layers : int
        Number of layers L of the encoder.
    channels : int
        Width C of a layer.
    compression : int
        Width D to which the mean is compressed.
    dimension : int
        Width E of the embedding.
    """

    def __init__(self, layers: int, channels: int, compression: int = 128, dimension: int = 256) -> None:
        super().__init__()
        check_sizes("Layer average", layers=layers, channels=channels, compression=compression, dimension=dimension)
        self.dimension = dimension
        self.weights_k = nn.Parameter(torch.ones(layers))
        self.cmp_linear_k = nn.Linear(channels, compression)
        self.pooling_fc = nn.Linear(compression, dimension)

    def forward(self, layers: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
        """Embeddings (B, E); see `contracts.Pooling.forward`."""
        (mean,) = layer_sums((time_mean(layer, mask) for layer in layers), self.weights_k)  # (B, C)
        embeddings: Tensor = self.pooling_fc(self.cmp_linear_k(mean))
        return embeddings


@POOLINGS.register("layer-spans")
class LayerSpans(Pooling):
    """Means over successive spans of time of the layers' weighted sum, compressed (`LWAP_PoolDim`).

    S spans of floor(T / S) frames each, as published: the remaining frames, fewer than S, are ignored. A clip of fewer
    than S frames has spans of one frame, some of which are identical.

    Parameters
    ----------
    layers : int
        Number of layers L of the encoder.
    channels : int
        Width C of a layer.
    spans : int
        Number of spans S.
    compression : int
        Width D to which a mean is compressed.
    dimension : int
        Width E of the embedding.
    """

    def __init__(
        self, layers: int, channels: int, spans: int = 8, compression: int = 128, dimension: int = 256
    ) -> None:
        super().__init__()
        check_sizes("Layer spans", layers=layers, channels=channels, spans=spans, compression=compression)
        check_sizes("Layer spans", dimension=dimension)
        self.spans, self.dimension = spans, dimension
        self.weights_k = nn.Parameter(torch.ones(layers))
        self.cmp_linear_k = nn.Linear(channels, compression)
        self.pooling_fc = nn.Linear(compression * spans, dimension)

    def forward(self, layers: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
        """Embeddings (B, E); see `contracts.Pooling.forward`."""
        (means,) = layer_sums((self._means(layer, mask) for layer in layers), self.weights_k)  # (B, S, C)
        spans = self.cmp_linear_k(means)  # (B, S, D)
        embeddings: Tensor = self.pooling_fc(spans.transpose(1, 2).flatten(1))  # (B, D * S) -> (B, E)
        return embeddings

    def _means(self, layer: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T, C) -> means (B, S, C) over each clip's spans."""
        real = torch.ones_like(layer[:1, :, 0], dtype=torch.bool) if mask is None else mask  # (1 or B, T)
        position = real.long().cumsum(dim=1).sub(1).unsqueeze(1)  # (B, 1, T), among the real frames
        count = real.sum(dim=1).view(-1, 1, 1)  # (B, 1, 1)
        width = (count // self.spans).clamp(min=1)
        number = torch.arange(self.spans, device=layer.device).unsqueeze(1)  # (S, 1)
        first = torch.where(count < self.spans, number * count // self.spans, number * width)  # (B, S, 1)
        inside = (position >= first) & (position < first + width) & real.unsqueeze(1)  # (B, S, T)
        return (inside / width).to(layer.dtype) @ zero_padding(layer, mask)


@POOLINGS.register("statistics")
class Statistics(Pooling):
    """Mean and standard deviation over time of the layers' compressed weighted sum (`TSTP`).

    Parameters
    ----------
    layers : int
        Number of layers L of the encoder.
    channels : int
        Width C of a layer.
    compression : int
        Width D to which the frames are compressed.
    dimension : int
        Width E of the embedding.
    """

    def __init__(self, layers: int, channels: int, compression: int = 128, dimension: int = 256) -> None:
        super().__init__()
        check_sizes("Statistics", layers=layers, channels=channels, compression=compression, dimension=dimension)
        self.dimension = dimension
        self.weights_k = nn.Parameter(torch.ones(layers))
        self.cmp_linear_k = nn.Linear(channels, compression)
        self.pooling_fc = nn.Linear(2 * compression, dimension)

    def forward(self, layers: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
        """Embeddings (B, E); see `contracts.Pooling.forward`."""
        frames = self.cmp_linear_k(layer_sums(layers, self.weights_k)[0])  # (B, T, D)
        mean = time_mean(frames, mask)  # (B, D)
        deviation = (time_variance(frames, mean, mask) + MIN_VARIANCE).sqrt()
        embeddings: Tensor = self.pooling_fc(torch.cat((mean, deviation), dim=1))  # (B, 2 * D) -> (B, E)
        return embeddings


@POOLINGS.register("attentive-statistics")
class AttentiveStatistics(Pooling):
    """Attentive mean and standard deviation, with separate attention weights for each channel (`ASTP`).

    Okabe et al., "Attentive statistics pooling for deep speaker embedding", Interspeech 2018, with the clip's mean and
    standard deviation appended to every frame as in ECAPA-TDNN (Desplanques et al., Interspeech 2020, section 3.1), on
    the layers' compressed weighted sum.

    Parameters
    ----------
    layers : int
        Number of layers L of the encoder.
    channels : int
        Width C of a layer.
    compression : int
        Width D to which the frames are compressed.
    hidden : int
        Width of the attention's hidden layer.
    dimension : int
        Width E of the embedding.
    """

    last: ClassVar[bool] = False

    def __init__(
        self, layers: int, channels: int, compression: int = 128, hidden: int = 256, dimension: int = 256
    ) -> None:
        super().__init__()
        check_sizes("Attentive statistics", layers=layers, channels=channels, compression=compression)
        check_sizes("Attentive statistics", hidden=hidden, dimension=dimension)
        self.layers, self.dimension = layers, dimension
        if not self.last:
            self.weights_k = nn.Parameter(torch.ones(layers))
        self.cmp_linear_k = nn.Linear(channels, compression)
        self.linear1 = nn.Conv1d(3 * compression, hidden, kernel_size=1)
        self.linear2 = nn.Conv1d(hidden, compression, kernel_size=1)
        self.pooling_fc = nn.Linear(2 * compression, dimension)

    def forward(self, layers: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
        """Embeddings (B, E); see `contracts.Pooling.forward`."""
        frames = zero_padding(self.cmp_linear_k(self._frames(layers)), mask)  # (B, T, D)
        mean = time_mean(frames, mask)
        deviation = (time_variance(frames, mean, mask) + MIN_VARIANCE).sqrt()
        # The appended values are the same at every frame, so their part of the product is computed once.
        weight, width = self.linear1.weight.squeeze(2), frames.shape[2]  # (hidden, 3 * D)
        clip = F.linear(torch.cat((mean, deviation), dim=1), weight[:, width:], self.linear1.bias)  # (B, hidden)
        hidden = torch.tanh(F.linear(frames, weight[:, :width]) + clip.unsqueeze(1))  # (B, T, hidden)
        logits = F.linear(hidden, self.linear2.weight.squeeze(2), self.linear2.bias)  # (B, T, D)
        if mask is not None:
            logits = logits.masked_fill(~mask.unsqueeze(-1), float("-inf"))
        weights = logits.softmax(dim=1)
        mean = (weights * frames).sum(dim=1)  # (B, D)
        variance = (weights * (frames - mean.unsqueeze(1)).square()).sum(dim=1)
        deviation = variance.clamp(min=MIN_VARIANCE).sqrt()
        embeddings: Tensor = self.pooling_fc(torch.cat((mean, deviation), dim=1))  # (B, 2 * D) -> (B, E)
        return embeddings

    def _frames(self, layers: Iterable[Tensor]) -> Tensor:
        """(B, T, C) from the L layers: their weighted sum, or the last one."""
        return last_layer(layers, self.layers) if self.last else layer_sums(layers, self.weights_k)[0]


@POOLINGS.register("attentive-statistics-last")
class LastAttentiveStatistics(AttentiveStatistics):
    """Attentive statistics of the last layer alone (`Last_ASTP`)."""

    last = True


@POOLINGS.register("query-key-value")
class QueryKeyValue(Pooling):
    """Self-attention between all frames, then mean and standard deviation over time (`MHFA_Dotproduct`).

    Queries, keys and values are three softmax-weighted sums over layers. Scores are divided by √D, where D is the width
    of all heads together, as published.

    Parameters
    ----------
    layers : int
        Number of layers L of the encoder.
    channels : int
        Width C of a layer.
    heads : int
        Number of attention heads, which divides `compression`.
    compression : int
        Width D to which queries, keys and values are compressed.
    dimension : int
        Width E of the embedding.
    """

    def __init__(
        self, layers: int, channels: int, heads: int = 8, compression: int = 256, dimension: int = 256
    ) -> None:
        super().__init__()
        check_sizes("Query-key-value", layers=layers, channels=channels, heads=heads, compression=compression)
        check_sizes("Query-key-value", dimension=dimension)
        if compression % heads:
            raise KnnError(f"Query-key-value pooling cannot share {compression} values among {heads} heads evenly.")
        self.heads, self.dimension = heads, dimension
        self.weights_k = nn.Parameter(torch.ones(layers))
        self.weights_v = nn.Parameter(torch.ones(layers))
        self.weights_q = nn.Parameter(torch.ones(layers))
        self.cmp_linear_k = nn.Linear(channels, compression)
        self.cmp_linear_v = nn.Linear(channels, compression)
        self.cmp_linear_q = nn.Linear(channels, compression)
        self.pooling_fc = nn.Linear(2 * compression, dimension)

    def forward(self, layers: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
        """Embeddings (B, E); see `contracts.Pooling.forward`."""
        sums = layer_sums(layers, self.weights_q, self.weights_k, self.weights_v)  # (B, T, C) each
        batch, time = sums[0].shape[:2]
        query, key, value = (  # (B, heads, T, D / heads) each
            zero_padding(linear(frames), mask).view(batch, time, self.heads, -1).transpose(1, 2)
            for linear, frames in zip((self.cmp_linear_q, self.cmp_linear_k, self.cmp_linear_v), sums, strict=True)
        )
        seen = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask[:, None, None, :],
            scale=self.cmp_linear_q.out_features**-0.5,
        )
        frames = seen.transpose(1, 2).flatten(2)  # (B, T, D)
        mean = time_mean(frames, mask)
        deviation = time_variance(frames, mean, mask).clamp(min=MIN_VARIANCE).sqrt()
        embeddings: Tensor = self.pooling_fc(torch.cat((mean, deviation), dim=1))  # (B, 2 * D) -> (B, E)
        return embeddings


@POOLINGS.register("correlation")
class Correlation(Pooling):
    """Correlations over time between the channels of the layers' compressed weighted sum (`CorrelationPooling`).

    Stafylakis et al., "Speaker embeddings by modeling channel-wise correlations", Interspeech 2021 (arXiv:2104.02571),
    and "Extracting speaker and emotion information from self-supervised speech models via channel-wise
    correlations", SLT 2022 (arXiv:2210.09513), section 3.

    Parameters
    ----------
    layers : int
        Number of layers L of the encoder.
    channels : int
        Width C of a layer.
    compression : int
        Width D to which the frames are compressed, which gives D (D - 1) / 2 pairs.
    dimension : int
        Width E of the embedding.
    dropout : float
        Fraction of the channels that are set to zero for each clip in training (0.25 in `CorrelationPoolingDrop`).
    """

    pairs: Tensor

    def __init__(
        self, layers: int, channels: int, compression: int = 128, dimension: int = 256, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_sizes("Correlation", layers=layers, channels=channels, dimension=dimension)
        if compression < 2:
            raise KnnError(f"Correlation pooling needs compression of at least 2, not {compression}.")
        if not 0 <= dropout < 1:
            raise KnnError(f"Correlation pooling needs dropout from 0 to below 1, not {dropout}.")
        self.dimension, self.dropout = dimension, dropout
        self.weights_k = nn.Parameter(torch.ones(layers))
        self.cmp_linear_k = nn.Linear(channels, compression)
        self.pooling_fc = nn.Linear(compression * (compression - 1) // 2, dimension)
        self.register_buffer("pairs", torch.triu_indices(compression, compression, offset=1), persistent=False)

    def forward(self, layers: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
        """Embeddings (B, E); see `contracts.Pooling.forward`."""
        frames = self.cmp_linear_k(layer_sums(layers, self.weights_k)[0])  # (B, T, D)
        mean = time_mean(frames, mask)
        variance = time_variance(frames, mean, mask)  # (B, D)
        # 1e-10 keeps a constant channel, whose correlations are 0, from dividing by 0.
        frames = zero_padding(frames - mean.unsqueeze(1), mask) * torch.rsqrt(variance + 1e-10).unsqueeze(1)
        if self.training and self.dropout:
            frames = frames * (torch.rand_like(variance) >= self.dropout).unsqueeze(1)
        count = frames.shape[1] if mask is None else mask.sum(dim=1).view(-1, 1, 1)
        correlations = frames.transpose(1, 2) @ frames / count  # (B, D, D)
        pairs = correlations[:, self.pairs[0], self.pairs[1]]  # (B, D (D - 1) / 2)
        embeddings: Tensor = self.pooling_fc(pairs)
        return embeddings
