"""Ctrl-C, SIGTERM and SIGHUP: one KeyboardInterrupt, by which everything is cleaned up, one sentence, one exit code.

It imports nothing heavy, so that signals are heard before anything else is imported. What handlers raise can be lost:
Python drops it in callbacks and destructors, and makes another error of it in the bodies of classes. So the signal is
noted: it is sent again where it was dropped, and whatever comes out of the command in the end, it was stopped.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any

from knn_cli.core.signals import ENDING, REPEAT_SECONDS

SENTENCE = "Stopped."
HINT = "Repeat the command: stores that are written and networks that are trained go on where they stopped."
GOES_ON = "Repeat the command: it goes on with the others."
BEGINS_ANEW = "Nothing is finished yet, so the command begins anew when it is repeated."
_RESEND_SECONDS = 0.01


@dataclass
class _State:
    number: int | None = None  # the signal that came first
    raised: float = 0.0  # when, in seconds of a clock
    is_lost: bool = False  # whether Python dropped what was raised
    is_reported: bool = False
    code: int | None = None  # the exit code, once the command is over
    total: int = 0  # recordings of the command
    noun: str = "recordings"  # or what else is counted
    before: int = 0  # recordings beside them that earlier runs have finished
    done: int = 0  # those of `total` that are finished
    is_known: bool = False  # whether it is known how many are finished
    hint: str = HINT


_state = _State()


def begin() -> None:
    """Hear the signals, but for those that the caller has told this process to ignore, as `nohup` does."""
    global _state
    _state = _State()
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)
    sys.unraisablehook = _unraisable


def working(total: int, hint: str = GOES_ON, *, before: int = 0, noun: str = "recordings") -> None:
    """Note how many recordings are left to do, and how many are not, and how to go on if the command is stopped."""
    _state.total, _state.hint, _state.before, _state.noun = total, hint, before, noun
    _state.is_known = True


def advanced(done: int | None = None, total: int | None = None) -> None:
    """Note that one more recording is finished, or that so many are, of a number that is known better now."""
    _state.done = _state.done + 1 if done is None else done
    _state.total = _state.total if total is None else total


def check() -> None:
    """Raise KeyboardInterrupt if a signal came whose exception was lost."""
    if _state.number is not None and not _state.is_reported:
        raise KeyboardInterrupt


def is_asked() -> bool:
    """Whether a signal has asked for the end."""
    return _state.number is not None


def finished(code: int) -> int:
    """Note that the command is over; return its exit code, which also holds for signals that come from now on."""
    _state.code = code
    return code if _state.number is None else stopped()


def stopped() -> int:
    """Say that the command was stopped, once; return the exit code that shells have for it."""
    assert _state.number is not None
    shown = sys.modules.get("knn_cli.cli.console")
    if not _state.is_reported:
        _state.is_reported = True
        sentence = SENTENCE
        if _state.total > 1:
            left = _state.total - _state.done
            sentence += f" Of {_state.total} {_state.noun} {_state.done} are done, {left} are left."
        begins_anew = _state.is_known and not _state.done and not _state.before
        hint = BEGINS_ANEW if begins_anew else _state.hint
        if shown is not None:
            from knn_cli.core.errors import KnnError

            shown.console.error(KnnError(sentence, hint))
        elif sys.stderr is not None:
            print(f"knn: {sentence}\n     {hint}", file=sys.stderr)
    if shown is not None and sys.stdout is not None:
        shown.flush_stdout(0)
    _state.code = 128 + _state.number
    return _state.code


def ignore() -> None:
    """Ignore the signals, while the interpreter is taken down."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def _handle(number: int, frame: FrameType | None) -> None:
    if _state.code is not None:  # the interpreter waits for threads
        os._exit(_state.code)
    now = time.monotonic()
    if _state.number is None or _state.is_lost:
        _state.number, _state.raised, _state.is_lost = _state.number or number, now, False
        raise KeyboardInterrupt
    if now - _state.raised > REPEAT_SECONDS:  # whoever repeats it does not want to wait for the end of the work
        os._exit(stopped())


def _unraisable(found: Any) -> None:
    """Python's hook for exceptions that cannot be raised where they come up."""
    if _state.number is None or not isinstance(found.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(found)
        return
    _state.is_lost = True
    resend = threading.Timer(_RESEND_SECONDS, os.kill, [os.getpid(), _state.number])
    resend.daemon = True
    resend.start()
