"""Regions of speech: what silero-vad finds, or all that is not silent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from knn_cli.audio import reading, speech_activity, speech_regions
from knn_cli.audio.segments import total_seconds
from knn_cli.core.values import Segment, Waveform


def test_regions_of_a_recording_are_those_of_the_detector(example: Path) -> None:
    regions, seconds = speech_regions.of_recording(example, rate=16000)
    assert regions == speech_activity.speech(reading.blocks(example)) and len(regions) > 0
    assert seconds == pytest.approx(reading.info(example).seconds)


def test_a_recording_in_memory_has_nearly_the_regions_of_its_file(example: Path) -> None:
    """A clip has no warm-up, and its probabilities are the detector's own."""
    clip = reading.read(example)
    (regions,) = speech_regions.of_clips([clip])
    streamed, _ = speech_regions.of_recording(example, rate=16000)
    assert total_seconds(regions) == pytest.approx(total_seconds(streamed), abs=0.5)
    half = Waveform(clip.samples[::2].copy(), 8000)  # resampled for the detector
    (other,) = speech_regions.of_clips([half])
    assert total_seconds(other) == pytest.approx(total_seconds(regions), rel=0.1)


@pytest.mark.parametrize("peak", [0.0, 0.9e-4, 1.1e-4])
def test_without_a_detector_all_but_silence_is_speech(tmp_path: Path, peak: float) -> None:
    samples = np.zeros(16000, dtype=np.float32)
    samples[100] = peak
    expected = [Segment(0, 1)] if peak > speech_regions.MIN_PEAK else []
    assert speech_regions.is_silent(samples) == (not expected)
    (clip,) = speech_regions.of_clips([Waveform(samples, 16000)], use_vad=False)
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    recording, seconds = speech_regions.of_recording(tmp_path / "a.wav", rate=16000, use_vad=False)
    assert list(clip) == list(recording) == expected and seconds == 1.0


def test_a_silent_recording_has_no_regions_whatever_the_detector_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    everything = Segment(0, 1)

    def all_of(blocks):  # type: ignore[no-untyped-def]
        return [everything for _ in blocks]

    monkeypatch.setattr(speech_activity, "speech", all_of)
    regions, seconds = speech_regions.of_recording(tmp_path / "a.wav", rate=16000)
    assert not regions and seconds == 1.0


def test_the_error_says_what_to_do() -> None:
    assert "use_vad=False" in speech_regions.no_speech("a.wav", True).hint
    assert "level" in speech_regions.no_speech("a.wav", False).hint
