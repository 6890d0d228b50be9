"""Stores that refer to others: what is read, and parts that are gone or no longer what they were."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from knn_cli.core.errors import StoreError
from knn_cli.core.values import EmbeddingSet
from knn_cli.store import hdf5, parts
from knn_cli.store.hdf5 import Store
from knn_cli.store.merging import merge_stores
from knn_cli.store.writer import write_store
from tests.helpers.command import done, knn
from tests.helpers.store_rows import audio_store, random_rows, same_rows


def virtual_store(folder: Path) -> tuple[Path, EmbeddingSet]:
    """A store of two parts in a folder below it, and its rows."""
    (folder / "below").mkdir(parents=True)
    rows = [random_rows(300, seed, dimension=256) for seed in (1, 2)]
    sources = [folder / "below" / f"part-{number}.h5" for number in (1, 2)]
    for source, one in zip(sources, rows, strict=True):
        write_store(source, one)
    merge_stores(sources, folder / "all.h5", virtual=True)
    return folder / "all.h5", EmbeddingSet.concatenate(rows)


def test_rows_are_those_of_the_parts_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rows = virtual_store(tmp_path / "here")
    assert same_rows(hdf5.read(path), rows)
    assert path.stat().st_size < rows.data.nbytes / 4
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir("/")
    with Store(tmp_path / "there" / "all.h5") as store:
        assert store.is_virtual and np.array_equal(store.data(299, 301), rows.data[299:301])
    merge_stores([tmp_path / "there" / "all.h5"], tmp_path / "copy.h5")
    assert same_rows(hdf5.read(tmp_path / "copy.h5"), rows)


def test_parts_of_a_store_behind_a_link_lie_beside_the_store(tmp_path: Path) -> None:
    path, rows = virtual_store(tmp_path / "here")
    other, _ = virtual_store(tmp_path / "there")
    write_store(tmp_path / "there" / "below" / "part-1.h5", random_rows(300, 9, dimension=256), force=True)
    other.unlink()
    other.symlink_to(path)
    assert same_rows(hdf5.read(other), rows)


def test_sound_stays_in_its_parts(tmp_path: Path) -> None:
    sources = [audio_store(tmp_path / "one.h5", "abc"), audio_store(tmp_path / "two.h5", "d")]
    merge_stores(sources, tmp_path / "copy.h5")
    merge_stores(sources, tmp_path / "all.h5", virtual=True)
    with Store(tmp_path / "all.h5", "audio") as store, Store(tmp_path / "copy.h5", "audio") as copy:
        assert [store.flac(row) for row in range(4)] == [copy.flac(row) for row in range(4)]
        assert store.rate == 8000 and [row.name for row in store.segments()] == [*"abcd"]


def again(part: Path) -> None:
    """Write other values of the same size."""
    size = part.stat().st_size
    write_store(part, random_rows(300, 1, dimension=256, embedder="m@2"), force=True)
    assert part.stat().st_size == size


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda part: part.unlink(), "which is gone"),
        (lambda part: (part.unlink(), part.mkdir()), "which is gone"),
        (
            lambda part: write_store(part, random_rows(300, 3, dimension=256), force=True),
            "which is not the file that it was",
        ),
        (
            lambda part: write_store(part, random_rows(9, 3, dimension=256), force=True),
            "which is not the file that it was",
        ),
        (again, "which is not the file that it was"),
        (lambda part: os.truncate(part, part.stat().st_size - 1), "which is not the file that it was"),
        (lambda part: shutil.copyfile(part.with_name("part-2.h5"), part), "which is not the file that it was"),
    ],
)
def test_a_part_that_is_gone_or_was_replaced_is_named(tmp_path: Path, change: object, why: str) -> None:
    path, _ = virtual_store(tmp_path)
    change(tmp_path / "below" / "part-1.h5")  # type: ignore[operator]
    with pytest.raises(StoreError, match=f"all.h5 refers to rows of .*part-1.h5, {why}"):
        hdf5.read(path)


def test_no_file_is_read_that_the_list_of_parts_does_not_know(tmp_path: Path) -> None:
    path, _ = virtual_store(tmp_path)
    write_store(tmp_path / "secret.h5", random_rows(300, 5, dimension=256))
    with h5py.File(path, "r+") as file:
        files = file["Parts/file"]
        files[0] = "secret.h5"
    with pytest.raises(StoreError, match=r"keeps /Data in another file, 'below/part-1.h5'"):
        Store(path)
    with h5py.File(path, "r+") as file:
        del file["Data"]
        known = [parts.StorePart("secret.h5", 300, 1, ""), parts.StorePart("below/part-2.h5", 300, 1, "")]
        parts.refer(file, "Data", (600, 256), known, np.dtype("f4"))
    with pytest.raises(StoreError, match=r"refers to rows of .*secret.h5, which is not the file that it was"):
        Store(path)


def test_a_part_that_refers_to_itself(tmp_path: Path) -> None:
    path, _ = virtual_store(tmp_path)
    with h5py.File(path, "r+") as file:
        del file["Parts"]
        parts.write(file, [parts.StorePart("all.h5", 600, 0, "")])
    with pytest.raises(StoreError):
        Store(path)


def test_what_cannot_be_parts(tmp_path: Path) -> None:
    path, _ = virtual_store(tmp_path)
    one, other = tmp_path / "one.h5", tmp_path / "other.h5"
    write_store(one, random_rows(2, 7, dimension=256))
    write_store(other, random_rows(2, 8, dimension=3))
    for sources, message in (
        ([one], "several stores, and there is one"),
        ([one, path], "all.h5 refers to other stores itself"),
        ([one, other], "cannot be merged: they hold embeddings of 256 dimensions, and embeddings of 3 dimensions"),
    ):
        with pytest.raises(StoreError, match=message):
            merge_stores(sources, tmp_path / "new.h5", virtual=True)
    assert not (tmp_path / "new.h5").exists()


def test_the_command(tmp_path: Path) -> None:
    rows = [random_rows(3, seed) for seed in (1, 2)]
    sources = [tmp_path / "one.h5", tmp_path / "two.h5"]
    for source, one in zip(sources, rows, strict=True):
        write_store(source, one)
    done("convert", *sources, tmp_path / "all.h5", "--virtual")
    assert same_rows(hdf5.read(tmp_path / "all.h5"), EmbeddingSet.concatenate(rows))
    alone = knn("convert", sources[0], tmp_path / "new.h5", "--virtual")
    assert alone.exit_code and "several stores, and there is one" in " ".join(alone.stderr.split())
    sources[1].unlink()
    gone = knn("info", tmp_path / "all.h5")
    assert gone.exit_code == 1 and "two.h5, which is gone" in " ".join(gone.stderr.split())
