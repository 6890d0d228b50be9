"""Idle processors: what may be used, less what others keep busy, from files that are as Linux writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from knn_cli.core import processors


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


class Machine:
    """Four processors, of which this process may use three; 100 ticks are a second."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.seconds, self.busy, self.own = folder, 0.0, [0.0] * 4, 0.0
        for name, value in {"_PROC": folder / "proc", "_CGROUP": folder / "cgroup", "_others": 0.0}.items():
            patch.setattr(processors, name, value)
        (folder / "proc/self").mkdir(parents=True)
        patch.setattr(processors.os, "sched_getaffinity", lambda _: {0, 1, 3}, raising=False)
        patch.setattr(processors.os, "sysconf", lambda _: 100)
        patch.setattr(processors.os, "times", lambda: (self.own, 0.0, 0.0, 0.0, 0.0))
        patch.setattr(processors.time, "monotonic", lambda: self.seconds)
        self.passes(0)
        patch.setattr(processors, "_before", processors._read())

    def passes(self, seconds: float, busy: tuple[float, ...] = (0, 0, 0, 0), own: float = 0.0) -> None:
        """Let time pass in which processors were busy for so many seconds, with this process for some of them."""
        self.seconds, self.own = self.seconds + seconds, self.own + own
        self.busy = [before + more for before, more in zip(self.busy, busy, strict=True)]
        lines = [
            f"cpu{number} {round(100 * value)} 0 0 {round(100 * (self.seconds - value))} 7 0 0 0 0 0"
            for number, value in enumerate(self.busy)
        ]
        (self.folder / "proc/stat").write_text("\n".join(["cpu  1 2 3 4 5 6 7 8 0 0", *lines, "intr 1"]))


def test_what_others_keep_busy_is_not_idle(machine: Machine) -> None:
    machine.passes(2, busy=(2, 0, 2, 0))  # the third is none of ours
    assert processors.idle_processors() == 2
    machine.passes(2, busy=(2, 2, 2, 2))
    assert processors.idle_processors() == 1  # at least one
    machine.passes(2, busy=(0.2, 0.4, 0, 0))
    assert processors.idle_processors() == 3


def test_own_work_is_not_that_of_others(machine: Machine) -> None:
    machine.passes(1, busy=(1, 1, 1, 1), own=2)
    assert processors.idle_processors() == 2


def test_too_short_a_time_says_nothing_new(machine: Machine) -> None:
    machine.passes(2, busy=(2, 0, 0, 0))
    assert processors.idle_processors() == 2
    machine.passes(0.01, busy=(0.01, 0.01, 0.01, 0.01))
    assert processors.idle_processors() == 2


@pytest.mark.parametrize(
    ("table", "files"),
    [
        ("0::/user.slice/mine\n", {"user.slice/mine/cpu.max": "150000 100000\n", "cpu.max": "max 100000\n"}),
        ("0::/\n", {"cpu.max": "200000 100000\n"}),
        ("4:cpuset:/a\n3:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "200000", "cpu/a/cpu.cfs_period_us": "100000"}),
    ],
)
def test_the_quota_of_a_cgroup_is_kept(machine: Machine, table: str, files: dict[str, str]) -> None:
    (machine.folder / "proc/self/cgroup").write_text(table)
    assert processors.idle_processors() == 3
    for name, text in files.items():
        file = machine.folder / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert processors.idle_processors() == 2


def test_without_proc_all_processors_are_idle(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "_PROC", machine.folder / "nothing")
    machine.seconds += 5
    assert processors.idle_processors() == 3
    monkeypatch.delattr(processors.os, "sched_getaffinity")
    monkeypatch.setattr(processors.os, "cpu_count", lambda: 7)
    assert processors.idle_processors() == 7
