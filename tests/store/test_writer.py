"""Writing stores: kills and resumption, several writers, full disks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from knn_cli.core.errors import KnnError, StoreError
from knn_cli.core.output_records import RECORD, OutputTask
from knn_cli.store import hdf5
from knn_cli.store.source_list import Repetition
from knn_cli.store.writer import StoreWriter, write_store
from tests.helpers.killed import run_killed
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
from tests.helpers.killed import run_killed
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


FULL = """
import resource, sys
from pathlib import Path
from knn_cli.core.errors import KnnError
from knn_cli.store import hdf5_files
from knn_cli.store.writer import StoreWriter, write_store
from tests.helpers.killed import run_killed
from tests.helpers.store_rows import random_rows
out, limit = Path(sys.argv[1]), int(sys.argv[2])
hdf5_files.MAX_MEMORY_BYTES = int(sys.argv[4])
def write():
    if sys.argv[3] == "once":
        write_store(out, random_rows(5000, dimension=256))
    else:
        with StoreWriter(out, "embeddings", {}, plan={}) as writer:
            for i in range(5):
                writer.add(str(i), random_rows(1000, i, 256, embedder="")); writer.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    write()
except KnnError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of file sizes")
@pytest.mark.parametrize("in_memory", [0, 1 << 30])
@pytest.mark.parametrize(("how", "limit"), [("once", 1 << 20), ("shards", 100_000), ("shards", 1_500_000)])
def test_a_full_disk_is_one_sentence(tmp_path: Path, how: str, limit: int, in_memory: int) -> None:
    """Without a crash of libhdf5, now or when the process ends; what is finished stays, what is not goes."""
    out, root = tmp_path / "e.h5", Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", FULL, str(out), str(limit), how, str(in_memory)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{out} cannot be written: File too large.")
    kept = sorted(path.name for path in tmp_path.rglob("*") if path.suffix != ".json")
    assert kept == (
        ["000000.h5", "000001.h5", "000002.h5", "000003.h5", "000004.h5", "e.h5.parts", "owner", "plan"]
        if limit == 1_500_000
        else []
    )


def test_a_large_store_is_joined_in_space_that_is_taken_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in (("memory", 1 << 30), ("disk", 0)):
        monkeypatch.setattr("knn_cli.store.hdf5_files.MAX_MEMORY_BYTES", limit)
        with StoreWriter(tmp_path / f"{name}.h5", "embeddings", {}, plan={}) as writer:
            for i in range(3):
                writer.add(str(i), random_rows(1500, i, embedder=""))
                writer.flush()
    assert same_rows(hdf5.read(tmp_path / "memory.h5"), hdf5.read(tmp_path / "disk.h5"))
    sizes = [(tmp_path / f"{name}.h5").stat().st_size for name in ("memory", "disk")]
    assert sizes[1] < 1.2 * sizes[0]


def interrupted(path: Path, sources: int = 3) -> None:
    """A writer that is stopped after so many sources, each in a shard of its own."""
    with pytest.raises(RuntimeError), StoreWriter(path, "embeddings", {}, plan={}) as writer:
        for i in range(sources):
            writer.add(str(i), random_rows(3, i))
            writer.flush()
        raise RuntimeError("power cut")


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "damage",
    [
        lambda shard: shard.write_bytes(b""),
        lambda shard: shard.write_bytes(shard.read_bytes()[:-100]),
        lambda shard: shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f"),
        lambda shard: shard.unlink(),
        lambda shard: shard.with_suffix(".json").unlink(),
        lambda shard: shard.with_suffix(".json").write_text("[]"),
        lambda shard: shard.with_suffix(".json").write_bytes(b"\xff"),
        lambda shard: shutil.copyfile(shard.with_name("000000.h5"), shard),
    ],
)
def test_a_shard_that_is_not_whole_is_written_again(
    tmp_path: Path, damage: Callable[[Path], object], force: bool
) -> None:
    path = tmp_path / "e.h5"
    interrupted(path)
    damage(tmp_path / "e.h5.parts" / "000001.h5")
    with StoreWriter(path, "embeddings", {}, plan={}, force=force) as writer:
        assert writer.finished == {"0", "2"}
        writer.add("1", random_rows(3, 1))
    assert len(hdf5.read(path)) == 9 and [file.name for file in tmp_path.iterdir()] == ["e.h5"]


def test_a_writer_killed_when_its_store_is_whole(tmp_path: Path) -> None:
    run_killed(
        """
from pathlib import Path
from knn_cli.store import shards
from knn_cli.store.writer import StoreWriter
from tests.helpers.killed import run_killed
from tests.helpers.store_rows import random_rows
close = shards.ShardFolder.close
shards.ShardFolder.close = lambda self, *, remove=False: die()
with StoreWriter(Path(sys.argv[1]), "embeddings", {}, plan={}) as writer:
    writer.add("0", random_rows(3))
""",
        tmp_path / "e.h5",
    )
    assert (tmp_path / "e.h5.parts").exists()
    with pytest.raises(StoreError, match="exists already"):
        StoreWriter(tmp_path / "e.h5", "embeddings", {}, plan={})
    assert not (tmp_path / "e.h5.parts").exists() and len(hdf5.read(tmp_path / "e.h5")) == 3


def test_files_of_others_among_the_shards_stay(tmp_path: Path) -> None:
    path, parts = tmp_path / "e.h5", tmp_path / "e.h5.parts"
    parts.mkdir()
    for name in ("2024-notes.txt", "1.wav", "merged.tmp", "000000.h5.bak"):
        (parts / name).write_text("mine")
    before = sorted(parts.iterdir())
    interrupted(path)
    with StoreWriter(path, "embeddings", {}, plan={"other": 1}, force=True) as writer:
        writer.add("1", random_rows(3, 1))
    assert sorted(parts.iterdir()) == before and len(hdf5.read(path)) == 3


@pytest.mark.parametrize("name", ["000000.h5", "plan", "owner"])
def test_a_folder_of_others_with_names_of_ours(tmp_path: Path, name: str) -> None:
    parts = tmp_path / "e.h5.parts"
    parts.mkdir()
    (parts / name).write_text("mine")
    for force in (False, True):
        with (
            pytest.raises(StoreError, match=f"holds {name}, which is not of this program"),
            StoreWriter(tmp_path / "e.h5", "embeddings", {}, plan={}, force=force),
        ):
            pass
    assert (parts / name).read_text() == "mine"


def test_a_link_in_place_of_the_shards(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "e.h5.parts").symlink_to("elsewhere")
    with pytest.raises(StoreError, match="is a link"), StoreWriter(tmp_path / "e.h5", "embeddings", {}, plan={}):
        pass
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_store_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "e.h5").symlink_to("there/real.h5")
    for force in (False, True):
        with StoreWriter(tmp_path / "e.h5", "embeddings", {}, plan={}, force=force) as writer:
            writer.add("1", random_rows(3, 1))
        assert (tmp_path / "e.h5").is_symlink() and len(hdf5.read(tmp_path / "there" / "real.h5")) == 3
    assert len(list(tmp_path.rglob("*"))) == 3


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


MADE = Repetition(OutputTask("convert"))


def repeated(path: Path, facts: dict[str, int], repetition: Repetition = MADE, plan: int = 0) -> list[str]:
    """Write a store of sources with one row each, all of the value of its fact; what was not finished before."""
    work = StoreWriter(path, "embeddings", {}, plan={"plan": plan}, sources=facts, repetition=repetition)
    with work as writer:
        left = [name for name in facts if name not in writer.finished]
        for name in left:
            rows = random_rows(facts[name], facts[name], embedder="")
            writer.add(name, rows)
            writer.flush()
    return left


def test_a_store_that_is_written_again_takes_what_has_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "e.h5"
    assert repeated(path, {"a": 3, "b": 2, "c": 300}) == ["a", "b", "c"]
    before = path.stat()
    assert repeated(path, {"a": 3, "b": 2, "c": 300}) == [] and path.stat() == before
    assert repeated(path, {"c": 300, "b": 5, "d": 4}) == ["b", "d"]
    expected = np.concatenate([random_rows(count, count).data for count in (300, 5, 4)])
    assert np.array_equal(hdf5.read(path).data, expected)
    assert repeated(path, {"c": 300, "b": 5, "d": 4}) == []
    assert repeated(path, {"c": 300, "b": 5, "d": 4, "e": 6}) == ["e"]  # appended
    assert np.array_equal(hdf5.read(path).data, np.concatenate([expected, random_rows(6, 6).data]))
    assert repeated(path, {"c": 300}, plan=1) == ["c"]  # other settings
    assert repeated(path, {"c": 300}, replace(MADE, again=True), plan=1) == ["c"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [RECORD, "e.h5"]


def test_a_store_that_others_wrote_or_changed_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "e.h5"
    write_store(path, random_rows(2))
    with pytest.raises(KnnError, match="nothing says that `knn convert` wrote it"):
        repeated(path, {"a": 3})
    path.unlink()
    repeated(path, {"a": 3})
    with h5py.File(path, "r+") as file:
        file["Data"][0] = 0
    with pytest.raises(KnnError, match="was changed since"):
        repeated(path, {"a": 3})
    assert repeated(path, {"a": 3}, Repetition(OutputTask("convert", backup=True))) == ["a"]
    assert not hdf5.read(tmp_path / "e.h5.bak").data[0].any() and hdf5.read(path).data[0].any()


def test_shards_of_sources_that_changed_are_written_again(tmp_path: Path) -> None:
    path = tmp_path / "e.h5"
    with pytest.raises(RuntimeError), StoreWriter(path, "embeddings", {}, plan={}, sources={"a": 1, "b": 2}) as writer:
        for name in "ab":
            writer.add(name, random_rows(2, embedder=""))
            writer.flush()
        raise RuntimeError("power cut")
    with StoreWriter(path, "embeddings", {}, plan={}, sources={"a": 1, "b": 3, "c": 0}) as writer:
        assert writer.finished == {"a"}
        writer.add("b", random_rows(1, embedder=""))
    assert len(hdf5.read(path)) == 3
