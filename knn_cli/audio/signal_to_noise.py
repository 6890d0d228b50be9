"""Signal-to-noise ratio of speech from the distribution of its samples alone (WADA-SNR).

Amplitudes of clean speech follow a Gamma distribution of shape 0.4, those of noise a Gaussian one. How far log E|z| is
above E log|z| therefore says how much of both is in z. Nothing but these two means is kept of a recording.

References
----------
C. Kim and R. M. Stern, "Robust signal-to-noise ratio estimation based on waveform amplitude distribution analysis",
Interspeech 2008.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from knn_cli.core.values import Doubles, Floats

__all__ = ["MAX_DB", "MIN_DB", "SampleLevels"]

SHAPE = 0.4  # of the Gamma distribution
MIN_DB, MAX_DB = -20.0, 50.0  # what is above holds no noise that could be told from the pauses of speech
POINTS = 4000  # of the distribution of speech


class SampleLevels:
    """Means over the samples of a recording, from which its signal-to-noise ratio is estimated.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> speech = rng.gamma(0.4, size=160_000) * rng.choice([-1, 1], size=160_000)  # mean square 0.56
    >>> levels = SampleLevels()
    >>> levels.add(speech + np.sqrt(0.056) * rng.normal(size=160_000))  # noise 10 dB below
    >>> round(levels.snr())
    10
    """

    def __init__(self) -> None:
        self._count, self._sum, self._log_sum = 0, 0.0, 0.0

    def add(self, samples: Floats | Doubles) -> None:
        """Count (S,) samples; those that are exactly 0 do not count, as digital silence is neither speech nor noise."""
        levels = np.abs(samples[samples != 0]).astype(np.float64)
        self._count += len(levels)
        self._sum += float(levels.sum())
        self._log_sum += float(np.log(levels).sum())

    def snr(self) -> float:
        """The signal-to-noise ratio in decibels, from `MIN_DB` to `MAX_DB`; NaN for silence."""
        if not self._count:
            return math.nan
        decibels, gaps = _gaps()
        return float(np.interp(math.log(self._sum / self._count) - self._log_sum / self._count, gaps, decibels))


@cache
def _gaps() -> tuple[Doubles, Doubles]:
    """Signal-to-noise ratios in dB, and log E|z| - E log|z| of each, which grows with them."""
    from scipy import special

    speech = special.gammaincinv(SHAPE, (np.arange(POINTS) + 0.5) / POINTS)  # |amplitudes|, all as probable
    power = SHAPE * (SHAPE + 1)
    decibels = np.arange(MIN_DB, MAX_DB + 0.5)
    gaps = np.empty(len(decibels))
    for place, ratio in enumerate(decibels):
        noise = np.sqrt(power / 10 ** (ratio / 10))
        relative = speech / noise
        level = noise * np.sqrt(2 / np.pi) * np.exp(-(relative**2) / 2) + speech * special.erf(relative / np.sqrt(2))
        gaps[place] = np.log(level.mean()) - np.log(noise) - _log_level(relative).mean()
    return decibels, np.maximum.accumulate(gaps)


def _log_level(mean: Doubles) -> Doubles:
    """E log|x| of Gaussians of these means, 0 or more, and deviation 1.

    Its slope is sqrt(2) D(mean / sqrt(2)), with Dawson's integral D; far from 0 it is log(mean) - 1 / (2 mean^2).
    """
    from scipy import integrate, special

    grid = np.linspace(0, 30, 30_001)
    at_zero = -(np.euler_gamma + np.log(2)) / 2
    slope = np.sqrt(2) * special.dawsn(grid / np.sqrt(2))
    values = at_zero + integrate.cumulative_simpson(slope, x=grid, initial=0)
    far = np.maximum(mean, 1.0)
    return np.where(mean < grid[-1], np.interp(mean, grid, values), np.log(far) - 1 / (2 * far**2))
