"""`knn` that sends itself a signal at a moment of its run.

The moment is a number of events of Python's profiler (calls of functions and their ends, Python's and C's), counted
from when `knn` hears signals: the same number is the same place in every run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from knn_cli import __main__ as program
from knn_cli.cli import stopping

# The background jobs of shells ignore Ctrl-C, and what `nohup` starts the end of its terminal.
HEARD = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
"""
ROOT = Path(__file__).resolve().parents[2]


class Strike:
    """Counts the events of this thread, and sends the signal at one of them; never where the moment is 0.

    Processes that are forked meanwhile count on, and send nothing.
    """

    def __init__(self, moment: int = 0, number: int = 0) -> None:
        self.count, self._moment, self._number = 0, moment, number
        self._process = 0

    def begin(self) -> None:
        self._process = os.getpid()
        sys.setprofile(self._event)

    def _event(self, frame: FrameType, event: str, argument: Any) -> None:
        self.count += 1
        if self.count == self._moment and os.getpid() == self._process:
            os.kill(os.getpid(), self._number)

    def end(self) -> None:
        sys.setprofile(None)


def when_it_begins(work: Callable[[], None]) -> None:
    """Do something when `knn` has begun to hear signals."""
    hear = stopping.begin

    def begin() -> None:
        hear()
        work()

    stopping.begin = begin


def struck(moment: int, number: int, *arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run `knn` in a process that is struck at a moment, and that runs a script before."""
    script = f"{HEARD}\n{before}\nfrom tests.helpers import struck; struck.main()"
    command = [sys.executable, "-c", script, str(moment)]
    return subprocess.run(
        [*command, str(int(number)), *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def main() -> None:
    moment, number = map(int, sys.argv[1:3])
    sys.argv[:3] = ["knn"]
    when_it_begins(Strike(moment, number).begin)
    program.main()
