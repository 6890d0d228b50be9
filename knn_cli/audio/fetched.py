"""Sound that is no file here: copied to a temporary one for as long as it is read, which is deleted afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from knn_cli.audio import reading_notes
from knn_cli.core.errors import AudioError
from knn_cli.core.urls import UrlPath

__all__ = ["copied", "opened"]

MOST_NAME_BYTES = 200  # of what file systems take


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """Yield a path that can be read: of a URL, a copy of the same name that is removed afterwards.

    Raises
    ------
    AudioError
        If a URL cannot be copied, see `url_reading.copy`; within the block, errors of the copy name the URL.

    Examples
    --------
    >>> from pathlib import Path
    >>> from knn_cli.audio.fetched import opened
    >>> with opened(Path("meeting.flac")) as path:
    ...     print(path)
    meeting.flac
    """
    if not isinstance(path, UrlPath):
        yield path
        return
    from knn_cli.core import url_reading

    is_name = (
        path.name.isprintable() and path.name != ".." and 0 < len(path.name.encode(errors="replace")) <= MOST_NAME_BYTES
    )
    url, name = path, path.name if is_name else f"sound{path.suffix[:10]}"
    with copied(lambda copy: url_reading.copy(url, copy), name, path, str(path)) as copy:
        yield copy


@contextmanager
def copied(fill: Callable[[Path], None], name: str, path: Path, title: str) -> Iterator[Path]:
    """Yield a temporary file that a function has filled.

    Parameters
    ----------
    fill : callable
        Writes the file.
    name : str
        Of the file.
    path : Path
        Of what notes on the sound are said.
    title : str
        What errors name in place of the file.
    """
    with tempfile.TemporaryDirectory(prefix="knn-") as folder:
        copy = Path(folder, name)
        fill(copy)
        try:
            with reading_notes.renamed(copy, path):
                yield copy
        except AudioError as error:
            raise type(error)(error.message.replace(str(copy), title), error.hint) from error
