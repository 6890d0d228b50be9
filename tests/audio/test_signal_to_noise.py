"""WADA-SNR: limits by hand, its means by numbers drawn at random, and mixtures of known ratios."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from knn_cli.audio.signal_to_noise import MAX_DB, MIN_DB, SampleLevels, _gaps, _log_level
from knn_cli.audio.sound_quality import quality_of_blocks
from knn_cli.core.values import Doubles, Waveform


def snr(*parts: Doubles) -> float:
    levels = SampleLevels()
    for part in parts:
        levels.add(part)
    return levels.snr()


def mixture(decibels: float, samples: int = 200_000, seed: int = 0) -> Doubles:
    rng = np.random.default_rng(seed)
    speech = rng.gamma(0.4, size=samples) * rng.choice([-1, 1], size=samples)
    noise = rng.normal(size=samples) * np.sqrt(0.56 / 10 ** (decibels / 10))
    return np.asarray(0.01 * (speech + noise))


def test_limits() -> None:
    """Of Gaussian noise alone, log sqrt(2 / pi) + (gamma + log 2) / 2; of speech alone, at most log(0.4) - psi(0.4)."""
    _, gaps = _gaps()
    assert gaps[0] == pytest.approx(np.log(np.sqrt(2 / np.pi)) + (np.euler_gamma + np.log(2)) / 2, abs=1e-3)
    assert np.log(0.4) - special.digamma(0.4) - 0.2 < gaps[-1] < np.log(0.4) - special.digamma(0.4)
    assert (np.diff(gaps) >= 0).all()


def test_mean_logarithm_of_a_gaussian() -> None:
    drawn = np.random.default_rng(0).normal(size=400_000)
    for mean in (0.0, 0.7, 3.0):
        assert _log_level(np.asarray([mean]))[0] == pytest.approx(np.log(np.abs(mean + drawn)).mean(), abs=5e-3)
    assert _log_level(np.asarray([29.999]))[0] == pytest.approx(_log_level(np.asarray([30.001]))[0], abs=1e-3)


@pytest.mark.parametrize("decibels", [-5, 0, 10, 20, 35])
def test_mixtures(decibels: float) -> None:
    assert snr(mixture(decibels)) == pytest.approx(decibels, abs=1)


def test_parts_levels_and_silence() -> None:
    whole = mixture(15)
    assert snr(whole[:70_000], whole[70_000:]) == pytest.approx(snr(whole), abs=1e-6)
    assert snr(np.pad(5 * whole, 50_000)) == pytest.approx(snr(whole), abs=1e-6)
    assert np.isnan(snr(np.zeros(100))) and np.isnan(snr())
    assert MIN_DB == snr(np.ones(100)) < MAX_DB  # log E|z| = E log|z|: less than any noise


def test_quality_of_sound() -> None:
    """Noise holds no speech, and all of its seconds count."""
    noise = (0.1 * np.random.default_rng(0).normal(size=32_000)).astype(np.float32)
    quality = quality_of_blocks([Waveform(noise[:16_000], 16000), Waveform(noise[16_000:], 16000, 1.0)])
    assert (quality.seconds, quality.speech_seconds) == (2.0, 0.0) and quality.snr < -10
