"""Residual networks over log-mel spectrograms: encoder and pooling, with wespeaker's parameter names.

He et al., "Deep residual learning for image recognition", CVPR 2016 (arXiv:1512.03385), with a 3 x 3 stem, no
max pooling and 32 channels, as in Zeinali et al., "BUT system description to VoxCeleb speaker recognition challenge
2019" (arXiv:1910.12592).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS, POOLINGS
from knn_cli.networks.contracts import Pooling
from knn_cli.networks.encoders.four_stages import FourStages, zero_ends
from knn_cli.networks.pooling.base import MIN_VARIANCE, check_sizes, last_layer
from knn_cli.networks.pooling.time_statistics import time_statistics

__all__ = ["DEPTHS", "ResNet", "ResNetPooling", "masked_mean"]

# Depth -> (blocks of each of the four stages, whether they are bottlenecks)
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
    221: ((6, 16, 48, 3), True),
    293: ((10, 20, 64, 3), True),
}


@ENCODERS.register("resnet")
class ResNet(FourStages):
    """Log-mel features to the only layer of this encoder, the output of the fourth stage, with a frame every 80 ms.

    Parameters
    ----------
    depth : int
        One of `DEPTHS`.
    width : int
        Channels of the first stage; each following stage has twice as many.
    bins : int
        Mel bins.
    window : str
        Window of the filter bank: "hamming" (wespeaker's) or "povey".
    """

    title = "this ResNet"

    def __init__(self, depth: int = 34, width: int = 32, bins: int = 80, window: str = "hamming") -> None:
        if depth not in DEPTHS:
            raise KnnError(f"There is no ResNet of depth {depth}.", f"Known: {', '.join(map(str, DEPTHS))}.")
        counts, deep = DEPTHS[depth]
        block = Bottleneck if deep else BasicBlock
        planes = [width * 2**stage for stage in range(4)]
        outs = [block.expansion * each for each in planes]
        super().__init__(
            *(width, bins, window, counts, outs),
            lambda before, stage, stride: block(before, planes[stage], (stride, stride)),
        )


def masked_mean(x: Tensor, counts: Tensor | None) -> Tensor:
    """(B, C, F, T), zero past each clip's end -> the means (B, C, 1, 1) of each clip's own frames."""
    if counts is None:
        return x.mean(dim=(2, 3), keepdim=True)
    return x.sum(dim=(2, 3), keepdim=True) / (x.shape[2] * counts).view(-1, 1, 1, 1)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, with strides over frequency and time."""

    expansion = 1

    def __init__(self, before: int, planes: int, strides: tuple[int, int]) -> None:
        super().__init__()
        self.step = strides[1]
        self.conv1 = nn.Conv2d(before, planes, 3, strides, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = _shortcut(before, planes, strides)

    def forward(self, x: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, C, F, T), zero past each clip's end, and frames of each clip (B,) int64 -> the output and its frames."""
        counts = _halved(counts, self.step)
        y = zero_ends(F.relu(self.bn1(self.conv1(x))), counts)
        return zero_ends(F.relu(self.bn2(self.conv2(y)) + self.shortcut(x)), counts), counts


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolution and a shortcut, with strides over frequency and time."""

    expansion = 4

    def __init__(self, before: int, planes: int, strides: tuple[int, int]) -> None:
        super().__init__()
        self.step = strides[1]
        self.conv1 = nn.Conv2d(before, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, strides, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.shortcut = _shortcut(before, planes * self.expansion, strides)

    def forward(self, x: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As of `BasicBlock`."""
        y = zero_ends(F.relu(self.bn1(self.conv1(x))), counts)
        counts = _halved(counts, self.step)
        y = F.relu(self.bn2(self.conv2(y)))
        return zero_ends(F.relu(self.bn3(self.conv3(y)) + self.shortcut(x)), counts), counts


def _halved(counts: Tensor | None, step: int) -> Tensor | None:
    return counts if counts is None or step == 1 else (counts + 1) // 2


def _shortcut(before: int, after: int, strides: tuple[int, int]) -> nn.Sequential:
    if strides == (1, 1) and before == after:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(before, after, 1, strides, bias=False), nn.BatchNorm2d(after))


@POOLINGS.register("resnet")
class ResNetPooling(Pooling):
    """wespeaker's pooling for ResNets: statistics over time of the last layer, and a linear layer.

    Parameters
    ----------
    layers : int
        Number of layers L of the encoder.
    channels : int
        Width C of a layer.
    dimension : int
        Width E of the embedding.
    two : bool
        Whether ReLU, batch norm and a second linear layer follow.
    statistics : str
        Kind of `time_statistics`: mean and standard deviation, or others.
    hidden : int
        Width of the bottleneck of attentive ones.
    floor : float
        What is added to variances, or the least weighted one: 1e-7 in wespeaker, 1e-8 and 1e-10 in 3D-Speaker.
    attention : mapping, optional
        Of "multi-query" ones: `queries`, `heads`, `depth` and `each` of `MultiQueryStatistics`.
    """

    def __init__(
        self,
        layers: int,
        channels: int,
        dimension: int = 256,
        two: bool = False,
        statistics: str = "mean-deviation",
        hidden: int = 128,
        floor: float = MIN_VARIANCE,
        attention: Mapping[str, int | bool] | None = None,
    ) -> None:
        super().__init__()
        check_sizes("ResNet", layers=layers, channels=channels, dimension=dimension, hidden=hidden)
        self.layers, self.dimension = layers, dimension
        self.pool, size = time_statistics(statistics, channels, hidden, floor, attention)
        self.seg_1 = nn.Linear(size, dimension)
        self.seg_bn_1 = nn.BatchNorm1d(dimension, affine=False) if two else None
        self.seg_2 = nn.Linear(dimension, dimension) if two else None

    def forward(self, layers: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
        """Embeddings (B, E) of `layers` (B, T, C), mask (B, T) bool True at real frames.

        Raises
        ------
        ValueError
            The number of layers is not L.
        """
        x = self.seg_1(self.pool(last_layer(layers, self.layers), mask))  # (B, E)
        if self.seg_2 is not None and self.seg_bn_1 is not None:
            x = self.seg_2(self.seg_bn_1(F.relu(x)))
        return cast(Tensor, x)
