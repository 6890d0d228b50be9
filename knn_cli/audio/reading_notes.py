"""What is to be said of sound that is read although something is odd: told to whoever listens, by what decodes it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

Listener = Callable[[Path, str, bool], None]

_listener: ContextVar[Listener | None] = ContextVar("notes_listener", default=None)
_log = logging.getLogger(__name__)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call a function with each note on a file that is read within the block, once for each file and note.

    Parameters
    ----------
    listener : callable
        Takes the path of the file, a clause that follows it: "has its second channel inverted", and whether something
        is not heard as it was recorded.
    """
    seen: set[tuple[Path, str]] = set()

    def once(path: Path, clause: str, loss: bool) -> None:
        if (path, clause) not in seen:
            seen.add((path, clause))
            listener(path, clause, loss)

    with _replaced(once):
        yield


def note(path: Path, clause: str, *, loss: bool = False) -> None:
    """Tell the listener something of a file, such as a loss of sound; without one, it is a warning of the log."""
    (_listener.get() or _logged)(path, clause, loss)


@contextmanager
def renamed(copy: Path, path: Path) -> Iterator[None]:
    """Within the block, what is said of a copy is said of what it was made of."""
    outer = _listener.get() or _logged

    def tell(named: Path, clause: str, loss: bool) -> None:
        outer(path if named == copy else named, clause, loss)

    with _replaced(tell):
        yield


@contextmanager
def _replaced(listener: Listener) -> Iterator[None]:
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def _logged(path: Path, clause: str, loss: bool) -> None:
    _log.warning("%s %s.", path, clause)
