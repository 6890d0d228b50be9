"""Atomic output files: a path holds either the old file or the complete new one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from knn_cli.core.errors import KnnError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces it if the block succeeds and is removed if it fails.

    A symbolic link keeps pointing to its target, which is replaced. To replace several files together, enter them into
    one `contextlib.ExitStack`: all are written before the first is moved.

    Raises
    ------
    KnnError
        If the file cannot be written.
    """
    wanted = Path(path)
    if wanted.is_dir():
        raise KnnError(f"{path} cannot be written: it is a folder.", "Give the name of a file.")
    target = wanted.resolve()
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.touch()  # so that a refusal comes from here, with the system's message, and not from a library
        yield part
        part.replace(target)
    except OSError as error:
        if error.filename not in (None, str(wanted), str(part)):
            raise  # about another file that the block opened
        raise _refused(path, error) from error
    except UnicodeEncodeError as error:
        raise KnnError(f"{path} cannot be written: {error.object!r} is not valid text.", "Rename that file.") from error
    finally:
        with suppress(OSError):  # it may not exist
            part.unlink()


@contextmanager
def replacing_text(path: str | Path) -> Iterator[TextIO]:
    """Like `replacing`, for a UTF-8 text file; a device or pipe (such as /dev/stdout) is written directly."""
    wanted = Path(path)
    try:
        if wanted.exists() and not wanted.is_file() and not wanted.is_dir():
            with wanted.open("w", encoding="utf-8", newline="") as file:
                yield file
            return
        with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        if error.filename not in (None, str(wanted)):
            raise
        raise _refused(path, error) from error


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, which replaces it if the block succeeds and is removed if it fails.

    An existing folder is moved aside first and removed last, so that one of the two remains complete if the process is
    killed. Call `output_paths.check_folder` first: this function replaces any existing folder. A symbolic link keeps
    pointing to its target, which is replaced.
    """
    target = Path(path).resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        try:
            new, old = work / "new", work / "old"
            new.mkdir()
            yield new
            if target.exists():
                target.rename(old)
            new.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        if error.filename not in (None, str(path), str(target), str(target.parent)) and ".part" not in str(
            error.filename
        ):
            raise  # about another file that the block opened
        raise _refused(path, error) from error


def _refused(path: str | Path, error: OSError) -> KnnError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        hint = "Create the folder first, or name one that exists."
    elif isinstance(error, PermissionError):
        hint = "Name a folder that you may write to."
    else:
        hint = "Name a place with room that can be written to."
    return KnnError(f"{path} cannot be written: {error.strerror or error}.", hint)
