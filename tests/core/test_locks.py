"""Locks beside outputs: one process at a time, whatever became of the one before."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from knn_cli.core.errors import KnnError
from knn_cli.core.locks import locked, locked_files
from tests.helpers.killed import locked_elsewhere, run_killed

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such locks")


def test_the_second_process_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with locked_elsewhere(out):
        (tmp_path / "link").symlink_to("out")
        for path in (out, tmp_path / "link", tmp_path / ".." / tmp_path.name / "out"):
            with pytest.raises(KnnError, match="is being written by another process"), locked(path):
                pass
    with locked(out):
        assert (tmp_path / ".out.lock").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_a_dead_processs_lock_is_taken_over(tmp_path: Path) -> None:
    run_killed("from knn_cli.core.locks import locked\nwith locked(sys.argv[1]): die()", tmp_path / "out")
    assert (tmp_path / ".out.lock").exists()
    with locked(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


def test_within_a_process_it_is_taken_again(tmp_path: Path) -> None:
    with locked(tmp_path / "out"):
        with locked(tmp_path / "out"):
            pass
        assert (tmp_path / ".out.lock").exists()
    assert not list(tmp_path.iterdir())


def test_a_file_of_others_with_the_locks_name_stays(tmp_path: Path) -> None:
    (tmp_path / ".out.lock").write_text("mine")
    with locked(tmp_path / "out"):
        pass
    assert (tmp_path / ".out.lock").read_text() == "mine"
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".two.lock").symlink_to("mine")
    with pytest.raises(KnnError, match="cannot be written"), locked(tmp_path / "two"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_folders_above_an_output(tmp_path: Path) -> None:
    with pytest.raises(KnnError, match="No such file"), locked(tmp_path / "no" / "out"):
        pass
    with locked(tmp_path / "no" / "such" / "out", is_folder=True):
        pass
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / "no" / "such" / "out", is_folder=True):
        (tmp_path / "no" / "such" / "out").mkdir()
    assert (tmp_path / "no" / "such" / "out").is_dir()


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(KnnError, match="links form a circle"), locked(tmp_path / "a"):
        pass


def test_devices_are_not_locked() -> None:
    with locked("/dev/null"), locked("/dev/null"):
        pass


def test_files_of_a_folder_are_locked_one_by_one(tmp_path: Path) -> None:
    names = [tmp_path / f"{number}.rttm" for number in range(3000)]
    (tmp_path / "link.rttm").symlink_to("5.rttm")
    with locked_elsewhere(names[5], names[7], files=True):
        for path in (names[5], tmp_path / "link.rttm", tmp_path / ".." / tmp_path.name / "7.rttm"):
            with pytest.raises(KnnError, match="is being written by another process"), locked_files([names[0], path]):
                pass
        with locked_files([name for name in names if name not in (names[5], names[7])]):
            assert (tmp_path / ".knn.lock").exists()
        assert (tmp_path / ".knn.lock").exists()
    with locked_files(names), locked_files(names):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["link.rttm"]


def test_what_a_dead_process_left_is_taken_over_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    script = "from knn_cli.core.locks import locked_files\nwith locked_files(sys.argv[1:]): die()"
    run_killed(script, tmp_path / "out")
    assert (tmp_path / ".knn.lock").exists()
    with locked_files([tmp_path / "out"]):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / ".knn.lock").write_text("mine")
    with locked_files([tmp_path / "out"]):
        pass
    assert (tmp_path / ".knn.lock").read_text() == "mine"
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / ".knn.lock").symlink_to("../.knn.lock")
    with locked_files([tmp_path / "sub" / "out"]):
        pass
    assert (tmp_path / ".knn.lock").read_text() == "mine"
