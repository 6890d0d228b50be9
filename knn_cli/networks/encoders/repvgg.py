"""RepVGG over log-mel spectrograms: plain convolutions, as they are once the branches of training are merged.

Ding et al., "RepVGG: making VGG-style ConvNets great again", CVPR 2021 (arXiv:2101.03697), sections 3.2 and 3.3; for
speakers, with a dilated branch in place of the 1 x 1 one, Ma et al., "Rep works in speaker verification", 2021
(arXiv:2110.09720). Parameters have wespeaker's names.
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
from knn_cli.networks.encoders.resnet import masked_mean
from knn_cli.networks.features import LogMel

__all__ = ["RepVGG"]

STAGE_STRIDES = (1, 2, 2, 2)


@ENCODERS.register("repvgg")
class RepVGG(FilterBankEncoder):
    """Log-mel features to the only layer of this encoder, the output of the last stage, with a frame every 80 ms.

    Parameters
    ----------
    widths : sequence of int
        Channels of the first layer and of each of the four stages.
    blocks : sequence of int
        Layers of each stage.
    kernel : int
        3, or 5 where a dilated branch was merged.
    groups : int
        Groups of the convolutions of every second layer, from the one behind the first stage's first on.
    bins : int
        Mel bins.
    window : str
        Window of the filter bank: "hamming" (wespeaker's) or "povey".
    squeeze : bool
        Whether the channels of each layer are weighed by what the clip has of them (squeeze and excitation).
    """

    title = "RepVGG"

    def __init__(
        self,
        widths: Sequence[int] = (32, 32, 64, 128, 256),
        blocks: Sequence[int] = (3, 4, 23, 3),
        kernel: int = 3,
        groups: int = 1,
        bins: int = 80,
        window: str = "hamming",
        squeeze: bool = False,
    ) -> None:
        if len(widths) != 5 or len(blocks) != 4 or min(*widths, *blocks, groups) < 1 or kernel not in (3, 5):
            raise KnnError("RepVGG needs five widths, four numbers of blocks, and a kernel of 3 or 5.")
        super().__init__(LogMel(bins, self.rate, window), 1, subsampling=8)
        self.stage0 = MergedBlock(1, widths[0], kernel, 1, 1, squeeze)
        before, number, height = widths[0], 1, bins
        for stage, (width, count, stride) in enumerate(zip(widths[1:], blocks, STAGE_STRIDES, strict=True), start=1):
            layers = []
            for first in [True, *[False] * (count - 1)]:
                shared = groups if number % 2 == 0 else 1
                layers.append(MergedBlock(before, width, kernel, stride if first else 1, shared, squeeze))
                before, number = width, number + 1
            setattr(self, f"stage{stage}", nn.ModuleList(layers))
            height = -(-height // stride)
        self.channels = before * height

    def encode(self, features: Tensor, counts: Tensor | None = None) -> Tensor:
        x, counts = self.stage0(features.unsqueeze(1), counts)  # (B, C, F, T)
        for stage in range(1, 5):
            for block in cast(nn.ModuleList, getattr(self, f"stage{stage}")):
                x, counts = block(x, counts)
        return cast(Tensor, x.flatten(1, 2).transpose(1, 2))  # (B, T, C * F)


class MergedBlock(nn.Module):
    """A convolution and ReLU, with `squeeze` also squeeze and excitation."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, groups: int, squeeze: bool) -> None:
        super().__init__()
        self.stride = stride
        self.rbr_reparam = nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, groups=groups)
        self.se = ChannelExcitation(after) if squeeze else None

    def forward(self, x: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, C, F, T), zero past each clip's end, and frames of each clip (B,) int64 -> the output and its frames."""
        counts = counts if counts is None or self.stride == 1 else (counts + 1) // 2
        x = zero_ends(F.relu(self.rbr_reparam(x)), counts)
        return x if self.se is None else self.se(x, counts), counts


class ChannelExcitation(nn.Module):
    """Channels times a sigmoid of their means over the clip, behind two layers (Hu et al., arXiv:1709.01507)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc_1 = nn.Linear(channels, channels // 4)
        self.fc_2 = nn.Linear(channels // 4, channels)

    def forward(self, x: Tensor, counts: Tensor | None) -> Tensor:
        """(B, C, F, T), zero past each clip's end, and frames of each clip (B,) int64 -> the same shape."""
        means = masked_mean(x, counts).flatten(1)  # (B, C)
        shares: Tensor = self.fc_2(F.relu(self.fc_1(means))).sigmoid()
        return x * shares[:, :, None, None]
