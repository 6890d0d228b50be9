"""Pointers of Git LFS: the small texts that lie in place of large files where a repository was cloned without it."""

from __future__ import annotations

from pathlib import Path

from knn_cli.core.errors import KnnError

_MARK = b"version https://git-lfs"


def check_pointer(path: Path) -> None:
    """Raise a KnnError if a file is a pointer of Git LFS, which a reader calls before it says that it is damaged."""
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(_MARK)) == _MARK
    except OSError:
        return
    if is_pointer:
        raise KnnError(
            f"{path} is a Git LFS pointer, not the file itself.", "Fetch the file: git lfs pull, in that repository."
        )
