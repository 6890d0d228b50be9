"""Reading what is at a URL: Python itself for `http(s)://`, fsspec for all other kinds, imported when one is named.

Whatever goes wrong is an AudioError of one sentence, which shows no credentials. What takes too long, breaks off or is
refused for the moment is tried `ATTEMPTS` times; fewer bytes than were promised are an error too.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from knn_cli.core.errors import AudioError
from knn_cli.core.urls import WEB_SCHEMES, UrlPath

__all__ = ["copy", "files_below", "is_folder", "stamp"]

ATTEMPTS = 3
WAIT_SECONDS = 1.0  # before the second attempt, twice as long before the third
TIMEOUT_SECONDS = 30.0  # without a byte
COPIED_BYTES = 1 << 20
MOST_KNOWN = 1 << 16  # URLs whose sizes are remembered
_MISSING, _REFUSED, _BUSY = (404, 410), (401, 403, 407), (408, 429, 500, 502, 503, 504)
_VERSIONS = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "created")
_INSTALL = "pip install 'knn-cli[urls]'"

Result = TypeVar("Result")


class _BrokenError(Exception):
    """Something that another attempt may not meet; the text is what follows the name of the URL."""


class _Opened(NamedTuple):
    """A stream, and how many bytes come from it, None where that is not known."""

    stream: BinaryIO
    size: int | None


def copy(path: UrlPath, target: Path, *, offset: int = 0, size: int | None = None) -> None:
    """Copy what is at a URL to a file, in bounded memory.

    Parameters
    ----------
    path : UrlPath
    target : Path
    offset, size : int
        Bytes that are copied, by default all.

    Raises
    ------
    AudioError
        If it is not there, may not be read, or does not come whole; if there is no room for it.
    """
    _attempted(path, lambda: _copy_once(path, target, offset, size))


def stamp(path: UrlPath) -> tuple[str, int, int]:
    """URL as it is shown, bytes, and a number that changes when the object does; -1 for both where they are unknown."""
    try:
        size, version = _facts(path)
    except AudioError:  # whoever reads it says why
        return str(path), -1, -1
    known = int.from_bytes(hashlib.sha256(version.encode()).digest()[:7], "big") if version else -1
    return str(path), -1 if size is None else size, known


@lru_cache(MOST_KNOWN)
def is_folder(path: UrlPath) -> bool:
    """Whether a URL is a folder that can be listed; False for `http(s)://`, and where that cannot be found out."""
    if path.scheme in WEB_SCHEMES:
        return False
    try:
        return _attempted(path, lambda: _is_folder_there(*_system(path)), attempts=1)
    except AudioError:
        return False


def _is_folder_there(system: Any, name: str) -> bool:
    return bool(system.isdir(name))


def files_below(folder: UrlPath, suffixes: Collection[str]) -> list[UrlPath]:
    """The files below a folder whose names end in one of the suffixes, without hidden ones, sorted by path.

    AudioError if it cannot be listed.
    """
    system, root = _system(folder)
    names: list[str] = _attempted(folder, lambda: list(system.find(root)))
    inside = [PurePosixPath(name).relative_to(root) for name in names]
    kept = [one for one in inside if one.suffix.lower() in suffixes and not any(p.startswith(".") for p in one.parts)]
    return [UrlPath.of(f"{folder.url.rstrip('/')}/{one}") for one in sorted(kept)]


@lru_cache(MOST_KNOWN)
def _facts(path: UrlPath) -> tuple[int | None, str]:
    if path.scheme in WEB_SCHEMES:
        # Not HEAD, which addresses that are signed for reading refuse.
        def asked() -> tuple[int | None, str]:
            with _web(path, "bytes=0-0") as answer:
                return _whole_size(answer), _version(answer)

        return _attempted(path, asked, attempts=1)
    system, name = _system(path)
    info = _attempted(path, lambda: system.info(name), attempts=1)
    version = next((str(info[key]) for key in _VERSIONS if info.get(key)), "")
    return info.get("size"), version


def _copy_once(path: UrlPath, target: Path, offset: int, size: int | None) -> None:
    with _opened(path, offset, size) as source:
        expected, copied = source.size if size is None else size, 0
        with _disk_watched(target), target.open("wb") as file:
            while expected is None or copied < expected:
                piece = source.stream.read(COPIED_BYTES if expected is None else min(COPIED_BYTES, expected - copied))
                if not piece:
                    break
                file.write(piece)
                copied += len(piece)
    if expected is not None and copied != expected:
        raise _BrokenError(f"broke off after {copied} of {expected} bytes")


class _FullDiskError(Exception):
    """The disk here is at fault, not what is read."""


@contextmanager
def _disk_watched(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.filename == os.fspath(target) or error.errno in (28, 122):  # ENOSPC, EDQUOT
            raise _FullDiskError(f"{target.parent}: {error.strerror or error}") from error
        raise


@contextmanager
def _opened(path: UrlPath, offset: int, size: int | None) -> Iterator[_Opened]:
    """The bytes from `offset` on."""
    if path.scheme not in WEB_SCHEMES:
        system, name = _system(path)
        with system.open(name, "rb") as stream:
            stream.seek(offset)
            whole = getattr(stream, "size", None)
            yield _Opened(stream, None if whole is None else max(0, whole - offset))
        return
    end = "" if size is None else offset + size - 1
    with _web(path, f"bytes={offset}-{end}" if offset or size is not None else None) as answer:
        length = answer.headers.get("Content-Length")
        left = None if length is None else int(length)
        if offset and answer.status != 206:  # all of it comes, whatever was asked for
            skipped = 0
            while skipped < offset and (piece := answer.read(min(COPIED_BYTES, offset - skipped))):
                skipped += len(piece)
            left = None if left is None else left - skipped
        yield _Opened(cast(BinaryIO, answer), left)


@contextmanager
def _web(path: UrlPath, piece: str | None) -> Iterator[Any]:
    """The answer of a web server. Credentials in the URL go to its host, and to none that it redirects to."""
    parts = urlsplit(path.url)
    user, at, host = parts.netloc.rpartition("@")
    place = quote(parts.path, safe="/%:;,@!$&'()*+=~")
    request = urllib.request.Request(
        urlunsplit((parts.scheme, host, place, parts.query, "")),
        headers={"Accept-Encoding": "identity", "User-Agent": "knn"},
    )
    if piece is not None:
        request.add_header("Range", piece)
    if at:
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(unquote(user).encode()).decode()}")
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        yield answer


def _whole_size(answer: Any) -> int | None:
    """Bytes of all that is there, by an answer with the first of them or with all."""
    total = (answer.headers.get("Content-Range") or "").rpartition("/")[2]
    text = total if answer.status == 206 else answer.headers.get("Content-Length") or ""
    return int(text) if text.isdecimal() else None


def _version(answer: Any) -> str:
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""


def _system(path: UrlPath) -> tuple[Any, str]:
    """The file system of a URL, and what it calls it."""
    try:
        system, name = import_module("fsspec.core").url_to_fs(path.url)
        return system, name
    except ImportError as error:
        raise AudioError(f"{path} needs a package that is not installed: {error}.", _INSTALL) from error
    except ValueError as error:
        known = "http://, https:// and those of fsspec, such as s3:// and gs://"
        raise AudioError(f"{path} is of a kind that is not known: {path.scheme}://.", f"Known: {known}.") from error


def _attempted(path: UrlPath, work: Callable[[], Result], attempts: int = ATTEMPTS) -> Result:
    """What `work` returns, tried again after what may pass; AudioError for all else."""
    for attempt in range(1, attempts + 1):
        try:
            return work()
        except AudioError:
            raise
        except _FullDiskError as error:
            raise AudioError(
                f"{path} could not be copied to {error}.", "Name a folder with more room in the variable TMPDIR."
            ) from error
        except Exception as error:  # file systems raise whatever their libraries do
            what, hint, may_pass = _reason(error)
            if not may_pass or attempt == attempts:
                raise AudioError(f"{path} {what}.", hint) from error
        time.sleep(WAIT_SECONDS * attempt)
    raise AssertionError("there is at least one attempt")


def _reason(error: Exception) -> tuple[str, str, bool]:
    """What went wrong, as it follows the name of a URL; a hint; and whether it may pass."""
    code = getattr(error, "code", None)
    again = "Repeat the command later: it goes on."
    if isinstance(error, FileNotFoundError) or code in _MISSING:
        return "does not exist", "Check the address.", False
    if isinstance(error, PermissionError) or code in _REFUSED or type(error).__name__ == "NoCredentialsError":
        return "may not be read", "Give the credentials as the programs of that service find them.", False
    if isinstance(error, urllib.error.HTTPError):
        return f"cannot be read: the server answers {code}", again, code in _BUSY
    if isinstance(error, _BrokenError):
        return str(error), again, True
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, socket.gaierror):
        return "cannot be reached: its host has no address", "Check the address and the network.", True
    if isinstance(cause, TimeoutError):
        return f"cannot be read: nothing came for {TIMEOUT_SECONDS:g} s", again, True
    if isinstance(cause, (http.client.HTTPException, ConnectionError, OSError)):
        name = getattr(cause, "strerror", None) or type(cause).__name__
        is_wrong = isinstance(cause, (http.client.InvalidURL, ValueError))
        return f"cannot be read: {name}", "Check the address and the network.", not is_wrong
    return (
        f"cannot be read: {type(cause).__name__}",
        "Check the address.",
        not isinstance(cause, (TypeError, ValueError)),
    )
