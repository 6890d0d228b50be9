"""Files of the formats that can be decoded are found in folders by their suffixes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from knn_cli.audio import reading

ENCODED = {
    "mp2": [],
    "mpg": ["-c:a", "mp2"],
    "wmv": ["-f", "asf", "-c:a", "wmav2"],
    "spx": ["-c:a", "libspeex"],
    "gsm": ["-c:a", "libgsm", "-ar", "8000"],
    "mts": ["-f", "mpegts", "-c:a", "ac3", "-ar", "48000"],
    "3gp": ["-c:a", "aac"],
    "rm": ["-f", "rm", "-c:a", "ac3", "-ar", "48000"],
    "flv": ["-c:a", "libmp3lame", "-ar", "22050"],
    "m4b": ["-f", "ipod", "-c:a", "aac"],
}


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
@pytest.mark.parametrize("suffix", ENCODED)
def test_formats_of_folders(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"tone.{suffix}"
    tone = ["-f", "lavfi", "-i", "sine=frequency=440:duration=2:sample_rate=16000"]
    made = subprocess.run(
        ["ffmpeg", "-v", "error", *tone, *ENCODED[suffix], str(path)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("this ffmpeg has no such encoder")
    assert reading.find(tmp_path) == [path]
    assert abs(reading.read(path).seconds - 2) < 0.15
