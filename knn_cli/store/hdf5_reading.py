"""Opening HDF5 files that others may have made or damaged: stores, kept analyses, classifiers.

libhdf5 trusts its files: bytes that were changed can make it loop for ever, crash, or take memory without end, and a
file can name others (external links, external storage, virtual data sets) whose content then appears as its own, which
is refused but for a store with `parts` that are known to be what they were. So a
file is looked through first, in a process of its own that has little time and memory and can be given up (Linux; in
this process elsewhere), and is opened if nothing was found. It is looked through once as long as it does not change.
That takes some 15 ms, and neither arrays of numbers nor the texts of files over 8 MB are read.

`opened` and `reading` turn all that libhdf5 and h5py raise into a StoreError.
"""

from __future__ import annotations

import math
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import h5py
import numpy as np

from knn_cli.core.errors import StoreError
from knn_cli.core.input_files import check_regular
from knn_cli.core.lfs import check_pointer
from knn_cli.core.signals import become_helper, deferred
from knn_cli.store import parts

FOLLOW_LINKS = "KNN_HDF5_LINKS"  # in the environment, "1" lets a file name others

# What h5py raises for damaged content; it documents none of it.
LIBRARY_ERRORS = (
    *(OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, OverflowError, MemoryError),
)

_CHECK_SECONDS = 8  # of processor time
_WAIT_SECONDS = 25
_CHECK_BYTES = 1 << 30  # of memory, beside what this process has
_TEXT_BYTES = 8 << 20  # the largest file whose texts are read to be checked
_ATTRIBUTE_BYTES = 1 << 24
_CHUNK_BYTES = 1 << 28
_LARGE_BYTES = 1 << 26  # from here on, what is stored and what is read must be in proportion
_MAX_RATIO = 1100  # bytes per byte that is stored; gzip reaches 1032
_MAX_MATRIX_RATIO = 100  # embeddings shrink by a tenth
_MAX_OBJECTS = 100_000

_checked: set[tuple[int, int, int, int]] = set()  # device, inode, size, time of change


def opened(path: Path | str, hint: str = "Make it again.", what: str = "not an HDF5 store") -> h5py.File:
    """Open an HDF5 file for reading, after it has been looked through.

    Parameters
    ----------
    path : path
    hint : str
        What to do where the file is damaged.
    what : str
        What a file is that is no HDF5 at all, for the message.

    Returns
    -------
    h5py.File

    Raises
    ------
    StoreError
        It is no HDF5 file, damaged, open for writing in another program, was never closed, may not be read, names
        other files, or claims to hold out of proportion more than it does.
    """
    path = Path(path)
    check_regular(path, "an HDF5 file", error=StoreError)
    try:
        if not h5py.is_hdf5(path):
            check_pointer(path)
            path.open("rb").close()  # raises where it may not be read
            raise StoreError(f"{path} is {what}, or is damaged.", hint)
        status = path.stat()
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in _checked:
            _check(path, hint)
            _checked.add(key)
        file = h5py.File(path.resolve(), "r")  # beside which its parts are, not beside a link to it
        try:
            for part in parts.check(file, path):
                opened(part, hint, what).close()
        except BaseException:
            file.close()
            raise
        return file
    except LIBRARY_ERRORS as error:
        raise _refusal(path, error, hint, what) from error


@contextmanager
def reading(
    path: Path | str, where: str = "", hint: str = "Copy it again, or make it again.", what: str = "damaged"
) -> Iterator[None]:
    """Turn what is raised while an open file is read into a StoreError: `path`, `where` in it, is `what`."""
    try:
        yield
    except LIBRARY_ERRORS as error:
        raise StoreError(f"{path}{where} is {what}.", hint) from error


def _refusal(path: Path, error: BaseException, hint: str, what: str) -> StoreError:
    """Why a file cannot be opened."""
    text = str(error)
    if isinstance(error, BlockingIOError) or "unable to lock file" in text:
        return StoreError(f"{path} is open for writing in another program.", "Wait until it is closed, then repeat.")
    if "already open for write" in text:
        return StoreError(
            f"{path} was not closed by the program that wrote it.", "Mend a copy with `h5clear -s`, or make it again."
        )
    if isinstance(error, PermissionError):
        return StoreError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.")
    return StoreError(f"{path} is {what}, or is damaged.", hint)


def _check(path: Path, hint: str) -> None:
    """Look through a file, where that can be given up. StoreError for whatever is wrong with it."""
    if sys.platform != "linux":
        answer = _finding(path)
    else:
        answer = _finding_elsewhere(path)
    if answer == "damaged":
        with h5py.File(path, "r"):  # raises what says more, if the file cannot be opened at all
            raise StoreError(f"{path} is damaged.", hint)
    if answer != "":
        raise StoreError(f"{path} {answer}.", hint)


def _finding_elsewhere(path: Path, attempts: int = 2) -> str:
    """`_finding` of a process that has little time and memory, or that the process did not end well.

    Raises
    ------
    StoreError
        If it had too little of the processor, or was killed by others in each of the attempts: that says nothing about
        the file.
    """
    receiver, sender = os.pipe()
    parent, child = os.getpid(), 0
    status = 0
    try:
        with warnings.catch_warnings(), deferred():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the new process does not use
            child = os.fork()
            if child == 0:
                _answer(path, parent, receiver, sender)
        os.close(sender)
        answer, ended = _received(receiver)
    finally:
        os.close(receiver)
        if child:  # else it could not fork
            with suppress(ProcessLookupError):
                os.kill(child, 9)
            _, status = os.waitpid(child, 0)
    if answer.endswith("\n"):
        return answer[:-1]
    if not ended:
        raise StoreError(
            f"{path} was not looked through within {_WAIT_SECONDS} s.", "Try again when the machine is less busy."
        )
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGTERM):
        if attempts > 1:
            return _finding_elsewhere(path, attempts - 1)
        raise StoreError(
            f"{path} was not read: the process that looks through it was killed, perhaps for want of memory.",
            "Repeat the command.",
        )
    return "is damaged, and reading it did not come to an end"


def _answer(path: Path, parent: int, receiver: int, sender: int) -> NoReturn:
    """In the new process: write the finding into the pipe, and end."""
    import resource  # Windows lacks it

    answer = "damaged"
    try:
        become_helper(parent)
        os.close(receiver)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + _CHECK_BYTES
        for kind, limit in ((resource.RLIMIT_AS, size), (resource.RLIMIT_CPU, _CHECK_SECONDS)):
            hard = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        answer = _finding(path)
    finally:
        os.write(sender, f"{answer}\n".encode())
        os._exit(0)


def _received(receiver: int) -> tuple[str, bool]:
    """What comes through a pipe until it is closed, or until it is too late, and whether it was closed."""
    end, data = time.monotonic() + _WAIT_SECONDS, b""
    while select.select([receiver], [], [], max(0.0, end - time.monotonic()))[0]:
        part = os.read(receiver, 4096)
        if not part:
            return data.decode("utf-8", "replace"), True
        data += part
    return data.decode("utf-8", "replace"), False


def _finding(path: Path) -> str:
    """What is wrong with a file, as the end of a sentence; "damaged", or "" for nothing."""
    try:
        with h5py.File(path, "r") as file:
            return _walk(file, path.stat().st_size <= _TEXT_BYTES)
    except LIBRARY_ERRORS:
        return "damaged"


def _walk(file: h5py.File, with_texts: bool) -> str:
    """`_finding` of all objects of a file."""
    objects, seen = [file["/"]], set()
    while objects:
        item = objects.pop()
        number = h5py.h5o.get_info(item.id).addr
        if number in seen:
            continue
        seen.add(number)
        if len(seen) > _MAX_OBJECTS:
            return f"holds more than {_MAX_OBJECTS} objects, which no file of knn does"
        if finding := _attributes(item):
            return finding
        if isinstance(item, h5py.Dataset) and (finding := _dataset(item, with_texts)):
            return finding
        for name in item if isinstance(item, h5py.Group) else ():
            link = item.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink) and not _follows_links():
                return f"names another file, {link.filename!r}, as a part of it, which is not read"
            if isinstance(link, h5py.HardLink):
                objects.append(item[name])
    return ""


def _follows_links() -> bool:
    return os.environ.get(FOLLOW_LINKS) == "1"


def _attributes(item: Any) -> str:
    """`_finding` of the attributes of an object, which are read."""
    for name in item.attrs:
        attribute = item.attrs.get_id(name)
        if math.prod(attribute.shape or ()) * attribute.get_type().get_size() > _ATTRIBUTE_BYTES:
            return f"has an attribute {name!r} that is larger than any of knn's"
        with suppress(TypeError):  # a type that numpy lacks, and that knn does not use
            item.attrs[name]
    return ""


def _dataset(item: h5py.Dataset, with_texts: bool) -> str:
    """`_finding` of a data set: where its values are, how much they are, and of texts themselves."""
    properties = item.id.get_create_plist()
    if not _follows_links():
        if properties.get_external_count():
            return f"keeps {item.name} in another file, {properties.get_external(0)[0].decode(errors='replace')!r}"
        if item.is_virtual:
            known = {".", *parts.names(item.file)}  # which are looked at before anything is read of them
            others = [source.file_name for source in item.virtual_sources() if source.file_name not in known]
            if others:
                return f"keeps {item.name} in another file, {others[0]!r}"
    if item.shape is None or item.is_virtual:
        return ""
    width = item.id.get_type().get_size()
    if item.chunks is not None:
        if math.prod(item.chunks) * width > _CHUNK_BYTES:
            return f"holds {item.name} in parts of {math.prod(item.chunks) * width:,} bytes, which are too large"
        item.id.get_num_chunks()  # walks the tree of chunks
    stored, size = item.id.get_storage_size(), math.prod(item.shape) * width
    is_matrix = item.ndim == 2 and item.id.get_type().get_class() == h5py.h5t.FLOAT
    most = _MAX_MATRIX_RATIO if is_matrix else _MAX_RATIO
    if size > _LARGE_BYTES and size > most * stored:
        return f"claims that {item.name} has the shape {item.shape}, and stores {stored:,} bytes of it"
    if with_texts and item.dtype.hasobject and size:
        rows = max(1, (1 << 16) // max(1, math.prod(item.shape[1:])))
        for first in range(0, item.shape[0] if item.shape else 0, rows):
            np.asarray(item[first : first + rows])
        if not item.shape:
            np.asarray(item[()])
    return ""
