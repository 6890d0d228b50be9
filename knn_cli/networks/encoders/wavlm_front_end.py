"""The convolutional front end of WavLM and wav2vec 2.0, which processes long clips in blocks to save memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.networks.encoders.gradient_checkpointing import ConvolutionOfActivation, apply_function, trains_on_cpu
from knn_cli.networks.encoders.wavlm_sizes import TransformerSizes
from knn_cli.networks.onnx_state import is_in_onnx_export

__all__ = ["ConvolutionalFrontEnd"]

# Frames whose convolutions are held at once, by device: 5 s of audio on a CPU; elsewhere enough to keep it busy.
MAX_FRAMES = {"cpu": 250}
MAX_FRAMES_ELSEWHERE = 5000
MAX_FRAMES_BACKWARD = 30  # in training on a CPU; fewer are slower


class ConvolutionalFrontEnd(nn.Module):
    """Waveforms (B, S) to projected frames (B, T, C): the convolutions, their norms, the projection.

    A norm over time ("group") needs the mean and variance of the first convolution's output. Both follow from the mean
    and the covariance of the kernel-long windows of the clip, so the norm is folded into one kernel per clip, which is
    exact for a padded clip and lets the clip be processed in blocks.
    """

    def __init__(self, sizes: TransformerSizes, projection_norm: bool = True) -> None:
        super().__init__()
        widths = [1, *(channels for channels, _, _ in sizes.convolutions)]
        convolutions = [
            nn.Conv1d(before, after, kernel, stride, bias=sizes.convolution_bias)
            for before, (after, kernel, stride) in zip(widths, sizes.convolutions, strict=False)
        ]
        for convolution in convolutions:
            nn.init.kaiming_normal_(convolution.weight)
        self.convolutions = nn.ModuleList(convolutions)
        self.folds = sizes.convolution_norm == "group"
        self.norms = nn.ModuleList(
            [nn.GroupNorm(widths[1], widths[1])] if self.folds else [nn.LayerNorm(width) for width in widths[1:]]
        )
        self.norm = nn.LayerNorm(widths[-1]) if projection_norm else nn.Identity()
        self.projection = nn.Linear(widths[-1], sizes.channels)
        self.stride, self.minimum = sizes.stride, sizes.minimum

    def forward(self, waveforms: Tensor, ends: list[int]) -> Tensor:
        if is_in_onnx_export():
            return self._convolve(waveforms, None)  # a graph has neither loops nor clips of unequal lengths
        count = (waveforms.shape[1] - self.minimum) // self.stride + 1
        max_frames = MAX_FRAMES.get(waveforms.device.type, MAX_FRAMES_ELSEWHERE)
        convolve = self._convolve
        if self._suits_products(waveforms):
            convolve = partial(self._convolve_by_products, self._matrices())
        if trains_on_cpu(waveforms):
            max_frames = min(max_frames, MAX_FRAMES_BACKWARD)
        elif torch.is_grad_enabled():
            max_frames = count * len(waveforms)  # everything is stored for the backward pass anyway
        clips = max(1, max_frames // count)
        rows = []
        for first in range(0, len(waveforms), clips):
            batch = slice(first, first + clips)
            kernels = self._folded_kernels(waveforms[batch], ends[batch]) if self.folds else None
            parts = []
            for start in range(0, count, max_frames):
                stop = min(start + max_frames, count)
                block = waveforms[batch, start * self.stride : (stop - 1) * self.stride + self.minimum]
                parts.append(convolve(block, kernels))  # (clips, stop - start, C)
            rows.append(torch.cat(parts, dim=1))  # (clips, T, C)
        return torch.cat(rows)

    def _folded_kernels(self, waveforms: Tensor, ends: list[int]) -> tuple[Tensor, Tensor]:
        """First convolution with its norm: kernels (B * channels, 1, kernel) and biases (B * channels,).

        Computed in float64: a kernel that passes little of the clip has a variance far below the covariances that it is
        computed from. The bias of the convolution is left out because the norm cancels it.
        """
        convolution, norm = cast(nn.Conv1d, self.convolutions[0]), cast(nn.GroupNorm, self.norms[0])
        device = torch.device("cpu") if waveforms.device.type == "mps" else waveforms.device  # no float64 there
        weight = convolution.weight.squeeze(1).to(device, torch.float64)  # (channels, kernel)
        gain, shift = norm.weight.to(device, torch.float64), norm.bias.to(device, torch.float64)
        kernels, biases = [], []
        for clip, end in zip(waveforms, ends, strict=True):
            windows = clip[:end].to(device, torch.float64)
            windows = windows.unfold(0, convolution.kernel_size[0], convolution.stride[0])  # (N, kernel)
            mean = windows.mean(dim=0)
            centred = windows - mean
            covariance = centred.T @ centred / len(centred)  # (kernel, kernel)
            variance = ((weight @ covariance) * weight).sum(dim=1)  # (channels,)
            kernel = weight * (gain / (variance + norm.eps).sqrt()).unsqueeze(1)
            kernels.append(kernel)
            biases.append(shift - kernel @ mean)
        return (
            torch.cat(kernels).unsqueeze(1).to(waveforms.device, convolution.weight.dtype),
            torch.cat(biases).to(waveforms.device, convolution.weight.dtype),
        )

    def _convolve(self, waveforms: Tensor, kernels: tuple[Tensor, Tensor] | None) -> Tensor:
        """Projected frames (B, T, C) of `waveforms` (B, S)."""
        x = waveforms.unsqueeze(1)  # (B, 1, S)
        if kernels is not None:
            stride = cast(nn.Conv1d, self.convolutions[0]).stride
            x = F.conv1d(waveforms.unsqueeze(0), *kernels, stride=stride, groups=len(waveforms))
            x = F.gelu(x.view(len(waveforms), -1, x.shape[2]))  # (1, B * channels, T) -> (B, channels, T)
            for convolution in self.convolutions[1:]:
                x = F.gelu(convolution(x))
        elif self.folds:
            x = F.gelu(self.norms[0](self.convolutions[0](x)))
            for convolution in self.convolutions[1:]:
                x = F.gelu(convolution(x))
        else:
            for convolution, norm in zip(self.convolutions, self.norms, strict=True):
                x = F.gelu(norm(convolution(x).transpose(1, 2)).transpose(1, 2))  # (B, channels, T)
        projected: Tensor = self.projection(self.norm(x.transpose(1, 2)))
        return projected

    def _suits_products(self, waveforms: Tensor) -> bool:
        """Whether matrix products are faster than convolutions: in float32 on a CPU, unless products are of 8 bits."""
        is_float = waveforms.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        return is_float and all(type(layer) is nn.Conv1d for layer in self.convolutions)

    def _matrices(self) -> list[Tensor]:
        """Kernels (taps * C, O) of all convolutions but the first."""
        others = cast(list[nn.Conv1d], list(self.convolutions)[1:])
        return [convolution.weight.permute(2, 1, 0).flatten(0, 1) for convolution in others]

    def _convolve_by_products(
        self, matrices: list[Tensor], waveforms: Tensor, kernels: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """`_convolve` of frames that lie side by side in memory, so that no convolution copies its input.

        In training it stores no activation, nor the output of the first convolution.
        """
        first, *others = cast(list[nn.Conv1d], list(self.convolutions))
        taps, stride = first.kernel_size[0], first.stride[0]
        norms: list[list[Tensor]] = [[]] * len(self.convolutions)
        if kernels is None:
            norms = [[norm.weight, norm.bias] for norm in cast(list[nn.LayerNorm], list(self.norms))]

        def begin(waveforms: Tensor, kernel: Tensor, shift: Tensor | None, *norm: Tensor) -> Tensor:
            x = waveforms.unfold(1, taps, stride) @ kernel  # (B, T, taps) @ (B or 1, taps, C)
            return activate(x if shift is None else x + shift, *norm)

        def activate(x: Tensor, *norm: Tensor) -> Tensor:
            return F.gelu(F.layer_norm(x, x.shape[2:], norm[0], norm[1]) if norm else x)  # (B, T, C)

        kernel, shift = first.weight.view(1, -1, taps), first.bias
        if kernels is not None:
            kernel, shift = kernels[0].view(len(waveforms), -1, taps), kernels[1].view(len(waveforms), 1, -1)
        activation: Callable[..., Tensor] = begin
        tensors = [waveforms, kernel.transpose(1, 2), shift, *norms[0]]
        for convolution, matrix, norm in zip(others, matrices, norms[1:], strict=True):
            shape = convolution.kernel_size[0], convolution.stride[0]
            x = apply_function(ConvolutionOfActivation, activation, matrix, convolution.bias, *shape, *tensors)
            activation, tensors = activate, [x, *norm]
        projected: Tensor = self.projection(self.norm(activation(*tensors)))
        return projected
