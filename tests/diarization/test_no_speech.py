"""Turns that are no speaker: evidence worked out by hand, and real speech against noise and tones."""

from __future__ import annotations

import json
from collections.abc import Iterable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import soundfile

from knn_cli.audio import reading
from knn_cli.core.values import Diarization, Turn
from knn_cli.diarization import no_speech
from knn_cli.diarization.no_speech import EVIDENCE, turn_evidence, with_no_speech_probability
from knn_cli.formats.span_tables import write_turns_json
from knn_cli.formats.spans import turn_document

FRAME = 512


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """Sixty-four seconds (2000 frames), ten times as loud from the half on."""
    sound = np.full(2000 * FRAME, 0.05)
    sound[1000 * FRAME :] *= 10
    soundfile.write(tmp_path / "steps.wav", sound, 16000, subtype="FLOAT")
    return tmp_path / "steps.wav"


@pytest.fixture
def by_level(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A speech detector that is as sure as a frame is loud; the lengths of the clips that it gets."""
    lengths: list[int] = []

    def probabilities(clips: Iterable[np.ndarray]) -> list[np.ndarray]:
        results = []
        for clip in clips:
            lengths.append(len(clip))
            results.append(np.abs(clip[::FRAME]).astype(np.float32))
        return results

    monkeypatch.setattr(no_speech.silero, "probabilities", probabilities)
    return lengths


def test_evidence_by_hand(steps: Path, by_level: list[int]) -> None:
    turns = [Turn(0.0, 10.0, "A", 0.9), Turn(16.0, 48.0, "B", 0.8), Turn(48.0, 64.0, "A")]
    evidence = turn_evidence(turns, steps)
    assert evidence.shape == (3, len(EVIDENCE))
    assert evidence[:, 0] == pytest.approx([0.05, 0.275, 0.5], abs=1e-3)  # half of the second turn is loud
    assert evidence[:, 1] == pytest.approx([0.05, 0.5, 0.5], abs=1e-3)


def test_sound_is_read_once_in_bounded_clips(steps: Path, by_level: list[int]) -> None:
    overlapping = [Turn(0.0, 40.0, "A"), Turn(10.0, 41.0, "B"), Turn(45.0, 64.0, "A"), Turn(50.0, 51.0, "B")]
    turn_evidence(overlapping, steps)
    seconds = np.array(by_level) / reading.RATE
    assert seconds.max() <= no_speech.CLIP_SECONDS + no_speech.WARM_UP_SECONDS + 0.04
    assert seconds.sum() == pytest.approx(60.0, abs=no_speech.WARM_UP_SECONDS * len(seconds) + 0.1)


def test_turns_at_the_end_and_none_at_all(steps: Path, by_level: list[int]) -> None:
    assert turn_evidence([], steps).shape == (0, len(EVIDENCE))
    beyond = turn_evidence([Turn(63.99, 64.5, "A"), Turn(70.0, 71.0, "A")], steps)
    assert np.isfinite(beyond).all() and beyond[1, 0] == 0


def test_speech_is_no_noise(example: Path, tmp_path: Path) -> None:
    speech = reading.read(example).samples[: 12 * reading.RATE]
    generator = np.random.default_rng(0)
    hum = 0.05 * np.sin(2 * np.pi * 220 * np.arange(6 * reading.RATE) / reading.RATE)
    hiss = 0.03 * generator.normal(size=6 * reading.RATE)
    soundfile.write(tmp_path / "a.wav", np.concatenate([speech, hum, hiss]), reading.RATE)
    spans = [(0.6, 5.4, "A"), (5.8, 9.1, "B"), (12.2, 17.8, "A"), (18.2, 23.8, "B")]
    turns = tuple(Turn(start, end, speaker, 0.8) for start, end, speaker in spans)
    result = with_no_speech_probability(Diarization(turns, "a", seconds=24.0), tmp_path / "a.wav")
    flagged = [turn.no_speech_probability for turn in result.turns]
    assert max(flagged[:2]) < 0.5 < min(flagged[2:])
    text = StringIO()
    write_turns_json(turn_document(result), text)
    rows = json.loads(text.getvalue())["turns"]
    assert [row["probably_no_speaker"] for row in rows] == [False, False, True, True]
    assert [row["no_speech_probability"] for row in rows] == [round(value, 3) for value in flagged]


def test_turns_that_nobody_asked_about_carry_nothing() -> None:
    text = StringIO()
    write_turns_json(turn_document(Diarization((Turn(0.0, 1.0, "A"),), "a", seconds=1.0)), text)
    assert set(json.loads(text.getvalue())["turns"][0]) == {"start", "end", "speaker"}
