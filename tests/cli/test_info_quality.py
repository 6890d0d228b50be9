"""`knn info --speech-quality`: a table of files and of rows of stores, which `knn fuse` takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

from tests.helpers.command import done, knn


def test_files_and_stores(tmp_path: Path) -> None:
    folder = tmp_path / "talks"
    folder.mkdir()
    for number in range(2):
        noise = 0.1 * np.random.default_rng(number).normal(size=32_000)
        soundfile.write(folder / f"{number}.wav", noise, 16000, subtype="FLOAT")
    lines = [line.split("\t") for line in done("info", folder, "--speech-quality").stdout.splitlines()]
    assert lines[0] == ["name", "start", "end", "seconds", "speech_seconds", "snr"]
    assert [line[:5] for line in lines[1:]] == [[str(folder / f"{n}.wav"), "", "", "2", "0"] for n in range(2)]
    assert all(float(line[5]) < -10 for line in lines[1:])
    done("convert", folder, tmp_path / "talks.h5", "--segment", "1", "--min-segment", "0.5")
    rows = [
        json.loads(line)
        for line in done("info", tmp_path / "talks.h5", "--speech-quality", "--json").stdout.splitlines()
    ]
    assert [(row["name"], row["start"], row["seconds"]) for row in rows] == [
        ("0", 0.0, 1.0),
        ("0", 1.0, 1.0),
        ("1", 0.0, 1.0),
        ("1", 1.0, 1.0),
    ]


def test_what_is_no_sound_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("no sound")
    result = knn("info", tmp_path / "a.wav", "--speech-quality")
    assert result.exit_code == 1 and "a.wav" in result.stderr
    assert "no recordings to measure" in knn("info", "--speech-quality").stderr
