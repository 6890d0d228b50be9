"""Mean and deviation over time under the weights of several queries and heads, as of wespeaker's `MQMHASTP`."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import KnnError
from knn_cli.networks.pooling.base import MIN_VARIANCE, zero_padding

__all__ = ["MultiQueryStatistics"]


class MultiQueryStatistics(nn.Module):
    """Each head is a share of the channels; for each query it has weights over time, from a small network.

    Zhao et al., "Multi-query multi-head attention pooling and inter-topk penalty for speaker verification", ICASSP 2022
    (arXiv:2110.05042); with one query, India et al., "Self multi-head attention for speaker recognition", Interspeech
    2019 (arXiv:1906.09890).

    Parameters
    ----------
    channels : int
        Width C of the frames, a multiple of `heads`.
    hidden : int
        Width of the inner layers.
    queries, heads : int
    depth : int
        Layers of each network, with tanh between them.
    each : bool
        Whether every channel of a head has its own weights.
    floor : float
        The least variance.

    Raises
    ------
    KnnError
        For heads that do not divide the channels, and sizes below 1.
    """

    def __init__(
        self,
        channels: int,
        hidden: int = 64,
        *,
        queries: int = 2,
        heads: int = 8,
        depth: int = 2,
        each: bool = True,
        floor: float = MIN_VARIANCE,
    ) -> None:
        super().__init__()
        if min(channels, hidden, queries, heads, depth) < 1 or channels % heads:
            raise KnnError(f"{heads} heads cannot share {channels} channels, in {depth} layers of {hidden} values.")
        self.heads, self.floor = heads, floor
        share = channels // heads
        sizes = [share, *[hidden] * (depth - 1), share if each else 1]
        self.queries = nn.ModuleList(
            nn.ModuleList(
                nn.ModuleList(nn.Conv1d(before, after, 1) for before, after in itertools.pairwise(sizes))
                for _ in range(heads)
            )
            for _ in range(queries)
        )

    def forward(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """Frames (B, T, C), mask (B, T) or None -> (B, 2 Q C): for each query and head its means, then deviations."""
        parts = zero_padding(frames, mask).transpose(1, 2).chunk(self.heads, dim=1)  # (B, C / H, T) each
        found = []
        for query in self.queries:
            for part, network in zip(parts, _modules(query), strict=True):
                logits = part
                for number, layer in enumerate(_modules(network)):
                    logits = layer(logits.tanh() if number else logits)
                if mask is not None:
                    logits = logits.masked_fill(~mask.unsqueeze(1), float("-inf"))
                weights = F.softmax(logits, dim=2)  # (B, C / H or 1, T)
                mean = (weights * part).sum(dim=2)
                variance = (weights * (part - mean.unsqueeze(2)).square()).sum(dim=2)
                found += [mean, variance.clamp_min(self.floor).sqrt()]
        return torch.cat(found, dim=1)


def _modules(modules: nn.Module) -> list[nn.Module]:
    return list(modules.children())
