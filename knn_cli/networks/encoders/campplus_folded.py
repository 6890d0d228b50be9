"""CAM++ for inference: norms within the products, and the channels of a frame side by side in memory.

A batch norm behind a convolution goes into its weights. Of one before a 1 x 1 convolution, with a ReLU between, what is
left is a bound: W relu(s x + t) = (W s) max(x, -t / s) + W t where s is positive, and with min where it is negative. So
a dense layer reads its input once, and writes what it adds behind it, where the next one finds both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.networks.encoders.four_stages import zero_ends
from knn_cli.networks.encoders.resnet import BasicBlock
from knn_cli.networks.features import frame_mask

if TYPE_CHECKING:
    from knn_cli.networks.encoders.campplus import CAMPPlus, DenseTDNNLayer, FrontConvolutions, TransitLayer

__all__ = ["FoldedCAMPPlus"]

_FARTHEST_EDGE = 1e30  # bounds beyond it would be infinite as float32, and no activation comes near them


class FoldedCAMPPlus(nn.Module):
    """What `CAMPPlus.encode` computes in evaluation mode, from copies of its weights that no state has.

    Parameters
    ----------
    encoder : CAMPPlus
    segment : int
        Frames over which the mask's local context is averaged.
    dilations : sequence of int
        Of the three dense blocks.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, encoder: CAMPPlus, segment: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.segment = segment
        self.front = _Front(encoder.head)
        tdnn = encoder.tdnn.linear
        self.taps, self.stride = tdnn.kernel_size[0], tdnn.stride[0]
        width = encoder.head.conv2.out_channels
        kernels = torch.unflatten(tdnn.weight, 1, (width, -1)).permute(
            0, 3, 2, 1
        )  # (O, taps, heights, width), as frames lie
        self.tdnn = _Product(kernels.flatten(1), behind=encoder.tdnn.norm)
        self.blocks = nn.ModuleList()
        for block, dilation in zip(encoder.blocks, dilations, strict=True):
            layers = cast("list[DenseTDNNLayer]", list(cast(nn.ModuleList, block)))
            self.blocks.append(nn.ModuleList(_DenseLayer(layer, dilation) for layer in layers))
        self.transits = nn.ModuleList(
            _Product(transit.linear.weight.flatten(1), before=transit.norm)
            for transit in cast("list[TransitLayer]", list(encoder.transits))
        )
        scale, shift = _affine(encoder.norm)
        self.register_buffer("scale", scale.float(), persistent=False)
        self.register_buffer("shift", shift.float(), persistent=False)

    def forward(self, features: Tensor, counts: Tensor | None) -> Tensor:
        """As `CAMPPlus.encode`: (B, bins, N), frames (B,) int64 that are real or None -> (B, T, C)."""
        x = self.front(features, counts)  # (B, N, heights * width)
        margin = self.taps // 2
        x = F.pad(x, (0, 0, margin, margin)).unfold(1, self.taps, self.stride).transpose(2, 3)  # (B, T, taps, ...)
        clips, frames = x.shape[:2]
        segments = _Segments(clips, frames, self.segment, None if counts is None else (counts + 1) // 2, x)
        x = self.tdnn(x.reshape(clips * frames, -1)).relu_()
        for block, transit in zip(self.blocks, self.transits, strict=True):
            layers = cast("list[_DenseLayer]", list(cast(nn.ModuleList, block)))
            width = x.shape[1]
            joined = x.new_empty(len(x), width + sum(layer.growth for layer in layers))  # (B T, all channels)
            joined[:, :width] = x
            for layer in layers:
                layer(joined[:, :width], segments, joined[:, width : width + layer.growth])
                width += layer.growth
            x = transit(joined)
        return torch.addcmul(self.shift, x, self.scale).relu_().view(clips, frames, -1)


class _Segments:
    """The segments of the frames of clips, of which the last may be shorter."""

    def __init__(self, clips: int, frames: int, length: int, counts: Tensor | None, like: Tensor) -> None:
        self.clips, self.frames, self.length = clips, frames, length
        self.whole = frames // length * length  # frames in segments of the full length
        self.mask: Tensor | None = None  # (B T, 1), 1 at real frames
        real = torch.ones(clips, frames, 1, device=like.device)
        if counts is not None:
            real = frame_mask(counts, frames).unsqueeze(2).to(like.dtype)
            self.mask = real.view(-1, 1)
        in_segments = self.sums(real)  # (B, segments, 1)
        self.of_segment, self.of_clip = in_segments.clamp_min(1), in_segments.sum(1, keepdim=True)

    def sums(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, segments, C)."""
        parts = [torch.unflatten(x[:, : self.whole], 1, (-1, self.length)).sum(2)] if self.whole else []
        if self.whole < self.frames:
            parts.append(x[:, self.whole :].sum(1, keepdim=True))
        return torch.cat(parts, dim=1)

    def context(self, x: Tensor) -> Tensor:
        """Frames (B, T, C), zero where they are not real -> means of the clip and of each segment, (B, segments, C)."""
        sums = self.sums(x)
        return sums.sum(1, keepdim=True) / self.of_clip + sums / self.of_segment

    def scale(self, x: Tensor, gates: Tensor) -> None:
        """Multiply frames (B, T, C) by the gates (B, segments, C) of their segments, in place."""
        if self.whole:
            whole = self.whole // self.length
            torch.unflatten(x[:, : self.whole], 1, (-1, self.length)).mul_(gates[:, :whole].unsqueeze(2))
        if self.whole < self.frames:
            x[:, self.whole :].mul_(gates[:, -1:])


class _Product(nn.Module):
    """A matrix, with the norm behind it or the norm and the ReLU before it, if there are any, for rows (N, C)."""

    matrix: Tensor
    bias: Tensor
    low: Tensor | None
    high: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        before: nn.BatchNorm1d | None = None,
        behind: nn.BatchNorm1d | None = None,
    ) -> None:
        super().__init__()
        matrix = weight.float()  # (O, C)
        added = torch.zeros(len(matrix)) if bias is None else bias.float()
        low = high = None
        if before is not None:
            scale, shift = _affine(before)
            scale = torch.where(scale.abs() * _FARTHEST_EDGE > shift.abs(), scale, 0.0)  # shift alone, to any float32
            edge = -shift / scale
            low = torch.where(scale > 0, edge, -torch.inf)
            high = torch.where(scale < 0, edge, torch.inf) if bool((scale < 0).any()) else None
            added = added + matrix @ torch.where(scale == 0, shift.relu(), shift).float()
            matrix = matrix * scale.float()
        if behind is not None:
            scale, shift = _affine(behind)
            matrix, added = matrix * scale[:, None].float(), (added * scale + shift).float()
        self.register_buffer("matrix", matrix.T.contiguous(), persistent=False)  # (C, O)
        self.register_buffer("bias", added, persistent=False)
        self.register_buffer("low", None if low is None else low.float(), persistent=False)
        self.register_buffer("high", None if high is None else high.float(), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        """(N, C) -> (N, O)."""
        if self.low is not None:
            rows = torch.maximum(rows, self.low)
        if self.high is not None:
            rows = torch.minimum(rows, self.high, out=rows)
        return torch.addmm(self.bias, rows, self.matrix)


class _DenseLayer(nn.Module):
    """`DenseTDNNLayer` for frames whose channels lie side by side."""

    taps: Tensor

    def __init__(self, layer: DenseTDNNLayer, dilation: int) -> None:
        super().__init__()
        self.dilation, self.growth = dilation, layer.local.out_channels
        self.first = _Product(layer.first.linear.weight.flatten(1), before=layer.first.norm, behind=layer.norm)
        taps = layer.local.weight.permute(1, 2, 0).flatten(1)  # (bottleneck, 3 * growth): before, here, behind
        self.register_buffer("taps", taps.detach().float().contiguous(), persistent=False)
        self.narrow = _Product(layer.narrow.weight.flatten(1), layer.narrow.bias)
        self.widen = _Product(layer.widen.weight.flatten(1), layer.widen.bias)

    def forward(self, rows: Tensor, segments: _Segments, out: Tensor) -> None:
        """Rows (B T, C) -> what the layer adds, into `out` (B T, growth)."""
        x = self.first(rows).relu_()
        if segments.mask is not None:
            x = x * segments.mask
        shape, size, step = (segments.clips, segments.frames, -1), self.growth, self.dilation
        context = segments.context(x.view(shape))
        gates = self.widen(self.narrow(context.flatten(0, 1)).relu_()).sigmoid_().view(len(context), -1, size)
        parts, local = (
            (x @ self.taps).view(shape),
            torch.unflatten(out, 0, shape[:2]),
        )  # (B, T, 3 growth), (B, T, growth)
        local.copy_(parts[..., size : 2 * size])
        local[:, step:] += parts[:, :-step, :size]
        local[:, :-step] += parts[:, step:, 2 * size :]
        segments.scale(local, gates)


class _Convolution(nn.Module):
    """A two-dimensional convolution with the norm behind it."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        scale, shift = _affine(norm)
        weight = layer.weight * scale[:, None, None, None].float()
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last), persistent=False)
        self.register_buffer("bias", shift.float(), persistent=False)
        self.stride, self.padding = layer.stride, cast("tuple[int, int]", layer.padding)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class _Block(nn.Module):
    """`BasicBlock` that keeps the time axis."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.first = _Convolution(block.conv1, block.bn1)
        self.second = _Convolution(block.conv2, block.bn2)
        self.shortcut = _Convolution(*block.shortcut) if len(block.shortcut) else nn.Identity()

    def forward(self, x: Tensor, counts: Tensor | None) -> Tensor:
        y = zero_ends(self.first(x).relu_(), counts)
        return zero_ends(self.second(y).add_(self.shortcut(x)).relu_(), counts)


class _Front(nn.Module):
    """`FrontConvolutions`, whose first convolution is a product of windows: it has a single input channel."""

    def __init__(self, head: FrontConvolutions) -> None:
        super().__init__()
        self.first = _Product(head.conv1.weight.flatten(1), behind=cast(nn.BatchNorm1d, head.bn1))
        self.blocks = nn.ModuleList(_Block(cast(BasicBlock, block)) for block in (*head.layer1, *head.layer2))
        self.last = _Convolution(head.conv2, head.bn2)

    def forward(self, features: Tensor, counts: Tensor | None) -> Tensor:
        """(B, bins, N), zero past `counts` frames -> (B, N, bins / 8 * width)."""
        windows = F.pad(features, (1, 1, 1, 1)).unfold(1, 3, 1).unfold(2, 3, 1)  # (B, bins, N, 3, 3)
        x = self.first(windows.reshape(-1, 9)).relu_().view(*features.shape, -1).permute(0, 3, 1, 2)
        x = zero_ends(x, counts)  # (B, width, bins, N), the channels of a point side by side
        for block in self.blocks:
            x = block(x, counts)
        return zero_ends(self.last(x).relu_(), counts).permute(0, 3, 2, 1).flatten(2)


def _affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) float64 of a norm in evaluation mode."""
    assert norm.running_var is not None and norm.running_mean is not None
    scale = norm.weight.detach().double() * (norm.running_var.double() + norm.eps).rsqrt()
    return scale, norm.bias.detach().double() - norm.running_mean.double() * scale
