"""Shared fixtures. No test may reach the network: sockets are refused here, once, for all of them."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

# A worker of pytest-xdist has a processor to itself: threads that wait for each other by spinning would halve the
# speed of all. This is set before numpy and torch are imported, and also holds for the processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# tiny-test, a toy model for the commands, is found by name, also by the processes that tests start.
os.environ["KNN_MODELS"] = str(Path(__file__).resolve().parent / "data")


# Beginnings of the names of tests that take long; how they are measured stands in helpers/durations.py.
SLOW = tuple((Path(__file__).parent / "slow.txt").read_text(encoding="utf-8").split())
_STARTED = time.monotonic()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Say before the first test how many there are: `-q` leaves out the header."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    slow = sum(item.get_closest_marker("slow") is not None for item in session.items)
    if reporter is not None and slow > 100:
        reporter.write_line(f'{len(session.items)} tests, {slow} of them slow: pytest -m "not slow" leaves these out.')


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was skipped, by reason, what was not selected, and how long it took."""
    reasons = Counter(
        str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr).removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
    )
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"Skipped {count}: {reason}")
    if left := len(terminalreporter.stats.get("deselected", [])):
        terminalreporter.write_line(f"Not selected: {left}")
    minutes, seconds = divmod(round(time.monotonic() - _STARTED), 60)
    terminalreporter.write_line(f"Took {minutes} min {seconds} s.")


_CONNECT, _RESOLVE = socket.socket.connect, socket.getaddrinfo


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("a test tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def loopback(no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test reach servers that it runs itself, on 127.0.0.1."""

    def connect(self: socket.socket, address: Any) -> None:
        if address[0] != "127.0.0.1":
            raise OSError("a test tried to reach the network")
        _CONNECT(self, address)

    def resolve(host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        if host != "127.0.0.1":
            raise OSError("a test tried to reach the network")
        return _RESOLVE(host, port, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and reference answers beside the checkout; tests that need it skip without it."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs ../shared")
    return folder


@pytest.fixture(scope="session")
def example() -> Path:
    return Path(__file__).resolve().parents[1] / "examples" / "meeting.flac"


@pytest.fixture
def tone(tmp_path: Path) -> Path:
    """Two seconds of a 440 Hz tone, 16 kHz mono WAV."""
    import numpy as np
    import soundfile

    path = tmp_path / "tone.wav"
    time = np.arange(32000) / 16000
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 440 * time), 16000)
    return path
