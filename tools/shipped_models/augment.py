"""Data augmentation as arithmetic on log mel powers.

A channel is an addition of log powers, noise an addition of powers, reverberation a smearing of powers over time, and a
different vocal tract a warp of the frequency axis: training needs no waveforms and no Fourier transforms.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tools.shipped_models.data import Corpus

NEPER = 10 / math.log(10)  # decibels in one unit of a natural log power
BINS = 80


def _slaney(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mels < 15, 200 * mels / 3, 1000 * np.exp(math.log(6.4) / 27 * (mels - 15)))


def _slaney_mels(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    high = 15 + 27 / math.log(6.4) * np.log(np.maximum(hertz, 1.0) / 1000)
    return np.where(hertz < 1000, 3 * hertz / 200, high)


def _kaldi(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    return 700 * np.expm1(mels / 1127)


def _kaldi_mels(hertz: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1127 * np.log1p(hertz / 700)


def warp_matrix(factor: float, scale: str = "slaney") -> Tensor:
    """(80, 80): log mel @ matrix has at frequency f the value from f / factor; linear interpolation on mel.

    `scale` "slaney" is Whisper's (from 0 Hz), "kaldi" CAM++'s (from 20 Hz); both to 8 kHz.
    """
    hertz, mels, low = (_slaney, _slaney_mels, 0.0) if scale == "slaney" else (_kaldi, _kaldi_mels, 20.0)
    first, last = mels(np.array([low, 8000.0]))
    centres = np.linspace(first, last, BINS + 2)[1:-1]
    place = np.clip((mels(hertz(centres) / factor) - centres[0]) / (centres[1] - centres[0]), 0, BINS - 1)
    left = np.minimum(place.astype(int), BINS - 2)
    matrix = np.zeros((BINS, BINS), np.float32)
    matrix[left, np.arange(BINS)] = 1 - (place - left)
    matrix[left + 1, np.arange(BINS)] += place - left
    return torch.from_numpy(matrix)


WARPS = torch.stack([warp_matrix(float(factor)) for factor in np.linspace(0.85, 1.18, 18)])


def augment(logs: Tensor, noise: Corpus, rng: np.random.Generator, *, warp: float, plain: float) -> Tensor:
    """Natural log mel powers (B, N, 80) -> the same shape, with random vocal tract, room, channel and noise.

    A share `warp` of the clips gets a warped frequency axis; a share `plain` gets only a channel response.
    """
    size, length, bins = logs.shape
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(size, 1, 1, generator=generator)

    def chance(p: float) -> Tensor:
        return torch.rand(size, 1, 1, generator=generator) < p

    which = torch.randint(len(WARPS), (size,), generator=generator)
    logs = torch.where(chance(warp), torch.bmm(logs, WARPS[which]), logs)
    logs = logs - logs.amax((1, 2), keepdim=True)

    # room: powers smeared by an exponential decay, the direct sound -3 to 15 dB above the tail
    powers = logs.exp()
    rows = torch.from_numpy(rng.random(size) < 0.4).nonzero()[:, 0]
    if len(rows):
        decay = 10 ** (-6 / (100 * uniform(0.15, 0.8)[rows]))  # power after one frame; T60 in seconds
        lag = (torch.arange(length)[:, None] - torch.arange(length)).float()  # (N, N)
        tail = torch.where(lag > 0, decay ** lag.clamp_min(0), 0.0) * (1 - decay)  # (b, N, N)
        wet = 10 ** (-uniform(-3, 15)[rows] / 10)
        powers[rows] += wet * torch.bmm(tail, powers[rows])

    # channel: a smooth random response, sometimes a band limit
    place = torch.linspace(0, 1, bins)
    curve = torch.zeros(size, 1, bins)
    for k in range(1, 7):
        curve += torch.randn(size, 1, 1, generator=generator) * torch.cos(math.pi * k * place) / k**0.5
    powers = powers * torch.exp(uniform(0, 5) / NEPER * curve)
    untouched = torch.exp(logs + uniform(0, 5) / NEPER * curve)  # result for the share `plain` of clips
    top, bottom = uniform(0.66, 0.98), uniform(0.02, 0.16)  # of the mel axis
    top = torch.where(chance(0.4), uniform(0.70, 0.75), top)  # a telephone
    cut = torch.where(chance(0.35) & (place > top), -50.0 / NEPER * ((place - top) * 20).clamp(0, 1), 0.0)
    low = -30.0 / NEPER * ((bottom - place) * 20).clamp(0, 1)
    cut = cut + torch.where(chance(0.2) & (place < bottom), low, 0.0)
    powers = powers * cut.exp()

    # recorded noise and coloured hiss
    mean = powers.mean((1, 2), keepdim=True)
    crops = np.stack([noise.crop(int(rng.integers(len(noise))), length, rng) for _ in range(size)])
    recorded = torch.from_numpy(crops).float().exp()
    recorded = recorded / recorded.mean((1, 2), keepdim=True).clamp_min(1e-20)
    powers = powers + torch.where(chance(0.5), mean * 10 ** (-uniform(3, 30) / 10), 0.0) * recorded
    hiss = torch.exp(uniform(-6, 2) * place) * torch.empty(logs.shape).exponential_(generator=generator)
    hiss = hiss / hiss.mean((1, 2), keepdim=True)
    powers = powers + torch.where(chance(0.6), mean * 10 ** (-uniform(15, 55) / 10), 0.0) * hiss
    return torch.where(chance(plain), untouched, powers).clamp_min(1e-20).log()
