"""Temporary folders beside outputs: private, with unpredictable names, and known when the process that made them died.

    .NAME.XXXXXXXX.part/   beside NAME; XXXXXXXX is random, and only the user who made it may look inside
        owner              whose it is; locked for as long as its process lives
        moves.json         files that are complete, and which names they take: all of them, whatever happens
        old                the folder NAME while another takes its place
        ...                what is being written

The next process that writes into the same folder removes what dead ones left, after finishing moves that were decided
and putting back a folder whose place stayed empty. What has no mark of ours is never touched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from knn_cli.core.locks import NO_FOLLOW, is_same_file, lock, name_beside, read_mark, write_mark

_KIND = "temporary files"
_NAME = re.compile(r"\..+\.[a-z0-9_]{8}\.part", re.DOTALL)
_OWNER, _MOVES, OLD = "owner", "moves.json", "old"
_OTHER_HOST_SECONDS = 24 * 3600.0  # locks of other hosts are not seen on every file system
_ATTEMPTS = 100

_swept: set[Path] = set()


class TemporaryFolder:
    """A folder for the making of an output; use as a context manager, which removes it.

    Parameters
    ----------
    target : Path
        The output, without links.

    Attributes
    ----------
    path : Path
        The folder, beside `target`.

    Raises
    ------
    OSError
        If it cannot be made.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        if target.parent not in _swept:  # once in a process is enough: whoever locks an output sweeps again
            sweep(target.parent)
        self.path, self._owner = self._made()

    def _made(self) -> tuple[Path, int]:
        """A new folder, and the descriptor of its locked owner."""
        for _ in range(_ATTEMPTS):
            made = tempfile.mkdtemp(prefix=f".{name_beside(self.target.name)}.", suffix=".part", dir=self.target.parent)
            path = Path(made)
            try:
                file = os.open(path / _OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o600)
            except FileNotFoundError:
                continue  # another process has swept it away before it had an owner
            try:
                lock(file)
                if is_same_file(file, path / _OWNER):
                    write_mark(file, _KIND, self.target.name)
                    return path, file
                os.close(file)
            except BaseException:
                os.close(file)
                _clear(path)
                raise
        raise FileExistsError(f"no temporary folder can be made in {self.target.parent}")

    def __enter__(self) -> TemporaryFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            with suppress(OSError):
                _recover(self.path, self.target)
            _clear(self.path)
        finally:
            os.close(self._owner)
            shutil.rmtree(self.path, ignore_errors=True)  # where open files cannot be removed, only now

    def decide(self, moves: Iterable[tuple[Path, Path]], removals: Iterable[Path] = ()) -> None:
        """Let complete files take their names, all or none: a killed process's moves are finished by the next.

        Parameters
        ----------
        moves : iterable of (file in this folder, target beside it)
            In this order.
        removals : iterable of Path
            Files beside it that go with the old ones.
        """
        entries = [
            *([part.name, target.name, _stamp(target)] for part, target in moves),
            *(["", target.name, _stamp(target)] for target in removals),
        ]
        draft = self.path / f"{_MOVES}.new"
        with draft.open("w", encoding="ascii") as file:
            json.dump(entries, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path / _MOVES)
        _move(self.path)


def is_temporary(name: str) -> bool:
    """Return whether a name is one that temporary folders have."""
    return _NAME.fullmatch(name) is not None


def sweep(folder: Path) -> None:
    """Remove what dead processes left in a folder, after finishing or undoing what they had begun."""
    _swept.add(folder)
    try:
        found = [path for path in folder.iterdir() if is_temporary(path.name)]
    except OSError:
        return  # whoever writes there will be told
    for path in found:
        with suppress(OSError):
            _sweep(path)


def _sweep(path: Path) -> None:
    status = path.lstat()
    if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        return
    try:
        file = os.open(path / _OWNER, os.O_RDWR | NO_FOLLOW)
    except FileNotFoundError:
        path.rmdir()  # only if it is empty: its process died before it had an owner
        return
    try:
        if not lock(file) or not is_same_file(file, path / _OWNER):
            return
        mark = read_mark(file, _KIND)
        if mark is None or (not mark and len(list(path.iterdir())) > 1):
            return
        is_elsewhere = mark and mark.get("host") != socket.gethostname()
        if is_elsewhere and time.time() - status.st_mtime < _OTHER_HOST_SECONDS:
            return
        if mark:
            _recover(path, path.with_name(Path(mark["target"]).name))
        _clear(path)
    finally:
        os.close(file)


def _clear(path: Path) -> None:
    """Remove a temporary folder, the owner last: without it, nobody would know whose the rest is."""
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != _OWNER:
            entry.unlink()
    with suppress(OSError):
        (path / _OWNER).unlink()
        path.rmdir()


def _recover(path: Path, target: Path) -> None:
    """Finish moves that were decided; put back a folder that was moved aside."""
    if (path / _MOVES).exists():
        _move(path)
    if (path / OLD).exists() and not target.exists():
        (path / OLD).rename(target)


def _move(path: Path) -> None:
    """Do the moves that were decided, as far as they are not done; others' files in their way stay."""
    for part, name, before in json.loads((path / _MOVES).read_text(encoding="ascii")):
        target = path.with_name(Path(name).name)
        if (part and not (path / part).exists()) or _stamp(target) != before:
            continue
        if part:
            (path / part).replace(target)
        elif before is not None:
            target.unlink()


def _stamp(path: Path) -> list[int] | None:
    """What tells a file from another of its name; None where there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]
