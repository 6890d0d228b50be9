"""Work on a cluster of local processes: order, errors, lost workers, and what names no cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from knn_cli.core.cluster import Cluster, opened_cluster
from knn_cli.core.errors import AudioError, KnnError
from knn_cli.core.tree_reduction import merged

pytest.importorskip("distributed")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster(loopback: None) -> Iterator[Cluster]:
    with opened_cluster("local:2") as found:
        yield found


def test_order_errors_and_lost_workers(cluster: Cluster, tmp_path: Path) -> None:
    """No unit overtakes a slow one; a worker that ends once costs nothing, a unit that ends three is named."""
    folder = str(tmp_path)

    def work(unit: str) -> tuple[str, int]:
        import os
        import time
        from pathlib import Path

        if unit == "slow":
            time.sleep(1)
        if unit == "once" and not (mark := Path(folder, "mark")).exists():
            mark.touch()
            os._exit(1)
        if unit == "always":
            os._exit(1)
        return unit.upper(), os.getpid()

    taken: list[str] = []

    def units() -> Iterator[str]:
        for unit in ("slow", "a", "once", "b", "always", *map(str, range(200))):
            taken.append(unit)
            yield unit

    assert cluster.threads == 2
    results = cluster.ordered(work, units())
    first = next(results)
    assert first[0] == "slow" and len(taken) < 200  # as they are needed
    found = [first, *results]
    assert [unit for unit, _ in found] == taken
    again = [(unit, cluster.alone(work, unit)) for unit, result in found if isinstance(result, KnnError)]
    found = [*again, *found]  # others may have been with the workers that it ended
    failed = {unit: result for unit, result in again if isinstance(result, KnnError)}
    assert [*failed] == ["always"] and "ended 3 workers" in str(failed["always"])
    done = {unit: result for unit, result in found if not isinstance(result, KnnError)}
    assert all(result[0] == unit.upper() and result[1] != os.getpid() for unit, result in done.items())
    with pytest.raises(AudioError, match=r"no sound\. Take another"):
        [*cluster.ordered(refuse(), ["a"])]

    def merge(left: tuple[str, int], right: tuple[str, int]) -> tuple[str, int]:
        return f"({left[0]}{right[0]})", 0

    (folder_mark := tmp_path / "mark").unlink()
    units_of_tree = ["slow", *"abcdefghi", "once"]
    text, _ = cluster.reduced(work, units_of_tree, merge)  # also where a worker ends on the way
    assert folder_mark.exists() and text == merged([unit.upper() for unit in units_of_tree], "({}{})".format)
    with pytest.raises(AudioError, match="no sound"):
        cluster.reduced(refuse(), ["a", "b"], merge)


def refuse() -> Callable[[str], Any]:
    def work(unit: str) -> Any:
        raise AudioError("There is no sound.", "Take another.")

    return work


SCRIPT = """
import sys
from knn_cli.core.cluster import opened_cluster
if __name__ == "__main__":
    with opened_cluster(sys.argv[1]) as cluster:
        print([*cluster.ordered(len, ["a", "bb"])])
"""


def test_a_queue_starts_its_workers(tmp_path: Path) -> None:
    """In a process of its own: dask_jobqueue asks the network for this machine's name and address."""
    pytest.importorskip("dask_jobqueue")
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "queue.toml").write_text(
        f'queue = "local"\nworkers = 1\n[job]\nmemory = "1GB"\npython = "{sys.executable}"\n'
        f'log_directory = "{tmp_path}"\n'
    )
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "queue.toml")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert run.stdout == "[('a', 1), ('bb', 2)]\n", run.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('queue = "slurn"', "the queue 'slurn'"),
        ('queue = "slurm"\nworker = 3', "unknown keys: worker"),
        ('queue = "slurm"\nworkers = 0', "asks for 0 workers"),
        ('queue = "slurm"\nworkers = true', "asks for True workers"),
        ("queue", "is not TOML"),
    ],
)
def test_queues_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "queue.toml").write_text(text)
    with pytest.raises(KnnError, match=message), opened_cluster(str(tmp_path / "queue.toml")):
        pass


def test_what_names_no_cluster(loopback: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for where in ("local:0", "local:-1", "local", "scheduler:8786", "http://there", ""):
        with pytest.raises(KnnError, match="names no cluster"), opened_cluster(where):
            pass
    monkeypatch.setattr("knn_cli.core.cluster.CONNECT_SECONDS", 0.5)
    with (
        pytest.raises(KnnError, match=r"No scheduler answers at tcp://127.0.0.1:9"),
        opened_cluster("tcp://127.0.0.1:9"),
    ):
        pass
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(KnnError, match="needs the package distributed") as caught, opened_cluster("local:2"):
        pass
    assert caught.value.hint == "pip install 'knn-cli[cluster]'"
