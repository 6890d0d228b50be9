"""Processes that die in the middle of their work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_killed(script: str, *arguments: object) -> None:
    """Run a script, whose `die()` kills it, with `sys.argv[1:]` as given; assert that it did die."""
    head = "import os, signal, sys\ndef die(*_):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", head + script, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
