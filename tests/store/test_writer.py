"""Writing stores: kills and resumption, several writers, full disks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from knn_cli.core.errors import KnnError, StoreError
from knn_cli.store import hdf5
from knn_cli.store.writer import StoreWriter, write_store
from tests.helpers.store_rows import random_rows, same_rows


def test_an_error_keeps_finished_sources_and_the_same_plan_goes_on(tmp_path: Path) -> None:
    path, plan = tmp_path / "e.h5", {"sources": ["a", "b"]}
    with pytest.raises(RuntimeError), StoreWriter(path, "embeddings", {}, plan=plan) as writer:
        writer.add("a", random_rows(5, 1, embedder=""))
        raise RuntimeError("power cut")
    assert not path.exists()
    with pytest.raises(StoreError, match="unfinished work of another"), StoreWriter(path, "embeddings", {}, plan={}):
        pass
    with StoreWriter(path, "embeddings", {}, plan=plan) as writer:
        assert writer.finished == {"a"}
        writer.add("b", random_rows(4, 2, embedder=""))
    whole = hdf5.read(path)
    assert np.array_equal(whole.data, np.concatenate([random_rows(5, 1).data, random_rows(4, 2).data]))


def test_a_killed_writer_leaves_the_old_store_and_resumable_shards(tmp_path: Path) -> None:
    path = tmp_path / "e.h5"
    write_store(path, random_rows(2))
    script = f"""
import os, signal
from knn_cli.store.writer import StoreWriter
from tests.helpers.store_rows import random_rows
with StoreWriter({str(path)!r}, "embeddings", {{}}, plan={{"n": 3}}, force=True) as writer:
    for i in range(2):
        writer.add(str(i), random_rows(3, i)); writer.flush()
    writer.add("2", random_rows(3, 2))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env=environment)
    assert done.returncode == -signal.SIGKILL
    assert same_rows(hdf5.read(path), random_rows(2))  # the old one, whole
    with StoreWriter(path, "embeddings", {}, plan={"n": 3}, force=True) as writer:
        assert writer.finished == {"0", "1"}
        writer.add("2", random_rows(3, 2))
    assert np.array_equal(hdf5.read(path).data, np.concatenate([random_rows(3, i).data for i in range(3)]))


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("knn_cli.store.writer._append", full)
    with pytest.raises(KnnError, match=r"cannot be written: No space left on device"):
        write_store(tmp_path / "e.h5", random_rows(2))
    with (
        pytest.raises(StoreError, match=r"cannot be written: No space left on device"),
        StoreWriter(tmp_path / "e.h5", "embeddings", {}, plan={}) as writer,
    ):
        writer.add("a", random_rows(2))
    assert not (tmp_path / "e.h5").exists()


def test_a_shard_that_a_crash_left_empty_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "e.h5"
    with pytest.raises(RuntimeError), StoreWriter(path, "embeddings", {}, plan={}) as writer:
        for i in range(2):
            writer.add(str(i), random_rows(3, i))
            writer.flush()
        raise RuntimeError("power cut")
    (tmp_path / "e.h5.parts" / "000001.h5").write_bytes(b"")
    with StoreWriter(path, "embeddings", {}, plan={}) as writer:
        assert writer.finished == {"0"}
        writer.add("1", random_rows(3, 1))
    assert len(hdf5.read(path)) == 6


def test_two_writers_of_one_store(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "e.h5", "embeddings", {}, plan={}) as writer:
        writer.add("a", random_rows(2))
        with (
            pytest.raises(StoreError, match="is being written by another process"),
            StoreWriter(tmp_path / "e.h5", "embeddings", {}, plan={}),
        ):
            pass
    assert len(hdf5.read(tmp_path / "e.h5")) == 2


def test_writes_in_one_go_never_meet(tmp_path: Path) -> None:
    """Unfinished shards of a StoreWriter are none of `write`'s business."""
    with pytest.raises(RuntimeError), StoreWriter(tmp_path / "e.h5", "embeddings", {}, plan={}) as writer:
        writer.add("a", random_rows(2, 1))
        raise RuntimeError
    write_store(tmp_path / "e.h5", random_rows(2, 2))
    assert same_rows(hdf5.read(tmp_path / "e.h5"), random_rows(2, 2))
