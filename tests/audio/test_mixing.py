"""One channel of several: opposite polarity does not cancel, ordinary stereo is its mean, samples have a limit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from knn_cli.audio import mixing, reading, reading_notes
from knn_cli.core.errors import AudioError

RATE = 16000


def voice(seed: int, seconds: float = 3.0) -> np.ndarray:
    """Noise with the spectrum of speech, roughly."""
    return np.convolve(np.random.default_rng(seed).normal(size=round(seconds * RATE)) * 0.1, np.ones(8) / 3, "same")


def mix(*channels: np.ndarray, size: int = 5000) -> tuple[np.ndarray, list[str]]:
    """The mix of channels that come in pieces, and the notes on it."""
    frames = np.stack(channels, axis=1).astype(np.float32)
    notes: list[str] = []
    with reading_notes.listening(lambda path, clause, loss: notes.append(clause)):
        pieces = ((RATE, frames[at : at + size]) for at in range(0, len(frames), size))
        return np.concatenate([samples for _, samples in mixing.mixed(Path("a.wav"), pieces)]), notes


@pytest.mark.parametrize("gain", [1.0, 0.8, 0.5, 2.0])
def test_opposite_polarity_is_turned_round(gain: float) -> None:
    left = voice(0)
    mixed, notes = mix(left, -gain * left)
    assert np.corrcoef(mixed, left)[0, 1] ** 2 > 0.999
    assert mixed.std() == pytest.approx((1 + gain) / 2 * left.std(), rel=1e-3)
    assert len(notes) == 1 and "inverted" in notes[0]


def test_an_inverted_channel_with_its_own_noise_and_a_small_delay() -> None:
    left = voice(0)
    mixed, notes = mix(left, -np.roll(left, 1) + 0.1 * voice(1))
    assert mixed.std() > 0.8 * left.std() and len(notes) == 1


def test_one_inverted_channel_among_three() -> None:
    left = voice(0)
    mixed, notes = mix(left, -left, left)
    np.testing.assert_allclose(mixed, left, atol=1e-6)
    assert notes == ["has channel 2 inverted; it is turned round, since channels would cancel in the mix"]


def test_channels_inverted_in_one_half_only() -> None:
    left, sign = voice(0, 4.0), np.repeat([1.0, -1.0], 2 * RATE)
    mixed, notes = mix(left, sign * left)
    np.testing.assert_allclose(np.abs(mixed), np.abs(left), atol=1e-6)
    assert len(notes) == 1


@pytest.mark.parametrize(
    "right",
    [
        pytest.param(voice(1), id="another voice"),
        pytest.param(np.zeros(3 * RATE), id="silence"),
        pytest.param(-0.1 * voice(0), id="an inverted echo"),
        pytest.param(voice(0) + 0.3 * voice(1), id="the same voice"),
        pytest.param(np.full(3 * RATE, -0.3), id="an offset"),
    ],
)
def test_ordinary_channels_are_averaged(right: np.ndarray) -> None:
    left = voice(0) + (0.3 if right.std() == 0 else 0)
    mixed, notes = mix(left, right)
    assert not notes
    assert (mixed == np.stack([left, right], axis=1).astype(np.float32).mean(axis=1)).all()


def test_the_size_of_pieces_has_no_influence() -> None:
    left, sign = voice(0, 4.0), np.repeat([1.0, -1.0, -1.0, 1.0], RATE)
    results = [mix(left, sign * left, size=size)[0] for size in (64000, 8000, 7, 12345)]
    assert all((result == results[0]).all() for result in results)


def test_rates_and_channels_may_change() -> None:
    one, two = np.ones((3, 1), dtype=np.float32), np.ones((5, 2), dtype=np.float32)
    pieces = [(8000, two), (16000, two), (16000, one), (16000, two)]
    got = [(rate, len(samples)) for rate, samples in mixing.mixed(Path("a"), pieces) if len(samples)]
    assert got == [(8000, 5), (16000, 5), (16000, 3), (16000, 5)]


@pytest.mark.parametrize("value", [1e30, -1e12, np.inf, np.nan])
def test_samples_that_are_no_sound_are_refused(tmp_path: Path, value: float) -> None:
    samples = voice(0)
    samples[RATE] = value
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"NaN or infinite|where 1 is full scale"):
        reading.read(tmp_path / "a.wav")


def test_levels_above_full_scale_are_measured(tmp_path: Path) -> None:
    samples = voice(0) / 10
    samples[[5, 70]] = 1.5, -2.5
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    with mixing.measuring() as levels:
        reading.read(tmp_path / "a.wav")
    assert (levels.peak, levels.above) == (2.5, 2)


def test_full_scale_itself_is_not_above(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.tile(np.array([32767, -32768], dtype=np.int16), RATE), RATE)
    with mixing.measuring() as levels:
        reading.read(tmp_path / "a.wav", rate=8000)
    assert levels.above == 0
