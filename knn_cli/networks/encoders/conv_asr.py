"""NeMo's ConvASREncoder, of which AmberNet, TitaNet and SpeakerNet are made, and the statistics of its SpeakerDecoder.

Blocks of separable convolutions over time with squeeze-excitation and a residual branch: Koluguri et al., "TitaNet:
neural model for speaker representation with 1D depth-wise separable convolutions and global context", ICASSP 2022
(arXiv:2110.04410); Jia et al., "AmberNet: a compact end-to-end model for spoken language identification", 2022
(arXiv:2210.15781). Every convolution sees silence around a clip, also in a padded batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS, POOLINGS
from knn_cli.networks.contracts import Pooling
from knn_cli.networks.encoders.filter_bank import FilterBankEncoder
from knn_cli.networks.features import StandardMel, frame_mask
from knn_cli.networks.pooling.base import check_sizes, last_layer, time_mean, time_variance

__all__ = ["BLOCK", "ConvASR", "LayeredStatistics"]

# The settings of a block and their defaults: width, units, kernel, stride and dilation in frames, whether only the last
# unit strides, dropout, residual branch (and whether that strides), separable convolutions, and by how much the
# bottleneck of squeeze-excitation is narrower than the block, 0 for none.
BLOCK: dict[str, Any] = {
    "channels": 1024,
    "repeat": 1,
    "kernel": 3,
    "stride": 1,
    "dilation": 1,
    "stride_last": False,
    "dropout": 0.0,
    "residual": False,
    "stride_residual": False,
    "separable": True,
    "squeeze": 8,
}
_TITANET: tuple[dict[str, Any], ...] = (
    {"kernel": 3},
    *({"kernel": kernel, "repeat": 3, "dropout": 0.1, "residual": True} for kernel in (7, 11, 15)),
    {"channels": 3072, "kernel": 1},
)
_NORM_FLOOR = 1e-3


@ENCODERS.register("conv-asr")
class ConvASR(FilterBankEncoder):
    """Standardised mel features to the only layer of this encoder, the output of the last block.

    Parameters
    ----------
    blocks : sequence of dict
        Settings of each block, see `BLOCK`; by default those of TitaNet-Large.
    bins : int
        Mel bins.
    window, transform, step : int
        Samples of a window, points of the transform, samples from one window to the next.
    shape : str
        Shape of the window, see `StandardMel`.
    """

    title = "ConvASREncoder"

    def __init__(
        self,
        blocks: Sequence[dict[str, Any]] = _TITANET,
        bins: int = 80,
        window: int = 400,
        transform: int = 512,
        step: int = 160,
        shape: str = "hann",
    ) -> None:
        settings = [_checked(block) for block in blocks]
        if not settings:
            raise KnnError("ConvASREncoder needs blocks.")
        front = StandardMel(bins, window, transform, step, shape, self.rate)
        widths = [bins, *(block["channels"] for block in settings)]
        strides = [block["stride"] ** (1 if block["stride_last"] else block["repeat"]) for block in settings]
        super().__init__(front, widths[-1], subsampling=prod(strides))
        self.blocks = nn.ModuleList(map(ConvASRBlock, widths, settings))

    def block_list(self) -> list[nn.Module]:
        """As `Encoder.block_list`."""
        return list(self.blocks)

    def encode(self, features: Tensor, counts: Tensor | None = None) -> Tensor:
        x = features  # (B, bins, T)
        for block in self.blocks:
            x, counts = block(x, counts)  # (B, C, T)
        return x.transpose(1, 2)


def _checked(block: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a block with their defaults. KnnError for unknown and impossible ones."""
    settings = {**BLOCK, **block}
    odd = [name for name, value in settings.items() if name not in BLOCK or type(value) is not type(BLOCK[name])]
    if odd:
        raise KnnError(f"A block of ConvASREncoder cannot have {odd[0]} {settings[odd[0]]!r}.")
    sizes = [settings[name] for name in ("channels", "repeat", "kernel", "stride", "dilation")]
    if min(sizes) < 1 or settings["kernel"] % 2 == 0 or not 0 <= settings["squeeze"] <= settings["channels"]:
        raise KnnError("A block of ConvASREncoder needs sizes of 1 or more, and an odd kernel.")
    if settings["stride"] > 1 and (settings["dilation"] > 1 or settings["residual"] > settings["stride_residual"]):
        raise KnnError("A block of ConvASREncoder that strides needs a dilation of 1 and a residual that strides.")
    if settings["residual"] and settings["stride"] > 1 and settings["repeat"] > 1 and not settings["stride_last"]:
        raise KnnError("The residual of a ConvASREncoder's block strides once, and its units several times.")
    if not 0 <= settings["dropout"] < 1:
        raise KnnError(f"A block of ConvASREncoder cannot have dropout {settings['dropout']}.", "It is 0 to below 1.")
    return settings


class ConvASRUnit(nn.Module):
    """A convolution over time, depthwise and pointwise or whole, and batch norm."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, dilation: int, separable: bool) -> None:
        super().__init__()
        self.masks, self.stride = kernel > 1, stride
        sizes: dict[str, Any] = {
            "stride": stride,
            "dilation": dilation,
            "padding": dilation * (kernel - 1) // 2,
            "bias": False,
        }
        self.depthwise = nn.Conv1d(before, before, kernel, groups=before, **sizes) if separable else None
        self.convolution = (
            nn.Conv1d(before, after, 1, bias=False) if separable else nn.Conv1d(before, after, kernel, **sizes)
        )
        self.norm = nn.BatchNorm1d(after, eps=_NORM_FLOOR)

    def forward(self, x: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, C, T), frames of each clip (B,) int64, or None where none is padded -> (B, C', T'), frames."""
        if counts is not None:
            if self.masks:
                x = x * frame_mask(counts, x.shape[2]).unsqueeze(1)
            counts = (counts + self.stride - 1) // self.stride
        x = x if self.depthwise is None else self.depthwise(x)
        return self.norm(self.convolution(x)), counts


class GlobalSqueezeExcitation(nn.Module):
    """A factor for each channel from the means over the clip: x sigmoid(W relu(V mean x))."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(channels, channels // reduction, bias=False)
        self.widen = nn.Linear(channels // reduction, channels, bias=False)

    def forward(self, x: Tensor, counts: Tensor | None) -> Tensor:
        mask = None if counts is None else frame_mask(counts, x.shape[2])
        mean = time_mean(x.transpose(1, 2), mask)  # (B, C)
        return cast(Tensor, x * self.widen(self.narrow(mean).relu()).sigmoid().unsqueeze(2))


class ConvASRBlock(nn.Module):
    """Units with ReLU and dropout between them, squeeze-excitation, a residual branch, ReLU and dropout."""

    def __init__(self, before: int, settings: Mapping[str, Any]) -> None:
        super().__init__()
        channels, repeat, stride = settings["channels"], settings["repeat"], settings["stride"]
        shape = (settings["dilation"], settings["separable"])
        strides = [1 if settings["stride_last"] else stride] * (repeat - 1) + [stride]
        widths = [before, *[channels] * (repeat - 1)]
        self.units = nn.ModuleList(
            ConvASRUnit(width, channels, settings["kernel"], step, *shape)
            for width, step in zip(widths, strides, strict=True)
        )
        self.squeeze = GlobalSqueezeExcitation(channels, settings["squeeze"]) if settings["squeeze"] else None
        step = stride if settings["stride_residual"] else 1
        self.residual = ConvASRUnit(before, channels, 1, step, 1, separable=False) if settings["residual"] else None
        self.dropout = nn.Dropout(settings["dropout"])

    def forward(self, x: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor | None]:
        y, after = x, counts
        for number, unit in enumerate(self.units):
            y = self.dropout(y.relu()) if number else y
            y, after = unit(y, after)
        if self.squeeze is not None:
            y = self.squeeze(y, after)
        if self.residual is not None:
            y = y + self.residual(x, counts)[0]
        return self.dropout(y.relu()), after


@POOLINGS.register("layered-statistics")
class LayeredStatistics(Pooling):
    """Mean and standard deviation over a clip, then linear layers with batch norm, ReLU between them.

    The x-vector decoder of NeMo (pool modes `xvector` and `tap`): the embedding is the last layer's, before its ReLU.
    It pools the last layer of the encoder; variances are unbiased and at least 1e-10.

    Parameters
    ----------
    layers : int
        Number of layers L of the encoder.
    channels : int
        Width C of a layer.
    dimensions : sequence of int
        Widths of the linear layers, the last of which is that of the embedding.
    deviation : bool
        Whether the deviation stands beside the mean.
    """

    def __init__(self, layers: int, channels: int, dimensions: Sequence[int] = (512,), deviation: bool = True) -> None:
        super().__init__()
        check_sizes("Layered statistics", layers=layers, channels=channels, dimensions=len(dimensions))
        check_sizes("Layered statistics", dimension=min(dimensions))
        self.layers, self.dimension, self.deviation = layers, dimensions[-1], deviation
        widths = [channels * (2 if deviation else 1), *dimensions]
        self.linears = nn.ModuleList(map(nn.Linear, widths, dimensions))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width, affine=False) for width in dimensions)

    def forward(self, layers: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
        """Embeddings (B, E) of `layers` (B, T, C), mask (B, T) bool True at real frames.

        Raises
        ------
        ValueError
            The number of layers is not L.
        """
        frames = last_layer(layers, self.layers)
        x = mean = time_mean(frames, mask)
        if self.deviation:
            x = torch.cat([mean, time_variance(frames, mean, mask).clamp_min(1e-10).sqrt()], dim=1)
        for number, (linear, norm) in enumerate(zip(self.linears, self.norms, strict=True)):
            x = norm(linear(x.relu() if number else x))
        return x
