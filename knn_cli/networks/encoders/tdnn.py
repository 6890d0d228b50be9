"""Time-delay networks on Kaldi's filter bank: the x-vector network, and ECAPA-TDNN as wespeaker has it.

Parameters have wespeaker's names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS, POOLINGS
from knn_cli.networks.contracts import Pooling, Samples
from knn_cli.networks.encoders.filter_bank import FilterBankEncoder
from knn_cli.networks.features import LogMel, frame_mask
from knn_cli.networks.pooling.base import check_sizes, last_layer
from knn_cli.networks.pooling.time_statistics import time_statistics

__all__ = ["EcapaFbank", "NormalisedStatistics", "XVectorTDNN"]

KERNELS, STEPS = (5, 3, 3, 1, 1), (1, 2, 3, 1, 1)  # of the x-vector network, in frames
REACH = sum((kernel - 1) * step for kernel, step in zip(KERNELS, STEPS, strict=True))  # frames that they lose


@ENCODERS.register("xvector-tdnn")
class XVectorTDNN(FilterBankEncoder):
    """The frame level of the x-vector network: five time-delay layers without padding, a frame every 10 ms.

    Snyder et al., "X-vectors: robust DNN embeddings for speaker recognition", ICASSP 2018, table 1. Each layer is a
    convolution, ReLU, and a batch norm without scale and offset, as in Kaldi.

    Parameters
    ----------
    hidden : int
        Width of the first four layers.
    channels : int
        Width of the fifth, which is the only layer of this encoder.
    bins : int
        Mel bins.
    window : str
        Window of the filter bank: "hamming" (wespeaker's) or "povey".
    """

    title = "the x-vector network"

    def __init__(self, hidden: int = 512, channels: int = 1500, bins: int = 80, window: str = "hamming") -> None:
        front = LogMel(bins, self.rate, window)
        super().__init__(front, channels, minimum=front.minimum + REACH * front.stride)
        widths = [bins, *[hidden] * 4, channels]
        for number, ((before, after), kernel, step) in enumerate(
            zip(pairwise(widths), KERNELS, STEPS, strict=True), start=1
        ):
            layer = nn.Module()
            layer.conv_1d = nn.Conv1d(before, after, kernel, dilation=step)
            layer.bn = nn.BatchNorm1d(after, affine=False)
            setattr(self, f"frame_{number}", layer)

    def frames(self, samples: Samples) -> Samples:
        """Number of frames of a clip of `samples`, 0 below `minimum`: int for int, int64 tensor for int64 tensor."""
        frames = self.front.frames(samples) - REACH
        return frames.clamp_min(0) if isinstance(frames, Tensor) else max(frames, 0)

    def encode(self, features: Tensor, counts: Tensor | None = None) -> Tensor:
        x = features  # (B, bins, T); frames near a clip's end are lost before they see what is behind it
        for number in range(1, len(KERNELS) + 1):
            layer = getattr(self, f"frame_{number}")
            x = layer.bn(F.relu(layer.conv_1d(x)))
        return x.transpose(1, 2)


@ENCODERS.register("ecapa-tdnn-fbank")
class EcapaFbank(FilterBankEncoder):
    """ECAPA-TDNN on log-mel features with convolutions that pad with zeros, as wespeaker has it; a frame every 10 ms.

    Desplanques et al., "ECAPA-TDNN: emphasized channel attention, propagation and aggregation in TDNN based speaker
    verification", Interspeech 2020 (arXiv:2005.07143). The encoder `ecapa-tdnn` is speechbrain's.

    Parameters
    ----------
    width : int
        Channels of the first convolution and of the three blocks.
    channels : int
        Width C of the aggregated frames, the only layer of this encoder.
    scale : int
        Number of channel groups in a block's Res2Net convolution.
    squeeze : int
        Width of the excitation's bottleneck.
    dilations : sequence of int
        Of the blocks, in frames.
    bins : int
        Mel bins.
    window : str
        Window of the filter bank: "hamming" (wespeaker's) or "povey".
    """

    title = "ECAPA-TDNN"

    def __init__(
        self,
        width: int = 512,
        channels: int = 1536,
        scale: int = 8,
        squeeze: int = 128,
        dilations: Sequence[int] = (2, 3, 4),
        bins: int = 80,
        window: str = "hamming",
    ) -> None:
        if scale < 2 or width % scale:
            raise KnnError(f"ECAPA-TDNN needs a width that divides by its scale of 2 or more, not {width} / {scale}.")
        super().__init__(LogMel(bins, self.rate, window), channels)
        self.layer1 = ConvReluNorm(bins, width, 5)
        self._blocks = [f"layer{number}" for number in range(2, 2 + len(dilations))]
        for name, dilation in zip(self._blocks, dilations, strict=True):
            setattr(self, name, SERes2Block(width, dilation, scale, squeeze))
        self.conv = nn.Conv1d(width * len(dilations), channels, 1)

    def block_list(self) -> list[nn.Module]:
        """As `Encoder.block_list`."""
        return [self.layer1, *(getattr(self, name) for name in self._blocks)]

    def encode(self, features: Tensor, counts: Tensor | None = None) -> Tensor:
        real = None if counts is None else frame_mask(counts, features.shape[2]).unsqueeze(1).to(features.dtype)
        x = self.layer1(features, real)  # (B, C, T)
        outputs = []
        for name in self._blocks:
            x = getattr(self, name)(x, real)
            outputs.append(x)
        return F.relu(self.conv(torch.cat(outputs, dim=1))).transpose(1, 2)


def _within(x: Tensor, real: Tensor | None) -> Tensor:
    """(B, C, T) with zeros where `real` (B, 1, T) is 0, as a convolution pads a single clip."""
    return x if real is None else x * real


class ConvReluNorm(nn.Module):
    """Convolution over time with zeros at the ends, ReLU, batch norm."""

    def __init__(self, before: int, after: int, kernel: int = 1) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv1d(before, after, kernel, padding=kernel // 2), nn.BatchNorm1d(after)

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        return cast(Tensor, self.bn(F.relu(self.conv(_within(x, real)))))


class Res2Convolutions(nn.Module):
    """All groups of channels but the last through a convolution, each together with the output for the one before."""

    def __init__(self, width: int, dilation: int, scale: int) -> None:
        super().__init__()
        part = width // scale
        self.convs = nn.ModuleList(
            nn.Conv1d(part, part, 3, padding=dilation, dilation=dilation) for _ in range(scale - 1)
        )
        self.bns = nn.ModuleList(nn.BatchNorm1d(part) for _ in range(scale - 1))

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        parts = list(x.chunk(len(self.convs) + 1, dim=1))
        for number, (conv, norm) in enumerate(zip(self.convs, self.bns, strict=True)):
            given = parts[number] if number == 0 else parts[number] + parts[number - 1]
            parts[number] = norm(F.relu(conv(_within(given, real))))
        return torch.cat(parts, dim=1)


class SqueezeExcitation(nn.Module):
    """Each channel times a gate that depends on the clip's mean of all channels."""

    def __init__(self, width: int, squeeze: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(width, squeeze), nn.Linear(squeeze, width)

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        mean = x.mean(2) if real is None else (x * real).sum(2) / real.sum(2)  # (B, C)
        return x * torch.sigmoid(self.linear2(F.relu(self.linear1(mean)))).unsqueeze(2)


class SERes2Block(nn.Module):
    """Section 3.2: 1 x 1 convolution, Res2Net convolutions, 1 x 1 convolution, squeeze-excitation, and a shortcut."""

    def __init__(self, width: int, dilation: int, scale: int, squeeze: int) -> None:
        super().__init__()
        self.se_res2block = nn.ModuleList(
            [
                ConvReluNorm(width, width),
                Res2Convolutions(width, dilation, scale),
                ConvReluNorm(width, width),
                SqueezeExcitation(width, squeeze),
            ]
        )

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        y = x
        for part in self.se_res2block:
            y = part(y, real)
        return x + y


@POOLINGS.register("normalised-statistics")
class NormalisedStatistics(Pooling):
    """Statistics over time of the last layer, batch norm, a linear layer, and where wanted another batch norm.

    As behind wespeaker's ECAPA-TDNN and ReDimNet.

    Parameters
    ----------
    layers : int
        Number of layers L of the encoder.
    channels : int
        Width C of a layer.
    dimension : int
        Width E of the embedding.
    statistics : str
        Kind of `time_statistics`.
    hidden : int
        Width of the attention's bottleneck.
    norm : bool
        Whether the embedding is normalised too.
    attention : mapping, optional
        Of "multi-query" statistics, as for `ResNetPooling`.
    """

    def __init__(
        self,
        layers: int,
        channels: int,
        dimension: int = 192,
        statistics: str = "attentive",
        hidden: int = 128,
        norm: bool = False,
        attention: Mapping[str, int | bool] | None = None,
    ) -> None:
        super().__init__()
        check_sizes("Normalised-statistics", layers=layers, channels=channels, dimension=dimension, hidden=hidden)
        self.layers, self.dimension = layers, dimension
        self.pool, size = time_statistics(statistics, channels, hidden, attention=attention)
        self.bn = nn.BatchNorm1d(size)
        self.linear = nn.Linear(size, dimension)
        self.bn2 = nn.BatchNorm1d(dimension) if norm else None

    def forward(self, layers: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
        """Embeddings (B, E) of `layers` (B, T, C), mask (B, T) bool True at real frames.

        Raises
        ------
        ValueError
            The number of layers is not L.
        """
        x = self.linear(self.bn(self.pool(last_layer(layers, self.layers), mask)))
        return cast(Tensor, x if self.bn2 is None else self.bn2(x))
