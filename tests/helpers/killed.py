"""Processes that die in the middle of their work, or hold on to an output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_killed(script: str, *arguments: object) -> None:
    """Run a script, whose `die()` kills it, with `sys.argv[1:]` as given; assert that it did die."""
    head = "import os, signal, sys\ndef die(*_):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", head + script, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


HOLD = """
import sys
from knn_cli.core.locks import locked, locked_files
with locked_files(sys.argv[1:]) if FILES else locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def locked_elsewhere(*paths: Path, files: bool = False) -> Iterator[None]:
    """Let another process hold the lock of an output, or those of files."""
    command = [sys.executable, "-c", HOLD.replace("FILES", str(files)), *map(str, paths)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            process.communicate()
