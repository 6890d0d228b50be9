"""The HDF5 store: round trips, legacy files, refusals."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knn_cli.core.errors import KnnError, StoreError
from knn_cli.core.values import Waveform
from knn_cli.store import hdf5
from knn_cli.store.hdf5 import AudioRow, Store
from knn_cli.store.writer import StoreWriter, write_store
from tests.helpers.store_rows import random_rows, same_rows


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 2100), seed=st.integers(0, 9))
def test_embeddings_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: int, seed: int) -> None:
    path = tmp_path_factory.mktemp("store") / "e.h5"
    write_store(path, random_rows(rows, seed))
    assert same_rows(hdf5.read(path), random_rows(rows, seed))
    assert not path.with_name("e.h5.parts").exists()


def test_audio_round_trip(tmp_path: Path) -> None:
    samples = (np.arange(-800, 800, dtype=np.float32) / 32768) * 10
    rows = [AudioRow(Waveform(samples, 16000), "a", "3", "3-2", "eva", 0.0, 0.1) for _ in range(3)]
    with StoreWriter(tmp_path / "a.h5", "audio", {"rate": 16000}, plan={}) as writer:
        writer.add("a.wav", rows)
    with Store(tmp_path / "a.h5", "audio") as opened:
        assert (len(opened), opened.rate, opened.kind) == (3, 16000, "audio")
        for row in opened.segments():
            assert np.allclose(row.waveform.samples, samples, atol=1 / 32768)
            assert (row.name, row.group, row.subgroup, row.speaker) == ("a", "3", "3-2", "eva")
            assert (row.start, row.end) == (0, 0.1)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_legacy_files_are_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    data = np.arange(12, dtype=np.float32).reshape(3, 4)
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file["Data"] = data
        file["Name"] = np.array([b"r1", b"r1", "ř2".encode()]).reshape(shape)
        file["GroupID"] = np.array([b"1", b"1", b"3"]).reshape(shape)
        file["SubgroupID"] = np.array([b"1-1", b"1-1", b"3-2"]).reshape(shape)
    found = hdf5.read(tmp_path / "old.h5")
    assert np.array_equal(found.data, data)
    assert list(found.name) == ["r1", "r1", "ř2"] and list(found.subgroup) == ["1-1", "1-1", "3-2"]
    assert found.embedder == "" and np.isnan(found.start).all()


def test_refusals(tmp_path: Path) -> None:
    write_store(tmp_path / "e.h5", random_rows(2))
    with pytest.raises(StoreError, match="exists already"):
        write_store(tmp_path / "e.h5", random_rows(3))
    write_store(tmp_path / "e.h5", random_rows(3), force=True)
    assert len(hdf5.read(tmp_path / "e.h5")) == 3
    with pytest.raises(StoreError, match="holds embeddings, not audio"):
        Store(tmp_path / "e.h5", "audio")
    with pytest.raises(StoreError, match="does not exist"):
        hdf5.read(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(StoreError, match="not an HDF5 store"):
        hdf5.read(tmp_path / "text.h5")
    with pytest.raises(KnnError, match="No such file or directory"):
        write_store(tmp_path / "no" / "e.h5", random_rows(2))
    with (
        pytest.raises(StoreError, match=r"folder .* does not exist"),
        StoreWriter(tmp_path / "no" / "e.h5", "embeddings", {}, plan={}),
    ):
        pass
    with pytest.raises(StoreError, match="is a folder"):
        write_store(tmp_path, random_rows(2))
    with h5py.File(tmp_path / "new.h5", "w") as file:
        file.attrs["schema"] = 99
    with pytest.raises(StoreError, match="schema 99"):
        hdf5.read(tmp_path / "new.h5")
    with h5py.File(tmp_path / "half.h5", "w") as file:
        file["Data"] = np.zeros((2, 3))
    with pytest.raises(StoreError, match="lacks the dataset Name"):
        hdf5.read(tmp_path / "half.h5")
    with pytest.raises(StoreError, match="nothing to write"), StoreWriter(tmp_path / "n.h5", "embeddings", {}, plan={}):
        pass


def test_strange_stores_are_refused_not_stumbled_over(tmp_path: Path) -> None:
    def made(name: str, **contents: object) -> Path:
        path = tmp_path / f"{name}.h5"
        with h5py.File(path, "w") as file:
            for key, value in contents.items():
                if key.islower():
                    file.attrs[key] = value
                elif isinstance(value, str):
                    file.create_group(key)
                else:
                    file[key] = value
        return path

    for path, message in (
        (made("schema", schema="x", Data=np.zeros((2, 3)), Name=[b"a", b"b"]), "which is no number"),
        (made("text", Data=np.array([[b"a"], [b"b"]]), Name=[b"a", b"b"]), "not numbers"),
        (made("start", Data=np.zeros((2, 3)), Name=[b"a", b"b"], Start=[b"x", b"y"]), "must be seconds"),
        (made("group", Data=np.zeros((2, 3)), Name=[b"a", b"b"], Speaker="group"), "Speaker must be a dataset"),
        (made("rate", kind="audio", Audio=np.zeros(2), Name=[b"a", b"b"]), "samples per second"),
        (made("nan", Data=np.array([[0.0, 1], [np.nan, 0]]), Name=[b"a", b"b"]), r"first in row 1 \(b\)"),
    ):
        with pytest.raises(StoreError, match=message), Store(path) as opened:
            opened.embeddings()


def test_damaged_sound_names_its_row(tmp_path: Path) -> None:
    row = AudioRow(Waveform(np.zeros(1600, dtype=np.float32), 16000), "a", "", "", "", 0.0, 0.1)
    with StoreWriter(tmp_path / "a.h5", "audio", {"rate": 16000}, plan={}) as writer:
        writer.add("a", [row, row])
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["Audio"][1] = np.zeros(50, dtype=np.uint8)
    with Store(tmp_path / "a.h5") as opened, pytest.raises(StoreError, match="row 1, is damaged"):
        list(opened.segments())


def test_rows_are_found_by_name_and_start_in_one_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.zeros(160, np.float32)
    rows = [
        AudioRow(Waveform(samples, 16000), n, "", "", "", s, s + 1.0) for n, s in [("a", 0.0), ("b", 0.0), ("a", 1.5)]
    ]
    with StoreWriter(tmp_path / "a.h5", "audio", {"rate": 16000}, plan={}) as writer:
        writer.add("a.wav", rows)
    with Store(tmp_path / "a.h5") as opened:
        read: list[int] = []
        encoded = opened.encoded
        monkeypatch.setattr(opened, "encoded", lambda *arguments: read.append(1) or encoded(*arguments))
        wanted = [("a", 0.0), ("b", 0.0004), ("a", 1.5), ("b", 1.5), ("c", 0.0)]
        assert [opened.find(*one) for one in wanted] == [0, 1, 2, None, None]
        assert len(read) == 1


def test_some_rows_of_a_store(tmp_path: Path) -> None:
    samples = np.zeros(160, np.float32)
    rows = [AudioRow(Waveform(samples, 16000), name, "", "", "", 0.0, 0.01) for name in "abcd"]
    with StoreWriter(tmp_path / "a.h5", "audio", {"rate": 16000}, plan={}) as writer:
        writer.add("a.wav", rows)
    with Store(tmp_path / "a.h5", rows=np.array([1, 3])) as opened:
        assert [row.name for row in opened.segments()] == ["b", "d"] and len(opened) == 4
        parts = [[row.name for row in opened.segments(range(*part))] for part in ((0, 1), (1, 2), (2, 4))]
        assert parts == [[], ["b"], ["d"]]


def _store(path: Path, names: object, **more: object) -> Path:
    with h5py.File(path, "w") as file:
        file["Data"] = more.pop("Data", np.ones((2, 3), np.float32))
        file["Name"] = ["a", "b"]
        file["GroupID"] = names
        for name, value in more.items():
            file[name] = value
    return path


def test_labels_in_the_types_of_other_programs(tmp_path: Path) -> None:
    lists = np.array([np.frombuffer(text, np.uint8) for text in (b"de", b"nld")], dtype=object)
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["Data"], file["Name"] = np.ones((2, 3)), ["a", "b"]
        file.create_dataset("GroupID", data=lists, dtype=h5py.vlen_dtype(np.uint8))
    assert hdf5.labels(tmp_path / "v.h5").group.tolist() == ["de", "nld"]
    for number, (values, expected) in enumerate(
        [
            (np.array([b"de   ", b"de"], "S8"), ["de", "de"]),  # padded as Fortran and MATLAB do
            (np.array([b"de\0xx", b"de"], "S8"), ["de", "de"]),  # a text of C
            (["Jose\u0301", "Jos\u00e9\u00a0"], ["Jos\u00e9"] * 2),
            (np.array([7, 8]), ["7", "8"]),
        ]
    ):
        assert hdf5.labels(_store(tmp_path / f"{number}.h5", values)).group.tolist() == expected


def test_names_that_would_merge_are_refused(tmp_path: Path) -> None:
    path = _store(tmp_path / "latin.h5", np.array([b"Jos\xe9", b"Jos\xe8"]))
    with pytest.raises(StoreError, match=r"GroupID, row 0, holds b'Jos\\xe9', which is not UTF-8"):
        hdf5.labels(path)
    with pytest.raises(StoreError, match="GroupID must be texts"):
        Store(_store(tmp_path / "float.h5", np.array([1.5, 2.5])))


@pytest.mark.parametrize(
    "data", [np.zeros((0, 3)), np.zeros((2, 0)), np.zeros((0, 0)), h5py.Empty("f4"), np.float32(1)]
)
def test_stores_of_nothing_are_refused(tmp_path: Path, data: object) -> None:
    with pytest.raises(StoreError, match=r"is empty: Data has (the shape|no rows)"):
        Store(_store(tmp_path / "e.h5", ["x", "y"], Data=data))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["kind"], file.attrs["rate"] = "audio", 16000
        file["Audio"] = data
        file["Name"] = ["x", "y"]
    with pytest.raises(StoreError, match="is empty: Audio"):
        Store(tmp_path / "a.h5")


def test_embeddings_that_were_never_written_are_no_zeros(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "e.h5", "w") as file:
        file["Name"] = [f"r{row}" for row in range(100)]
        data = file.create_dataset("Data", (100, 4), chunks=(25, 4), dtype="f4")
        data[:25] = 1
    with pytest.raises(StoreError, match=r"25% of Data in .* was written"):
        Store(tmp_path / "e.h5")
    with h5py.File(tmp_path / "e.h5", "a") as file:
        file["Data"][25:] = 0  # zeros that are meant
    assert len(hdf5.read(tmp_path / "e.h5")) == 100
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        file["Name"] = ["a", "b"]
        file.create_dataset("Data", (2, 4), dtype="f4")
    with pytest.raises(StoreError, match="0% of Data"):
        Store(tmp_path / "whole.h5")


@pytest.mark.parametrize(
    ("rows", "source", "written"), [(4, "Rows", None), (4, "None", "0%"), (3, "Rows", "0%"), (4, "Data", "0%")]
)
def test_virtual_datasets_have_what_they_are_made_of(tmp_path: Path, rows: int, source: str, written: str) -> None:
    layout = h5py.VirtualLayout((4, 2), "f4")
    layout[:] = h5py.VirtualSource(".", source, (4, 2))
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["Rows"] = np.ones((rows, 2), np.float32)
        file["Name"] = [f"r{row}" for row in range(4)]
        file.create_virtual_dataset("Data", layout)
    if written is None:
        assert hdf5.read(tmp_path / "v.h5").data.tolist() == [[1, 1]] * 4
    else:
        with pytest.raises(StoreError, match=f"{written} of Data"):
            hdf5.read(tmp_path / "v.h5")


def test_half_a_virtual_dataset_is_no_store(tmp_path: Path) -> None:
    layout = h5py.VirtualLayout((4, 2), "f4")
    layout[:2] = h5py.VirtualSource(".", "Rows", (2, 2))
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["Rows"], file["Name"] = np.ones((2, 2), np.float32), [f"r{row}" for row in range(4)]
        file.create_virtual_dataset("Data", layout)
    with pytest.raises(StoreError, match="50% of Data"):
        Store(tmp_path / "v.h5")
