"""The HDF5 store: round trips, the mother project's files, kills and resumption, refusals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knn_cli.core.errors import KnnError, StoreError
from knn_cli.core.values import EmbeddingSet, Waveform
from knn_cli.store import hdf5
from knn_cli.store.hdf5 import AudioRow, Store
from knn_cli.store.writer import StoreWriter, write_store


def some(rows: int, seed: int = 0, dimension: int = 4, embedder: str = "m@1") -> EmbeddingSet:
    generator = np.random.default_rng(seed)
    names = [f"rec{seed}_{i} žluťoučký" for i in range(rows)]
    return EmbeddingSet.from_columns(
        generator.normal(size=(rows, dimension)), names, group=["cs"] * rows, start=np.arange(rows), embedder=embedder
    )


def equal(a: EmbeddingSet, b: EmbeddingSet) -> bool:
    texts = all((getattr(a, field) == getattr(b, field)).all() for field in ("name", "group", "subgroup", "speaker"))
    times = np.array_equal(a.start, b.start, equal_nan=True) and np.array_equal(a.end, b.end, equal_nan=True)
    return texts and times and np.array_equal(a.data, b.data) and a.embedder == b.embedder


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 2100), seed=st.integers(0, 9))
def test_embeddings_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: int, seed: int) -> None:
    path = tmp_path_factory.mktemp("store") / "e.h5"
    write_store(path, some(rows, seed))
    assert equal(hdf5.read(path), some(rows, seed))
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
def test_mother_projects_files_are_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
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


def test_an_error_keeps_finished_sources_and_the_same_plan_goes_on(tmp_path: Path) -> None:
    path, plan = tmp_path / "e.h5", {"sources": ["a", "b"]}
    with pytest.raises(RuntimeError), StoreWriter(path, "embeddings", {}, plan=plan) as writer:
        writer.add("a", some(5, 1, embedder=""))
        raise RuntimeError("power cut")
    assert not path.exists()
    with pytest.raises(StoreError, match="unfinished work of another"), StoreWriter(path, "embeddings", {}, plan={}):
        pass
    with StoreWriter(path, "embeddings", {}, plan=plan) as writer:
        assert writer.finished == {"a"}
        writer.add("b", some(4, 2, embedder=""))
    whole = hdf5.read(path)
    assert np.array_equal(whole.data, np.concatenate([some(5, 1).data, some(4, 2).data]))


def test_a_killed_writer_leaves_the_old_store_and_resumable_shards(tmp_path: Path) -> None:
    path = tmp_path / "e.h5"
    write_store(path, some(2))
    script = f"""
import os, signal
from knn_cli.store.writer import StoreWriter
from tests.store.test_hdf5 import some
with StoreWriter({str(path)!r}, "embeddings", {{}}, plan={{"n": 3}}, force=True) as writer:
    for i in range(2):
        writer.add(str(i), some(3, i)); writer.flush()
    writer.add("2", some(3, 2))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env=environment)
    assert done.returncode == -signal.SIGKILL
    assert equal(hdf5.read(path), some(2))  # the old one, whole
    with StoreWriter(path, "embeddings", {}, plan={"n": 3}, force=True) as writer:
        assert writer.finished == {"0", "1"}
        writer.add("2", some(3, 2))
    assert np.array_equal(hdf5.read(path).data, np.concatenate([some(3, i).data for i in range(3)]))


def test_refusals(tmp_path: Path) -> None:
    write_store(tmp_path / "e.h5", some(2))
    with pytest.raises(StoreError, match="exists already"):
        write_store(tmp_path / "e.h5", some(3))
    write_store(tmp_path / "e.h5", some(3), force=True)
    assert len(hdf5.read(tmp_path / "e.h5")) == 3
    with pytest.raises(StoreError, match="holds embeddings, not audio"):
        Store(tmp_path / "e.h5", "audio")
    with pytest.raises(StoreError, match="does not exist"):
        hdf5.read(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(StoreError, match="not an HDF5 store"):
        hdf5.read(tmp_path / "text.h5")
    with pytest.raises(KnnError, match="No such file or directory"):
        write_store(tmp_path / "no" / "e.h5", some(2))
    with (
        pytest.raises(StoreError, match=r"folder .* does not exist"),
        StoreWriter(tmp_path / "no" / "e.h5", "embeddings", {}, plan={}),
    ):
        pass
    with pytest.raises(StoreError, match="is a folder"):
        write_store(tmp_path, some(2))
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


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("knn_cli.store.writer._append", full)
    with pytest.raises(KnnError, match=r"cannot be written: No space left on device"):
        write_store(tmp_path / "e.h5", some(2))
    with (
        pytest.raises(StoreError, match=r"cannot be written: No space left on device"),
        StoreWriter(tmp_path / "e.h5", "embeddings", {}, plan={}) as writer,
    ):
        writer.add("a", some(2))
    assert not (tmp_path / "e.h5").exists()


def test_a_shard_that_a_crash_left_empty_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "e.h5"
    with pytest.raises(RuntimeError), StoreWriter(path, "embeddings", {}, plan={}) as writer:
        for i in range(2):
            writer.add(str(i), some(3, i))
            writer.flush()
        raise RuntimeError("power cut")
    (tmp_path / "e.h5.parts" / "000001.h5").write_bytes(b"")
    with StoreWriter(path, "embeddings", {}, plan={}) as writer:
        assert writer.finished == {"0"}
        writer.add("1", some(3, 1))
    assert len(hdf5.read(path)) == 6


def test_two_writers_of_one_store(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "e.h5", "embeddings", {}, plan={}) as writer:
        writer.add("a", some(2))
        with (
            pytest.raises(StoreError, match="is being written by another process"),
            StoreWriter(tmp_path / "e.h5", "embeddings", {}, plan={}),
        ):
            pass
    assert len(hdf5.read(tmp_path / "e.h5")) == 2


def test_writes_in_one_go_never_meet(tmp_path: Path) -> None:
    """Unfinished shards of a StoreWriter are none of `write`'s business."""
    with pytest.raises(RuntimeError), StoreWriter(tmp_path / "e.h5", "embeddings", {}, plan={}) as writer:
        writer.add("a", some(2, 1))
        raise RuntimeError
    write_store(tmp_path / "e.h5", some(2, 2))
    assert equal(hdf5.read(tmp_path / "e.h5"), some(2, 2))


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
        column = opened.column
        monkeypatch.setattr(opened, "column", lambda *arguments: read.append(1) or column(*arguments))
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
