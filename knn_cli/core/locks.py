"""Locks beside outputs: of two processes that are told to write the same file or folder, one is refused at once.

They are the system's locks (flock), which end with the process that holds them, however it ends. The file `.NAME.lock`
beside NAME is removed at the end; one that a killed process left is taken over by the next. Where the system or the
file system has no such locks, nothing is locked.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from knn_cli.core.errors import KnnError
from knn_cli.core.output_paths import is_stream, refused, resolved

try:
    import fcntl
except ImportError:  # Windows
    _has_locks = False
else:
    _has_locks = True

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
MAX_NAME_BYTES = 200  # file systems allow 255, and names of ours are longer than their output's

_MAX_MARK_BYTES = 4096
_guard = threading.Lock()
_holders: Counter[Path] = Counter()  # outputs that this process has locked, and how often


def lock(file: int) -> bool | None:
    """Lock an open file for as long as it stays open.

    Parameters
    ----------
    file : int
        A descriptor.

    Returns
    -------
    bool or None
        False where another one holds the lock, None where there are no locks.
    """
    if not _has_locks:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def name_beside(name: str) -> str:
    """The name of an output as hidden names beside it hold it: a digest of a name that is too long for that."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= MAX_NAME_BYTES else hashlib.sha256(encoded).hexdigest()


def write_mark(file: int, kind: str, target: str) -> None:
    """Write into a new file whose it is: the program's, of which kind, for which output, by which process."""
    mark = {"knn": kind, "target": target, "host": socket.gethostname(), "process": os.getpid()}
    os.write(file, json.dumps(mark).encode())


def read_mark(file: int, kind: str) -> dict[str, Any] | None:
    """What `write_mark` has written; an empty mapping for an empty file, None for one that is not ours."""
    os.lseek(file, 0, os.SEEK_SET)
    text = os.read(file, _MAX_MARK_BYTES)
    if not text:
        return {}
    try:
        mark = json.loads(text)
    except ValueError:
        return None
    return mark if isinstance(mark, dict) and mark.get("knn") == kind else None


def is_same_file(file: int, path: Path) -> bool:
    """Whether an open file still has this path."""
    try:
        own, other = os.fstat(file), os.lstat(path)
    except OSError:
        return False
    return (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino)


@contextmanager
def locked(path: str | Path, *, is_folder: bool = False) -> Iterator[None]:
    """Be the only process that writes an output; within one process the lock may be taken again.

    Enter this before an output is checked, so that what is checked is still so when it is written.

    Parameters
    ----------
    path : path
        The file or folder to be written. For a pipe or a device nothing is locked.
    is_folder : bool
        Whether folders above it are made where they are missing; they are removed again if they stay empty.

    Raises
    ------
    KnnError
        If another process is writing it, or if its folder is missing or may not be written to.
    """
    target = resolved(path)
    if is_stream(target):
        yield
        return
    with _guard:
        _holders[target] += 1
        is_first = _holders[target] == 1
    made: list[Path] = []
    file = None
    try:
        if is_first:
            try:
                if is_folder:
                    made = _make_folders(target.parent)
                file = _taken(target)
            except OSError as error:
                raise refused(path, error) from error
            if file is None:
                raise KnnError(f"{path} is being written by another process.", "Wait for it to end.")
        yield
    finally:
        with _guard:
            _holders[target] -= 1
        if file is not None:
            _release(file, _lock_path(target))
        for folder in made:
            with suppress(OSError):  # it is not empty, as it should be
                folder.rmdir()


def _lock_path(target: Path) -> Path:
    return target.with_name(f".{name_beside(target.name)}.lock")


def _taken(target: Path) -> int | None:
    """The descriptor of the locked file, None where another process has it."""
    path = _lock_path(target)
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
        if lock(file) is False:
            os.close(file)
            return None
        if is_same_file(file, path):  # else the process that held it has removed it
            if read_mark(file, "lock") == {}:
                write_mark(file, "lock", target.name)
            return file
        os.close(file)


def _release(file: int, path: Path) -> None:
    with suppress(OSError):
        if is_same_file(file, path) and read_mark(file, "lock"):
            path.unlink()
    os.close(file)


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it; return those that were missing, the deepest first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
    return missing
