"""Temporary folders: nobody else's, removed at the end, or by the next process where theirs was killed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from knn_cli.core import temporary
from knn_cli.core.atomic import replacing, replacing_folder, replacing_text, replacing_together
from knn_cli.core.temporary import TemporaryFolder, sweep
from tests.helpers.killed import run_killed

pytestmark = pytest.mark.skipif(os.name == "nt", reason="locks that end with their process")

WRITE = """
from pathlib import Path
import knn_cli.core.atomic as atomic
from knn_cli.core import temporary
out = Path(sys.argv[1])
"""


def tree(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_private_unpredictable_and_removed(tmp_path: Path) -> None:
    with TemporaryFolder(tmp_path / "out") as one, TemporaryFolder(tmp_path / "out") as other:
        assert one.path != other.path and one.path.parent == tmp_path
        assert one.path.stat().st_mode & 0o777 == 0o700
        assert json.loads((one.path / "owner").read_text())["process"] == os.getpid()
        sweep(tmp_path)
        assert one.path.exists() and other.path.exists()  # their process lives
    assert tree(tmp_path) == {}


def test_the_longest_name(tmp_path: Path) -> None:
    for name in ("n" * 255, "ž" * 127):
        with replacing_text(tmp_path / name) as file:
            file.write("new")
        assert (tmp_path / name).read_text() == "new"


@pytest.mark.parametrize(
    "script",
    [
        "with atomic.replacing_text(out) as file:\n    file.write('half'); file.flush(); die()",
        "with atomic.replacing_folder(out) as new:\n    (new / 'x').write_text('half'); die()",
        "os.open = die\nwith atomic.replacing(out): pass",  # before it has an owner
        "temporary.write_mark = die\nwith atomic.replacing(out): pass",
        "os.fsync = die\nwith atomic.replacing(out): pass",
    ],
)
def test_what_a_dead_process_left_is_gone_with_the_next(tmp_path: Path, script: str) -> None:
    run_killed(WRITE + script, tmp_path / "out")
    assert len(list(tmp_path.iterdir())) == 1
    temporary._swept.clear()  # as in a new process
    with replacing_text(tmp_path / "other") as file:
        file.write("whole")
    assert tree(tmp_path) == {"other": "whole"} and len(list(tmp_path.iterdir())) == 1


def test_folders_of_others_stay(tmp_path: Path) -> None:
    for name, content in (("owner", "mine"), ("owner", '{"knn": "lock"}'), ("file", "")):
        folder = tmp_path / f".out.{len(list(tmp_path.iterdir())):08d}.part"
        folder.mkdir()
        (folder / name).write_text(content)
        (folder / "old").mkdir()
    link = tmp_path / ".out.aaaaaaaa.part"
    link.symlink_to(tmp_path / ".out.00000000.part")
    before = sorted(tmp_path.rglob("*"))
    sweep(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


FOLDER = (
    WRITE
    + """
atomic._exchange = lambda one, other: False
rename, count = Path.rename, [0]
def counted(self, target):
    count[0] += 1
    return die() if count[0] == int(sys.argv[2]) else rename(self, target)
Path.rename = counted
with atomic.replacing_folder(out) as new:
    (new / "file").write_text("new")
die()
"""
)


@pytest.mark.parametrize("number", [1, 2])
def test_a_folder_killed_between_two_renames_is_put_back(tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").write_text("old")
    run_killed(FOLDER, out, number)
    assert out.exists() == (number == 1)
    sweep(tmp_path)
    assert tree(tmp_path) == {"out/file": "old"}


def test_a_folder_changes_places_at_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o750)
    (out / "file").write_text("old")
    with replacing_folder(out) as new:
        (new / "file").write_text("new")
    assert tree(tmp_path) == {"out/file": "new"} and out.stat().st_mode & 0o777 == 0o750


TOGETHER = (
    WRITE
    + """
replace, count = Path.replace, [0]
def counted(self, target):
    count[0] += 1
    return die() if count[0] == int(sys.argv[2]) else replace(self, target)
Path.replace = counted
with atomic.replacing_together([out / "a", out / "b"], removed=[out / "c"]) as parts:
    for part in parts:
        part.write_text("new")
die()
"""
)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_files_that_belong_together_move_together(tmp_path: Path, number: int) -> None:
    """The first rename is the decision; whatever happens later, all of them are moved."""
    old, new = {"a": "old", "b": "old", "c": "old"}, {"a": "new", "b": "new"}
    for name, text in old.items():
        (tmp_path / name).write_text(text)
    run_killed(TOGETHER, tmp_path, number)
    sweep(tmp_path)
    assert tree(tmp_path) == (old if number == 1 else new)


def test_decided_moves_leave_what_has_come_since(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text("old")
    run_killed(TOGETHER, tmp_path, 3)  # a has moved
    (tmp_path / "b").unlink()
    (tmp_path / "b").write_text("somebody else's")
    sweep(tmp_path)
    assert tree(tmp_path) == {"a": "new", "b": "somebody else's"}


def test_an_interrupt_among_the_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if target == tmp_path / "b":
            monkeypatch.undo()
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), replacing_together([tmp_path / "a", tmp_path / "b"]) as parts:
        for part in parts:
            part.write_text("new")
    assert tree(tmp_path) == {"a": "new", "b": "new"}


def test_another_hosts_files_stay_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_killed(WRITE + "with atomic.replacing(out): die()", tmp_path / "a")
    left = next(tmp_path.iterdir())
    monkeypatch.setattr(temporary.socket, "gethostname", lambda: "elsewhere")
    sweep(tmp_path)
    assert left.exists()
    os.utime(left, (0, 0))
    sweep(tmp_path)
    assert not left.exists()


def test_the_mode_of_the_old_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o640)
    with replacing(tmp_path / "a") as part:
        part.write_text("new")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "b") as part:
            part.write_text("new")
    finally:
        os.umask(before)
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o640
