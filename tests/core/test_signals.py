"""Signals that wait, and processes that end with the one that made them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from knn_cli.core.signals import deferred

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of Unix")


@pytest.fixture
def received() -> Iterator[list[int]]:
    numbers: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, lambda number, frame: numbers.append(number))
    yield numbers
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signals_wait_for_the_end_of_the_block(received: list[int]) -> None:
    with deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        assert not received
    assert received == [signal.SIGTERM]  # the first ends the process
    os.kill(os.getpid(), signal.SIGHUP)
    assert received == [signal.SIGTERM, signal.SIGHUP]


HELPER = """
import os, signal, time
from knn_cli.core.signals import become_helper
read, write = os.pipe()
parent = os.getpid()
child = os.fork()
if child == 0:
    become_helper(parent)
    for number in (signal.SIGINT, signal.SIGHUP):
        os.kill(os.getpid(), number)
    os.write(write, b"x")
    time.sleep(60)
os.read(read, 1)
print(child, flush=True)
os.kill(parent, signal.SIGKILL)
"""


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends a process with its parent")
def test_a_helper_leaves_the_terminal_to_its_parent_and_ends_with_it() -> None:
    done = subprocess.run([sys.executable, "-c", HELPER], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    child = int(done.stdout)  # which Ctrl-C did not end before
    deadline = time.monotonic() + 20
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(child)
