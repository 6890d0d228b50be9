"""ERes2Net and ERes2NetV2 over log-mel spectrograms, with 3D-Speaker's parameter names.

Chen et al., "An enhanced Res2Net with local and global feature fusion for speaker verification", Interspeech 2023
(arXiv:2305.12838), and "ERes2NetV2: boosting short-duration speaker verification performance with computational
efficiency", Interspeech 2024 (arXiv:2406.02167), whose global fusion joins the last two stages only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS
from knn_cli.networks.encoders.four_stages import FourStages, zero_ends

__all__ = ["ERes2Net", "rectified"]

MOST = 20.0  # above which its rectified values are cut off


@ENCODERS.register("eres2net")
class ERes2Net(FourStages):
    """Log-mel features to the only layer of this encoder, the fused output of the stages, with a frame every 80 ms.

    Parameters
    ----------
    width : int
        Channels of the stem; stage s of 0 to 3 has `expansion * width * 2**s`.
    inner : sequence of int
        Channels of each part of a block's convolution, for each of the four stages.
    blocks : sequence of int
        Blocks of each stage; those of the last two fuse their parts with attention.
    scale : int
        Number of these parts.
    expansion : int
        See `width`.
    fusion : str
        "all" fuses the outputs of all stages bottom up, "last" those of the last two (V2).
    bins : int
        Mel bins.
    window : str
        Window of the filter bank: "povey" (3D-Speaker's) or "hamming" (wespeaker's).
    """

    title = "ERes2Net"

    def __init__(
        self,
        width: int = 32,
        inner: Sequence[int] = (16, 32, 64, 128),
        blocks: Sequence[int] = (3, 4, 6, 3),
        scale: int = 2,
        expansion: int = 2,
        fusion: str = "all",
        bins: int = 80,
        window: str = "povey",
    ) -> None:
        if len(inner) != 4 or len(blocks) != 4 or min(width, scale, expansion, *inner, *blocks) < 1:
            raise KnnError("ERes2Net needs four inner widths, four numbers of blocks, and positive sizes.")
        if fusion not in ("all", "last"):
            raise KnnError(f"There is no fusion {fusion!r}.", "Known: all, last.")
        outs = [expansion * width * 2**stage for stage in range(4)]
        super().__init__(
            *(width, bins, window, blocks, outs),
            lambda before, stage, stride: Block(before, inner[stage], outs[stage], scale, stride, fused=stage > 1),
        )
        if fusion == "last":
            self.layer3_ds = _downsample(outs[2], outs[3])
            self.fuse34 = AttentiveFusion(outs[3])
        else:
            for stage, name in enumerate(("fuse_mode12", "fuse_mode123", "fuse_mode1234")):
                setattr(self, f"layer{stage + 1}_downsample", _downsample(outs[stage], outs[stage + 1]))
                setattr(self, name, AttentiveFusion(outs[stage + 1]))
        self.fusion = fusion

    def encode(self, features: Tensor, counts: Tensor | None = None) -> Tensor:
        x = fused = self.stem(features, counts)
        for stage in range(1, 5):
            x, counts = self.stage(stage, x, counts)  # (B, C, F, T)
            if stage == 1 or (self.fusion == "last" and stage < 4):
                fused = x
            elif self.fusion == "last":
                fused = self.fuse34(x, zero_ends(self.layer3_ds(fused), counts))
            else:
                below = zero_ends(getattr(self, f"layer{stage - 1}_downsample")(fused), counts)
                fused = getattr(self, ("fuse_mode12", "fuse_mode123", "fuse_mode1234")[stage - 2])(x, below)
        return fused.flatten(1, 2).transpose(1, 2)  # (B, T, C * F)


def _downsample(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)


class AttentiveFusion(nn.Module):
    """x (1 + a) + y (1 - a), where a in (-1, 1) is computed from both (arXiv:2305.12838, equations 2 and 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 4
        self.local_att = nn.Sequential(
            nn.Conv2d(2 * channels, inner, 1),
            nn.BatchNorm2d(inner),
            nn.SiLU(),
            nn.Conv2d(inner, channels, 1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Two of (B, C, F, T) -> the same shape; zero where both are."""
        attention = self.local_att(torch.cat([x, y], dim=1)).tanh()
        return cast(Tensor, x * (1 + attention) + y * (1 - attention))


class Block(nn.Module):
    """1 x 1 convolution, 3 x 3 convolutions of parts that build on each other, 1 x 1 convolution, and a shortcut.

    Each part is added to the output of the part before, or with `fused` joined to it by attention.
    """

    def __init__(self, before: int, part: int, after: int, scale: int, stride: int, *, fused: bool) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(before, part * scale, 1, stride, bias=False)
        self.bn1 = nn.BatchNorm2d(part * scale)
        self.convs = nn.ModuleList(nn.Conv2d(part, part, 3, padding=1, bias=False) for _ in range(scale))
        self.bns = nn.ModuleList(nn.BatchNorm2d(part) for _ in range(scale))
        self.fuse_models = nn.ModuleList(AttentiveFusion(part) for _ in range(scale - 1)) if fused else None
        self.conv3 = nn.Conv2d(part * scale, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride > 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, C, F, T), zero past each clip's end, and frames of each clip (B,) int64 -> the output and its frames."""
        counts = counts if counts is None or self.stride == 1 else (counts + 1) // 2
        parts = zero_ends(rectified(self.bn1(self.conv1(x))), counts).chunk(len(self.convs), dim=1)
        done: list[Tensor] = []
        for number, (part, conv, norm) in enumerate(zip(parts, self.convs, self.bns, strict=True)):
            y = part
            if number and self.fuse_models is not None:
                y = self.fuse_models[number - 1](done[-1], part)
            elif number:
                y = done[-1] + part
            done.append(zero_ends(rectified(norm(conv(y))), counts))
        y = self.bn3(self.conv3(torch.cat(done, dim=1)))
        return zero_ends(rectified(y + self.shortcut(x)), counts), counts


def rectified(x: Tensor) -> Tensor:
    """The positive values, cut off at `MOST`."""
    return x.clamp(0.0, MOST)
