"""Output files that are either the old one or the whole new one, never half of it."""

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
    """A temporary path beside `path`: moved onto it when the block ends well, removed when it does not.

    A link stays a link, to the new file. Several files that belong together enter one `contextlib.ExitStack`: all are
    written before the first is moved. Raises KnnError for what the file system refuses.
    """
    wanted = Path(path)
    if wanted.is_dir():
        raise KnnError(f"{path} cannot be written: it is a folder.", "Give the name of a file.")
    target = wanted.resolve()
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.touch()  # so that this line fails, in the system's own words, and not some library
        yield part
        part.replace(target)
    except OSError as error:
        if error.filename not in (None, str(wanted), str(part)):
            raise  # about another file that the block opened
        raise _refused(path, error) from error
    except UnicodeEncodeError as error:
        raise KnnError(f"{path} cannot be written: {error.object!r} is no valid text.", "Rename that file.") from error
    finally:
        with suppress(OSError):  # it may never have come to be
            part.unlink()


@contextmanager
def replacing_text(path: str | Path) -> Iterator[TextIO]:
    """`replacing` for a UTF-8 text file opened for writing; a device or pipe (as /dev/stdout) is written straight."""
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
    """A temporary folder beside `path`: moved to its place when the block ends well, removed when it does not.

    A folder that is there already is moved aside first and removed last, so that a kill between leaves one of the two
    whole. Call `output_paths.check_folder` before: this function replaces whatever it finds. A link stays a link.
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
