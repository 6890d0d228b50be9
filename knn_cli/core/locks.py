"""Locks beside outputs: of two processes that are told to write the same file or folder, one is refused at once.

They are the system's locks (flock), which end with the process that holds them, however it ends. The file `.NAME.lock`
beside NAME is removed at the end; one that a killed process left is taken over by the next. Where the system or the
file system has no such locks, nothing is locked.

Of the many files that a run writes into one folder, each is a byte of that folder's `.knn.lock` (lockf), so that one
open file holds thousands of locks and several runs can fill one folder with different files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
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

_FILES_LOCK = ".knn.lock"
_ENTRANCE = 1 << 60  # a byte that stands for no file
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


@contextmanager
def locked_files(paths: Iterable[str | Path]) -> Iterator[None]:
    """Be the only process that writes any of these files, as `locked`, for many files of few folders.

    Parameters
    ----------
    paths : iterable of path
        Their folders must exist. Those of a folder in which this user may not lock are not locked.

    Raises
    ------
    KnnError
        If another process is writing one of them.
    """
    folders: dict[Path, dict[int, str | Path]] = {}
    for path in paths:
        target = resolved(path)
        folders.setdefault(target.parent, {})[_byte_of(target.name)] = path
    with ExitStack() as held:
        for folder, places in folders.items():
            held.enter_context(_locked_bytes(folder / _FILES_LOCK, places))
        yield


def _byte_of(name: str) -> int:
    """The byte of a lock file that stands for a file beside it."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:7], "big")


@contextmanager
def _locked_bytes(path: Path, places: dict[int, str | Path]) -> Iterator[None]:
    """Hold bytes of a lock file, which stand for outputs; KnnError for the first that another process holds."""
    file = _taken_bytes(path, places)
    try:
        yield
    finally:
        if file is not None:
            with suppress(OSError):
                fcntl.lockf(file, fcntl.LOCK_UN)
                if _lock_bytes(file, 0, 0) and is_same_file(file, path) and read_mark(file, "lock"):
                    path.unlink()
            os.close(file)


def _taken_bytes(path: Path, places: dict[int, str | Path]) -> int | None:
    """The descriptor of the lock file, None where it cannot be had."""
    while _has_locks:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
        except OSError:  # another user's, or no place for files; writing the outputs will tell
            return None
        busy = [output for place, output in places.items() if not _lock_bytes(file, place)]
        if is_same_file(file, path):  # else the process that held it has removed it
            if not busy:
                if read_mark(file, "lock") == {}:
                    write_mark(file, "lock", path.parent.name)
                return file
            if _lock_bytes(file, _ENTRANCE):  # else the process that holds it is about to remove it
                os.close(file)
                raise KnnError(f"{busy[0]} is being written by another process.", "Wait for it to end.")
        os.close(file)
    return None


def _lock_bytes(file: int, start: int, length: int = 1) -> bool:
    """Lock bytes of a file, all for the length 0; False where another process holds one of them."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)  # else a file system without locks
    return True


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
