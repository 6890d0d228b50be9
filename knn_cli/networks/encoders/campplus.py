"""CAM++: densely connected time-delay blocks behind a small two-dimensional convolutional network.

Parameters have the names of 3D-Speaker's implementation.

Wang et al., "CAM++: a fast and efficient network for speaker verification using context-aware masking", Interspeech
2023 (arXiv:2303.00332).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS, POOLINGS
from knn_cli.networks.contracts import Pooling
from knn_cli.networks.encoders.campplus_folded import FoldedCAMPPlus
from knn_cli.networks.encoders.filter_bank import FilterBankEncoder
from knn_cli.networks.encoders.four_stages import zero_ends
from knn_cli.networks.encoders.resnet import BasicBlock
from knn_cli.networks.features import LogMel, frame_mask
from knn_cli.networks.pooling.base import check_sizes, last_layer, time_mean, time_variance

__all__ = ["CAMPPlus", "CAMPPlusPooling"]

SEGMENT = 100  # frames over which the mask's local context is averaged
DILATIONS = (1, 2, 2)  # of the three dense blocks


@ENCODERS.register("campplus")
class CAMPPlus(FilterBankEncoder):
    """CAM++ up to its pooling: log-mel features to the only layer of this encoder, with a frame every 20 ms.

    Parameters
    ----------
    width : int
        Channels of the two-dimensional convolutional front end (section 2.3).
    channels : int
        Width after the first time-delay layer.
    growth : int
        Channels that each dense layer adds.
    bottleneck : int
        Width of a dense layer's bottleneck, in multiples of `growth`.
    blocks : sequence of int
        Dense layers of each of the three blocks.
    bins : int
        Mel bins.
    window : str
        Window of the filter bank: "povey" (3D-Speaker's) or "hamming".
    """

    title = "CAM++"

    def __init__(
        self,
        width: int = 32,
        channels: int = 128,
        growth: int = 32,
        bottleneck: int = 4,
        blocks: Sequence[int] = (12, 24, 16),
        bins: int = 80,
        window: str = "povey",
    ) -> None:
        if len(blocks) != len(DILATIONS):
            raise KnnError(f"CAM++ has {len(DILATIONS)} dense blocks, not {len(blocks)}.")
        super().__init__(LogMel(bins, self.rate, window), channels, subsampling=2)
        self.head = FrontConvolutions(width)
        self.tdnn = TDNNLayer(nn.Conv1d(width * -(-bins // 8), channels, 5, stride=2, padding=2, bias=False), channels)
        dense, transits = [], []
        for count, dilation in zip(blocks, DILATIONS, strict=True):
            widths = range(channels, channels + count * growth, growth)
            dense.append(
                nn.ModuleList(DenseTDNNLayer(width, bottleneck * growth, growth, dilation) for width in widths)
            )
            channels += count * growth
            transits.append(TransitLayer(channels, channels // 2))
            channels //= 2
        self.blocks, self.transits = nn.ModuleList(dense), nn.ModuleList(transits)
        self.norm = nn.BatchNorm1d(channels)
        self.channels = channels
        self.folded: FoldedCAMPPlus | None = None

    def fold(self) -> None:
        """As `Encoder.fold`: norms go into products, unless these are of 8 bits."""
        if type(self.tdnn.linear) is nn.Conv1d:
            with torch.no_grad():
                self.folded = FoldedCAMPPlus(self, SEGMENT, DILATIONS)

    def block_list(self) -> list[nn.Module]:
        """As `Encoder.block_list`."""
        return list(self.blocks)

    def encode(self, features: Tensor, counts: Tensor | None = None) -> Tensor:
        if self.folded is not None and not self.training and not torch.is_grad_enabled():
            return self.folded(features, counts)  # type: ignore[no-any-return]
        x = self.tdnn(self.head(features, counts))  # (B, C, T / 2)
        mask = torch.ones_like(x[:, :1])
        if counts is not None:
            mask = frame_mask((counts + 1) // 2, x.shape[2]).unsqueeze(1).to(x.dtype)  # (B, 1, T)
        for block, transit in zip(self.blocks, self.transits, strict=True):
            for layer in cast(nn.ModuleList, block):
                x = torch.cat([x, layer(x, mask)], dim=1)
            x = transit(x)
        return F.relu(self.norm(x)).transpose(1, 2)  # (B, T, C)


class FrontConvolutions(nn.Module):
    """The convolutional front end, which reduces the frequency axis to an eighth and keeps the time axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = nn.ModuleList([BasicBlock(width, width, (2, 1)), BasicBlock(width, width, (1, 1))])
        self.layer2 = nn.ModuleList([BasicBlock(width, width, (2, 1)), BasicBlock(width, width, (1, 1))])
        self.conv2 = nn.Conv2d(width, width, 3, (2, 1), padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor, counts: Tensor | None) -> Tensor:
        """(B, bins, T), zero past `counts` frames (B,) int64 -> (B, width * bins / 8, T), zero there too."""
        x = zero_ends(F.relu(self.bn1(self.conv1(x.unsqueeze(1)))), counts)  # (B, width, bins, T)
        for block in (*self.layer1, *self.layer2):
            x, _ = block(x, counts)
        return zero_ends(F.relu(self.bn2(self.conv2(x))), counts).flatten(1, 2)  # (B, width * bins / 8, T)


class TDNNLayer(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, linear: nn.Conv1d, channels: int) -> None:
        super().__init__()
        self.linear, self.norm = linear, nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.linear(x)))


class TransitLayer(nn.Module):
    """Batch norm, ReLU, 1 x 1 convolution."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(before), nn.Conv1d(before, after, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.linear(F.relu(self.norm(x))))


class DenseTDNNLayer(nn.Module):
    """A bottleneck, then a dilated convolution whose output is gated by the context (equations 1 to 4)."""

    def __init__(self, before: int, bottleneck: int, after: int, dilation: int) -> None:
        super().__init__()
        self.first, self.norm = TransitLayer(before, bottleneck), nn.BatchNorm1d(bottleneck)
        self.local = nn.Conv1d(bottleneck, after, 3, padding=dilation, dilation=dilation, bias=False)
        self.narrow, self.widen = nn.Conv1d(bottleneck, bottleneck // 2, 1), nn.Conv1d(bottleneck // 2, after, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, C, T) and (B, 1, T), 1 at real frames and 0 elsewhere -> (B, after, T)."""
        x = F.relu(self.norm(self.first(x))) * mask
        gate = self.widen(F.relu(self.narrow(_context(x, mask)))).sigmoid()  # (B, after, segments)
        gate = gate.repeat_interleave(SEGMENT, dim=2)[..., : x.shape[2]]  # the same within a segment
        return cast(Tensor, self.local(x) * gate)


def _context(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the clip plus mean over each segment, of real frames: (B, C, T), zero elsewhere -> (B, C, segments)."""
    rest = -x.shape[2] % SEGMENT
    sums, counts = (torch.unflatten(F.pad(each, (0, rest)), 2, (-1, SEGMENT)).sum(3) for each in (x, mask))
    # (B, C, segments), (B, 1, segments)
    return sums.sum(2, keepdim=True) / counts.sum(2, keepdim=True) + sums / counts.clamp_min(1)


@POOLINGS.register("campplus")
class CAMPPlusPooling(Pooling):
    """CAM++'s pooling: mean and standard deviation over time of the last layer, a linear layer, batch norm.

    Parameters
    ----------
    layers : int
        Number of layers L of the encoder.
    channels : int
        Width C of a layer.
    dimension : int
        Width E of the embedding.
    added : float
        What is added to variances: 0 in 3D-Speaker, 1e-7 in wespeaker, which shows on channels that hardly move.
    """

    def __init__(self, layers: int, channels: int, dimension: int = 192, added: float = 0.0) -> None:
        super().__init__()
        if not 0 <= added < 1:
            raise KnnError(f"CAM++ cannot add {added} to variances.", "It is 0 or 1e-7.")
        self.added = added
        check_sizes("CAM++", layers=layers, channels=channels, dimension=dimension)
        self.layers, self.dimension = layers, dimension
        self.linear = nn.Conv1d(2 * channels, dimension, 1, bias=False)
        self.norm = nn.BatchNorm1d(dimension, affine=False)

    def forward(self, layers: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
        """Embeddings (B, E) of `layers` (B, T, C), mask (B, T) bool True at real frames.

        Raises
        ------
        ValueError
            The number of layers is not L.
        """
        frames = last_layer(layers, self.layers)
        mean = time_mean(frames, mask)
        # The gradient of a square root is infinite at 0: the bound keeps a constant channel from giving NaN.
        deviation = (time_variance(frames, mean, mask) + self.added).clamp_min(1e-14).sqrt()
        pooled = torch.cat([mean, deviation], dim=1)  # (B, 2C)
        return cast(Tensor, self.norm(self.linear(pooled.unsqueeze(2)).squeeze(2)))
