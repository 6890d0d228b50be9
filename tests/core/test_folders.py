"""Files below a folder: what cannot be looked at is in the list, so that it is not passed over in silence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from knn_cli.core.folders import files_below, is_folder, is_regular, others_below


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that cannot be listed, whoever runs the test."""
    folder, scandir = tmp_path / "b" / "closed", os.scandir
    folder.mkdir(parents=True)

    def refuse(path: Any) -> Iterator[os.DirEntry[str]]:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    return folder


def test_files_below(tmp_path: Path, closed: Path) -> None:
    for name in ("a.wav", "b/c.WAV", "b/.hidden/d.wav", ".e.wav", "b/f.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link.wav").symlink_to("nowhere")
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    (tmp_path / "up").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.wav")
    found = [path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path, {".wav"})]
    assert found == ["a.wav", "b/c.WAV", "b/closed", "link.wav", "loop.wav"]
    assert files_below(closed, {".wav"}) == [closed]
    assert files_below(tmp_path / "a.wav", {".wav"}) == files_below(tmp_path / "none", {".wav"}) == []


def test_kinds(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert is_folder(tmp_path) and is_regular(tmp_path / "a") and not is_folder(tmp_path / "a")
    assert not any(kind(Path(name)) for kind in (is_folder, is_regular) for name in ("none", "a\0b", "/dev/null"))


def test_others_are_those_that_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.wav", "b.txt", "sub/c.RTTM", "sub/d.WAV", ".hidden.txt"):
        (tmp_path / name).write_text("")
    assert others_below(tmp_path, {".wav"}) == [tmp_path / "b.txt", tmp_path / "sub" / "c.RTTM"]
    assert files_below(tmp_path, {".wav"}) == [tmp_path / "a.wav", tmp_path / "sub" / "d.WAV"]
