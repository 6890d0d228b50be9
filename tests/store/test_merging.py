"""Several stores merged into one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from knn_cli.core.errors import KnnError, StoreError
from knn_cli.core.values import EmbeddingSet
from knn_cli.networks.conversion import convert
from knn_cli.store import hdf5, merging
from knn_cli.store.hdf5 import Store
from knn_cli.store.merging import merge_stores
from knn_cli.store.writer import write_store
from tests.helpers.store_rows import audio_store, datasets, random_rows, same_rows


def labelled(rows: int) -> EmbeddingSet:
    """Rows with labels of all levels, some of them unknown, and times."""
    made = random_rows(rows, 3)
    number = np.arange(rows)
    speakers = np.where(number % 3 == 0, "", np.char.add("mluvčí", number.astype(str)))
    subgroups = np.where(number % 2 == 0, "cs-1", "")
    return replace(made, subgroup=subgroups, speaker=speakers, end=made.start + 0.1)


@pytest.mark.parametrize("cuts", [(1, 2, 9), (5,), (3, 6)])
def test_the_parts_of_a_store_give_it_back(
    cuts: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "_BLOCK_ROWS", 2)  # several blocks of each part
    whole = labelled(10)
    parts = []
    for number, rows in enumerate(np.split(np.arange(10), cuts)):
        parts.append(tmp_path / f"part-{number}.h5")
        write_store(parts[-1], whole.take(rows))
    seen: list[tuple[int, int]] = []
    made = convert(parts, tmp_path / "all.h5", progress=lambda done, total: seen.append((done, total)))
    write_store(tmp_path / "at-once.h5", whole)
    assert same_rows(hdf5.read(tmp_path / "all.h5"), whole)
    assert (made.kind, made.rows, made.sources) == ("embeddings", 10, 10)
    assert seen[-1] == (10, 10) and len(seen) > len(parts)
    assert datasets(tmp_path / "all.h5") == datasets(tmp_path / "at-once.h5")
    with h5py.File(tmp_path / "all.h5") as merged, h5py.File(tmp_path / "at-once.h5") as once:
        assert merged.attrs.keys() == once.attrs.keys()


def test_sound_is_copied_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [audio_store(tmp_path / "one.h5", "abc"), audio_store(tmp_path / "two.h5", "d")]
    kept = []
    for part in parts:
        with Store(part) as store:
            kept += [store.flac(row) for row in range(len(store))]
    monkeypatch.setattr(merging, "_BLOCK_BYTES", len(kept[0]) + 1)  # two rows at once
    monkeypatch.setattr("knn_cli.store.hdf5.decode_flac", None)
    monkeypatch.setattr("knn_cli.store.row_columns.encode_flac", None)
    assert merge_stores(parts, tmp_path / "all.h5").rows == 4
    with Store(tmp_path / "all.h5", "audio") as store:
        assert [store.flac(row) for row in range(4)] == kept and store.rate == 8000
        rows = store.labels()
    assert rows.name.tolist() == [*"abcd"] and rows.speaker.tolist() == [f"of {name}" for name in "abcd"]
    assert set(rows.subgroup) == {"cs-1"} and set(rows.end) == {0.3}


def timed(seed: int) -> EmbeddingSet:
    rows = random_rows(3, seed)
    return replace(rows, end=rows.start + 1)


Other = Callable[[Path], object]
OTHERS: dict[str, tuple[Other, str]] = {
    "kind": (lambda path: audio_store(path, "a"), "embeddings of 4 dimensions, and audio of 8000 Hz"),
    "dimension": (lambda path: write_store(path, random_rows(2, 9, dimension=5)), "4 dimensions, and .* 5 dimensions"),
    "model": (lambda path: write_store(path, random_rows(2, 9, embedder="n@2")), "the model m@1, and .* the model n@2"),
    "no model": (lambda path: write_store(path, random_rows(2, 9, embedder="")), "m@1, and .* an unknown model"),
    "row": (lambda path: write_store(path, timed(8).take([1, 2])), "both have the row rec8_1 .* from 1 to 2 s"),
    "other file": (lambda path: path.write_text("no store"), "two.h5"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_stores_that_do_not_fit_are_refused_by_name(what: str, tmp_path: Path) -> None:
    one, two, out = (tmp_path / name for name in ("one.h5", "two.h5", "all.h5"))
    write_store(one, timed(8))
    make, message = OTHERS[what]
    make(two)
    with pytest.raises(KnnError, match=message) as error:
        merge_stores([one, two], out)
    assert str(two) in error.value.message and (what == "other file" or str(one) in error.value.message)
    assert not out.exists()


def test_rates_of_sound_must_agree(tmp_path: Path) -> None:
    parts = [audio_store(tmp_path / "one.h5", "a"), audio_store(tmp_path / "two.h5", "b", rate=16000)]
    with pytest.raises(StoreError, match=r"one\.h5 and .*two.h5 .*8000 Hz, and audio of 16000 Hz"):
        merge_stores(parts, tmp_path / "all.h5")


def test_rows_without_times_are_the_same_if_their_values_are(tmp_path: Path) -> None:
    one, two, out = (tmp_path / name for name in ("one.h5", "two.h5", "all.h5"))
    rows = replace(random_rows(2, 1), name=np.array(["tape", "tape"]), start=np.full(2, np.nan))
    write_store(one, rows.take([0]))
    write_store(two, rows.take([1]))
    assert merge_stores([one, two], out).sources == 1  # one recording in two pieces
    with pytest.raises(StoreError, match="both have the row tape"):
        merge_stores([one, out], tmp_path / "more.h5")
    for path in (one, two):
        write_store(path, random_rows(1, 1), force=True)  # whose end is not known
    with pytest.raises(StoreError, match=r"both have the row rec1_0 žluťoučký\."):
        merge_stores([one, two], tmp_path / "more.h5")


def test_a_missing_store_is_named_before_any_is_read(tmp_path: Path) -> None:
    (tmp_path / "damaged.h5").write_bytes(b"\x89HDF\r\n\x1a\n damaged")
    with pytest.raises(StoreError, match=r"gone\.h5 does not exist"):
        merge_stores([tmp_path / "damaged.h5", tmp_path / "gone.h5"], tmp_path / "all.h5")


def test_sources_and_outputs_that_make_no_sense(tmp_path: Path) -> None:
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    write_store(one, random_rows(2, 1))
    write_store(two, random_rows(2, 2))
    (tmp_path / "link.h5").symlink_to(one)
    before = two.read_bytes()
    for sources, out, message in (
        ([one, tmp_path / "link.h5"], "all.h5", "are the same file"),
        ([one, two], "two.h5", "is one of the sources"),
        ([one, two], "all.npz", "is no name for a store"),
        ([], "all.h5", "no stores to merge"),
    ):
        with pytest.raises(KnnError, match=message):
            merge_stores(sources, tmp_path / out, force=True)
    with pytest.raises(KnnError, match="merged as they are"):
        convert([one, two], tmp_path / "all.h5", label_rule="group/file")
    assert two.read_bytes() == before and not (tmp_path / "all.h5").exists()
