"""HDF5 files that are damaged, hostile or made of others: one sentence, in little time and memory."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from knn_cli.core.errors import KnnError, StoreError
from knn_cli.core.values import EmbeddingSet
from knn_cli.store import hdf5, hdf5_reading
from knn_cli.store.writer import write_store


def three(seed: int = 0) -> EmbeddingSet:
    return EmbeddingSet.from_columns(np.random.default_rng(seed).normal(size=(3, 4)), ["a", "b", "c"])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_store(tmp_path / "store.h5", three())
    return tmp_path / "store.h5"


def with_external_link(file: h5py.File) -> None:
    del file["Data"]
    file["Data"] = h5py.ExternalLink("other.h5", "/Data")


def with_external_storage(file: h5py.File) -> None:
    del file["Data"]
    file.create_dataset("Data", shape=(3, 4), dtype="<f4", external=[("/etc/hostname", 0, 48)])


def with_virtual_set(file: h5py.File) -> None:
    del file["Data"]
    layout = h5py.VirtualLayout((3, 4), "<f4")
    layout[...] = h5py.VirtualSource("other.h5", "Data", shape=(3, 4))
    file.create_virtual_dataset("Data", layout)


@pytest.mark.parametrize("change", [with_external_link, with_external_storage, with_virtual_set])
def test_another_file_is_no_part_of_a_store_unless_asked(
    store: Path, change: Callable[[h5py.File], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(store.with_name("other.h5"), three(1))
    with h5py.File(store, "r+") as file:
        change(file)
    with pytest.raises(StoreError, match=r"another file, '(other\.h5|/etc/hostname)'"):
        hdf5.read(store)
    monkeypatch.setenv(hdf5_reading.FOLLOW_LINKS, "1")
    if change is not with_external_storage:
        np.testing.assert_array_equal(hdf5.read(store).data, hdf5.read(store.with_name("other.h5")).data)


def test_rows_of_nothing_take_no_memory(store: Path) -> None:
    with h5py.File(store, "r+") as file:
        for name in [*file]:
            del file[name]
        file.create_dataset("Data", shape=(2**31, 4), dtype="<f4", chunks=(1024, 4), compression="gzip")
        file.create_dataset("Name", shape=(2**31,), dtype=h5py.string_dtype(), chunks=(1024,))
    with pytest.raises(StoreError, match=r"claims that /(Data|Name) has the shape"):
        hdf5.labels(store)


@pytest.mark.skipif(sys.platform != "linux", reason="files are looked through in this process")
@pytest.mark.parametrize("fate", ["loops", "crashes", "takes memory"])
def test_what_the_library_does_to_a_damaged_file_is_given_up(
    store: Path, fate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def walk(*_: object) -> str:
        if fate == "crashes":
            faulthandler.disable()  # it would print what the test wants to happen
            os.kill(os.getpid(), signal.SIGSEGV)
        if fate == "takes memory":
            return str(len(bytearray(1 << 42)))
        while True:
            pass

    monkeypatch.setattr(hdf5_reading, "_walk", walk)
    monkeypatch.setattr(hdf5_reading, "_CHECK_SECONDS", 1)
    start = time.monotonic()
    with pytest.raises(StoreError, match="is damaged"):
        hdf5.read(store)
    assert time.monotonic() - start < 60


@pytest.mark.skipif(sys.platform != "linux", reason="files are looked through in this process")
def test_a_good_file_is_not_called_damaged_because_its_reader_was_killed_or_slow(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk, killed = hdf5_reading._walk, tmp_path / "killed"

    def killed_once(*arguments: Any) -> str:
        if not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return walk(*arguments)

    monkeypatch.setattr(hdf5_reading, "_walk", killed_once)
    assert len(hdf5.read(store)) == 3

    store.touch()
    monkeypatch.setattr(hdf5_reading, "_walk", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(StoreError, match="was not read: the process that looks through it was killed"):
        hdf5.read(store)

    monkeypatch.setattr(hdf5_reading, "_walk", lambda *_: time.sleep(60))
    monkeypatch.setattr(hdf5_reading, "_WAIT_SECONDS", 0.1)
    with pytest.raises(StoreError, match=r"was not looked through within 0\.1 s"):
        hdf5.read(store)


def test_every_flipped_byte_of_the_head_is_a_sentence_or_harmless(store: Path, tmp_path: Path) -> None:
    data = store.read_bytes()
    random = np.random.default_rng(0)
    for place in random.choice(min(len(data), 6000), 60, replace=False).tolist():
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(random.integers(8))
        (tmp_path / "damaged.h5").write_bytes(damaged)
        try:
            hdf5.kind_of(tmp_path / "damaged.h5")
            hdf5.read(tmp_path / "damaged.h5")
        except KnnError as error:
            assert "\n" not in error.message


def test_a_file_is_looked_through_again_when_it_changed(store: Path) -> None:
    assert len(hdf5.read(store)) == 3
    with h5py.File(store, "r+") as file:
        with_external_link(file)
    with pytest.raises(StoreError, match="another file"):
        hdf5.read(store)


def test_who_is_writing_and_who_did_not_finish(store: Path, tmp_path: Path) -> None:
    data = bytearray(store.read_bytes())
    pointer = tmp_path / "pointer.h5"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(KnnError, match="is a Git LFS pointer"):
        hdf5.read(pointer)
    with h5py.File(tmp_path / "open.h5", "w", libver="latest") as file:
        file["Data"] = np.zeros((1, 1), np.float32)
        file.flush()
        (tmp_path / "dead.h5").write_bytes((tmp_path / "open.h5").read_bytes())
    with pytest.raises(StoreError, match="was not closed by the program that wrote it"):
        hdf5.read(tmp_path / "dead.h5")
    assert data == store.read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="files are looked through in another process on Linux only")
def test_an_interrupt_while_the_process_forks_is_not_lost(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork = os.fork
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

    def interrupted() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        return fork()

    monkeypatch.setattr(os, "fork", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hdf5_reading._finding_elsewhere(store)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
