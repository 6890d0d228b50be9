"""Encoders: waveforms in, hidden layers out, one after the other.

An encoder is an `nn.Module` with the attributes `layers` (how many layers it yields), `channels` (the width of
each), `stride` (samples a frame) and `minimum` (samples of the shortest clip), and the methods `frames(samples)`
and `forward(waveforms, lengths)`; `forward` is a generator, so that a pooling back end never needs all layers at
once. A new encoder is one class under `ENCODERS`; the contract tests pick it up from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from knn_cli.core.registry import ENCODERS
from knn_cli.networks.contracts import Encoder, Samples


def mel_matrix(bins: int, size: int, rate: int, low: float, high: float) -> NDArray[np.float32]:
    """Triangular mel filters (size // 2 + 1, bins) for the power spectrum of a `size`-point transform.

    Kaldi's filters: centres equally spaced on mel = 1127 ln(1 + f / 700) from `low` to `high` Hz, triangles
    linear in mel, each with a peak of one.
    """

    def mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1127.0 * np.log1p(hertz / 700.0)

    first, last = mel(np.array([low, high]))
    edges = np.linspace(first, last, bins + 2)
    points = mel(np.arange(size // 2 + 1) * rate / size)[:, None]  # (size // 2 + 1, 1)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((points - left) / (centre - left), (right - points) / (right - centre))
    return cast(NDArray[np.float32], np.maximum(triangles, 0.0).astype(np.float32))


def windows(x: Tensor, size: int, step: int) -> Tensor:
    """(B, S, ...) -> (B, N, ..., size): windows over the second axis every `step`, only whole ones."""
    if not torch.onnx.is_in_onnx_export():
        return x.unfold(1, size, step)
    # ONNX has no unfold: a graph picks each window's values, however many windows a clip has
    first = torch.arange((x.shape[1] - size) // step + 1, device=x.device) * step
    return x[:, first[:, None] + torch.arange(size, device=x.device)].movedim(2, -1)


def power_spectra(frames: Tensor, size: int) -> Tensor:
    """Frames (B, N, L) of L <= `size` samples -> powers (B, N, size // 2 + 1) of their `size`-point transform."""
    if torch.onnx.is_in_onnx_export():  # ONNX has no transform that is fast everywhere: a product with its matrix
        angles = np.outer(np.arange(frames.shape[2]), np.arange(size // 2 + 1)) * (2 * math.pi / size)
        matrix = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        real, imaginary = (frames @ torch.from_numpy(matrix).to(frames.device)).chunk(2, dim=2)
        return real.square() + imaginary.square()
    spectra = torch.fft.rfft(frames, n=size)
    return cast(Tensor, spectra.real.square() + spectra.imag.square())


class MelPower(nn.Module):
    """Mel powers of waveforms: 25 ms povey windows every 10 ms at 16 kHz, no dither, only whole windows.

    `torch.log(powers.clamp_min(1.1920929e-07))` equals Kaldi's `compute-fbank-feats` with 80 bins from 20 Hz to
    8 kHz for a waveform in [-1, 1]. Nothing here is learned and nothing is saved.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, bins: int = 80, rate: int = 16000) -> None:
        super().__init__()
        self.length, self.shift, self.size = rate // 40, rate // 100, 512 * max(1, rate // 16000)
        steps = np.arange(self.length)
        povey = (0.5 - 0.5 * np.cos(2 * math.pi * steps / (self.length - 1))) ** 0.85
        self.register_buffer("window", torch.from_numpy(povey.astype(np.float32)), persistent=False)
        filters = mel_matrix(bins, self.size, rate, 20.0, rate / 2)
        self.register_buffer("filters", torch.from_numpy(filters), persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """(B, S) float32 in [-1, 1] -> (B, N, bins) float32, N = (S - 400) // 160 + 1."""
        with torch.autocast(waveforms.device.type, enabled=False):  # half precision has no room for powers
            frames = windows(waveforms.float(), self.length, self.shift)  # (B, N, 400)
            frames = frames - frames.mean(2, keepdim=True)
            before = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
            powers = power_spectra((frames - 0.97 * before) * self.window, self.size)  # (B, N, 257)
            return powers @ self.filters


class Block(nn.Module):
    """A residual time-delay block: norm, frames t - d, t, t + d side by side, linear layer, GELU, linear layer.

    Written as matrix products on (B, T, C): on a CPU it trains 1.5 times as fast as a ConvNeXt block of equal size.
    """

    def __init__(self, channels: int, hidden: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.norm = nn.LayerNorm(channels)
        self.inner = nn.Linear(3 * channels, hidden)
        self.outer = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T, C), mask (B, T, 1) of real frames or None -> (B, T, C)."""
        y = self.norm(x)
        if mask is not None:
            y = y * mask  # a padded batch sees zeros past the end, as a clip alone does
        d, n = self.dilation, x.shape[1]
        y = F.pad(y, (0, 0, d, d))  # (B, T + 2d, C)
        y = torch.cat([y[:, :n], y[:, d : d + n], y[:, 2 * d :]], dim=2)  # (B, T, 3C)
        return cast(Tensor, x + self.outer(F.gelu(self.inner(y))))


@ENCODERS.register("fbank-tdnn")
class FbankTDNN(Encoder):
    """Log-mel filter bank, then residual time-delay blocks of one width; 30 ms a frame.

    The loudness of a clip does not matter: powers are divided by the clip's mean power, `floor` is added before the
    logarithm (what lies that far under the mean is the recorder's silence, not speech), and the mean over time is
    taken off each mel bin. The means run over a clip's own frames, so that padding changes nothing.

    After Peddinti et al., "A time delay neural network architecture for efficient modeling of long temporal
    contexts" (Interspeech 2015), with the residual, normalised blocks of a transformer's feed-forward half.
    """

    rate = 16000

    mask_kind = "filter bank"

    def __init__(
        self,
        channels: int = 192,
        hidden: int = 256,
        dilations: Sequence[int] = (1, 1, 2, 2, 3, 3, 4, 4),
        bins: int = 80,
        floor: float = 1e-6,
    ) -> None:
        """`layers` = the stem's output and one for each of `dilations` (in frames of 30 ms)."""
        super().__init__()
        self.channels = channels
        self.layers = len(dilations) + 1
        self.floor = floor
        self.mel = MelPower(bins, self.rate)
        self.step = 3  # mel frames a frame
        self.stride = self.step * self.mel.shift
        self.minimum = self.mel.length + (self.step - 1) * self.mel.shift
        self.stem = nn.Linear(5 * bins, channels)
        self.blocks = nn.ModuleList(Block(channels, hidden, dilation) for dilation in dilations)

    def block_list(self) -> list[nn.Module]:
        """As `Encoder.block_list`."""
        return list(self.blocks)

    def mask_features(self, mask: Callable[[Tensor], Tensor]) -> None:
        """As `Encoder.mask_features`: the same mask for the five mel frames that are side by side in a frame."""

        def before_stem(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            frames = args[0].view(*args[0].shape[:2], -1, 5)  # (B, T, bins, 5)
            return (torch.stack([mask(each) for each in frames.unbind(3)], dim=3).flatten(2),)  # (B, T, bins * 5)

        self.stem.register_forward_pre_hook(before_stem)

    def frames(self, samples: Samples) -> Samples:
        """How many frames a clip of `samples` gives; takes an int, or an int64 tensor of them."""
        return self._windows(samples) // self.step

    def _windows(self, samples: Samples) -> Samples:
        """How many mel frames a clip of `samples` gives."""
        windows = (samples - self.mel.length) // self.mel.shift + 1
        return windows.clamp_min(0) if isinstance(windows, Tensor) else max(windows, 0)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Iterator[Tensor]:
        """(B, S) float32 in [-1, 1], clip lengths (B,) int64 in samples -> the layers, each (B, frames(S), C).

        With `lengths`, a clip's frames are those that it gives alone; frames past its end mean nothing.
        Raises ValueError where S is below `minimum`.
        """
        if waveforms.shape[1] < self.minimum:
            raise ValueError(f"a clip of {waveforms.shape[1]} samples is too short, {self.minimum} make one frame")
        counts = None if lengths is None else self._windows(lengths)
        return self.encode(self.mel(waveforms), counts)

    def encode(self, powers: Tensor, counts: Tensor | None = None) -> Iterator[Tensor]:
        """Mel powers (B, N, bins), the first `counts` (B,) int64 of them a clip's own -> layers (B, N // 3, C)."""
        x = self.normalise(powers, counts)
        x = windows(F.pad(x, (0, 0, 1, 1)), 5, self.step)  # (B, T, bins, 5): mel frames 3t - 1 to 3t + 3
        x = self.stem(x.flatten(2))  # (B, T, C)
        mask = None
        if counts is not None:
            steps = torch.arange(x.shape[1], device=x.device)
            mask = (steps < (counts // self.step)[:, None]).unsqueeze(2).to(x.dtype)  # (B, T, 1)
        yield x
        for block in self.blocks:
            x = block(x, mask)
            yield x

    def normalise(self, powers: Tensor, counts: Tensor | None = None) -> Tensor:
        """Mel powers (B, N, bins) -> log powers of equal loudness and no mean over time, 0 past a clip's end."""
        with torch.autocast(powers.device.type, enabled=False):
            if counts is None:
                mean = powers.mean((1, 2), keepdim=True)  # (B, 1, 1)
                logs = torch.log(powers / mean.clamp_min(1e-20) + self.floor)
                return logs - logs.mean(1, keepdim=True)
            real = torch.arange(powers.shape[1], device=powers.device) < counts[:, None]  # (B, N)
            weights = real.unsqueeze(2) / counts.clamp_min(1)[:, None, None]  # (B, N, 1), sums to 1
            mean = (powers * weights).sum(1, keepdim=True).mean(2, keepdim=True)  # (B, 1, 1)
            logs = torch.log(powers / mean.clamp_min(1e-20) + self.floor)
            centred = logs - (logs * weights).sum(1, keepdim=True)
            return centred * real.unsqueeze(2)
