"""The simulated conversations of the benchmarks: reference and waveform agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("scipy")

from benchmarks.conversations import HOP, RATE, SpeakerAudio, SpeechSource, activity, simulate
from benchmarks.long_files import make


def test_speech_regions_need_level_and_speech_probability() -> None:
    sound = np.random.default_rng(0).normal(0, 1e-4, 4 * RATE).astype(np.float32)
    loud = np.sin(np.arange(4 * RATE) / 5).astype(np.float32)
    for start, end in ((1.0, 1.5), (1.7, 2.0), (2.5, 3.0), (3.5, 3.8)):  # gaps of 0.2, 0.5 and 0.5 s
        sound[round(start * RATE) : round(end * RATE)] += loud[round(start * RATE) : round(end * RATE)]
    probabilities = np.zeros(4 * RATE // 512, dtype=np.float32)
    probabilities[round(0.5 * RATE / 512) : round(3.2 * RATE / 512)] = 0.9  # the last sound is not speech
    regions = np.array(activity(sound, probabilities)) / RATE
    np.testing.assert_allclose(regions, [[1.0, 2.0], [2.5, 3.0]], atol=2.1 * HOP / RATE)


def test_speech_is_used_once_and_pauses_are_shortened() -> None:
    samples = np.arange(1, 20 * RATE + 1, dtype=np.float32)
    spans = [(RATE, 3 * RATE), (4 * RATE, 6 * RATE), (12 * RATE, 13 * RATE)]
    source = SpeechSource(SpeakerAudio(samples, spans))
    assert source.seconds == 5
    segments, lengths = [], []
    for seconds in (1.0, 2.5, 9.0):
        piece, spoken = source.take(seconds)
        lengths.append(len(piece) / RATE)
        segments += [piece[start + 160 : end - 160] for start, end in spoken]
    # 1 s; 1 s, a pause of 1 s shortened to 0.8 s, 0.7 s; 1.3 s, a pause of 6 s shortened, 1 s.
    assert lengths == pytest.approx([1.0, 2.5, 3.1]) and source.seconds == 0
    firsts = [round(float(piece[0]) - 161) / RATE for piece in segments]
    assert firsts == pytest.approx([1.0, 2.0, 4.0, 4.7, 12.0], abs=1e-3)


def test_waveform_of_a_conversation_matches_its_reference() -> None:
    generator = np.random.default_rng(1)
    speakers = {
        name: SpeakerAudio(
            np.full(60 * RATE, 0.1, dtype=np.float32), [(k * RATE, k * RATE + RATE // 2) for k in range(60)]
        )
        for name in ("ann", "bob", "cec")
    }
    for speaker in speakers.values():  # silent between the spans
        speaker.samples.reshape(60, RATE)[:, RATE // 2 :] = 0
    mix, truth = simulate(speakers, [np.ones(1, np.float32)], np.full(RATE, 1e-9, np.float32), 40.0, generator)
    assert sorted(truth.labels()) == ["ann", "bob", "cec"] and 35 < len(mix) / RATE < 55
    active = np.zeros(len(mix), dtype=bool)
    for segment in truth.itersegments():
        active[round(segment.start * RATE) : round(segment.end * RATE)] = True
    quiet = np.abs(mix) < 0.3 * np.median(np.abs(mix[active]))
    assert np.mean(quiet[active]) < 0.1  # fades, and the noise's and the gains' spread
    assert np.mean(~quiet[~active]) < 0.01
    for name in truth.labels():
        assert not truth.label_timeline(name).get_overlap()


def test_long_file_has_the_requested_duration(tmp_path: Path) -> None:
    make(tmp_path / "long.flac", 2.5)
    assert soundfile.info(tmp_path / "long.flac").frames == 150 * RATE


def test_long_file_of_many_speakers(tmp_path: Path, shared: Path) -> None:
    make(tmp_path / "long.flac", 0.5, shared / "data")
    sound, rate = soundfile.read(tmp_path / "long.flac")
    assert len(sound) == 30 * rate and 0.01 < sound.std() < 0.5
