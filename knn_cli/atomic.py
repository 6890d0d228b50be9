"""Output files that are either the old one or the whole new one, never half of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from knn_cli.errors import KnnError


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


def _refused(path: str | Path, error: OSError) -> KnnError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        hint = "Create the folder first, or name one that exists."
    elif isinstance(error, PermissionError):
        hint = "Name a folder that you may write to."
    else:
        hint = "Name a place with room that can be written to."
    return KnnError(f"{path} cannot be written: {error.strerror or error}.", hint)
