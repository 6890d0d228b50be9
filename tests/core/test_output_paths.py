"""Outputs that would replace what must stay are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from knn_cli.core.errors import KnnError
from knn_cli.core.output_paths import check_folder, check_output, check_unique_stems, make_output_folder


def test_sources_are_never_outputs(tmp_path: Path) -> None:
    source, link = tmp_path / "a.wav", tmp_path / "link"
    source.touch()
    link.symlink_to(source)
    check_output(None, [source])
    check_output(tmp_path / "b.wav", [source])
    for output in (source, link, tmp_path / "x" / ".." / "a.wav"):
        with pytest.raises(KnnError, match="is one of the sources"):
            check_output(output, [source])


def test_folders_with_foreign_files_stay(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    check_folder(folder, "model", {"card"}, force=False)  # not there yet
    folder.mkdir()
    check_folder(folder, "model", {"card"}, force=False)  # empty
    (folder / "card").touch()
    with pytest.raises(KnnError, match="exists already") as raised:
        check_folder(folder, "model", {"card"}, force=False)
    assert "force" in raised.value.hint
    check_folder(folder, "model", {"card"}, force=True)
    (folder / "thesis").touch()
    with pytest.raises(KnnError, match="is no model: it holds thesis"):
        check_folder(folder, "model", {"card"}, force=True)
    with pytest.raises(KnnError, match="is no model"):
        check_folder(folder / "card", "model", {"card"}, force=True)


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


def test_stems_differ() -> None:
    check_unique_stems([Path("a.wav"), Path("b.wav")])
    with pytest.raises(KnnError, match=r"Two files are called a\b.*a\.wav and .*a\.flac"):
        check_unique_stems([Path("a.wav"), Path("b.wav"), Path("x/a.flac")])
