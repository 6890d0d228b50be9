"""Outputs of commands: streams that are closed or full, other processes, other users, pipes, links."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from knn_cli.core.output_records import RECORD
from knn_cli.store import hdf5
from knn_cli.store.writer import write_store
from tests.helpers.command import done, knn
from tests.helpers.killed import ROOT, locked_elsewhere
from tests.helpers.store_rows import random_rows

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="streams and locks of Unix")


def in_shell(text: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell, in which `knn` is this program."""
    program = f"env PYTHONPATH={shlex.quote(str(ROOT))} {shlex.join([sys.executable, '-m', 'knn_cli'])}"
    return subprocess.run(["sh", "-c", text.replace("knn", program, 1)], capture_output=True, text=True, timeout=120)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    write_store(tmp_path / "in" / "e.h5", random_rows(20))
    return tmp_path / "in" / "e.h5"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("closing", ["2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_messages_that_nobody_reads_stop_nothing(store: Path, tmp_path: Path, closing: str) -> None:
    done = in_shell(f"knn convert {store} {tmp_path}/out.npz {closing}")
    assert done.returncode == 0 and (tmp_path / "out.npz").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_data_that_cannot_be_written_are_an_error(store: Path) -> None:
    done = in_shell(f"knn info {store} >/dev/full")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 2
    assert done.stderr.startswith("knn: ") and "No space left on device." in done.stderr


@pytest.mark.parametrize("name", ["out.npz", "out.ark", "folder"])
def test_one_command_at_a_time_writes_an_output(store: Path, tmp_path: Path, name: str) -> None:
    with locked_elsewhere(tmp_path / name):
        result = knn("convert", store, tmp_path / name)
        assert result.exit_code == 1 and "is being written by another process" in result.output
    assert knn("convert", store, tmp_path / name).exit_code == 0
    assert {path.name for path in tmp_path.glob(".*")} <= {RECORD}


SILERO = ("--model", ROOT / "tests" / "data" / "tiny-test", "--segmentation", "silero", "--device", "cpu")


@pytest.mark.parametrize(
    ("command", "busy"),
    [
        (("diarize", *SILERO, "--out-dir", "out", "--format", "csv"), "out/talk.csv"),
        (("diarize", *SILERO, "--out-dir", "out", "--unwanted", "least", "--cut"), "out/talk_cut.wav"),
        (("diarize", *SILERO, "--keep", "out"), "out/talk.h5"),
        (("diarize", *SILERO, "--keep", "out.v1"), "out.v1/talk.h5"),
        (("timeline", "--device", "cpu", "--out-dir", "out", "--format", "srt"), "out/talk.srt"),
    ],
)
def test_one_command_at_a_time_writes_files_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], busy: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("talk.wav", "other.wav"):
        soundfile.write(name, np.zeros(16000), 16000)
    Path(busy).parent.mkdir()
    before = sorted(tmp_path.rglob("*"))
    with locked_elsewhere(tmp_path / busy, files=True):
        result = knn(*command, "talk.wav")
        assert result.exit_code == 1 and f"{busy} is being written by another process" in result.output
        assert sorted(tmp_path.rglob("*")) == sorted([*before, (tmp_path / busy).with_name(".knn.lock")])
        assert knn(*command, "other.wav").exit_code == 0
    assert {path.name for path in tmp_path.rglob(".*")} <= {RECORD}


@pytest.mark.parametrize("name", ["out.npz", "out.h5", "folder", "new/folder"])
def test_a_refused_command_leaves_nothing(tmp_path: Path, name: str) -> None:
    result = knn("convert", tmp_path / "none.h5", tmp_path / name)
    assert result.exit_code == 1 and "none.h5" in result.output
    assert not list(tmp_path.iterdir())


def test_a_folder_that_may_not_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    """Before the source is looked at, which does not even exist."""
    without_power = ""
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may write everywhere")
        without_power = "setpriv --bounding-set=-dac_override,-dac_read_search --inh-caps=-all "
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    for name in ("out.npz", "out.ark", "out.h5", "folder"):
        done = in_shell(f"{without_power}knn convert {tmp_path}/none.h5 {closed}/{name}")
        assert done.returncode == 1 and "cannot be written: Permission denied" in done.stderr, done.stderr


def test_a_limit_of_file_sizes(store: Path, tmp_path: Path) -> None:
    """In every format that a store can be converted to."""
    write_store(store, random_rows(3000, dimension=64), force=True)
    for name in ("out.npz", "out.ark", "out.csv", "out.h5", "folder"):
        done = in_shell(f"ulimit -f 64; knn convert {store} {tmp_path}/{name}")
        assert (done.returncode, done.stderr.count("\n")) == (1, 2), done.stderr
        assert "cannot be written: File too large." in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_links_in_a_circle_and_pipes(store: Path, tmp_path: Path) -> None:
    for name in ("loop.npz", "loop.h5", "loop"):
        (tmp_path / name).symlink_to(name)
        result = knn("convert", store, tmp_path / name, "--force")
        assert result.exit_code == 1 and "links form a circle" in result.output
        result = knn("info", tmp_path / name)
        assert result.exit_code == 1 and "Traceback" not in result.output
    for name in ("pipe.npz", "pipe.ark", "pipe.h5"):
        os.mkfifo(tmp_path / name)
        result = knn("convert", store, tmp_path / name, "--force")
        assert result.exit_code == 1 and "is a pipe or a device" in result.output
        assert (tmp_path / name).is_fifo()


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_too_little_memory_is_one_sentence(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("knn_cli.audio.reading.info", refuse)
    example = Path(__file__).parents[2] / "examples" / "meeting.flac"
    result = knn("info", example)
    assert result.exit_code == 1 and "There is not enough memory for this." in result.stderr


def test_stores_are_merged_and_the_own_result_is_replaced(store: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "in" / "f.h5", tmp_path / "all.h5"
    write_store(other, random_rows(3, 1))
    assert "23 rows of 23 recordings, of 2 stores" in " ".join(done("convert", store, other, out).stderr.split())
    assert hdf5.labels(out).name.tolist() == [*hdf5.labels(store).name, *hdf5.labels(other).name]
    assert "was finished before" in done("convert", store, other, out).stderr
    write_store(other, random_rows(4, 1), force=True)
    done("convert", store, other, out)  # a source has changed
    assert len(hdf5.labels(out)) == 24
    write_store(out, random_rows(5, 7), force=True)  # by another than the command
    before = out.read_bytes()
    for arguments, message in (
        ((store, other, out), "--force"),
        ((store, tmp_path / "gone.h5", out, "--force"), "gone.h5 does not exist"),
        ((store, store, out, "--force"), "are the same file"),
        ((store, other, out, "--force", "--labels", "folder"), "--labels does not apply to several stores"),
        ((store, "-", out, "--force"), "- is stdin and cannot be combined"),
    ):
        result = knn("convert", *arguments)
        assert result.exit_code == 1 and message in " ".join(result.stderr.split()), result.output
        assert "Traceback" not in result.output and out.read_bytes() == before
    assert "SOURCE and TARGET are needed" in knn("convert", store).stderr
    done("convert", store, other, out, "--backup")
    assert len(hdf5.labels(out)) == 24 and (tmp_path / "all.h5.bak").read_bytes() == before
