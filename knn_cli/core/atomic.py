"""Output files that are either the old one or the whole new one, never half of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
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
    whole. Ask `check_folder` before: this one replaces whatever it finds. A link stays a link.
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


def check_folder(path: Path, what: str, ours: Collection[str], force: bool) -> None:
    """KnnError when a folder of our own kind cannot go to `path`: call it before hours of work.

    what : its kind, for the message
    ours : names that such a folder may hold; one with anything else in it is never replaced
    """
    if not path.exists():
        return
    foreign = sorted(one.name for one in path.iterdir() if one.name not in ours) if path.is_dir() else [path.name]
    if foreign:
        hint = "Name another folder; this one will not be replaced."
        raise KnnError(f"{path} exists and is no {what}: it holds {foreign[0]}.", hint)
    if any(path.iterdir()) and not force:
        raise KnnError(f"The {what} {path} exists already.", "Name another folder, or replace it with --force.")


def check_output(path: str | Path | None, sources: Iterable[str | Path]) -> None:
    """KnnError when an output would take the place of one of the sources, which `--force` does not allow either."""
    if path is None:
        return
    check_outputs([path], sources)


def check_outputs(paths: Iterable[str | Path], sources: Iterable[str | Path]) -> None:
    """`check_output` of many outputs, in time that grows with their number only."""
    read = {Path(source).resolve() for source in sources}
    for path in paths:
        if Path(path).resolve() in read:
            raise KnnError(f"{path} is one of the sources.", "Name another file for the output.")


def _refused(path: str | Path, error: OSError) -> KnnError:
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        hint = "Create the folder first, or name one that exists."
    elif isinstance(error, PermissionError):
        hint = "Name a folder that you may write to."
    else:
        hint = "Name a place with room that can be written to."
    return KnnError(f"{path} cannot be written: {error.strerror or error}.", hint)
