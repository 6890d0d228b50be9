"""Output files that are either the old one or the whole new one, never half of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from knn_cli.errors import KnnError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`: moved onto it when the block ends well, removed when it does not.

    Several files that belong together enter one `contextlib.ExitStack`: all are written before the first is moved.
    Raises KnnError when the folder is missing or cannot be written, or the disk is full.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        part.touch()  # so that it is this line that fails, in the system's own words, and not some library
        yield part
        part.replace(path)
    except OSError as error:
        raise KnnError(
            f"{path} cannot be written: {error.strerror or error}.",
            "Choose a folder that exists, that you may write to, and that has room.",
        ) from error
    except UnicodeEncodeError as error:
        raise KnnError(
            f"{path} cannot be written: {error.object!r} is no valid Unicode.", "Rename the file that it comes from."
        ) from error
    finally:
        part.unlink(missing_ok=True)
