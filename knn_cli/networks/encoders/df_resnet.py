"""Depth-first residual networks over log-mel spectrograms, with the parameter names of wespeaker.

Liu et al., "DF-ResNet: boosting speaker verification performance with depth-first design", Interspeech 2022; strides of
Liu et al., "Golden Gemini is all you need: finding the sweet spots for speaker verification", 2023 (arXiv:2312.03620),
T14c: the bins are halved in each stage, the frames in the second alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS
from knn_cli.networks.encoders.filter_bank import FilterBankEncoder
from knn_cli.networks.encoders.four_stages import zero_ends
from knn_cli.networks.features import LogMel

__all__ = ["DFResNet"]

TIME_STRIDES = (1, 2, 1, 1)
EXPANSION = 4


@ENCODERS.register("df-resnet")
class DFResNet(FilterBankEncoder):
    """Log-mel features to the only layer of this encoder, the output of the fourth stage, with a frame every 20 ms.

    Parameters
    ----------
    widths : sequence of int
        Channels of the stem and of each of the four stages.
    blocks : sequence of int
        Blocks of each stage: 3, 3, 9, 3; 3, 3, 27, 3; 3, 8, 45, 3 or 3, 8, 63, 3.
    bins : int
        Mel bins.
    window : str
        Window of the filter bank: "hamming" (wespeaker's) or "povey".
    """

    title = "DF-ResNet"

    def __init__(
        self,
        widths: Sequence[int] = (32, 32, 64, 128, 256),
        blocks: Sequence[int] = (3, 3, 9, 3),
        bins: int = 80,
        window: str = "hamming",
    ) -> None:
        if len(widths) != 5 or len(blocks) != 4 or min(*widths, *blocks) < 1:
            raise KnnError("DF-ResNet needs five widths and four numbers of blocks.")
        super().__init__(LogMel(bins, self.rate, window), widths[0], subsampling=2)
        self.downsample_layers = nn.ModuleList([_convolution(1, widths[0], (1, 1))])
        self.stages = nn.ModuleList()
        height = bins
        for stage, (count, stride) in enumerate(zip(blocks, TIME_STRIDES, strict=True)):
            before, after = widths[stage : stage + 2]
            self.downsample_layers.append(_convolution(before, after, (2, stride)))
            self.stages.append(nn.ModuleList(InvertedBottleneck(after) for _ in range(count)))
            height = -(-height // 2)
        self.channels = widths[-1] * height

    def encode(self, features: Tensor, counts: Tensor | None = None) -> Tensor:
        stem, *downsampling = self.downsample_layers
        x = zero_ends(F.relu(stem(features.unsqueeze(1))), counts)  # (B, C, F, T)
        for layer, stride, stage in zip(downsampling, TIME_STRIDES, self.stages, strict=True):
            counts = counts if counts is None or stride == 1 else (counts + 1) // 2
            x = zero_ends(layer(x), counts)
            for block in cast(nn.ModuleList, stage):
                x = block(x, counts)
        return x.flatten(1, 2).transpose(1, 2)  # (B, T, C * F)


def _convolution(before: int, after: int, strides: tuple[int, int]) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, strides, padding=1, bias=False), nn.BatchNorm2d(after))


class InvertedBottleneck(nn.Module):
    """1 x 1 convolution to four times the channels, 3 x 3 within each, 1 x 1 back, and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = EXPANSION * channels
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, counts: Tensor | None) -> Tensor:
        """(B, C, F, T), zero past the end of each clip of (B,) int64 frames -> the same."""
        y = zero_ends(F.relu(self.bn1(self.conv1(x))), counts)
        y = F.relu(self.bn2(self.conv2(y)))
        return zero_ends(F.relu(self.bn3(self.conv3(y)) + x), counts)
