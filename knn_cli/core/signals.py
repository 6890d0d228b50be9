"""Signals that end a process, and the processes that end with it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
REPEAT_SECONDS = 1.0  # signals that follow sooner are the same: `timeout` and terminals send them twice

_PR_SET_PDEATHSIG = 1


@contextmanager
def deferred() -> Iterator[None]:
    """Let signals that end the process wait until the block ends; without effect in other threads than the main one.

    While a process forks, Python drops what handlers raise; and what they raise in the new process would unwind the
    old one's work there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    missed: list[tuple[int, FrameType | None]] = []
    before = {number: signal.getsignal(number) for number in ENDING}
    caught = [number for number, handler in before.items() if callable(handler)]
    for number in caught:
        signal.signal(number, lambda *call: missed.append(call))
    try:
        yield
    finally:
        for number in caught:
            signal.signal(number, before[number])
        for number, frame in missed[:1]:
            handler = before[number]
            assert callable(handler)
            handler(number, frame)


def become_helper(parent: int) -> None:
    """In a new process: leave Ctrl-C and the end of the terminal to the parent, and end with it, even if it is killed.

    Parameters
    ----------
    parent : int
        Number of the process whose thread has made this one. On Linux this process is killed when that thread ends.
    """
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it had ended before
            os._exit(1)
