"""How far sound is read: what decodes files reports it to whoever listens, so that nothing in between passes it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

Listener = Callable[[Path, float, "float | None"], None]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener | None) -> Iterator[None]:
    """Call a function with each piece of sound that is decoded within the block; None lets nobody listen.

    Parameters
    ----------
    listener : callable or None
        Takes the path of the file, the seconds that were decoded and used in this pass over it, and the seconds of the
        whole file, None where its header does not tell.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report(path: Path, seconds: float, total: float | None) -> None:
    """Tell the listener, if there is one, that a pass over a file has used its first `seconds`."""
    listener = _listener.get()
    if listener is not None:
        listener(path, seconds, total)


def current() -> Listener | None:
    """Who listens here, for work that is done in other threads."""
    return _listener.get()


def is_listening() -> bool:
    """Whether anybody listens."""
    return _listener.get() is not None
