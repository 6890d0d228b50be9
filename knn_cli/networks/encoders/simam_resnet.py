"""Residual networks whose blocks weigh each value by how it stands out, with wespeaker's parameter names.

Yang et al., "SimAM: a simple, parameter-free attention module for convolutional neural networks", ICML 2021, equation
5; for speakers, Qin et al., "Simple attention module based speaker verification with iterative noisy label detection",
ICASSP 2022 (arXiv:2110.06534).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS
from knn_cli.networks.encoders.four_stages import FourStages, zero_ends
from knn_cli.networks.encoders.resnet import masked_mean
from knn_cli.networks.pooling.base import clamp_min

__all__ = ["SimAMResNet"]

LAMBDA = 1e-4  # added to variances


@ENCODERS.register("simam-resnet")
class SimAMResNet(FourStages):
    """Log-mel features to the only layer of this encoder, the output of the fourth stage, with a frame every 80 ms.

    Parameters
    ----------
    blocks : sequence of int
        Blocks of each of the four stages: 3, 4, 6, 3 or 6, 16, 24, 3.
    width : int
        Channels of the first stage; each following stage has twice as many.
    bins : int
        Mel bins.
    window : str
        Window of the filter bank: "hamming" (wespeaker's) or "povey".
    """

    title = "this ResNet with SimAM"

    def __init__(
        self, blocks: Sequence[int] = (3, 4, 6, 3), width: int = 64, bins: int = 80, window: str = "hamming"
    ) -> None:
        if len(blocks) != 4 or min(width, *blocks) < 1:
            raise KnnError("A ResNet with SimAM needs four numbers of blocks, and positive sizes.")
        planes = [width * 2**stage for stage in range(4)]
        super().__init__(
            *(width, bins, window, blocks, planes),
            lambda before, stage, stride: SimAMBlock(before, planes[stage], stride),
        )


class SimAMBlock(nn.Module):
    """Two 3 x 3 convolutions, SimAM and a shortcut."""

    def __init__(self, before: int, planes: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(before, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = nn.Sequential()
        if stride > 1 or before != planes:
            self.downsample = nn.Sequential(nn.Conv2d(before, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, C, F, T), zero past each clip's end, and frames of each clip (B,) int64 -> the output and its frames."""
        counts = counts if counts is None or self.stride == 1 else (counts + 1) // 2
        y = zero_ends(F.relu(self.bn1(self.conv1(x))), counts)
        y = simam(zero_ends(self.bn2(self.conv2(y)), counts), counts)
        return zero_ends(F.relu(y + self.downsample(x)), counts), counts


def simam(x: Tensor, counts: Tensor | None) -> Tensor:
    """(B, C, F, T), zero past each clip's end -> each value times a sigmoid of its energy against its channel's."""
    squares = zero_ends((x - masked_mean(x, counts)).square(), counts)
    sums = squares.sum(dim=(2, 3), keepdim=True)
    if counts is None:
        variance = sums / clamp_min(x.shape[2] * x.shape[3] - 1, 1)
    else:
        variance = sums / (x.shape[2] * counts - 1).clamp(min=1).view(-1, 1, 1, 1)
    return x * (squares / (4 * (variance + LAMBDA)) + 0.5).sigmoid()
