"""FLAC to its last whole frame, against libsndfile's own count and against what it decodes of the beginning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from knn_cli.audio import flac_frames, reading
from knn_cli.core.errors import AudioError

NOISE = np.random.default_rng(0).normal(size=(300_001, 2)) * 0.2


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 96000, 12345])
@pytest.mark.parametrize(("subtype", "channels"), [("PCM_16", 1), ("PCM_24", 2)])
def test_whole_files_hold_what_they_count(tmp_path: Path, rate: int, subtype: str, channels: int) -> None:
    path = tmp_path / "a.flac"
    for count in (1, 500, 300_001):
        soundfile.write(path, NOISE[:count, :channels], rate, subtype=subtype)
        assert flac_frames.held_samples(path) == count


def test_frames_of_more_samples_than_two_bytes_count(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.zeros(40_000_000, np.int16), 44100)
    assert flac_frames.held_samples(path) == 40_000_000


@pytest.mark.parametrize("share", [0.3, 0.61, 0.9])
def test_cut_files_are_refused_with_what_they_hold(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, NOISE[:, 0], 16000)
    path.write_bytes(path.read_bytes()[: round(path.stat().st_size * share)])
    held = flac_frames.held_samples(path)
    assert held is not None and held == pytest.approx(300_001 * share, abs=4096) and held % 4096 == 0
    message = f"is cut short: its header promises 18.8 s, it holds {held / 16000:.1f} s"
    for read in (reading.info, reading.read):
        with pytest.raises(AudioError, match=message):
            read(path)


def test_bytes_behind_the_last_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, NOISE[:, 0], 16000)
    path.write_bytes(path.read_bytes() + b"TAG" + bytes(125))
    assert flac_frames.held_samples(path) == 300_001


def test_other_files_have_no_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    for data in (b"", b"fLaC", b"fLaC" + bytes(100), b"\xff\xf8" * 50):
        path.write_bytes(data)
        assert flac_frames.held_samples(path) is None
    assert flac_frames.parse_frame(bytes.fromhex("fff869180000be03"), 4096) is None  # its checksum is another
