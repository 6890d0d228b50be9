"""Checks of output paths before any work is done, so that no file is overwritten by mistake."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from knn_cli.core.errors import KnnError
from knn_cli.core.urls import UrlPath

LIST_OF_FILES = "knn.json"  # in output folders that are no bundles and no reports


def resolved(path: str | Path) -> Path:
    """Return the absolute path without links; a URL is as it is. KnnError where links lead in a circle."""
    if isinstance(path, UrlPath):
        return path
    try:
        Path(path).stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise KnnError(f"{path} leads nowhere: its links form a circle.", "Remove the link.") from error
    return Path(os.path.realpath(path))


def is_stream(path: str | Path) -> bool:
    """Return whether a path is a pipe, a device or a socket, which is written to and never replaced."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def refused(path: str | Path, error: OSError) -> KnnError:
    """Return what to say when the system refuses to write `path`."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        hint = "Create the folder first, or name one that exists."
    elif isinstance(error, PermissionError):
        hint = "Name a folder that you may write to."
    else:
        hint = "Name a place with room that can be written to."
    return KnnError(f"{path} cannot be written: {error.strerror or error}.", hint)


def check_output(path: str | Path | None, sources: Iterable[str | Path]) -> None:
    """Refuse an output that would replace one of the sources.

    Parameters
    ----------
    path : path or None
        The output; None if there is none.
    sources : iterable of path
        The files that are read.

    Raises
    ------
    KnnError
        If `path` is one of the sources, directly or through a link. No option overrides this.
    """
    if path is not None:
        check_outputs([path], sources)


def check_outputs(paths: Iterable[str | Path], sources: Iterable[str | Path]) -> None:
    """Like `check_output`, for many outputs, in time linear in their number."""
    read = {resolved(source) for source in sources}
    for path in paths:
        if resolved(path) in read:
            raise KnnError(f"{path} is one of the sources.", "Name another file for the output.")


def check_folder(path: Path, kind: str, ours: Callable[[Path], Collection[str]], force: bool) -> None:
    """Refuse to replace a folder that holds other files than an earlier output.

    Parameters
    ----------
    path : Path
        The output folder.
    kind : str
        Noun for such a folder in messages.
    ours : callable
        Takes the folder and returns which of its files an earlier output of this kind wrote, relative and with
        slashes; none where nothing in it shows that it is one. A folder that holds anything else is never replaced.
    force : bool
        Whether a folder that holds only these files may be replaced.

    Raises
    ------
    KnnError
        If the folder holds other files, or is not empty and `force` is false.
    """
    if not path.exists():
        return
    found = files_in(path) if path.is_dir() else [path.name]
    if found and (foreign := sorted(set(found) - set(ours(path) if path.is_dir() else ()))):
        hint = "Name another folder; this one will not be replaced."
        raise KnnError(f"{path} exists and is no {kind}: it holds {foreign[0]}.", hint)
    if found and not force:
        raise KnnError(f"The {kind} {path} exists already.", "Name another folder, or replace it with `force=True`.")


def files_in(folder: Path) -> list[str]:
    """Return all that a folder holds, hidden files too, relative and with slashes: files, links, and empty folders.

    A folder that cannot be listed counts as a file.
    """
    found: list[Path] = []

    def closed(error: OSError) -> None:
        found.append(Path(error.filename))

    for parent, folders, names in os.walk(folder, onerror=closed):
        inside = Path(parent)
        found += [inside / name for name in names]
        found += [inside / name for name in folders if (inside / name).is_symlink()]
        if not (folders or names) and inside != folder:
            found.append(inside)
    return sorted(path.relative_to(folder).as_posix() for path in found)


def write_list_of_files(folder: Path, kind: str) -> None:
    """Write into a complete output folder which files it holds, so that `listed_files` knows them."""
    value = {"knn": kind, "files": [*files_in(folder), LIST_OF_FILES]}
    (folder / LIST_OF_FILES).write_text(json.dumps(value, indent=1) + "\n", encoding="ascii")


def listed_files(folder: Path, kind: str) -> Collection[str]:
    """Return the files that `write_list_of_files` has listed; none where there is no such list of this kind."""
    try:
        value = json.loads((folder / LIST_OF_FILES).read_text(encoding="ascii"))
        return {str(name) for name in value["files"]} if value["knn"] == kind else ()
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ()


def make_output_folder(folder: Path, targets: Sequence[Path], sources: Sequence[Path]) -> None:
    """Create an output folder, and the folders of the files to be written to it.

    Parameters
    ----------
    folder : Path
        The output folder.
    targets : sequence of Path
        The files that will be written.
    sources : sequence of Path
        The files that are read.

    Raises
    ------
    KnnError
        If a target is one of the sources, if `folder` is a file, or if a folder cannot be created or written to.
    """
    check_outputs(targets, sources)
    if folder.exists() and not folder.is_dir():
        raise KnnError(f"{folder} is a file.", "Name a folder for one file per recording, or one output file.")
    try:
        for parent in dict.fromkeys([folder, *(target.parent for target in targets)]):
            parent.mkdir(parents=True, exist_ok=True)
            if not os.access(parent, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(parent))
    except OSError as error:
        raise KnnError(
            f"The folder {folder} cannot be created or written to: {error.strerror}.", "Name another folder."
        ) from error
