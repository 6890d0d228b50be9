"""Atomic output files: a path holds either the old file or the complete new one."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from knn_cli.core.errors import KnnError
from knn_cli.core.locks import NO_FOLLOW
from knn_cli.core.output_paths import is_stream, refused, resolved
from knn_cli.core.output_records import OutputTask, add_line, keep_old
from knn_cli.core.temporary import OLD, TemporaryFolder


@contextmanager
def replacing(path: str | Path, *, task: OutputTask | None = None) -> Iterator[Path]:
    """Yield a temporary path, whose file replaces `path` if the block succeeds and is removed if it fails.

    A symbolic link keeps pointing to its target, which is replaced. The mode of the old file is kept.

    Parameters
    ----------
    path : path
    task : OutputTask, optional
        What makes the file, which is then recorded as its output; see `output_records`.

    Raises
    ------
    KnnError
        If the file cannot be written.
    """
    with replacing_together([path], task=task) as parts:
        yield parts[0]


@contextmanager
def replacing_together(
    paths: Sequence[str | Path], removed: Iterable[Path] = (), *, task: OutputTask | None = None
) -> Iterator[list[Path]]:
    """Like `replacing`, for several files of one folder that belong together.

    Parameters
    ----------
    paths : sequence of path
        All are written before the first is moved; if the process is killed while they are moved, in this order, the
        next one that writes into the folder moves the others.
    removed : iterable of Path
        Files beside them that go when the others are moved; looked at when the block has ended.
    task : OutputTask, optional
        See `replacing`.
    """
    targets = [_file_target(path) for path in paths]
    named = ", ".join(map(str, paths))
    folders: dict[Path, TemporaryFolder] = {}  # more than one only where links lead to several folders
    try:
        with ExitStack() as stack:
            moves = []
            for number, target in enumerate(targets):
                if target.parent not in folders:
                    folders[target.parent] = stack.enter_context(_temporary(target, named))
                part = folders[target.parent].path / f"{number}{target.suffix}"  # some libraries look at it
                # So that a refusal comes from here, with the system's message, and not from a library.
                os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o666))
                moves.append((part, target))
            yield [part for part, _ in moves]
            for part, target in moves:
                _finish_file(part, target)
                if task is not None:
                    keep_old(target, task)
                    add_line(part, target, task)
            removals = [path for path in removed if path.exists()]
            for parent, folder in folders.items():
                here = [(part, target) for part, target in moves if target.parent == parent]
                gone = [path for path in removals if path.parent.resolve() == parent]
                if len(here) + len(gone) > 1:
                    folder.decide(here, gone)
                else:
                    here[0][0].replace(here[0][1])
    except OSError as error:
        if not _concerns(error, [*paths, *(folder.path for folder in folders.values())]):
            raise  # about another file that the block opened
        raise refused(named, error) from error
    except UnicodeEncodeError as error:
        raise KnnError(
            f"{named} cannot be written: {error.object!r} is not valid text.", "Rename that file."
        ) from error


@contextmanager
def replacing_text(path: str | Path, *, task: OutputTask | None = None) -> Iterator[TextIO]:
    """Like `replacing`, for a UTF-8 text file; a device or pipe (such as /dev/stdout) is written directly."""
    try:
        if is_stream(path):
            with Path(path).open("w", encoding="utf-8", newline="") as file:
                yield file
            return
        with replacing(path, task=task) as part, part.open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        if not _concerns(error, [path]):
            raise
        raise refused(path, error) from error


@contextmanager
def replacing_folder(path: str | Path, *, check: Callable[[], None] | None = None) -> Iterator[Path]:
    """Yield a temporary folder, which replaces `path` if the block succeeds and is removed if it fails.

    Where the system can, the two change places at once; else the old folder is moved aside first, and if the process
    is killed then, the next one that writes beside it puts it back. Call `output_paths.check_folder` first: this
    function replaces any existing folder, after `check`, which may raise an error if others' files came meanwhile. A
    symbolic link keeps pointing to its target, which is replaced.
    """
    target = resolved(path)
    work = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(target, path) as work:
            new = work.path / "new"
            new.mkdir()
            yield new
            for file in new.rglob("*"):
                if file.is_file() and not file.is_symlink():
                    _sync(file)
            if check is not None:
                check()
            if target.exists():
                new.chmod(stat.S_IMODE(target.stat().st_mode))
            if not (target.exists() and _exchange(new, target)):
                if target.exists():
                    target.rename(work.path / OLD)
                new.rename(target)
    except OSError as error:
        if not _concerns(error, [path, target, target.parent, *([work.path] if work else [])]):
            raise  # about another file that the block opened
        raise refused(path, error) from error


def _temporary(target: Path, named: str | Path) -> TemporaryFolder:
    try:
        return TemporaryFolder(target)
    except OSError as error:
        raise refused(named, error) from error


def _file_target(path: str | Path) -> Path:
    """The file that is replaced, where links lead to it; KnnError for what is no file."""
    target = resolved(path)
    if target.is_dir():
        raise KnnError(f"{path} cannot be written: it is a folder.", "Give the name of a file.")
    if is_stream(target):
        raise KnnError(f"{path} cannot be written: it is a pipe or a device.", "Give the name of a file.")
    return target


def _finish_file(part: Path, target: Path) -> None:
    """Bring a complete file to the disk, with the mode of the one that it replaces."""
    with suppress(FileNotFoundError):
        before = target.stat()
        if hasattr(os, "chown") and (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
            with suppress(PermissionError):  # only an administrator may give files away
                os.chown(part, before.st_uid, before.st_gid)
        part.chmod(stat.S_IMODE(before.st_mode) & 0o777)
    _sync(part)


def _sync(path: Path) -> None:
    """Wait until a file is on the disk, so that a crash of the system finds it whole."""
    file = os.open(path, os.O_RDWR | NO_FOLLOW)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places at once; False where the system cannot."""
    if sys.platform != "linux":
        return False
    import ctypes

    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)  # of glibc, from 2.28 on
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2 is not None and renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _concerns(error: OSError, paths: Iterable[str | Path]) -> bool:
    """Whether an error is about one of these files, or something in one of these folders, or does not say of what."""
    if error.filename is None:
        return True
    name = Path(os.fsdecode(error.filename))
    return any(name == Path(path) or Path(path) in name.parents for path in paths)
