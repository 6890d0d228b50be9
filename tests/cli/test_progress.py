"""Progress over recordings: seconds of sound a second and the time left, worked out by hand with a made-up clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from knn_cli.audio import reading, reading_progress
from knn_cli.cli import progress
from knn_cli.cli.console import console
from knn_cli.cli.progress import FilesProgress, PassTimes

ONE, TWO = Path("one.wav"), Path("two.wav")


def test_one_pass_at_a_steady_pace() -> None:
    times = PassTimes([1.0], started=100.0)
    times.update(600.0, 3600.0, now=110.0)
    assert (times.pace, times.left) == (pytest.approx(60.0), pytest.approx(50.0))
    times.update(3600.0, 3600.0, now=160.0)
    assert (times.pace, times.left) == (pytest.approx(60.0), pytest.approx(0.0))


def test_the_cost_of_a_later_pass_is_guessed_until_it_is_measured() -> None:
    times = PassTimes([1.0, 3.0], started=0.0)
    times.update(50.0, 100.0, now=5.0)
    assert times.left == pytest.approx(5.0 + 30.0)  # the rest of this pass, and three times a whole one
    times.update(100.0, 100.0, now=10.0)
    assert times.left == pytest.approx(30.0)
    times.update(50.0, 100.0, now=15.0)  # the second pass takes as long as the first, not three times that
    assert 5.0 < times.left < 7.0
    times.update(100.0, 100.0, now=20.0)
    assert times.left == pytest.approx(0.0)


def test_without_a_length_in_the_header_the_first_pass_gives_it() -> None:
    times = PassTimes([1.0, 1.0], started=0.0)
    times.update(60.0, None, now=2.0)
    assert times.left is None and times.pace == pytest.approx(30.0)
    times.update(120.0, None, now=4.0)
    times.update(60.0, None, now=6.0)  # half of the second pass
    assert times.left == pytest.approx(2.0)


def test_more_passes_than_expected_leave_nothing() -> None:
    times = PassTimes([1.0], started=0.0)
    times.update(100.0, 100.0, now=1.0)
    times.update(50.0, 100.0, now=2.0)
    assert times.left == 0.0


def test_files_share_the_bar() -> None:
    now = [0.0]
    files = FilesProgress(2, lambda path: [1.0], lambda: now[0])
    now[0] = 10.0
    files.read(ONE, 100.0, 200.0)
    assert files.share == pytest.approx(0.25) and files.text == "10 s of sound a second, 0:00:30 left"
    now[0] = 20.0
    files.read(ONE, 200.0, 200.0)
    files.finish()
    assert files.share == 0.5
    files.read(ONE, 50.0, 200.0)  # read again for an output
    assert files.share == 0.5
    now[0] = 30.0
    files.read(TWO, 100.0, 200.0)
    assert files.share == pytest.approx(0.75)


def test_the_share_never_falls() -> None:
    now = [1.0]
    files = FilesProgress(1, lambda path: [1.0, 1.0], lambda: now[0])
    shares = []
    for seconds, later in ((90.0, 2.0), (100.0, 3.0), (1.0, 30.0), (100.0, 60.0)):
        now[0] = later
        files.read(ONE, seconds, 100.0)
        shares.append(files.share)
    assert shares == sorted(shares) and shares[-1] == progress.MOST_SHOWN  # outputs are still to be written


@pytest.mark.parametrize(
    ("quiet", "terminal", "drawn"), [(False, True, True), (True, True, False), (False, False, False)]
)
def test_progress_is_for_terminals_unless_quiet(
    quiet: bool,
    terminal: bool,
    drawn: bool,
    tone: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(console, "quiet", quiet)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.over_files("Diarizing", 1, lambda path: [1.0]) as finished:
        reading.read(tone)
        finished()
    err = capfd.readouterr().err
    assert ("Diarizing" in err) is drawn and ("finishing" in err) is drawn and "100%" not in err


def test_a_count_that_is_full_becomes_a_bar_that_moves(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with console.progress("Training") as told:
        told(2, 2)
    assert "Training" in (err := capfd.readouterr().err) and "100%" not in err


def test_a_recording_in_memory_is_reported_when_it_is_read_again(tone: Path) -> None:
    heard: list[float] = []
    with reading_progress.listening(lambda path, seconds, total: heard.append(seconds)):
        held = reading.HeldRecording(tone)
        for _ in range(2):
            list(held.blocks())
    assert heard == [2.0, 2.0]


@pytest.mark.parametrize("recordings", [False, True])
def test_what_is_written_to_a_file_stays_out_of_the_bar(
    recordings: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.over_files("Diarizing", 1, lambda path: []) if recordings else console.progress("Embedding"):
        print("SPEAKER meeting 1")
    out, err = capfd.readouterr()
    assert out == "SPEAKER meeting 1\n" and "SPEAKER" not in err
