"""Files below a folder, none of them passed over in silence."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from knn_cli.core.urls import UrlPath


def files_below(root: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the files below a folder whose names end in one of the suffixes, sorted by path.

    Hidden files and folders are left out, and links to folders are not followed. What cannot be looked at is in the
    list too, so that reading it says why: folders that cannot be listed, and links that lead nowhere.

    Parameters
    ----------
    root : Path
    suffixes : collection of str
        In lower case, such as `.wav`; those of files may be in upper case.
    """
    if not is_folder(root):
        return []
    if isinstance(root, UrlPath):
        from knn_cli.core import url_reading

        return [*url_reading.files_below(root, suffixes)]
    found: list[Path] = []

    def refused(error: OSError) -> None:
        found.append(Path(error.filename))

    for folder, _, names in _walk(root, refused):
        paths = (Path(folder, name) for name in names)
        found += [path for path in paths if path.suffix.lower() in suffixes and _kind(path) in {None, stat.S_IFREG}]
    return sorted(found)


def others_below(root: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the files that `files_below` passes over for their suffix, sorted by path; none of a URL."""
    paths = [Path(folder, name) for folder, _, names in _walk(root) for name in names]
    return sorted(path for path in paths if path.suffix.lower() not in suffixes)


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; False, not an error, where the system does not say."""
    return _kind(path) == stat.S_IFDIR


def is_regular(path: Path) -> bool:
    """Whether a path is a file, no folder, pipe or device; False, not an error, where the system does not say."""
    return _kind(path) == stat.S_IFREG


def _kind(path: Path) -> int | None:
    """The kind of what is at a path, such as `stat.S_IFREG`; None where there is nothing, or it may not be known."""
    if isinstance(path, UrlPath):
        from knn_cli.core import url_reading

        return stat.S_IFDIR if url_reading.is_folder(path) else stat.S_IFREG
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except (OSError, ValueError):  # ValueError: a null byte
        return None


def _walk(root: Path, refused: Callable[[OSError], None] | None = None) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield folders with the names of folders and files in them, without hidden ones."""
    for folder, folders, names in os.walk(root, onerror=refused):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield folder, folders, [name for name in names if not name.startswith(".")]
