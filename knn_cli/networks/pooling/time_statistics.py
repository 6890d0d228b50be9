"""Statistics over time of a clip's frames, (B, T, C) to (B, V), as modules in front of an embedding layer.

Attentive statistics have the parameter names of wespeaker's `pool`; the others have no parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import KnnError
from knn_cli.networks.pooling.base import MIN_VARIANCE, time_mean, time_variance, zero_padding
from knn_cli.networks.pooling.multi_query_statistics import MultiQueryStatistics

__all__ = ["STATISTICS", "time_statistics"]

# Kind -> values per channel
STATISTICS = {
    **{"mean": 1, "deviation": 1, "mean-deviation": 2, "attentive": 2, "attentive-context": 2},
    **{"attentive-rectified": 2, "multi-query": 2},  # the last for each query
}


def time_statistics(
    kind: str,
    channels: int,
    hidden: int = 128,
    floor: float = MIN_VARIANCE,
    attention: Mapping[str, int | bool] | None = None,
) -> tuple[nn.Module, int]:
    """Build the statistics of a kind, called with frames (B, T, C) and mask (B, T) or None.

    Parameters
    ----------
    kind : str
        One of `STATISTICS`; "attentive-context" also shows the attention the clip's own mean and deviation, and
        "attentive-rectified" has ReLU and batch norm in place of tanh.
    channels : int
        Width C of the frames.
    hidden : int
        Width of the attention's bottleneck.
    floor : float
        What is added to plain variances, and the least weighted one.
    attention : mapping, optional
        `queries`, `heads`, `depth` and `each` of "multi-query" ones.

    Returns
    -------
    Module, int
        The module, and the number V of its values.

    Raises
    ------
    KnnError
        There is no such kind, or the floor is not from 0 to below 1, or the attention has other settings.
    """
    if not 0 <= floor < 1:
        raise KnnError(f"There are no variances with a floor of {floor}.", "It is 1e-7 or less.")
    if kind not in STATISTICS:
        raise KnnError(f"There are no statistics {kind!r}.", f"Known: {', '.join(STATISTICS)}.")
    given: dict[str, Any] = dict(attention or {})
    if given.keys() - ({"queries", "heads", "depth", "each"} if kind == "multi-query" else ()):
        raise KnnError(f"Statistics {kind!r} have no attention of {given}.", "Leave it out.")
    if kind == "multi-query":
        module = MultiQueryStatistics(channels, hidden, floor=floor, **given)
        return module, STATISTICS[kind] * channels * len(module.queries)
    size = STATISTICS[kind] * channels
    if kind == "attentive-rectified":
        return RectifiedTimeStatistics(channels, hidden, floor), size
    if kind.startswith("attentive"):
        return AttentiveTimeStatistics(channels, hidden, context=kind == "attentive-context", floor=floor), size
    return PlainTimeStatistics(kind, floor), size


class PlainTimeStatistics(nn.Module):
    """Mean, standard deviation, or both."""

    def __init__(self, kind: str, floor: float) -> None:
        super().__init__()
        self.kind, self.floor = kind, floor

    def forward(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        mean = time_mean(frames, mask)
        if self.kind == "mean":
            return mean
        deviation = (time_variance(frames, mean, mask) + self.floor).sqrt()
        return deviation if self.kind == "deviation" else torch.cat([mean, deviation], dim=1)


class AttentiveTimeStatistics(nn.Module):
    """Mean and deviation under a weight for each channel and frame, softmax(V tanh(W x + b) + k).

    Okabe et al., "Attentive statistics pooling for deep speaker embedding", Interspeech 2018 (arXiv:1803.10963), with
    weights of each channel and the context of Desplanques et al. (arXiv:2005.07143), section 3.1.
    """

    def __init__(self, channels: int, hidden: int, context: bool, floor: float) -> None:
        super().__init__()
        self.context, self.floor = context, floor
        self.linear1 = nn.Conv1d(channels * (3 if context else 1), hidden, 1)
        self.linear2 = nn.Conv1d(hidden, channels, 1)

    def forward(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        frames = zero_padding(frames, mask)
        weight, width = self.linear1.weight.squeeze(2), frames.shape[2]  # (hidden, C or 3C)
        keys = F.linear(frames, weight[:, :width], self.linear1.bias)  # (B, T, hidden)
        if self.context:  # the same at every frame, so its part of the product is computed once
            mean = time_mean(frames, mask)
            deviation = (time_variance(frames, mean, mask) + self.floor).sqrt()
            keys = keys + F.linear(torch.cat([mean, deviation], dim=1), weight[:, width:]).unsqueeze(1)
        logits = F.linear(keys.tanh(), self.linear2.weight.squeeze(2), self.linear2.bias)  # (B, T, C)
        if mask is not None:
            logits = logits.masked_fill(~mask.unsqueeze(2), float("-inf"))
        weights = logits.softmax(dim=1)
        return _weighted(weights, frames, self.floor)


class RectifiedTimeStatistics(nn.Module):
    """The same with weights softmax(V n(max(W x + b, 0)) + k), where n is a batch norm; wespeaker's `ASP`."""

    def __init__(self, channels: int, hidden: int, floor: float) -> None:
        super().__init__()
        self.floor = floor
        self.attention = nn.Sequential(
            nn.Conv1d(channels, hidden, 1), nn.ReLU(), nn.BatchNorm1d(hidden), nn.Conv1d(hidden, channels, 1)
        )

    def forward(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        frames = zero_padding(frames, mask)
        logits = self.attention(frames.transpose(1, 2)).transpose(1, 2)  # (B, T, C)
        if mask is not None:
            logits = logits.masked_fill(~mask.unsqueeze(2), float("-inf"))
        return _weighted(logits.softmax(dim=1), frames, self.floor)


def _weighted(weights: Tensor, frames: Tensor, floor: float) -> Tensor:
    """Mean and deviation (B, 2 C) of frames (B, T, C) under weights of this shape."""
    mean = (weights * frames).sum(dim=1)
    variance = (weights * (frames - mean.unsqueeze(1)).square()).sum(dim=1)
    return torch.cat([mean, variance.clamp_min(floor).sqrt()], dim=1)
