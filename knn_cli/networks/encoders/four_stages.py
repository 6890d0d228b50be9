"""The frame of residual networks over log-mel spectrograms: a 3 x 3 stem and four stages of blocks.

Each stage but the first halves frequency and time. Names of parameters are those of wespeaker and 3D-Speaker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.networks.encoders.filter_bank import FilterBankEncoder
from knn_cli.networks.features import LogMel, frame_mask

__all__ = ["FourStages", "zero_ends"]


def zero_ends(x: Tensor, counts: Tensor | None) -> Tensor:
    """(B, C, F, T) with zeros past each clip's end, as a convolution pads a single clip."""
    return x if counts is None else x * frame_mask(counts, x.shape[3])[:, None, None, :]


class FourStages(FilterBankEncoder):
    """An encoder whose only layer is the output of the fourth stage, with a frame every 80 ms.

    Parameters
    ----------
    width : int
        Channels of the stem.
    bins : int
        Mel bins.
    window : str
        Window of the filter bank.
    blocks : sequence of int
        Blocks of each of the four stages.
    outs : sequence of int
        Channels behind each stage.
    block : callable
        Makes a block from the channels before it, the number of its stage from 0, and its stride. It takes (B, C, F, T)
        and frames of each clip, and gives its output and the frames of that.
    """

    def __init__(
        self,
        width: int,
        bins: int,
        window: str,
        blocks: Sequence[int],
        outs: Sequence[int],
        block: Callable[[int, int, int], nn.Module],
    ) -> None:
        super().__init__(LogMel(bins, self.rate, window), width, subsampling=8)
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        before, height = width, bins
        for stage, (count, after) in enumerate(zip(blocks, outs, strict=True)):
            stride = 1 if stage == 0 else 2
            layers = []
            for number in range(count):
                layers.append(block(before, stage, stride if number == 0 else 1))
                before = after
            setattr(self, f"layer{stage + 1}", nn.ModuleList(layers))
            height = -(-height // stride)
        self.channels = before * height

    def stem(self, features: Tensor, counts: Tensor | None) -> Tensor:
        """Features (B, F, T) of clips of so many frames (B,) int64 -> (B, width, F, T), zero past each clip's end."""
        return zero_ends(F.relu(self.bn1(self.conv1(features.unsqueeze(1)))), counts)

    def stage(self, number: int, x: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The output (B, C, F, T) of a stage from 1 to 4, and the frames of each clip in it."""
        for block in cast(nn.ModuleList, getattr(self, f"layer{number}")):
            x, counts = block(x, counts)
        return x, counts

    def encode(self, features: Tensor, counts: Tensor | None = None) -> Tensor:
        x = self.stem(features, counts)
        for number in range(1, 5):
            x, counts = self.stage(number, x, counts)
        return x.flatten(1, 2).transpose(1, 2)  # (B, T, C * F)
