"""The example meeting is what its maker makes, and the benchmark's arithmetic holds."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
from pyannote.core import Annotation, Segment

from knn_cli.report import read_rttm, write_rttm

TOP = Path(__file__).resolve().parents[1]


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    return load("make_meeting", TOP / "examples" / "make_meeting.py")


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    pytest.importorskip("pyannote.metrics")
    yield load("benchmark_diarization", TOP / "benchmarks" / "diarization.py")


def test_meeting_is_what_it_says(example: Path) -> None:
    sound = soundfile.info(example)
    assert (sound.samplerate, sound.channels) == (16000, 1)
    assert 50 < sound.duration < 70
    assert example.stat().st_size < 1.5e6
    truth = read_rttm(example.with_suffix(".rttm"))
    assert list(truth) == ["meeting"]
    turns = truth["meeting"]
    assert sorted(turns.labels()) == ["ines", "otto", "paul", "ruth"]
    assert all(turns.label_duration(who) > 5 for who in turns.labels())
    span = turns.get_timeline().extent()
    assert span.start > 0 and span.end < sound.duration
    overlap = turns.get_overlap()
    assert len(overlap) == 2 and 0.5 < overlap.duration() < 2.5


def test_there_is_sound_where_somebody_speaks_and_none_elsewhere(example: Path) -> None:
    sound, rate = soundfile.read(example)
    truth = read_rttm(example.with_suffix(".rttm"))["meeting"]

    def level(span: Segment) -> float:
        return float(np.sqrt(np.square(sound[round(span.start * rate) : round(span.end * rate)]).mean()))

    assert min(level(s) for s in truth.itersegments()) > 0.02
    pauses = truth.get_timeline().support().gaps()
    # The room needs a moment to fall silent.
    assert max(level(Segment(p.start + 0.2, p.end)) for p in pauses if p.duration > 0.25) < 0.005


def test_meeting_can_be_made_again(example: Path, maker: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    maker.main(tmp_path)
    assert (tmp_path / "meeting.rttm").read_text() == example.with_suffix(".rttm").read_text()
    again, _ = soundfile.read(tmp_path / "meeting.flac")
    shipped, _ = soundfile.read(example)
    np.testing.assert_allclose(again, shipped, atol=1e-3)  # other machines' libraries round otherwise


@pytest.mark.parametrize("name", ["xx-nonesuch", "en-us+nonesuch"])
def test_an_unknown_voice_is_refused(maker: ModuleType, name: str) -> None:
    pytest.importorskip("espeakng_loader")
    with pytest.raises(ValueError, match="no voice"):
        maker.Speaker().say("Hello.", maker.Voice(name, 50, 160, 1.0, 0.1))


def test_silence_is_trimmed_by_whole_frames(maker: ModuleType) -> None:
    sound = np.zeros(1600)
    sound[500:900] = 1.0
    sound[100] = 0.005  # 46 dB down
    assert len(maker.trim(sound)) == 480  # frames of 160: 480-960
    assert maker.trim(sound)[20] == 1.0 and maker.trim(sound)[19] == 0.0


def test_benchmark_of_a_perfect_and_of_a_lazy_system(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = Annotation(uri="one")
    truth[Segment(0, 4), 0] = "A"
    truth[Segment(5, 9), 1] = "B"
    truth[Segment(30, 38), 2] = "B"  # past what is scored of AMI
    for folder in ("ami", "other"):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "one.flac", np.zeros(16000 * 40), 16000)
        with (tmp_path / folder / "one.rttm").open("w") as file:
            write_rttm(truth, file)
    (tmp_path / "ami" / "untold.flac").touch()
    cases = bench.recordings(tmp_path)
    assert [(case.set, case.scored.end) for case in cases] == [("ami", 30.0), ("other", 40.0)]

    perfect = bench.benchmark(lambda path: truth, cases)
    assert [row["file"] for row in perfect] == ["one", "one", "mean", "pooled", "mean", "pooled"]
    for row in perfect:
        assert row["knn"] == row["pyannote"] == row["knn_forgiving"] == row["pyannote_forgiving"] == 0
    # All 30 s for one: 4 s confused, 22 s of silence claimed, of 8 s; on the speech: 4 s confused.
    assert perfect[0]["one_speaker"] == pytest.approx(26 / 8)
    assert perfect[0]["one_speaker_on_speech"] == pytest.approx(4 / 8)
    assert (perfect[0]["speakers"], perfect[0]["found"]) == (2, 2)

    lazy = bench.benchmark(lambda path: Annotation(), cases)
    assert [row["knn"] for row in lazy] == [1.0] * 6 and lazy[0]["one_speaker_on_speech"] == 1.0
    assert "| ami/one | 8.0 | 2 | 2 | 0.0 | 0.0 |" in bench.markdown(perfect)

    # Pooled by speech: 8 s with 4 s confused, 16 s with 4 s confused.
    both = bench.benchmark(lambda path: truth, [replace(case, set="all") for case in cases])
    assert both[-2]["one_speaker_on_speech"] == pytest.approx((4 / 8 + 4 / 16) / 2)
    assert both[-1]["one_speaker_on_speech"] == pytest.approx(8 / 24)

    # The command line, with the system replaced.
    fake = ModuleType("knn_cli.diarization")
    fake.diarize = lambda path, **settings: truth  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "knn_cli.diarization", fake)
    monkeypatch.setattr(sys, "argv", ["diarization.py", "--data", str(tmp_path), "--json"])
    assert bench.main() == 0
    assert len(json.loads(capsys.readouterr().out)) == 6
    monkeypatch.setattr(sys, "argv", ["diarization.py", "--data", str(tmp_path / "ami")])
    assert bench.main() == 1
