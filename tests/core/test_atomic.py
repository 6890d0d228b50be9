"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from knn_cli.core.atomic import replacing, replacing_folder, replacing_text
from knn_cli.core.errors import KnnError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_takes_its_name_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")
    with replacing_text(path) as file:
        file.write("né\n")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_bytes() == "né\n".encode()
    assert names(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), KnnError("no")])
def test_nothing_is_left_of_a_failure(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(type(error)), replacing_text(path) as file:
        file.write("half")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["out.txt"]


def test_what_the_file_system_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none" / "out.txt", tmp_path / "file" / "out.txt", tmp_path):
        with pytest.raises(KnnError) as raised, replacing_text(path):
            pass
        assert raised.value.hint
    with pytest.raises(KnnError, match="No space left"), replacing_text(tmp_path / "out.txt"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == ["file"]


def test_a_file_name_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(KnnError, match="not valid text"), replacing_text(tmp_path / "out.txt") as file:
        file.write(os.fsdecode(b"SPEAKER caf\xe9 1"))
    assert names(tmp_path) == []


def test_errors_about_other_files_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing_text(tmp_path / "out.txt"):
        (tmp_path / "other").read_text()
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_devices_stay_devices() -> None:
    with replacing_text("/dev/null") as file:
        file.write("gone")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(KnnError, match="No space left"), replacing_text("/dev/full") as file:
        file.write("too much")


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with replacing_text(tmp_path / "link") as file:
        file.write("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_pipes_and_devices_are_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(KnnError, match="is a pipe or a device"), replacing(path):
            pass
    assert (tmp_path / "pipe").is_fifo() and Path("/dev/null").is_char_device()


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for make in (replacing, replacing_text, replacing_folder):
        with pytest.raises(KnnError, match="links form a circle"), make(tmp_path / "loop"):
            pass
    assert (tmp_path / "loop").is_symlink()


def test_what_came_into_a_folder_meanwhile_keeps_it(tmp_path: Path) -> None:
    def check() -> None:
        if (tmp_path / "out" / "mine").exists():
            raise KnnError("it holds mine.")

    with pytest.raises(KnnError, match="it holds mine"), replacing_folder(tmp_path / "out", check=check) as new:
        (new / "x").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["out", "out/mine"]
