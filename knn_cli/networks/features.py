"""Filter-bank features: mel powers, and the normalised log-mel features of Kaldi, speechbrain, ReDimNet and NeMo.

`LogMel`, `DecibelMel`, `PaddedLogMel` and `StandardMel` map waveforms (B, S) to features (B, T, F) and give a clip the
same features in a padded batch as on its own: means, maxima and padding depend on the clip's samples only, and features
past its end are zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import AudioError, KnnError
from knn_cli.networks.contracts import Samples
from knn_cli.networks.onnx_state import is_in_onnx_export

__all__ = [
    "DecibelMel",
    "LogMel",
    "MelPower",
    "PaddedLogMel",
    "StandardMel",
    "centred",
    "check_clip_lengths",
    "frame_mask",
    "mel_matrix",
    "power_spectra",
    "reflect_pad",
    "slaney_matrix",
    "unbiased_variance",
    "windows",
]

_KALDI_FLOOR = torch.finfo(torch.float32).eps  # Kaldi's smallest energy


def mel_matrix(bins: int, size: int, rate: int, low: float, high: float) -> NDArray[np.float32]:
    """Triangular mel filters (size // 2 + 1, bins) for the power spectrum of a `size`-point transform.

    Kaldi's filters: centres equally spaced on mel = 1127 ln(1 + f / 700) from `low` to `high` Hz, triangles
    linear in mel, each with a peak of 1.
    """

    def mel(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1127.0 * np.log1p(hertz / 700.0)

    first, last = mel(np.array([low, high]))
    edges = np.linspace(first, last, bins + 2)
    points = mel(np.arange(size // 2 + 1) * rate / size)[:, None]  # (size // 2 + 1, 1)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((points - left) / (centre - left), (right - points) / (right - centre))
    return cast(NDArray[np.float32], np.maximum(triangles, 0.0).astype(np.float32))


def slaney_matrix(bins: int, size: int, rate: int) -> Tensor:
    """Slaney's mel filters (size // 2 + 1, bins) float32 for the power spectrum of a `size`-point transform.

    Centres equally spaced on Slaney's scale (linear to 1 kHz, logarithmic above) from 0 to half the rate; triangles
    linear in frequency, each of area one.
    """
    step = math.log(6.4) / 27  # a mel above 1 kHz, which is mel 15

    def hertz(mels: np.ndarray) -> np.ndarray:
        return np.where(mels < 15, 200 * mels / 3, 1000 * np.exp(step * (mels - 15)))

    top = rate / 2
    last = 3 * top / 200 if top < 1000 else 15 + math.log(top / 1000) / step
    edges = hertz(np.linspace(0.0, last, bins + 2))
    points = np.linspace(0.0, top, size // 2 + 1)[:, None]  # (size // 2 + 1, 1)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((points - left) / (centre - left), (right - points) / (right - centre)).clip(0)
    return torch.from_numpy((triangles * 2 / (right - left)).astype(np.float32))


def windows(x: Tensor, size: int, step: int) -> Tensor:
    """(B, S, ...) -> (B, N, ..., size): complete windows over the second axis, one every `step`."""
    if not is_in_onnx_export():
        return x.unfold(1, size, step)
    # ONNX has no unfold: the graph gathers each window's values, for any number of windows
    first = torch.arange((x.shape[1] - size) // step + 1, device=x.device) * step
    return x[:, first[:, None] + torch.arange(size, device=x.device)].movedim(2, -1)


def power_spectra(frames: Tensor, size: int) -> Tensor:
    """Frames (B, N, L) of L <= `size` samples -> powers (B, N, size // 2 + 1) of their `size`-point transform."""
    if is_in_onnx_export():  # ONNX has no Fourier transform that is fast everywhere, hence a matrix product
        angles = np.outer(np.arange(frames.shape[2]), np.arange(size // 2 + 1)) * (2 * math.pi / size)
        matrix = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        real, imaginary = (frames @ torch.from_numpy(matrix).to(frames.device)).chunk(2, dim=2)
        return real.square() + imaginary.square()
    spectra = torch.fft.rfft(frames, n=size)
    return cast(Tensor, spectra.real.square() + spectra.imag.square())


class MelPower(nn.Module):
    """Mel powers of waveforms: 25 ms povey windows every 10 ms at 16 kHz, no dither, complete windows only.

    `torch.log(powers.clamp_min(1.1920929e-07))` equals Kaldi's `compute-fbank-feats` with 80 bins from 20 Hz to
    8 kHz for a waveform in [-1, 1]. It has no learnt parameters and saves no state.
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
        with torch.autocast(waveforms.device.type, enabled=False):  # half precision cannot hold powers
            frames = windows(waveforms.float(), self.length, self.shift)  # (B, N, 400)
            frames = frames - frames.mean(2, keepdim=True)
            before = torch.cat([frames[..., :1], frames[..., :-1]], dim=2)
            powers = power_spectra((frames - 0.97 * before) * self.window, self.size)  # (B, N, 257)
            return powers @ self.filters


class LogMel(nn.Module):
    """Kaldi's `compute-fbank-feats` without dither, and cepstral mean normalisation over the clip.

    Complete 25 ms windows every 10 ms, from each of which the mean is subtracted; pre-emphasis (0.97); window function;
    power spectrum; triangular filters on the mel scale from 20 Hz to half the rate; natural logarithm.

    Parameters
    ----------
    bins : int
        Mel bins F.
    rate : int
        Samples per second.
    window : str
        "povey" (Kaldi's and 3D-Speaker's) or "hamming" (wespeaker's).
    """

    def __init__(self, bins: int = 80, rate: int = 16000, window: str = "povey") -> None:
        super().__init__()
        if window not in ("povey", "hamming"):
            raise KnnError(f"There is no window {window!r} for filter banks.", "Known: povey, hamming.")
        self.mel = MelPower(bins, rate)
        self.bins, self.stride, self.minimum = bins, self.mel.shift, self.mel.length
        if window == "hamming":
            self.mel.window = torch.hamming_window(self.mel.length, periodic=False)

    def frames(self, samples: Samples) -> Samples:
        """Number of frames of a clip of `samples`: int for int, int64 tensor for int64 tensor."""
        frames = (samples - self.minimum) // self.stride + 1
        return frames.clamp_min(0) if isinstance(frames, Tensor) else max(frames, 0)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, S) float32, clip lengths (B,) int64 in samples or None -> (B, frames(S), bins) float32 with mean 0."""
        logs = self.mel(waveforms).clamp_min(_KALDI_FLOOR).log()  # (B, T, F)
        return centred(logs, None if lengths is None else frame_mask(self.frames(lengths), logs.shape[1]))


def _frames_around(samples: Samples, stride: int) -> Samples:
    """Number of frames around every `stride` samples of a clip, the first at its start; none of an empty clip."""
    frames = samples // stride + 1
    return frames.masked_fill(samples < 1, 0) if isinstance(samples, Tensor) else frames * (samples > 0)


class DecibelMel(nn.Module):
    """speechbrain's `Fbank`, and its sentence normalisation of the mean.

    25 ms Hamming windows centred at every 10 ms, with silence before and after the clip; power spectrum;
    filters that are triangular in frequency, on both sides as wide as the distance to the centre below, with centres
    equally spaced on mel = 2595 log10(1 + f / 700); 10 log10, at least the clip's largest value minus 80 dB.

    Parameters
    ----------
    bins : int
        Mel bins F.
    rate : int
        Samples per second.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, bins: int = 80, rate: int = 16000) -> None:
        super().__init__()
        self.bins, self.stride, self.size = bins, rate // 100, rate // 40
        self.minimum = 1
        self.register_buffer("window", torch.hamming_window(self.size), persistent=False)
        edges = torch.linspace(0.0, 2595 * math.log10(1 + rate / 2 / 700), bins + 2)
        hertz = 700 * (10 ** (edges / 2595) - 1)
        points = torch.linspace(0.0, rate / 2, self.size // 2 + 1)[:, None]
        away = (points - hertz[1:-1]).abs() / (hertz[1:-1] - hertz[:-2])  # (size // 2 + 1, F)
        self.register_buffer("filters", (1 - away).clamp_min(0).float(), persistent=False)

    def frames(self, samples: Samples) -> Samples:
        """Number of frames of a clip of `samples`: int for int, int64 tensor for int64 tensor."""
        return _frames_around(samples, self.stride)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, S) float32, clip lengths (B,) int64 in samples or None -> (B, frames(S), bins) float32 with mean 0."""
        with torch.autocast(waveforms.device.type, enabled=False):
            waveforms = waveforms.float()
            if lengths is not None:
                waveforms = waveforms * frame_mask(lengths, waveforms.shape[1])  # silence past the clip's end
            frames = windows(F.pad(waveforms, (self.size // 2, self.size // 2)), self.size, self.stride)
            powers = power_spectra(frames * self.window, self.size) @ self.filters  # (B, T, F)
            decibels = 10 * powers.clamp_min(1e-10).log10()
            mask = None if lengths is None else frame_mask(self.frames(lengths), decibels.shape[1])
            within = decibels if mask is None else decibels.masked_fill(~mask.unsqueeze(2), -math.inf)
            decibels = torch.maximum(decibels, within.amax((1, 2), keepdim=True) - 80)
            return centred(decibels, mask)


class PaddedLogMel(nn.Module):
    """ReDimNet's features: log(powers + 1e-6) of windows around every `hop` samples, minus the mean over the clip.

    Pre-emphasis (0.97); the clip reflected at its ends; 25 ms Hamming windows; power spectrum; filters that are
    triangular in frequency between edges equally spaced on mel = 2595 log10(1 + f / 700) from 20 to 7600 Hz, as
    `torchaudio.transforms.MelSpectrogram` has them.

    Parameters
    ----------
    bins : int
        Mel bins F.
    rate : int
        Samples per second.
    hop : int
        Samples from one frame to the next.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, bins: int = 72, rate: int = 16000, hop: int = 160) -> None:
        super().__init__()
        self.bins, self.stride, self.size = bins, hop, 512 * max(1, rate // 16000)
        self.minimum = self.size // 2 + 1  # so that half a window can be reflected
        around = (self.size - rate // 40) // 2
        self.register_buffer("window", F.pad(torch.hamming_window(rate // 40), (around, around)), persistent=False)
        low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (20.0, 7600.0))
        mels = np.linspace(low, high, bins + 2)
        edges = 700 * (10 ** (mels / 2595) - 1)
        points = np.linspace(0, rate / 2, self.size // 2 + 1)[:, None]
        rising, falling = (points - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - points) / np.diff(edges)[1:]
        triangles = np.maximum(np.minimum(rising, falling), 0)
        self.register_buffer("filters", torch.from_numpy(triangles.astype(np.float32)), persistent=False)

    def frames(self, samples: Samples) -> Samples:
        """Number of frames of a clip of `samples`: int for int, int64 tensor for int64 tensor."""
        return _frames_around(samples, self.stride)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, S) float32, clip lengths (B,) int64 in samples or None -> (B, frames(S), bins) float32 with mean 0."""
        with torch.autocast(waveforms.device.type, enabled=False):
            waveforms = waveforms.float()
            before = torch.cat([waveforms[:, 1:2], waveforms[:, :-1]], dim=1)
            clips = reflect_pad((waveforms - 0.97 * before).unsqueeze(1), self.size // 2, lengths).squeeze(1)
            powers = power_spectra(windows(clips, self.size, self.stride) * self.window, self.size) @ self.filters
            logs = (powers + 1e-6).log()  # (B, T, F)
            return centred(logs, None if lengths is None else frame_mask(self.frames(lengths), logs.shape[1]))


def reflect_pad(x: Tensor, reach: int, counts: Tensor | None) -> Tensor:
    """(B, C, T) padded by `reach` frames at both ends of each clip, by reflection at its first and last frame."""
    if reach == 0:
        return x
    if counts is None:
        return F.pad(x, (reach, reach), mode="reflect")  # (B, C, T + 2 reach)
    steps = torch.arange(-reach, x.shape[2] + reach, device=x.device).abs()
    end = counts[:, None] - 1
    steps = torch.where(steps > end, 2 * end - steps, steps).clamp_min(0)  # (B, T + 2 reach)
    return x.gather(2, steps.unsqueeze(1).expand(-1, x.shape[1], -1))


class StandardMel(nn.Module):
    """NeMo's log-mel features: each bin with mean 0 and deviation 1 over a clip's frames.

    Pre-emphasis x[n] - 0.97 x[n - 1] that leaves the first sample; symmetric windows centred at every step, with
    silence around the clip; Slaney's mels of power; ln(power + 2^-24); (value - mean) / (deviation + 1e-5), the
    deviation unbiased. The frame at the very end, centred where the clip has no more samples, is left out.

    Parameters
    ----------
    bins : int
        Mel bins F.
    window : int
        Samples of a window, even.
    transform : int
        Points of the Fourier transform.
    stride : int
        Samples from one frame to the next.
    shape : str
        One of `SHAPES`.
    rate : int
        Samples per second.
    """

    SHAPES: ClassVar[Mapping[str, Callable[..., Tensor]]] = {
        "hann": torch.hann_window,
        "hamming": torch.hamming_window,
        "blackman": torch.blackman_window,
        "bartlett": torch.bartlett_window,
    }
    window: Tensor
    filters: Tensor

    def __init__(
        self,
        bins: int = 80,
        window: int = 400,
        transform: int = 512,
        stride: int = 160,
        shape: str = "hann",
        rate: int = 16000,
    ) -> None:
        super().__init__()
        if min(bins, window, stride) < 1 or window % 2 or not window <= transform:
            raise KnnError(f"There are no {bins} mels of windows of {window} samples and {transform} points.")
        if shape not in self.SHAPES:
            raise KnnError(f"There are no windows {shape!r}.", f"Known: {', '.join(self.SHAPES)}.")
        self.bins, self.size, self.transform, self.stride = bins, window, transform, stride
        self.minimum = stride
        self.register_buffer("window", self.SHAPES[shape](window, periodic=False), persistent=False)
        self.register_buffer("filters", slaney_matrix(bins, transform, rate), persistent=False)

    def frames(self, samples: Samples) -> Samples:
        """Number of frames of a clip of `samples`: int for int, int64 tensor for int64 tensor."""
        return samples // self.stride

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, S) float32, clip lengths (B,) int64 in samples or None -> (B, frames(S), bins) float32."""
        with torch.autocast(waveforms.device.type, enabled=False):
            x = waveforms.float()
            x = torch.cat([x[:, :1], x[:, 1:] - 0.97 * x[:, :-1]], dim=1)
            if lengths is not None:
                x = x * frame_mask(lengths, x.shape[1])  # silence past the clip's end
            frames = windows(F.pad(x, (self.size // 2, self.size // 2)), self.size, self.stride)[:, :-1]
            powers = power_spectra(frames * self.window, self.transform) @ self.filters  # (B, T, F)
            mels = (powers + 2.0**-24).log()
            mask = None if lengths is None else frame_mask(self.frames(lengths), mels.shape[1])
            around = centred(mels, mask)
            return around / (unbiased_variance(around, mask).sqrt() + 1e-5)


def clamp_min(count: Samples, minimum: int) -> Samples:
    """The larger of the two. A length is a tensor while a graph is traced, and no branch may depend on it then."""
    return count.clamp(min=minimum) if isinstance(count, Tensor) else max(count, minimum)


def frame_mask(counts: Tensor, frames: int) -> Tensor:
    """(B,) int64 counts -> (B, frames) bool, True at the first `counts` frames of each row."""
    return torch.arange(frames, device=counts.device) < counts[:, None]


def check_clip_lengths(waveforms: Tensor, lengths: Tensor | None, minimum: int, network: str) -> None:
    """AudioError if a clip of waveforms (B, S) is below `minimum` samples, ValueError if lengths do not fit."""
    samples = waveforms.shape[1]
    if lengths is not None:
        if lengths.shape != waveforms.shape[:1] or int(lengths.max()) > samples:
            raise ValueError(f"lengths {lengths.tolist()} do not fit waveforms of shape {tuple(waveforms.shape)}")
        samples = int(lengths.min())
    if samples < minimum:
        raise AudioError(f"A clip of {samples} samples is too short for {network}.", f"It needs at least {minimum}.")


def centred(features: Tensor, mask: Tensor | None) -> Tensor:
    """(B, T, F) minus its mean over time; with a mask (B, T), the mean of real frames, and zero elsewhere."""
    if mask is None:
        return features - features.mean(1, keepdim=True)
    weights = mask.unsqueeze(2) / mask.sum(1).clamp_min(1)[:, None, None]  # (B, T, 1)
    mean = (features * weights).sum(1, keepdim=True)
    return (features - mean).masked_fill(~mask.unsqueeze(2), 0.0)


def unbiased_variance(around: Tensor, mask: Tensor | None) -> Tensor:
    """Variances (B, 1, F) over time of what `centred` returned for the same mask; 0 of a single frame."""
    count = clamp_min(around.shape[1] - 1, 1) if mask is None else (mask.sum(1) - 1).clamp_min(1)[:, None, None]
    return around.square().sum(1, keepdim=True) / count
