"""Opening what a user names: the kind of a path is looked at before anything waits for it.

Most formats are read from a regular file only: their readers seek, map or read twice. Texts are also read from a pipe,
such as `/dev/stdin` and a shell's `<(command)`. Folders, devices and sockets are refused, and so is a named pipe into
which nobody writes.
"""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, AnyStr, BinaryIO

from knn_cli.core.errors import KnnError

MAX_TEXT_BYTES = 1 << 30  # of a text that is read at once
MAX_LINE = 1 << 24  # characters or bytes of a line in a file that is read line by line
WAIT_SECONDS = 5.0  # for the first bytes of a named pipe
_OPEN_FILES = ("/dev/fd/", "/dev/stdin", "/proc/")  # names of what the process has open, where a pipe has its writer
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_regular(path: Path | str, what: str, *, error: type[KnnError] = KnnError) -> None:
    """Raise an error unless a path is a regular file; nothing is opened.

    Parameters
    ----------
    path : path
    what : str
        What it should be, with its article, for the message: "a checkpoint".
    error : type
        Of what is raised.
    """
    kind = _kind(path, what, error)
    if kind != stat.S_IFREG:
        hint = "Write what comes out of it to a file first." if kind == stat.S_IFIFO else f"Give the path of {what}."
        raise error(f"{path} is {_KINDS.get(kind, 'no file')}, not {what}.", hint)


def open_text(path: Path | str, what: str, *, error: type[KnnError] = KnnError) -> BinaryIO:
    """Open a text for reading its bytes once: a regular file, a pipe, or the terminal.

    Parameters
    ----------
    path : path
    what : str
        What it should be, with its article, for the message: "an RTTM file".
    error : type
        Of what is raised.

    Raises
    ------
    KnnError
        If it is anything else, cannot be opened, or is a named pipe from which nothing comes for `WAIT_SECONDS`.
    """
    kind = _kind(path, what, error)
    if kind not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFCHR):
        raise error(f"{path} is {_KINDS.get(kind, 'no file')}, not {what}.", f"Give the path of {what}.")
    is_named_pipe = kind == stat.S_IFIFO and not str(path).startswith(_OPEN_FILES)
    try:
        stream = open(path, "rb", opener=_without_waiting if is_named_pipe else None)  # noqa: SIM115
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror or reason}.", f"Give the path of {what}.") from reason
    if kind == stat.S_IFCHR and not stream.isatty():
        stream.close()
        raise error(f"{path} is a device, not {what}.", f"Give the path of {what}.")
    if is_named_pipe:
        if not select.select([stream], [], [], WAIT_SECONDS)[0]:
            stream.close()
            raise error(f"{path} is a pipe into which nobody writes.", f"Give the path of {what}.")
        os.set_blocking(stream.fileno(), True)
    return stream


def read_bytes(path: Path | str, what: str, *, most: int = MAX_TEXT_BYTES, error: type[KnnError] = KnnError) -> bytes:
    """Read all of a text, as `open_text` opens it.

    Raises
    ------
    KnnError
        As `open_text`; if it cannot be read, or is longer than `most` bytes.
    """
    with open_text(path, what, error=error) as stream:
        try:
            size = os.fstat(stream.fileno()).st_size
            data = b"" if size > most else stream.read(most + 1)
        except OSError as reason:
            raise error(f"{path} cannot be read: {reason.strerror or reason}.", f"Give the path of {what}.") from reason
    if max(size, len(data)) > most:
        raise error(f"{path} is larger than {most >> 20} MB, which is not {what}.", "Is it another file?")
    return data


def lines_of(stream: IO[AnyStr], path: Path | str, what: str, *, error: type[KnnError] = KnnError) -> Iterator[AnyStr]:
    """Yield the lines of an open text with their ends. Raises an error for one longer than any line of such a file.

    A file of nothing but zeros would otherwise be one line that fills the memory.
    """
    while line := stream.readline(MAX_LINE + 1):
        if len(line) > MAX_LINE:
            raise error(
                f"{path} has a line of more than {MAX_LINE >> 20} MB, so it is not {what}.", "Is it another file?"
            )
        yield line


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _kind(path: Path | str, what: str, error: type[KnnError]) -> int:
    try:
        return stat.S_IFMT(Path(path).stat().st_mode)
    except (OSError, ValueError) as reason:  # ValueError: a null byte
        reason_text = getattr(reason, "strerror", None) or reason
        raise error(f"{path} cannot be read: {reason_text}.", f"Give the path of {what}.") from reason
