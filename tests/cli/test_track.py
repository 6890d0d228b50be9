"""--track: the audio track that a command reads, and what it says of the others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from knn_cli.audio import alike_channels, reading, writing
from knn_cli.diarization import speaker_removal
from knn_cli.diarization.removal_outputs import SpeakerRemoval
from knn_cli.store.hdf5 import Store
from tests.helpers.command import done, knn
from tests.helpers.compressed import write_compressed

RATE = 48000
TONE = (0.3 * np.sin(2 * np.pi * 500 * np.arange(2 * RATE) / RATE)).astype(np.float32)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """A silent first track, a second one with a tone on the left and nothing on the right."""
    second = np.stack([TONE, np.zeros_like(TONE)], axis=1)
    return write_compressed(tmp_path / "film.mkv", np.zeros_like(TONE), RATE, codec="flac", tracks=[second])


def peak(store: Path) -> float:
    with Store(store) as opened:
        return max(float(np.abs(segment.waveform.samples).max()) for segment in opened.segments())


def test_the_track_is_read_and_the_others_are_named(film: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    first = done("convert", film, out)
    assert peak(out) == 0
    assert "is silent in the first of its 2 audio tracks; --track 2 reads the second." in " ".join(first.stderr.split())
    second = done("convert", film, out, "--track", "2", "--force")
    assert peak(out) == pytest.approx(0.15, abs=0.02) and "silent" not in second.stderr
    done("convert", film, out, "--track", "2", "--channel", "left", "--force")
    assert peak(out) == pytest.approx(0.3, abs=0.02)
    assert json.loads(done("info", film, "--json").stdout)["audio tracks"] == 2


@pytest.mark.parametrize("command", ["embed", "classify", "timeline", "diarize"])
def test_every_command_takes_a_track(film: Path, command: str) -> None:
    refused = knn(command, film, "--track", "3")
    assert "has 2 audio tracks, not track 3" in refused.stderr and "Try --track 1" in refused.stderr
    assert knn(command, film, "--track", "0").exit_code == 2
    assert "There is no channel '2:mix'" in knn(command, film, "--channel", "2:mix").stderr


def test_edited_copies_are_of_the_track(film: Path, tmp_path: Path) -> None:
    clean = SpeakerRemoval(tmp_path, ("rttm",), max_silence=1.0, channel="2:left")
    target = clean.audio_path(film)
    assert writing.output_format(film, track=2).channels == 2
    speaker_removal.plan_removal(film, target, max_silence=1.0, track=2).write()
    samples, _ = soundfile.read(target)
    assert samples.shape == (len(TONE), 2) and np.abs(samples[:, 0] - TONE).max() < 1e-4


def test_channels_of_a_track_are_compared(film: Path) -> None:
    assert reading.info(film, channel="2:mix").channels == 2
    assert alike_channels.first_alike(film, ["2:1", "2:2"]) == [0, 1]
