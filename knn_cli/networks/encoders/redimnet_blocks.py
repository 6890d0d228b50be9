"""The blocks of ReDimNet: convolutions on maps of channels and frequencies, and context over time.

Liu et al., "A ConvNet for the 2020s", CVPR 2022 (arXiv:2201.03545), section 2.6; He et al. (arXiv:1512.03385) with the
excitation of frequencies of Thienpondt et al., "Integrating frequency translational invariance in TDNNs and frequency
positional information in 2D ResNets to enhance speaker verification", Interspeech 2021 (arXiv:2104.02370); Vaswani et
al. (arXiv:1706.03762). Submodules have the authors' names.

In a padded batch, what a convolution over time hears past a clip's end is zero, as it is for the clip alone.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import KnnError

__all__ = ["TIME_BLOCKS", "ChannelNorm", "ConvBlock", "ResidualBlock", "TimeBlock", "within"]

TIME_BLOCKS = ("conv+att", "att", "conv", "fc")
HEADS = 4
POSITION_KERNEL = 59


def within(x: Tensor, real: Tensor | None) -> Tensor:
    """(B, C, T) or (B, C, F, T), and the real frames (B, 1, T) -> the same with zeros past each clip's end."""
    if real is None:
        return x
    return x.masked_fill(~(real if x.ndim == 3 else real.unsqueeze(2)), 0.0)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, ...)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        last = x.ndim - 1  # a number, for ONNX
        return super().forward(x.transpose(1, last)).transpose(1, last)


class ConvBlock(nn.Module):
    """x + a 1 x 1 convolution of the activated norm of a convolution with groups, on maps or over time.

    Parameters
    ----------
    channels : int
        Width.
    group : int
        Channels of a group; 0: one group.
    kernel : int
        Frames of a convolution over time; 0: 3 x 3 on maps.
    relu : bool
        ReLU in place of GELU.
    """

    def __init__(self, channels: int, group: int, kernel: int = 0, *, relu: bool = False) -> None:
        super().__init__()
        groups = channels // group if group else 1
        convolution, norm = (nn.Conv1d, nn.BatchNorm1d) if kernel else (nn.Conv2d, nn.BatchNorm2d)
        size = kernel or 3
        self.dwconvs = nn.ModuleList([convolution(channels, channels, size, padding=size // 2, groups=groups)])
        self.norm, self.pwconv1 = norm(channels), convolution(channels, channels, 1)
        self.relu = relu

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        y = self.norm(self.dwconvs[0](within(x, real)))
        return cast(Tensor, x + self.pwconv1(F.relu(y) if self.relu else F.gelu(y)))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; with `frequencies`, each of these is excited by the mean of all.

    Parameters
    ----------
    channels : int
        Width.
    group : int
        Channels of a group, after which 1 x 1 convolutions join groups; 0: one group, and none of these.
    frequencies : int
        Height of the map; 0: no excitation.
    """

    def __init__(self, channels: int, group: int, frequencies: int) -> None:
        super().__init__()
        groups = channels // group if group else 1
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False, groups=groups)
        self.conv1pw = nn.Conv2d(channels, channels, 1) if group else nn.Identity()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False, groups=groups)
        self.conv2pw = nn.Conv2d(channels, channels, 1) if group else nn.Identity()
        self.bn2 = nn.BatchNorm2d(channels)
        self.se = Excitation(frequencies, min(64, max(channels, 32))) if frequencies else None

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        y = self.bn1(F.relu(self.conv1pw(self.conv1(within(x, real)))))
        y = self.bn2(self.conv2pw(self.conv2(within(y, real))))
        return F.relu(x + (y if self.se is None else self.se(y, real)))


class Excitation(nn.Module):
    """A factor for each frequency, from the means of all over channels and time."""

    def __init__(self, frequencies: int, inner: int) -> None:
        super().__init__()
        self.squeeze, self.exitation = nn.Linear(frequencies, inner), nn.Linear(inner, frequencies)

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        means = x.mean(dim=1)  # (B, F, T)
        mean = means.mean(dim=2) if real is None else within(means, real).sum(dim=2) / real.sum(dim=2)
        factors = self.exitation(F.relu(self.squeeze(mean))).sigmoid()  # (B, F)
        return cast(Tensor, x * factors[:, None, :, None])


class TimeBlock(nn.Module):
    """x + a block over time between two 1 x 1 convolutions.

    Parameters
    ----------
    channels : int
        Width.
    hidden : int
        Width of the block.
    kind : str
        One of `TIME_BLOCKS`.
    """

    def __init__(self, channels: int, hidden: int, kind: str) -> None:
        super().__init__()
        if kind.endswith("att") and hidden % HEADS:
            raise KnnError(f"ReDimNet cannot share {hidden} channels among {HEADS} heads evenly.")
        self.red_dim_conv = nn.Sequential(nn.Conv1d(channels, hidden, 1), ChannelNorm(hidden))
        parts: list[nn.Module]
        if kind == "conv+att":
            parts = [ConvBlock(hidden, 1, kernel) for kernel in (7, 19, 31, 59)]
            parts.append(AttentionBlock(hidden, hidden))
        elif kind == "att":
            parts = [PositionBlock(hidden), AttentionBlock(hidden, 2 * hidden)]
        elif kind == "conv":
            parts = [ManyKernelsBlock(hidden) for _ in range(4)]
        else:
            parts = [Pointwise(hidden)]
        self.tcm = nn.ModuleList(parts)
        self.exp_dim_conv = nn.Conv1d(hidden, channels, 1)

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        y = self.red_dim_conv(x)  # (B, hidden, T)
        for part in self.tcm:
            y = part(y, real)
        return cast(Tensor, x + self.exp_dim_conv(y))


class ManyKernelsBlock(nn.Module):
    """As `ConvBlock` over time, with convolutions of 7, 15 and 31 frames beside each other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconvs = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=channels) for kernel in (7, 15, 31)
        )
        self.norm, self.pwconv1 = nn.BatchNorm1d(3 * channels), nn.Conv1d(3 * channels, channels, 1)

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        clips = within(x, real)
        y = F.gelu(self.norm(torch.cat([convolution(clips) for convolution in self.dwconvs], dim=1)))
        return cast(Tensor, x + self.pwconv1(y))


class Pointwise(nn.Module):
    """Two 1 x 1 convolutions, with a norm and GELU between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide, self.norm = nn.Conv1d(channels, 2 * channels, 1), ChannelNorm(2 * channels)
        self.narrow = nn.Conv1d(2 * channels, channels, 1)

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        return cast(Tensor, self.narrow(F.gelu(self.norm(self.wide(x)))))


class PositionBlock(nn.Module):
    """x + the norm of a convolution over time, which tells frames apart by their neighbours."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        padding = POSITION_KERNEL // 2
        self.conv = nn.Conv1d(channels, channels, POSITION_KERNEL, padding=padding, groups=channels)
        self.norm = ChannelNorm(channels)

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        return cast(Tensor, x + self.norm(self.conv(within(x, real))))


class AttentionBlock(nn.Module):
    """Self-attention over the clip and a layer norm, a sum with two linear layers, and a layer norm."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.attention = nn.ModuleDict(
            {f"{name}_proj": nn.Linear(channels, channels) for name in ("k", "v", "q", "out")}
        )
        self.layer_norm = nn.LayerNorm(channels, eps=1e-6)
        self.feed_forward = nn.ModuleDict(
            {"intermediate_dense": nn.Linear(channels, inner), "output_dense": nn.Linear(inner, channels)}
        )
        self.final_layer_norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        x = x.transpose(1, 2)  # (B, T, C)
        query, key, value = (
            self.attention[f"{name}_proj"](x).unflatten(2, (HEADS, -1)).transpose(1, 2) for name in ("q", "k", "v")
        )
        mask = None if real is None else real.unsqueeze(2)  # (B, 1, 1, T)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = self.layer_norm(x + self.attention["out_proj"](seen.transpose(1, 2).flatten(2)))
        wide = F.gelu(self.feed_forward["intermediate_dense"](x), approximate="tanh")
        x = self.final_layer_norm(x + self.feed_forward["output_dense"](wide))
        return x.transpose(1, 2)
