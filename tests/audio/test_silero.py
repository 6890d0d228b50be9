"""silero-vad's network on all frames at once: equal to the one in its wheel, which goes frame after frame."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from knn_cli.audio import reading, silero
from knn_cli.audio.silero import FRAME, RATE
from knn_cli.core.errors import KnnError


@pytest.fixture
def theirs() -> torch.nn.Module:
    threads = torch.get_num_threads()
    from silero_vad import load_silero_vad  # sets one thread for the whole process

    torch.set_num_threads(threads)
    return load_silero_vad()


def test_equals_the_network_of_the_wheel(
    theirs: torch.nn.Module, example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of speech and a row of noise: states, the samples before each frame, and groups of frames."""
    monkeypatch.setattr(
        silero, "_FRAMES_PER_PASS", 64
    )  # groups smaller than the recording, and not a whole number of them
    sound = reading.read(example).samples
    loud = 0.3 * np.random.default_rng(0).standard_normal(90 * FRAME).astype(np.float32)
    rows = torch.from_numpy(np.stack([sound[: 90 * FRAME], loud]))
    with torch.inference_mode():
        ours = silero.network()(rows)
        expected = torch.cat([theirs(frame, RATE) for frame in rows.split(FRAME, dim=1)], dim=1)
    assert ours.shape == (2, 90)
    assert ours[0].max() > 0.9 and ours.min() < 0.1
    assert (ours - expected).abs().max() < 1e-5


@pytest.mark.parametrize("shape", [(0, FRAME), (2, 0)])
def test_no_frames(shape: tuple[int, int]) -> None:
    with torch.inference_mode():
        assert silero.network()(torch.zeros(shape)).shape == (shape[0], shape[1] // FRAME)


def test_without_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silero, "find_spec", lambda name: importlib.util.find_spec("no_such_package"))
    with pytest.raises(KnnError, match="silero-vad"):
        silero.network.__wrapped__()
