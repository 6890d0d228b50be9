"""ECAPA-TDNN: encoder and pooling, with speechbrain's arithmetic and parameter names.

Desplanques et al., "ECAPA-TDNN: emphasized channel attention, propagation and aggregation in TDNN based speaker
verification", Interspeech 2020 (arXiv:2005.07143). Convolutions pad a clip by reflection at both ends; in a
padded batch each clip is reflected at its own end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS, HEADS, POOLINGS
from knn_cli.networks.contracts import Pooling
from knn_cli.networks.encoders.filter_bank import FilterBankEncoder
from knn_cli.networks.features import DecibelMel, frame_mask, reflect_pad
from knn_cli.networks.heads.base import ClassificationHead
from knn_cli.networks.pooling.base import check_sizes, last_layer, zero_padding

__all__ = ["DeepSoftmax", "EcapaPooling", "EcapaTDNN"]


@ENCODERS.register("ecapa-tdnn")
class EcapaTDNN(FilterBankEncoder):
    """Decibel mel features to the only layer of this encoder, the aggregated frames of section 3.3, one every 10 ms.

    Parameters
    ----------
    channels : sequence of int
        Widths of the first convolution, of each squeeze-excited block, and of the aggregation.
    kernels, dilations : sequence of int
        Kernel sizes and dilations of the same layers, in frames.
    scale : int
        Number of channel groups in a block's Res2Net convolution.
    squeeze : int
        Width of the excitation's bottleneck.
    bins : int
        Mel bins.
    """

    title = "ECAPA-TDNN"

    def __init__(
        self,
        channels: Sequence[int] = (1024, 1024, 1024, 1024, 3072),
        kernels: Sequence[int] = (5, 3, 3, 3, 1),
        dilations: Sequence[int] = (1, 2, 3, 4, 1),
        scale: int = 8,
        squeeze: int = 128,
        bins: int = 80,
    ) -> None:
        if not 3 <= len(channels) == len(kernels) == len(dilations):
            raise KnnError("ECAPA-TDNN needs channels, kernels and dilations of one length, of 3 or more.")
        if any(kernel % 2 == 0 for kernel in kernels) or any(width % scale for width in channels[1:-1]):
            raise KnnError(f"ECAPA-TDNN needs odd kernels, and blocks whose channels divide by scale {scale}.")
        front = DecibelMel(bins, self.rate)
        reach = max((kernel - 1) // 2 * dilation for kernel, dilation in zip(kernels, dilations, strict=True))
        minimum = max(1, reach * front.stride)  # reflecting `reach` frames needs reach + 1 frames
        super().__init__(front, channels[-1], minimum=minimum)
        shapes = list(zip(channels, channels[1:-1], kernels[1:-1], dilations[1:-1], strict=False))
        blocks = [SERes2NetBlock(before, after, kernel, step, scale, squeeze) for before, after, kernel, step in shapes]
        self.blocks = nn.ModuleList([TDNNBlock(bins, channels[0], kernels[0], dilations[0]), *blocks])
        self.mfa = TDNNBlock(sum(channels[1:-1]), channels[-1], kernels[-1], dilations[-1])

    def block_list(self) -> list[nn.Module]:
        """As `Encoder.block_list`."""
        return list(self.blocks)

    def encode(self, features: Tensor, counts: Tensor | None = None) -> Tensor:
        x = features  # (B, bins, T)
        outputs = []
        for block in self.blocks:
            x = block(x, counts)  # (B, C, T)
            outputs.append(x)
        layer: Tensor = self.mfa(torch.cat(outputs[1:], dim=1), counts)  # (B, C, T)
        return layer.transpose(1, 2)


class TDNNBlock(nn.Module):
    """Convolution over time with reflection padding, ReLU, batch norm."""

    def __init__(self, before: int, after: int, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.reach = (kernel - 1) // 2 * dilation
        self.conv = nn.Conv1d(before, after, kernel, dilation=dilation)
        self.norm = nn.BatchNorm1d(after)

    def forward(self, x: Tensor, counts: Tensor | None) -> Tensor:
        """(B, C, T), frames of each clip (B,) int64, or None where none is padded -> (B, C', T)."""
        return cast(Tensor, self.norm(F.relu(self.conv(reflect_pad(x, self.reach, counts)))))


class SERes2NetBlock(nn.Module):
    """Section 3.2: 1 x 1 convolution, Res2Net convolution, 1 x 1 convolution, squeeze-excitation, and a shortcut."""

    def __init__(self, before: int, after: int, kernel: int, dilation: int, scale: int, squeeze: int) -> None:
        super().__init__()
        self.tdnn1 = TDNNBlock(before, after)
        part = after // scale
        self.res2net_block = nn.ModuleDict(
            {"blocks": nn.ModuleList(TDNNBlock(part, part, kernel, dilation) for _ in range(scale - 1))}
        )
        self.tdnn2 = TDNNBlock(after, after)
        self.se_block = nn.ModuleDict({"conv1": nn.Conv1d(after, squeeze, 1), "conv2": nn.Conv1d(squeeze, after, 1)})
        self.shortcut = nn.Conv1d(before, after, 1) if before != after else None

    def forward(self, x: Tensor, counts: Tensor | None) -> Tensor:
        y = self.tdnn1(x, counts)
        parts = list(y.chunk(len(self.units) + 1, dim=1))
        for number, unit in enumerate(self.units, start=1):
            parts[number] = unit(parts[number] if number == 1 else parts[number] + parts[number - 1], counts)
        y = self.tdnn2(torch.cat(parts, dim=1), counts)
        if counts is None:
            mean = y.mean(2, keepdim=True)  # (B, C, 1)
        else:
            within = y.masked_fill(~frame_mask(counts, y.shape[2]).unsqueeze(1), 0.0)
            mean = within.sum(2, keepdim=True) / counts[:, None, None]
        gate = self.se_block["conv2"](F.relu(self.se_block["conv1"](mean))).sigmoid()
        return cast(Tensor, gate * y + (x if self.shortcut is None else self.shortcut(x)))

    @property
    def units(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.res2net_block["blocks"])


@POOLINGS.register("ecapa-tdnn")
class EcapaPooling(Pooling):
    """ECAPA-TDNN's pooling: channel- and context-dependent attentive statistics, batch norm, linear layer.

    It pools the last layer (sections 3.1 and 2).

    Parameters
    ----------
    layers : int
        Number of layers L of the encoder.
    channels : int
        Width C of a layer.
    attention : int
        Width of the attention's bottleneck.
    dimension : int
        Width E of the embedding.
    context : bool
        Whether the attention takes the clip's mean and standard deviation together with each frame.
    floor : float
        The least variance: speechbrain's 1e-12, or 1e-10 of NeMo.
    """

    def __init__(
        self,
        layers: int,
        channels: int,
        attention: int = 128,
        dimension: int = 192,
        context: bool = True,
        floor: float = 1e-12,
    ) -> None:
        super().__init__()
        check_sizes("ECAPA-TDNN", layers=layers, channels=channels, attention=attention, dimension=dimension)
        if not 0 < floor < 1:
            raise KnnError(f"ECAPA-TDNN pooling has no variances with a floor of {floor}.", "It is 1e-10 or less.")
        self.layers, self.dimension, self.context, self.floor = layers, dimension, context, floor
        self.tdnn = TDNNBlock(channels * (3 if context else 1), attention)
        self.conv = nn.Conv1d(attention, channels, 1)
        self.norm = nn.BatchNorm1d(2 * channels)
        self.fc = nn.Conv1d(2 * channels, dimension, 1)

    def forward(self, layers: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
        """Embeddings (B, E) of `layers` (B, T, C), mask (B, T) bool True at real frames.

        Raises
        ------
        ValueError
            The number of layers is not L.
        """
        frames = zero_padding(last_layer(layers, self.layers), mask)
        if mask is None:
            mask = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
        x, real = frames.transpose(1, 2), mask.unsqueeze(1)  # (B, C, T), (B, 1, T)
        weight, width = self.tdnn.conv.weight, x.shape[1]  # (A, 3C or C, 1)
        keys = F.conv1d(x, weight[:, :width], self.tdnn.conv.bias)  # (B, A, T)
        if self.context:  # the same at every frame, so its part of the product is computed once
            whole = torch.cat(_statistics(x, real / real.sum(2, keepdim=True), self.floor), dim=1)  # (B, 2C)
            keys = keys + (whole @ weight[:, width:].squeeze(2).T).unsqueeze(2)
        logits = self.conv(self.tdnn.norm(F.relu(keys)).tanh()).masked_fill(~real, float("-inf"))  # (B, C, T)
        pooled = torch.cat(_statistics(x, logits.softmax(2), self.floor), dim=1)  # (B, 2C)
        return cast(Tensor, self.fc(self.norm(pooled).unsqueeze(2)).squeeze(2))


def _statistics(x: Tensor, weights: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation over time of (B, C, T): (B, C) each."""
    mean = (weights * x).sum(2)
    variance = (weights * (x - mean.unsqueeze(2)).square()).sum(2)
    return mean, variance.clamp_min(floor).sqrt()


@HEADS.register("deep-softmax")
class DeepSoftmax(ClassificationHead):
    """speechbrain's x-vector classifier: linear layers, each after leaky ReLU and batch norm.

    Parameters
    ----------
    dimension : int
        Width E of the embeddings.
    classes : int
        Number of classes C.
    hidden : sequence of int
        Widths of the hidden layers.
    class_weights : sequence of float, optional
        See `ClassificationHead`.
    label_smoothing : float
        See `ClassificationHead`.
    """

    has_margin = False

    def __init__(
        self,
        dimension: int,
        classes: int,
        hidden: Sequence[int] = (512,),
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(dimension, classes, 0.0, class_weights, label_smoothing)
        widths = [dimension, *hidden]
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in widths)
        self.linears = nn.ModuleList(
            nn.Linear(before, after) for before, after in zip(widths, [*hidden, classes], strict=True)
        )

    def logits(self, embeddings: Tensor) -> Tensor:
        """Scores (B, C) float32 of embeddings (B, E)."""
        x = embeddings
        for norm, linear in zip(self.norms, self.linears, strict=True):
            x = linear(norm(F.leaky_relu(x)))
        return x.float()

    def forward(self, embeddings: Tensor, labels: Tensor, *, margin: float | None = None) -> Tensor:
        """The same scores as `logits`, because this head has no margin."""
        self._checked(margin)
        return self.logits(embeddings)
