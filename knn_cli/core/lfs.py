"""Pointers of Git LFS: the small texts that lie in place of large files where a repository was cloned without it."""

from __future__ import annotations

from pathlib import Path

from knn_cli.core.errors import KnnError
from knn_cli.core.folders import is_regular

_MARK = b"version https://git-lfs"


def check_pointer(path: Path | str, head: bytes | None = None, *, error: type[KnnError] = KnnError) -> None:
    """Raise an error if a file is a pointer of Git LFS, which a reader calls before it says that it is damaged.

    Parameters
    ----------
    path : path
    head : bytes, optional
        The beginning of the file, where it has been read already.
    error : type
        Of what is raised.
    """
    if head is None:
        head = _head(Path(path))
    if head.startswith(_MARK):
        hint = "Fetch the file: git lfs pull, in that repository."
        raise error(f"{path} is a Git LFS pointer, not the file itself.", hint)


def _head(path: Path) -> bytes:
    """The first bytes of a regular file; none of anything else, and where it cannot be read."""
    try:
        if not is_regular(path):
            return b""
        with path.open("rb") as file:
            return file.read(len(_MARK))
    except OSError:
        return b""
