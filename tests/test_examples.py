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

from knn_cli.formats.rttm import read_rttm, write_rttm

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
        (tmp_path / "diar" / folder).mkdir(parents=True)
        soundfile.write(tmp_path / "diar" / folder / "one.flac", np.zeros(16000 * 40), 16000)
        with (tmp_path / "diar" / folder / "one.rttm").open("w") as file:
            write_rttm(truth, file)
    (tmp_path / "diar" / "ami" / "untold.flac").touch()
    cases = bench.recordings(tmp_path / "diar")
    assert [(case.set, case.scored.end) for case in cases] == [("ami", 30.0), ("other", 40.0)]

    # Programs that say what the truth is, and nothing.
    script = tmp_path / "system.py"
    script.write_text(
        "import pathlib, sys\n"
        "*files, _, out = map(pathlib.Path, sys.argv[2:])\n"
        "out.mkdir(parents=True)\n"
        "for file in files:\n"
        "    truth = file.with_suffix('.rttm')\n"
        "    said = truth.read_text() if sys.argv[1] == 'perfect' and truth.exists() else ''\n"
        "    (out / truth.name).write_text(said)\n"
        "print('talk')\n"
    )
    perfect, lazy = (
        bench.System(name, [sys.executable, str(script), kind]) for name, kind in (("knn", "perfect"), ("lazy", "lazy"))
    )
    result = bench.benchmark(cases, [perfect, lazy])
    rows = {(row["system"], row["set"]): row for row in result["files"]}
    assert len(rows) == 8 and max(row["check"] for row in rows.values()) < 1e-4
    ours = rows["knn", "ami"]
    assert (ours["strict"], ours["lenient"], ours["speakers"], ours["estimated_speakers"]) == (0, 0, 2, 2)
    # All 30 s for one: 4 s confused, 22 s of silence claimed, of 8 s; on the speech: 4 s confused.
    assert rows["single speaker, all", "ami"]["strict"] == pytest.approx(26 / 8)
    assert rows["single speaker, detected speech", "ami"]["strict"] == pytest.approx(4 / 8)
    assert rows["lazy", "ami"]["strict"] == rows["lazy", "other"]["missed"] == 1
    sets = {(row["system"], row["set"]): row for row in result["sets"]}
    assert sets["lazy", "ami"]["count_error"] == 2 and 1 < sets["knn", "other"]["peak"] < 100
    assert sets["knn", "other"]["rtf"] == pytest.approx(sets["knn", "other"]["cpu"] / 40)
    table = bench.markdown(result)
    assert "| ami | knn | 0.0 | 0.0 |" in table and "| ami/one | 8.0 | 2 | 0.0 (2) |" in table

    # Pooled by speech: 8 s with 4 s confused, 16 s with 4 s confused.
    together = bench.benchmark([replace(case, set="all") for case in cases[:1]], [perfect])["files"]
    mean = bench.summary(
        [row for row in [*together, *result["files"]] if row["system"] == "single speaker, detected speech"]
    )
    assert mean["strict"] == pytest.approx((4 / 8 + 4 / 8 + 4 / 16) / 3)
    assert mean["strict_pooled"] == pytest.approx((4 + 4 + 4) / (8 + 8 + 16))

    # The command line, with the systems replaced.
    monkeypatch.setattr(bench, "systems", lambda *_: [perfect])
    monkeypatch.setattr(sys, "argv", ["diarization.py", "--data", str(tmp_path / "diar"), "--json"])
    assert bench.main() == 0
    assert len(json.loads(capsys.readouterr().out)["sets"]) == 6
    monkeypatch.setattr(sys, "argv", ["diarization.py", "--data", str(tmp_path / "diar" / "ami")])
    assert bench.main() == 1
    broken = bench.System("lazy", [sys.executable, "-c", "raise SystemExit('no such model')"])
    with pytest.raises(SystemExit, match="no such model"):
        bench.run(broken, [], tmp_path)
