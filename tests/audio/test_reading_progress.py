"""Progress of reading: every pass over a file is reported from its start to its end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from knn_cli.audio import reading, reading_progress
from knn_cli.core.values import Segment
from tests.helpers.compressed import write_compressed

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


def test_compressed_sound_is_reported_too(tmp_path: Path, example: Path) -> None:
    path = tmp_path / "a.aac"
    write_compressed(path, reading.read(example).samples[:48000], 16000)
    reports: list[Report] = []
    with reading_progress.listening(lambda *report: reports.append(report)):
        reading.info(path)
        assert not reports
        reading.read(path)
    assert reports[-1][:2] == (path, pytest.approx(3.0, abs=0.1))
