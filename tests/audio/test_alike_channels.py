"""Channels that hold the same sound: equal, louder, inverted, delayed or noisy ones, and none of a call's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from knn_cli.audio import alike_channels

RATE = 16000


def voice(seed: int, seconds: float = 6.0) -> np.ndarray:
    """Noise with the spectrum of speech, roughly."""
    return np.convolve(np.random.default_rng(seed).normal(size=round(seconds * RATE)) * 0.1, np.ones(8) / 3, "same")


def first_alike(folder: Path, *channels: np.ndarray) -> list[int]:
    soundfile.write(folder / "a.wav", np.stack(channels, axis=1), RATE, subtype="FLOAT")
    return alike_channels.first_alike(folder / "a.wav", [str(number + 1) for number in range(len(channels))])


ONE, OTHER = voice(0), voice(1)
HALF = np.repeat([1.0, 0.0], len(ONE) // 2)


@pytest.mark.parametrize(
    ("right", "alike"),
    [
        pytest.param(ONE, True, id="equal"),
        pytest.param(0.1 * ONE, True, id="less loud"),
        pytest.param(-ONE, True, id="inverted"),
        pytest.param(np.roll(ONE, 90), True, id="delayed"),
        pytest.param(ONE + 0.1, True, id="with an offset"),
        pytest.param(ONE + 0.2 * OTHER, True, id="with noise"),
        pytest.param(OTHER, False, id="another voice"),
        pytest.param(OTHER + 0.3 * ONE, False, id="another voice with an echo"),
        pytest.param(np.zeros_like(ONE), False, id="silence"),
        pytest.param(np.roll(ONE, RATE), False, id="a second later"),
    ],
)
def test_two_channels(tmp_path: Path, right: np.ndarray, alike: bool) -> None:
    assert first_alike(tmp_path, ONE, right) == ([0, 0] if alike else [0, 1])


def test_speakers_in_turn(tmp_path: Path) -> None:
    assert first_alike(tmp_path, HALF * ONE, (1 - HALF) * OTHER + 0.05 * HALF * ONE) == [0, 1]


def test_more_channels(tmp_path: Path) -> None:
    assert first_alike(tmp_path, ONE, OTHER, ONE, 0.5 * OTHER, np.zeros_like(ONE), np.zeros_like(ONE)) == [
        0, 1, 0, 1, 4, 5,
    ]  # fmt: skip
