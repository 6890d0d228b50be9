"""Progress of reading: every pass over a file is reported from its start to its end."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from knn_cli.audio import reading, reading_progress
from knn_cli.core.values import Segment

Report = tuple[Path, float, float | None]


def test_every_pass_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(100 * 8000), 8000)
    reports: list[Report] = []
    with reading_progress.listening(lambda *report: reports.append(report)):
        reading.read(path)
        once = len(reports)
        list(reading.crops(path, [Segment(0.0, 99.0)]))
        with reading_progress.listening(None):
            reading.read(path)
    reading.read(path)  # nobody listens any more
    assert reports[:once] == reports[once:] and once > 1
    assert [seconds for _, seconds, _ in reports[:once]] == sorted({seconds for _, seconds, _ in reports})
    assert reports[-1] == (path, 100.0, 100.0)


def test_a_length_that_only_decoding_tells_is_none(tmp_path: Path, example: Path) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg")
    path = tmp_path / "a.mka"
    subprocess.run(["ffmpeg", "-v", "error", "-i", str(example), "-t", "3", str(path)], check=True)
    reports: list[Report] = []
    with reading_progress.listening(lambda *report: reports.append(report)):
        reading.info(path)
        assert not reports
        reading.read(path)
    assert reports[-1] == (path, pytest.approx(3.0, abs=0.1), None)
