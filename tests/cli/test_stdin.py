"""`-` as the source: sound from a pipe gives what a file gives, under its own name, and leaves no file behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner, Result

from knn_cli.cli.app import app
from knn_cli.core.values import Diarization, Turn
from knn_cli.diarization import pipeline
from knn_cli.store import hdf5
from tests.helpers.command import done, knn

TINY = ["--model", "tiny-test", "--device", "cpu", "--segmentation", "silero"]
KNN = [sys.executable, "-m", "knn_cli"]


def piped(data: bytes, *arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=data)


def said(result: Result) -> str:
    return " ".join(result.stderr.split())


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, which is empty in the end."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Diarization that finds one turn; the paths that it is asked for."""
    paths: list[Path] = []

    def diarize(path: Path, **settings: Any) -> Diarization:
        assert soundfile.info(path).frames == 32000
        paths.append(path)
        voice = {"SPEAKER_00": np.ones(24, dtype=np.float32)}
        return Diarization((Turn(0.0, 1.5, "SPEAKER_00"),), path.stem, voice, {"SPEAKER_00": 1.5}, 2.0)

    monkeypatch.setattr(pipeline, "diarize", diarize)
    return paths


def test_a_pipe_gives_what_the_file_gives(example: Path, tmp_path: Path, temporary: Path) -> None:
    short, copy = tmp_path / "short.wav", tmp_path / "stdin.wav"
    sound, rate = soundfile.read(example, frames=15 * 16000, dtype="int16")
    for path in (short, copy):
        soundfile.write(path, sound, rate)
    turns = done("diarize", copy, *TINY).stdout
    result = piped(short.read_bytes(), "diarize", "-", *TINY)
    assert result.exit_code == 0 and result.stdout == turns != ""
    assert not list(temporary.iterdir())


def test_the_recording_is_named_stdin_or_as_told(tone: Path, made_up: list[Path], temporary: Path) -> None:
    result = piped(tone.read_bytes(), "diarize", "-", *TINY, "--json")
    assert json.loads(result.stdout)["file"] == "stdin"
    result = piped(tone.read_bytes(), "diarize", "-", *TINY, "--name", "board 3.1", "--json", "-v")
    assert json.loads(result.stdout)["file"] == "board 3.1" and made_up[-1].name == "board 3.1.wav"
    assert "stdin: 1 speaker, 1 turn." in said(result) and str(temporary) not in result.stderr
    assert not list(temporary.iterdir())


def test_outputs_do_not_refer_to_the_temporary_file(
    tone: Path, made_up: list[Path], temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("knn_cli.formats.player.EMBED_SECONDS", 0.0)
    for suffix in ("eaf", "html", "png", "TextGrid"):
        out = tmp_path / f"turns.{suffix}"
        assert piped(tone.read_bytes(), "diarize", "-", *TINY, "-o", out).exit_code == 0
        # The player's own script knows how EAF names media; a file of turns has none to name.
        media = b"MEDIA_URL" if suffix != "html" else b'MEDIA_URL="file'
        assert str(temporary).encode() not in out.read_bytes() and media not in out.read_bytes()
    assert '"kind":"audio/' in (tmp_path / "turns.html").read_text().replace(" ", "")


def test_speakers_are_removed_from_the_sound_of_a_pipe(
    tone: Path, made_up: list[Path], temporary: Path, tmp_path: Path
) -> None:
    clean = ["--unwanted", "SPEAKER_00", "--mute", "--out-dir", str(tmp_path / "out")]
    assert piped(tone.read_bytes(), "diarize", "-", *TINY, *clean).exit_code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "stdin.rttm" in names and any(name.endswith(".wav") for name in names)


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        (b"", ["-"], "stdin is empty"),
        (b"\x01\x02" * 999, ["-"], "stdin is not audio with a header"),
        (b"RIFF", ["-", "other.wav"], "- is stdin and cannot be combined with other sources"),
        (b"RIFF", ["-", "-"], "- is stdin and cannot be combined with other sources"),
        (b"RIFF", ["-", "--name", "a/b"], "'a/b' is not a name for a recording"),
        (b"RIFF", ["-", "--name", ""], "'' is not a name for a recording"),
        (b"RIFF", ["talk.wav", "--name", "a"], "--name requires the source -"),
    ],
)
@pytest.mark.parametrize("command", ["diarize", "timeline", "classify", "embed"])
def test_what_is_refused(command: str, data: bytes, arguments: list[str], message: str) -> None:
    if "--name" in arguments and command not in ("diarize", "timeline"):
        return
    result = piped(data, command, *arguments)
    assert result.exit_code in (1, 2) and message in said(result) and not result.stdout


def test_a_pipe_that_ends_too_early_is_one_failure(tone: Path, temporary: Path) -> None:
    data = tone.read_bytes()
    result = piped(data[: len(data) // 2], "diarize", "-", *TINY)
    assert result.exit_code == 1 and said(result).count("stdin is cut short") == 1
    assert str(temporary) not in result.stderr and not list(temporary.iterdir())


def test_a_terminal_is_no_recording() -> None:
    pty = pytest.importorskip("pty")
    controller, terminal = pty.openpty()
    try:
        result = subprocess.run([*KNN, "diarize", "-"], stdin=terminal, capture_output=True, text=True, check=False)
    finally:
        os.close(controller)
        os.close(terminal)
    assert result.returncode in (1, 2) and "stdin is a terminal, not a recording" in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_temporary_file_goes_when_the_command_is_stopped(number: int, tone: Path, tmp_path: Path) -> None:
    handled = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # ignored in the background
    script = f"{handled}; from knn_cli.__main__ import main; main()"
    command = [sys.executable, "-c", script, "diarize", "-", *TINY]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None
        process.stdin.write(tone.read_bytes() + bytes(1 << 18))  # and more to come
        process.stdin.flush()
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("knn-*/stdin.wav")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(tmp_path.glob("knn-*"))
        process.send_signal(number)
        assert process.wait(60) != 0
    assert not list(tmp_path.glob("knn-*"))


def test_timelines_read_a_pipe(tone: Path, temporary: Path) -> None:
    result = piped(tone.read_bytes(), "timeline", "-", "--device", "cpu", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["file"] == "stdin"
    assert not list(temporary.iterdir())


def test_classify_embed_and_convert_read_a_pipe(tone: Path, temporary: Path, tmp_path: Path) -> None:
    data = tone.read_bytes()
    result = piped(data, "classify", "-", "--no-vad", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["file"] == "stdin", result.stderr
    result = piped(data, "embed", "-", *TINY[:4], "--no-vad", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["file"] == "stdin", result.stderr
    kept = done("embed", tone, *TINY[:4], "--no-vad").stdout.split()[1:]
    for _ in range(2):
        assert piped(data, "embed", "-", *TINY[:4], "--no-vad").stdout.split() == ["stdin", *kept]
        result = piped(data, "convert", "-", tmp_path / "sound.h5")  # again: its own output is replaced
        assert result.exit_code == 0 and hdf5.labels(tmp_path / "sound.h5").name.tolist() == ["stdin"]
    assert "cannot read stdin" in said(piped(data, "embed", "-", "-o", tmp_path / "e.h5", "--cluster", "local:1"))
    assert not list(temporary.iterdir())


def test_a_file_named_by_its_path_is_not_stdin(tone: Path, made_up: list[Path]) -> None:
    assert knn("diarize", tone, *TINY).exit_code == 0 and made_up == [tone]
