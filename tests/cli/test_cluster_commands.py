"""Commands with their work on a cluster: the outputs, messages and failures of one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile

from knn_cli.core.parallel import single_threaded
from tests.helpers.command import knn

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def where() -> Iterator[str]:
    """The address of a scheduler with two workers, which all tests here share."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def sounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Recordings under a relative path, of which one cannot be read and one is odd."""
    monkeypatch.chdir(tmp_path)
    folder = Path("sounds")
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(4):
        soundfile.write(folder / f"{number}.wav", 0.1 * random.standard_normal(12000 + 8000 * number), 16000)
    (folder / "bad.wav").write_bytes(b"nothing")
    noise = 0.1 * random.standard_normal(16000)
    soundfile.write(folder / "inverted.wav", np.stack([noise, -noise], axis=1), 16000)
    return folder


def both(where: str, *arguments: str | Path) -> tuple[str, str]:
    """What a command says here and on the cluster, which it names; its exit code is 1, as one recording is bad."""
    said = []
    for name, more in (("by-one", ()), ("by-two", ("--cluster", where))):
        with single_threaded():  # as workers are; with more threads, sums differ in their last bits
            result = knn(*(str(argument).replace("NAME", name) for argument in (*arguments, *more)))
        assert result.exit_code == 1, result.output
        lines = [line for line in result.output.splitlines() if not line.startswith("Cluster ")]
        said.append("\n".join(lines).replace(name, "NAME"))
    assert f"Cluster {where}: 2 processors" in result.output
    return said[0], said[1]


def assert_same_store(here: Path, there: Path) -> None:
    with h5py.File(here) as a, h5py.File(there) as b:
        assert a.keys() == b.keys() and len(a["Name"]) > 3
        for key in a:
            equal = [np.array_equal(one, other) for one, other in zip(a[key][...], b[key][...], strict=True)]
            assert all(equal), key


def test_convert(loopback: None, where: str, sounds: Path) -> None:
    here, there = both(where, "convert", sounds, "NAME.h5", "--segment", "0.5", "--min-segment", "0.3")
    assert here == there and "sounds/inverted.wav has" in here and "knn: sounds/bad.wav is not audio" in here
    assert "Dropped 4 remainders" in here
    assert_same_store(Path("by-one.h5"), Path("by-two.h5"))
    refused = knn("convert", "by-one.h5", "out.npz", "--cluster", where)
    assert refused.exit_code == 1 and "by-one.h5 holds no recordings" in refused.output
