"""How many processors have nothing to do, asked without waiting: what others did since this module was imported."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from threading import Lock
from typing import NamedTuple

__all__ = ["idle_processors"]

SHORTEST_SECONDS = 0.2  # of the time over which others are watched; the system counts in hundredths of a second

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
_lock = Lock()


class _Reading(NamedTuple):
    """Seconds of a clock, seconds that the processors which this process may use were busy, and its own of these."""

    clock: float
    busy: float
    own: float


def idle_processors() -> int:
    """How many processors this process may use (affinity, quota of its cgroup) and others leave idle, at least 1.

    What others do is their share of the time since the import of this module, or since the last call that is at least
    `SHORTEST_SECONDS` ago. Systems without Linux' /proc count all processors.

    Examples
    --------
    >>> from knn_cli.core.processors import idle_processors
    >>> idle_processors() >= 1
    True
    """
    global _before, _others
    with _lock:
        now = _read()
        if now is not None and (_before is None or now.clock - _before.clock >= SHORTEST_SECONDS):
            _others = 0.0 if _before is None else _busy_with_others(_before, now)
            _before = now
        free = len(_allowed()) - _others
    quota = _quota()
    return max(1, math.floor(min(free, free if quota is None else quota) + 0.5))


def _busy_with_others(before: _Reading, after: _Reading) -> float:
    """Processors that others kept busy between two readings."""
    passed = max(after.clock - before.clock, 1e-9)
    return max(0.0, ((after.busy - before.busy) - (after.own - before.own)) / passed)


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _read() -> _Reading | None:
    """A reading of now; None where the system has no /proc/stat."""
    try:
        lines = (_PROC / "stat").read_text().splitlines()
        names = {f"cpu{number}" for number in _allowed()}
        counts = [[int(count) for count in line.split()[1:]] for line in lines if line.split(" ", 1)[0] in names]
        # user, nice, system, idle, waiting for disks, interrupts of two kinds, and other virtual machines
        busy = sum(sum(count[:3]) + sum(count[5:8]) for count in counts) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
    return _Reading(time.monotonic(), busy, sum(os.times()[:4]))


def _quota() -> float | None:
    """Processors that the cgroup of this process may use on average, of version 2 or 1; None without a limit."""
    try:
        lines = (_PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return None
    found = []
    for controllers, place in (line.split(":", 2)[1:] for line in lines if line.count(":") >= 2):
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = _CGROUP / (controllers and "cpu")
        for folder in {base / place.lstrip("/"), base}:  # in a container, its own group is the top
            found += [quota for quota in (_quota_of(folder),) if quota is not None]
    return min(found, default=None)


def _quota_of(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():
            most, period = (folder / "cpu.max").read_text().split()
        else:
            most, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(most) / float(period) if float(most) > 0 and float(period) > 0 else None
    except (OSError, ValueError):  # "max", or no such file
        return None


_before = _read()
_others = 0.0  # processors that were busy with others when this was last asked
