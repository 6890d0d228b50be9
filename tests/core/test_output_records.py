"""Who wrote an output, and whether it was changed since."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from knn_cli.core.atomic import replacing_text, replacing_together
from knn_cli.core.errors import KnnError
from knn_cli.core.output_records import RECORD, OutputRecords, OutputTask, check_replaceable, stamps

TASK = OutputTask("diarize", "abc")


def write(path: Path, text: str, task: OutputTask = TASK) -> None:
    with replacing_text(path, task=task) as file:
        file.write(text)


def state(path: Path, command: str = "diarize") -> str:
    return OutputRecords().state(path, OutputTask(command))


def test_states(tmp_path: Path) -> None:
    path = tmp_path / "a.rttm"
    assert state(path) == "missing"
    path.write_text("")
    assert state(path) == "missing"  # as `mktemp` makes it: nothing would be lost
    path.write_text("by hand")
    assert state(path) == "unknown"
    write(path, "one")
    assert state(path) == "unchanged" and state(path, "timeline") == "others"
    os.utime(path, (1, 1))  # a copy, or one that was checked out
    assert state(path) == "unchanged"
    path.write_text("two")  # of the same length
    assert state(path) == "changed"
    assert state(Path("/dev/null")) == "missing"


def test_finished_is_what_the_same_task_wrote(tmp_path: Path) -> None:
    path = tmp_path / "a.rttm"
    write(path, "one")
    assert OutputRecords().is_finished(path, TASK)
    for other in (OutputTask("diarize", "abd"), OutputTask("diarize"), OutputTask("timeline", "abc")):
        assert not OutputRecords().is_finished(path, other)
    path.write_text("corrected")
    assert not OutputRecords().is_finished(path, TASK)
    assert OutputRecords().is_finished(path, TASK, changed=True)
    path.unlink()
    assert not OutputRecords().is_finished(path, TASK, changed=True)


def test_what_is_refused(tmp_path: Path) -> None:
    ours, changed, unknown = (tmp_path / name for name in ("ours.eaf", "changed.eaf", "unknown.eaf"))
    for path in (ours, changed):
        write(path, "x")
    changed.write_text("y")
    unknown.write_text("z")
    check_replaceable(dict.fromkeys([ours, tmp_path / "new.eaf"], TASK))
    with pytest.raises(
        KnnError, match=r"changed\.eaf exists already, and was changed since `knn diarize` wrote it"
    ) as e:
        check_replaceable(dict.fromkeys([ours, changed, unknown], TASK))
    assert "So it is with 2 of 3 outputs." in e.value.message and "`force=True`" in e.value.hint
    with pytest.raises(KnnError, match="was not written by `knn timeline`"):
        check_replaceable({ours: OutputTask("timeline")})
    check_replaceable(dict.fromkeys([changed, unknown], TASK), force=True)
    check_replaceable(dict.fromkeys([changed, unknown], OutputTask("diarize", backup=True)))


def test_outputs_of_other_recordings_are_not_replaced(tmp_path: Path) -> None:
    for name, sound in (("A", "one"), ("B", "other")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "side1.wav").write_text(sound)
    first, second = (OutputTask("diarize", "abc", source=tmp_path / name / "side1.wav") for name in "AB")
    path = tmp_path / "side1.rttm"
    write(path, "x", first)
    assert '"A/side1.wav"' in (tmp_path / RECORD).read_text()
    assert [OutputRecords().state(path, task) for task in (first, second, TASK)] == [
        "unchanged",
        "another",
        "unchanged",
    ]
    with pytest.raises(KnnError, match=r"is of another recording than .*B/side1\.wav"):
        check_replaceable({path: second})
    (tmp_path / "A" / "side1.wav").write_text("edited in its place")
    assert OutputRecords().state(path, first) == "unchanged"
    (tmp_path / "A").rename(tmp_path / "moved")
    write(path, "x", moved := OutputTask("diarize", "abc", source=tmp_path / "moved" / "side1.wav"))
    (tmp_path / "moved").rename(tmp_path / "A")
    assert OutputRecords().state(path, first) == "unchanged"  # the same file elsewhere
    assert OutputRecords().state(path, moved) == "unchanged"  # of what is not there, nothing is known
    write(path, "y", OutputTask("diarize", "abc", backup=True, source=second.source))
    assert path.with_name("side1.rttm.bak").read_text() == "x"


def test_old_files_are_kept_under_new_names(tmp_path: Path) -> None:
    path, keeping = tmp_path / "a.eaf", OutputTask("diarize", backup=True)
    for text in ("first", "second", "second", "third"):
        path.write_text(text)
        write(path, "ours", keeping)
        write(path, "ours again", keeping)  # which can be made again, and is not kept
    found = {one.name: one.read_text() for one in tmp_path.iterdir() if one.name != RECORD}
    assert found == {
        "a.eaf": "ours again",
        "a.eaf.bak": "first",
        "a.eaf.1.bak": "second",
        "a.eaf.2.bak": "third",
    }


def test_old_files_are_copied_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no links")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a.eaf").write_text("old")
    write(tmp_path / "a.eaf", "new", OutputTask("diarize", backup=True))
    assert (tmp_path / "a.eaf.bak").read_text() == "old" and (tmp_path / "a.eaf").read_text() == "new"


def test_files_that_belong_together_and_links(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.txt").symlink_to("elsewhere/real.txt")
    with replacing_together([tmp_path / "a.txt", tmp_path / "link.txt"], task=TASK) as parts:
        for part in parts:
            part.write_text("x")
    assert state(tmp_path / "a.txt") == state(tmp_path / "link.txt") == "unchanged"
    assert (tmp_path / "elsewhere" / RECORD).is_file()
    shutil.copytree(tmp_path, tmp_path.with_name("copy"), symlinks=True)
    assert state(tmp_path.with_name("copy") / "a.txt") == "unchanged"


@pytest.mark.parametrize("kind", ["damaged", "torn", "folder", "link", "pipe"])
def test_a_record_that_is_of_no_use_costs_no_work(tmp_path: Path, kind: str) -> None:
    record, other = tmp_path / RECORD, tmp_path / "other"
    other.write_text("theirs")
    if kind == "damaged":
        record.write_bytes(b'\xff\x00{"name": 1}\n[]\n{"name": "a.txt", "size": "x"}\n' + b"[" * 5000 + b"\n")
    elif kind == "torn":
        record.write_text('{"name": "a.t')
    elif kind == "folder":
        record.mkdir()
    elif kind == "link":
        record.symlink_to(other)
    else:
        os.mkfifo(record)
    write(tmp_path / "a.txt", "ours")
    assert (tmp_path / "a.txt").read_text() == "ours" and other.read_text() == "theirs"
    assert state(tmp_path / "a.txt") == ("unchanged" if kind in ("damaged", "torn") else "unknown")


def test_stamps_tell_of_changes(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in ("b", "a"):
        (tmp_path / "d" / name).write_text(name)
    before = stamps([tmp_path / "d"])
    assert [name for name, *_ in before] == ["a", "b"]
    assert stamps([tmp_path / "d"]) == before
    (tmp_path / "d" / "a").write_text("longer")
    assert stamps([tmp_path / "d"]) != before
    assert stamps([tmp_path / "none"]) == [("none", -1, -1)]
