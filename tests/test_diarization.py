"""The whole diarizer on the example: counts obeyed, long files streamed, silence empty."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from knn_cli import audio
from knn_cli.diarization import check_speakers, diarize
from knn_cli.embedder import Embedder
from knn_cli.errors import KnnError
from knn_cli.registry import CLUSTERERS


@pytest.fixture(scope="module")
def tiny() -> Embedder:
    return Embedder("tiny-test", device="cpu")


@pytest.mark.parametrize("clusterer", CLUSTERERS.names())
def test_counts_are_obeyed(clusterer: str, tiny: Embedder, example: Path) -> None:
    for number in (1, 2, 5):
        assert len(diarize(example, model=tiny, clusterer=clusterer, num_speakers=number).labels()) == number
    assert len(diarize(example, model=tiny, clusterer=clusterer, min_speakers=3).labels()) >= 3
    assert len(diarize(example, model=tiny, clusterer=clusterer, max_speakers=2).labels()) <= 2


def test_turns_lie_in_the_file_in_order_and_are_the_same_again(tiny: Embedder, example: Path) -> None:
    turns = diarize(example, model=tiny)
    assert turns.uri == "meeting"
    segments = list(turns.itersegments())
    assert segments == sorted(segments)
    assert segments[0].start >= 0 and segments[-1].end <= audio.info(example).seconds
    assert diarize(example, model=tiny) == turns


def test_block_length_changes_nothing(tiny: Embedder, example: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in blocks of three seconds, the file has the turns that it has read at once."""
    once = diarize(example, model=tiny, num_speakers=3)
    monkeypatch.setattr(audio, "BLOCK_SECONDS", 3.0)
    assert diarize(example, model=tiny, num_speakers=3) == once


@pytest.mark.parametrize("seconds", [0.05, 3.0])
def test_silence_is_empty(tiny: Embedder, tmp_path: Path, seconds: float) -> None:
    soundfile.write(tmp_path / "s.wav", np.zeros(round(seconds * 16000)), 16000)
    assert not diarize(tmp_path / "s.wav", model=tiny)


def test_a_third_of_a_second_is_one_speaker(tiny: Embedder, example: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "s.wav", audio.read(example).crop(1.0, 1.3).samples, 16000)
    assert len(diarize(tmp_path / "s.wav", model=tiny).labels()) <= 1


def test_counts_that_contradict() -> None:
    for number, least, most in ((0, None, None), (None, 3, 2), (4, None, 3), (1, 2, None)):
        with pytest.raises(KnnError):
            check_speakers(number, least, most)
    check_speakers(3, 2, 4)
    check_speakers(None, None, None)
