"""Outputs that would replace what must stay are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from knn_cli.core.errors import KnnError
from knn_cli.core.output_paths import (
    check_folder,
    check_output,
    listed_files,
    make_output_folder,
    write_list_of_files,
)


def test_sources_are_never_outputs(tmp_path: Path) -> None:
    source, link = tmp_path / "a.wav", tmp_path / "link"
    source.touch()
    link.symlink_to(source)
    check_output(None, [source])
    check_output(tmp_path / "b.wav", [source])
    for output in (source, link, tmp_path / "x" / ".." / "a.wav"):
        with pytest.raises(KnnError, match="is one of the sources"):
            check_output(output, [source])


def _ours(folder: Path) -> set[str]:
    return {"card", "data/x"} if (folder / "card").is_file() else set()


def test_folders_with_foreign_files_stay(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    check_folder(folder, "model", _ours, force=False)  # not there yet
    folder.mkdir()
    check_folder(folder, "model", _ours, force=False)  # empty
    (folder / "card").touch()
    with pytest.raises(KnnError, match="exists already") as raised:
        check_folder(folder, "model", _ours, force=False)
    assert "force" in raised.value.hint
    check_folder(folder, "model", _ours, force=True)
    with pytest.raises(KnnError, match="is no model"):
        check_folder(folder / "card", "model", _ours, force=True)


@pytest.mark.parametrize("foreign", ["thesis", "data/thesis", ".git/config", "empty/", "data/empty/", "link"])
def test_anything_else_in_a_folder_keeps_it(tmp_path: Path, foreign: str) -> None:
    for name in ("card", "data/x"):
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).touch()
    check_folder(tmp_path / "model", "model", _ours, force=True)
    path = tmp_path / "model" / foreign
    if foreign == "link":
        path.symlink_to(tmp_path)
    elif foreign.endswith("/"):
        path.mkdir(parents=True)
    else:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for force in (False, True):
        with pytest.raises(KnnError, match=f"is no model: it holds {foreign.rstrip('/')}"):
            check_folder(tmp_path / "model", "model", _ours, force=force)


def test_names_of_ours_without_their_mark_are_others(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").touch()
    with pytest.raises(KnnError, match="is no model: it holds data/x"):
        check_folder(tmp_path, "model", _ours, force=True)


def test_a_list_of_files_says_which_are_ours(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / os.fsdecode(b"caf\xe9")).touch()
    write_list_of_files(tmp_path, "export")
    check_folder(tmp_path, "export", lambda folder: listed_files(folder, "export"), force=True)
    (tmp_path / "mine").touch()
    with pytest.raises(KnnError, match="it holds mine"):
        check_folder(tmp_path, "export", lambda folder: listed_files(folder, "export"), force=True)
    assert not listed_files(tmp_path, "other")
    for text in ("", "[]", "{", '{"knn": "export"}', '{"knn": "export", "files": 3}', "[" * 10**5):
        (tmp_path / "knn.json").write_text(text)
        assert not listed_files(tmp_path, "export")


def test_output_folders_are_created(tmp_path: Path) -> None:
    source, folder = tmp_path / "a.wav", tmp_path / "out"
    source.touch()
    with pytest.raises(KnnError, match="is one of the sources"):
        make_output_folder(tmp_path, [source], [source])
    make_output_folder(folder, [folder / "day1" / "a.rttm"], [source])
    assert (folder / "day1").is_dir()
    with pytest.raises(KnnError, match="is a file"):
        make_output_folder(source, [], [])
    with pytest.raises(KnnError, match="cannot be created"):
        make_output_folder(source / "below", [], [])
