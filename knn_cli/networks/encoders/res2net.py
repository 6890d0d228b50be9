"""Res2Net over log-mel spectrograms, with the parameter names of wespeaker and 3D-Speaker.

Gao et al., "Res2Net: a new multi-scale backbone architecture", TPAMI 2021 (arXiv:1904.01169), section 3; for speakers,
Zhou et al., "ResNeXt and Res2Net structures for speaker verification", SLT 2021 (arXiv:2007.02480).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS
from knn_cli.networks.encoders.eres2net import rectified
from knn_cli.networks.encoders.four_stages import FourStages, zero_ends

__all__ = ["Res2Net"]


@ENCODERS.register("res2net")
class Res2Net(FourStages):
    """Log-mel features to the only layer of this encoder, the output of the fourth stage, with a frame every 80 ms.

    Parameters
    ----------
    width : int
        Channels of the stem; stage s of 0 to 3 has `expansion * width * 2**s`.
    inner : sequence of int
        Channels of each part of a block, for each of the four stages.
    blocks : sequence of int
        Blocks of each stage.
    scale : int
        Number of parts, of which the last goes past the 3 x 3 convolutions.
    expansion : int
        See `width`.
    bins : int
        Mel bins.
    window : str
        Window of the filter bank: "hamming" (wespeaker's) or "povey" (3D-Speaker's).
    """

    title = "Res2Net"

    def __init__(
        self,
        width: int = 32,
        inner: Sequence[int] = (16, 32, 64, 128),
        blocks: Sequence[int] = (3, 4, 6, 3),
        scale: int = 2,
        expansion: int = 2,
        bins: int = 80,
        window: str = "hamming",
    ) -> None:
        if len(inner) != 4 or len(blocks) != 4 or min(width, scale - 1, expansion, *inner, *blocks) < 1:
            raise KnnError("Res2Net needs four inner widths, four numbers of blocks, and two parts or more.")
        outs = [expansion * width * 2**stage for stage in range(4)]
        super().__init__(
            *(width, bins, window, blocks, outs),
            lambda before, stage, stride: Res2NetBlock(before, inner[stage], outs[stage], scale, stride),
        )


class Res2NetBlock(nn.Module):
    """1 x 1 convolution, 3 x 3 convolutions of parts that build on each other, 1 x 1 convolution, and a shortcut."""

    def __init__(self, before: int, part: int, after: int, scale: int, stride: int) -> None:
        super().__init__()
        self.scale, self.stride = scale, stride
        self.conv1 = nn.Conv2d(before, part * scale, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(part * scale)
        self.convs = nn.ModuleList(nn.Conv2d(part, part, 3, padding=1, bias=False) for _ in range(scale - 1))
        self.bns = nn.ModuleList(nn.BatchNorm2d(part) for _ in range(scale - 1))
        self.conv3 = nn.Conv2d(part * scale, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, C, F, T), zero past each clip's end, and frames of each clip (B,) int64 -> the output and its frames."""
        counts = counts if counts is None or self.stride == 1 else (counts + 1) // 2
        *parts, last = zero_ends(rectified(self.bn1(self.conv1(x))), counts).chunk(self.scale, dim=1)
        done: list[Tensor] = []
        for part, conv, norm in zip(parts, self.convs, self.bns, strict=True):
            y = part + done[-1] if done else part
            done.append(zero_ends(rectified(norm(conv(y))), counts))
        y = self.bn3(self.conv3(torch.cat([*done, last], dim=1)))
        return zero_ends(rectified(y + self.shortcut(x)), counts), counts
