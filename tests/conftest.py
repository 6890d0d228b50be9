"""Shared fixtures. No test may reach the network: sockets are refused here, once, for all of them."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

# tiny-test, a toy model for the commands, is found by name, also by the processes that tests start.
os.environ["KNN_MODELS"] = str(Path(__file__).resolve().parent / "data")


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
    path = tmp_path / "tone.wav"
    time = np.arange(32000) / 16000
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 440 * time), 16000)
    return path
