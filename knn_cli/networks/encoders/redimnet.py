"""ReDimNet over log-mel spectrograms: stages of two dimensions and of one, whose outputs have one shape.

Yakovlev et al., "Reshape dimensions network for speaker recognition", Interspeech 2024 (arXiv:2407.18223). Between
stages, the map (C, F, T) of each is (C F, T), and a stage begins with a learnt mixture of all outputs before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS
from knn_cli.networks.encoders.filter_bank import FilterBankEncoder
from knn_cli.networks.encoders.redimnet_blocks import (
    TIME_BLOCKS,
    ChannelNorm,
    ConvBlock,
    ResidualBlock,
    TimeBlock,
    within,
)
from knn_cli.networks.features import LogMel, PaddedLogMel, frame_mask

__all__ = ["ReDimNet"]

MAP_BLOCKS = ("convnext", "convnext-relu", "resnet", "resnet-excited")


@ENCODERS.register("redimnet")
class ReDimNet(FilterBankEncoder):
    """Log-mel features to the only layer of this encoder, the mixture of all its stages.

    Parameters
    ----------
    width : int
        Channels C of the stem.
    stages : sequence of four int each
        For each stage: by how much it divides frequencies and multiplies channels; blocks on the map; by how much the
        channels are widened within these; width of the block over time (0: none).
    blocks : sequence of two str
        Their kinds: on maps, one of `MAP_BLOCKS`, and over time, one of `redimnet_blocks.TIME_BLOCKS`.
    group : int
        Channels of a group in the convolutions of blocks; 0: one group.
    out : int
        Width of the layer after a last convolution; 0: without one.
    bins : int
        Mel bins F.
    features : str
        "padded" (`PaddedLogMel`, the authors'), or the window of Kaldi's filter bank, "hamming" (wespeaker's) or
        "povey".
    hop : int
        Samples from one frame to the next of "padded" features; others have 160.
    """

    title = "ReDimNet"

    def __init__(
        self,
        width: int = 16,
        stages: Sequence[Sequence[int]] = (
            *((1, 2, 1, 96), (2, 2, 1, 96), (1, 3, 1, 96)),
            *((2, 4, 1, 144), (1, 4, 1, 144), (2, 4, 1, 288)),
        ),
        blocks: Sequence[str] = ("convnext", "conv+att"),
        group: int = 4,
        out: int = 0,
        bins: int = 72,
        features: str = "padded",
        hop: int = 160,
    ) -> None:
        _check(width, stages, blocks, bins)
        if width < group:
            raise KnnError(f"ReDimNet cannot have groups of {group} channels where its stem has {width}.")
        on_map, over_time = blocks
        front = PaddedLogMel(bins, self.rate, hop) if features == "padded" else LogMel(bins, self.rate, features)
        super().__init__(front, out or width * bins)
        self.stem = nn.ModuleList([nn.Conv2d(1, width, 3, padding=1), ChannelNorm(width)])
        built, channels, height = [], width, bins
        for number, sizes in enumerate(stages):
            built.append(Stage(number, channels, height, sizes, group, (on_map, over_time)))
            channels, height = sizes[0] * channels, height // sizes[0]
        self.stages = nn.ModuleList(built)
        self.mixture = nn.Parameter(torch.zeros(1, len(stages) + 1, width * bins, 1))
        self.mfa = nn.Sequential(nn.Conv1d(width * bins, out, 1), nn.BatchNorm1d(out)) if out else nn.Sequential()

    def block_list(self) -> list[nn.Module]:
        """As `Encoder.block_list`."""
        return list(self.stages)

    def encode(self, features: Tensor, counts: Tensor | None = None) -> Tensor:
        real = None if counts is None else frame_mask(counts, features.shape[2]).unsqueeze(1)  # (B, 1, T)
        x = features.unsqueeze(1)  # (B, 1, F, T)
        for module in self.stem:
            x = module(x)
        outputs = [_flat(x)]  # (B, F C, T) each
        for stage in cast(Sequence[Stage], self.stages):
            x = outputs[0] if stage.mixture is None else _mixed(outputs, stage.mixture)
            outputs.append(stage(x, real))
        return cast(Tensor, self.mfa(_mixed(outputs, self.mixture)).transpose(1, 2))  # (B, T, F C or out)


class Stage(nn.Module):
    """Fewer frequencies of more channels, blocks on this map, and a block over time.

    Parameters
    ----------
    number : int
        Stages before, each of which gives this one an output; so does the stem.
    channels, height : int
        Channels and frequencies before.
    sizes : sequence of four int
        See `ReDimNet`.
    group : int
        See `ReDimNet`.
    blocks : (str, str)
        See `ReDimNet`.
    """

    def __init__(
        self, number: int, channels: int, height: int, sizes: Sequence[int], group: int, blocks: tuple[str, str]
    ) -> None:
        super().__init__()
        stride, count, widening, hidden = sizes
        flat, after = channels * height, stride * channels
        self.mixture = nn.Parameter(torch.zeros(1, number + 1, flat, 1)) if number else None
        self.stride = nn.Conv2d(channels, after * widening, (stride, 1), (stride, 1))
        self.blocks = nn.ModuleList(
            _map_block(blocks[0], after * widening, group, height // stride) for _ in range(count)
        )
        self.squeeze = _squeeze(after, widening, group) if widening > 1 else None
        self.time = TimeBlock(flat, hidden, blocks[1]) if hidden else None

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        """(B, F C, T), and the real frames (B, 1, T) or None -> the same shape."""
        batch, flat, time = x.shape
        channels = self.stride.in_channels
        x = self.stride(x.reshape(batch, flat // channels, channels, time).transpose(1, 2))  # (B, C, F, T)
        for block in self.blocks:
            x = block(x, real)
        if self.squeeze is not None:
            x = self.squeeze(within(x, real))
        x = _flat(x)
        return x if self.time is None else cast(Tensor, self.time(x, real))


def _check(width: int, stages: Sequence[Sequence[int]], blocks: Sequence[str], bins: int) -> None:
    if len(blocks) != 2 or blocks[0] not in MAP_BLOCKS or blocks[1] not in TIME_BLOCKS:
        known = f"On maps {', '.join(MAP_BLOCKS)}; over time {', '.join(TIME_BLOCKS)}."
        raise KnnError(f"ReDimNet has no blocks {' and '.join(blocks)!r}.", known)
    if not stages or any(len(stage) != 4 or min(stage[:3]) < 1 or stage[3] < 0 for stage in stages) or width < 1:
        raise KnnError("ReDimNet needs stages of four numbers each.", "Stride, blocks, widening and width over time.")
    height = bins
    for stride, *_ in stages:
        if height % stride:
            raise KnnError(f"ReDimNet cannot divide {height} frequencies by {stride}.", "Choose other bins or strides.")
        height //= stride


def _map_block(kind: str, channels: int, group: int, height: int) -> nn.Module:
    if kind.startswith("convnext"):
        return ConvBlock(channels, group, relu=kind == "convnext-relu")
    return ResidualBlock(channels, group, height if kind == "resnet-excited" else 0)


def _squeeze(channels: int, widening: int, group: int) -> nn.Sequential:
    """Back from widened channels to those of the stage."""
    groups = channels // group if group else 1
    return nn.Sequential(
        nn.Conv2d(channels * widening, channels, 3, padding=1, groups=groups),
        nn.BatchNorm2d(channels, eps=1e-6),
        nn.GELU(),
        nn.Conv2d(channels, channels, 1),
    )


def _flat(x: Tensor) -> Tensor:
    """(B, C, F, T) -> (B, F C, T), the channels of a frequency beside each other."""
    return x.transpose(1, 2).flatten(1, 2)


def _mixed(outputs: Sequence[Tensor], weights: Tensor) -> Tensor:
    """N of (B, F C, T), and weights (1, N, F C, 1) before their softmax over N -> (B, F C, T)."""
    shares = weights.softmax(dim=1)
    total = outputs[0] * shares[:, 0]
    for number, output in enumerate(outputs[1:], start=1):
        total = total + output * shares[:, number]
    return total
