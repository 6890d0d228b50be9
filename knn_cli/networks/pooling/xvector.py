"""The x-vector back end of WavLM-Base+-SV: time-delay layers, statistics over time, a linear layer.

Snyder et al., "X-vectors: robust DNN embeddings for speaker recognition", ICASSP 2018, section 2.1, on the layers'
weighted sum, with the arithmetic and the weights of transformers' `WavLMForXVector`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import POOLINGS
from knn_cli.networks.contracts import Pooling
from knn_cli.networks.features import frame_mask
from knn_cli.networks.onnx_state import is_in_onnx_export
from knn_cli.networks.pooling.base import (
    check_sizes,
    clamp_min,
    last_layer,
    layer_sums,
    time_mean,
    time_variance,
    zero_padding,
)

__all__ = ["XVector"]


@POOLINGS.register("xvector")
class XVector(Pooling):
    """Time-delay layers without padding, mean and standard deviation over time, and a linear layer.

    A clip shorter than the time-delay layers' receptive field is extended by repeating its first and last frame.

    Parameters
    ----------
    layers : int
        Number of layers L of the encoder.
    channels : int
        Width C of a layer.
    widths : sequence of int
        Channels of each time-delay layer.
    kernels, dilations : sequence of int
        Kernel sizes and dilations of the time-delay layers, in frames.
    dimension : int
        Width E of the embedding.
    weighted : bool
        Whether to pool the weighted sum of all layers instead of the last layer alone.
    """

    def __init__(
        self,
        layers: int,
        channels: int,
        widths: Sequence[int] = (512, 512, 512, 512, 1500),
        kernels: Sequence[int] = (5, 3, 3, 1, 1),
        dilations: Sequence[int] = (1, 2, 3, 1, 1),
        dimension: int = 512,
        weighted: bool = True,
    ) -> None:
        super().__init__()
        check_sizes("X-vector", layers=layers, channels=channels, dimension=dimension)
        if not 1 <= len(widths) == len(kernels) == len(dilations) or min(*widths, *kernels, *dilations) < 1:
            raise KnnError("X-vector pooling needs widths, kernels and dilations of one length, of 1 or more each.")
        self.layers, self.dimension, self.kernels, self.dilations = layers, dimension, tuple(kernels), tuple(dilations)
        self.span = 1 + sum((kernel - 1) * step for kernel, step in zip(kernels, dilations, strict=True))
        if weighted:
            self.layer_weights = nn.Parameter(torch.ones(layers) / layers)
        self.weighted = weighted
        self.projector = nn.Linear(channels, widths[0])
        before = [widths[0], *widths[:-1]]
        shapes = zip(before, widths, kernels, strict=True)
        self.tdnn = nn.ModuleList(nn.Linear(wide * kernel, after) for wide, after, kernel in shapes)
        self.linear = nn.Linear(2 * widths[-1], dimension)

    def forward(self, layers: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
        """Embeddings (B, E) of `layers` (B, T, C), mask (B, T) bool True at real frames, which come first.

        Raises
        ------
        ValueError
            The number of layers is not L.
        """
        frames = layer_sums(layers, self.layer_weights)[0] if self.weighted else last_layer(layers, self.layers)
        frames = self.projector(zero_padding(frames, mask))  # (B, T, D)
        if mask is not None or frames.shape[1] < self.span or is_in_onnx_export():  # a graph has no branches
            frames, mask = self._lengthened(frames, mask)
        x = frames.transpose(1, 2)  # (B, D, T)
        for linear, kernel, dilation in zip(self.tdnn, self.kernels, self.dilations, strict=True):
            layer = cast(nn.Linear, linear)
            weight = layer.weight.view(layer.out_features, kernel, -1).transpose(1, 2)  # (D', D, kernel)
            x = F.relu(F.conv1d(x, weight, layer.bias, dilation=dilation))
        frames = x.transpose(1, 2)  # (B, T - span + 1, D)
        if mask is not None:
            mask = mask[:, self.span - 1 :]
        mean = time_mean(frames, mask)
        # The gradient of a square root is infinite at 0: the bound keeps a constant clip from giving NaN.
        deviation = time_variance(frames, mean, mask).clamp_min(1e-14).sqrt()
        embeddings: Tensor = self.linear(torch.cat([mean, deviation], dim=1))
        return embeddings

    def _lengthened(self, frames: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Frames (B, T, D) and mask (B, T) with clips of fewer than `span` frames lengthened to `span`."""
        batch, time, width = frames.shape
        counts = torch.full((batch,), time, dtype=torch.int64, device=frames.device) if mask is None else mask.sum(1)
        lead = (self.span - counts).clamp_min(0) // 2  # frames to put in front
        steps = torch.arange(clamp_min(time, self.span), device=frames.device)
        steps = torch.minimum((steps - lead[:, None]).clamp_min(0), counts[:, None] - 1)  # (B, T')
        frames = frames.gather(1, steps.unsqueeze(2).expand(-1, -1, width))  # (B, T', D)
        return frames, frame_mask(counts.clamp_min(self.span), frames.shape[1])
