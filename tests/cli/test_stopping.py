"""Signals at any moment of `knn`: one sentence, the exit code of shells, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.struck import struck

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals")

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
# While the command line is imported, while the command is built, and while it runs: some 690,000 events in all.
MOMENTS = (1, 40_000, 200_000, 400_000, 600_000)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    path.write_text("name,group,e0,e1\n" + "".join(f"r{number},a,{number},1\n" for number in range(40)))
    return path


def said_once(text: str) -> bool:
    return text.startswith("knn: Stopped.\n") and len(text.splitlines()) == 2


@pytest.mark.parametrize(
    ("moment", "number"),
    [*((moment, signal.SIGINT) for moment in MOMENTS), (500_000, signal.SIGTERM), (500_000, signal.SIGHUP)],
)
def test_at_any_moment(table: Path, tmp_path: Path, moment: int, number: signal.Signals) -> None:
    done = struck(moment, number, "convert", table, tmp_path / "out.h5")
    assert (done.returncode, done.stdout) == (CODES[number], "") and said_once(done.stderr), done.stderr
    assert not list(tmp_path.iterdir())


LOST = """
import os, signal, time, weakref
from knn_cli.networks import conversion
def strike():
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(9): pass
class Field:
    def __set_name__(self, owner, name): strike()
class Dropped:
    def __del__(self): strike()
def convert(*arguments, **settings):
    {work}
conversion.convert = convert
"""


@pytest.mark.parametrize(
    "work",
    [
        "type('Owner', (), {'field': Field()})",  # makes a RuntimeError of it
        "Dropped(); time.sleep(60)",  # Python drops what a destructor raises
        """
    try: type('Owner', (), {'field': Field()})
    except RuntimeError as error:
        from knn_cli.core.errors import KnnError
        raise KnnError('It is damaged.') from error""",
    ],
)
def test_what_python_drops_is_not_lost(tmp_path: Path, work: str) -> None:
    script = LOST.replace("{work}", work)
    done = struck(0, signal.SIGINT, "convert", "in.csv", tmp_path / "out.h5", before=script)
    assert done.returncode == 130 and said_once(done.stderr), done.stderr


def test_what_the_caller_ignores_is_ignored(table: Path, tmp_path: Path) -> None:
    """`nohup` and the background jobs of shells."""
    before = "signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    done = struck(400_000, signal.SIGHUP, "convert", table, tmp_path / "out.h5", before=before)
    assert done.returncode == 0 and (tmp_path / "out.h5").is_file(), done.stderr


@pytest.mark.parametrize(("given", "used"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_wait_without_spinning(given: dict[str, str], used: str) -> None:
    """The policy is set before torch is loaded, which reads it once; who has chosen one keeps it."""
    script = """
import os, sys
from knn_cli.__main__ import main
sys.argv = ["knn", "--version"]
try:
    main()
finally:
    print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)
"""
    bare = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=bare | given
    )
    assert finished.stdout.split()[-2:] == [used, "False"]
