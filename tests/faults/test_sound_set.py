"""The short form of the sound set: lengths and times are those that ffprobe and ffmpeg tell, or the file is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults.sound_set import SHORT, Generator, check, expected_times

REFUSED = {"wav-24/cut-short", "wav-mp3/cut-short", "flac/cut-short"}


@pytest.mark.skipif(not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="needs ffmpeg and ffprobe")
def test_lengths_and_times_are_those_of_a_player(tmp_path: Path) -> None:
    made, verdicts = set(), {}
    for sound in Generator(tmp_path).all(SHORT):
        made.add(sound.name)
        verdict = check(sound, expected_times(sound), tmp_path)
        if verdict[0] != "right":
            verdicts[sound.name] = verdict
    assert {name for name, (verdict, _) in verdicts.items() if verdict == "refused"} == REFUSED & made
    assert not {name: why for name, why in verdicts.items() if why[0] != "refused"}
    assert len(made) > len(SHORT) / 2  # whatever encoders this ffmpeg lacks
