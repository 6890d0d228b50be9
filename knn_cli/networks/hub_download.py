"""Files of the Hugging Face hub: downloaded so that a lost connection costs nothing, and checked by their hashes.

Files go into the cache that huggingface_hub and the programs on top of it share, laid out as they expect it:
`blobs/HASH`, and `snapshots/COMMIT/NAME`, a link to it. A download that stops stays as `blobs/HASH.knn.incomplete`, and
the next one goes on behind it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import quote

from knn_cli.core.atomic import replacing, replacing_text
from knn_cli.core.errors import KnnError
from knn_cli.core.file_digests import file_digest, file_sha256
from knn_cli.core.locks import locked

__all__ = [
    *("HubFile", "asked", "check_cached", "download", "full_disk", "hub_errors", "is_settled", "place", "storage_of")
]

ATTEMPTS = 5  # to get further with a file, before a lost connection is an error
PAUSE_SECONDS = 1.0  # before each of them
_OTHER_MEANS = "Check the network, or download the folder by other means and convert that."


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, as the hub describes it.

    Attributes
    ----------
    name : str
        Its path in the repository.
    size : int
        Bytes.
    digest : str
        SHA-256 of a large file, or SHA-1 that git gives to a small one, in hexadecimal digits.
    """

    name: str
    size: int
    digest: str


def digest_of(path: Path, like: str) -> str:
    """SHA-256 of a file where `like` has 64 digits, else the SHA-1 that git gives it.

    Examples
    --------
    >>> from pathlib import Path
    >>> from knn_cli.networks.hub_download import digest_of
    >>> _ = Path("empty").write_bytes(b"")
    >>> digest_of(Path("empty"), "0" * 40)
    'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    if len(like) == 64:
        return file_sha256(path)
    return file_digest(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size))


def storage_of(repository: str, cache: Path) -> Path:
    """The folder of a model's repository in the cache."""
    return cache / f"models--{repository.replace('/', '--')}"


def check_cached(path: Path) -> None:
    """KnnError if a file of the cache differs from what its name says; files without a hash as their name pass."""
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name) and digest_of(blob, blob.name) != blob.name:
        raise KnnError(
            f"{path.name} in the Hugging Face cache is not what was published: its hash differs.",
            f"Remove {blob} and convert again.",
        )


def download(
    repository: str, commit: str, file: HubFile, storage: Path, progress: Callable[[int], None] = lambda done: None
) -> None:
    """Fetch one file of a repository into the cache, behind what an earlier attempt has left of it.

    Parameters
    ----------
    repository : str
        OWNER/NAME.
    commit : str
        Hash of the commit.
    file : HubFile
        What the hub says of it.
    storage : Path
        The repository's folder in the cache.
    progress : callable
        Called with the bytes of the file that are there.

    Raises
    ------
    KnnError
        Another process fetches it, or its hash is not the published one; it is not kept then.
    OSError, huggingface_hub.errors.HTTPError
        As `hub_errors` explains them.
    """
    blob = storage / "blobs" / file.digest
    blob.parent.mkdir(parents=True, exist_ok=True)
    if not blob.is_file():
        part = blob.with_name(f"{blob.name}.knn.incomplete")
        with locked(part):
            _complete(repository, commit, file, part, progress)
            if digest_of(part, file.digest) != file.digest:
                part.unlink()
                raise KnnError(
                    f"{file.name} of {repository} arrived as another file than was published: its hash differs.",
                    "Convert again; if it happens twice, something on the way changes files.",
                )
            part.replace(blob)
    progress(file.size)


def place(storage: Path, revision: str, commit: str, files: Sequence[HubFile], absent: Sequence[str] = ()) -> None:
    """Let a commit of a repository have the files that were fetched, and a branch or tag lead to the commit.

    That the commit has none of the files `absent` is noted as huggingface_hub does it, see `is_settled`.
    """
    for file in files:
        blob, link = storage / "blobs" / file.digest, storage / "snapshots" / commit / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_file():
            link.unlink(missing_ok=True)
            try:
                link.symlink_to(os.path.relpath(blob, link.parent))
            except OSError:  # a file system without links
                with replacing(link) as part:
                    shutil.copyfile(blob, part)
    for name in absent:
        mark = _absence(storage, commit, name)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    if revision != commit:
        reference = storage / "refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        with replacing_text(reference) as file_of_commit:
            file_of_commit.write(commit)


def is_settled(storage: Path, commit: str, name: str) -> bool:
    """Whether the cache has a file of a commit, or knows that the commit has none of this name."""
    return (storage / "snapshots" / commit / name).is_file() or _absence(storage, commit, name).is_file()


def _absence(storage: Path, commit: str, name: str) -> Path:
    return storage / ".no_exist" / commit / name


def _complete(repository: str, commit: str, file: HubFile, part: Path, progress: Callable[[int], None]) -> None:
    """Append to a partial file until all of it is there."""
    errors: Any = import_module("huggingface_hub.errors")
    attempts = 0  # that brought nothing new
    with part.open("ab") as out:
        most = out.tell()
        while out.tell() < file.size or file.size == attempts == 0:
            attempts, lost = attempts + 1, None
            try:
                for block in _blocks(repository, commit, file, out):
                    out.write(block)
                    progress(out.tell())
            except errors.HTTPError as error:
                if getattr(error, "response", None) is not None:
                    raise
                lost = error
            out.flush()
            if out.tell() > most:
                attempts, most = 0, out.tell()
            elif attempts >= ATTEMPTS:
                raise lost or KnnError(
                    f"{file.name} of {repository} goes no further than {out.tell():,} of {file.size:,} bytes.",
                    "Convert again later: what is there is kept.",
                )
            if lost:
                time.sleep(PAUSE_SECONDS)
        if out.tell() > file.size:
            out.truncate(0)  # whatever it is, it is not this file: the hash will not fit
        os.fsync(out.fileno())


def _blocks(repository: str, commit: str, file: HubFile, out: Any) -> Iterator[bytes]:
    """Yield what is missing behind the bytes of `out`, which is emptied where the server begins from the start."""
    headers = {"Range": f"bytes={out.tell()}-"} if out.tell() else {}
    with asked(f"{repository}/resolve/{commit}/{quote(file.name)}", headers) as response:
        if response.status_code != 206:
            out.seek(0)
            out.truncate()
        for block in response.iter_bytes():
            yield block
            if out.tell() > file.size:
                return


@contextmanager
def asked(path: str, headers: Mapping[str, str] | None = None) -> Iterator[Any]:
    """Ask the hub for what lies at a path: yield the response, whose status is none of an error.

    Only a token that the user has set or logged in with is sent along: neither versions of programs nor anything else
    that huggingface_hub would tell of this machine.
    """
    from huggingface_hub import constants, get_token

    utils: Any = import_module("huggingface_hub.utils")
    sent = {"user-agent": "knn", "accept-encoding": "identity", **(headers or {})}
    if (token := get_token()) and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        sent["authorization"] = f"Bearer {token}"
    url, seconds = f"{constants.ENDPOINT}/{path}", constants.HF_HUB_DOWNLOAD_TIMEOUT
    with utils.get_session().stream("GET", url, headers=sent, timeout=seconds, follow_redirects=True) as response:
        if response.status_code >= 400:
            response.read()
        utils.hf_raise_for_status(response)
        yield response


@contextmanager
def hub_errors(repository: str, revision: str | None, cache: Path, similar: str = "") -> Iterator[None]:
    """Turn what huggingface_hub and the network raise into one sentence and a hint: a KnnError.

    Parameters
    ----------
    repository, revision
        What is asked for.
    cache : Path
        The folder of the hub's cache.
    similar : str
        A hint for a repository that does not exist.
    """
    from huggingface_hub import constants

    errors: Any = import_module("huggingface_hub.errors")
    try:
        yield
    except errors.GatedRepoError as error:
        raise KnnError(
            f"{repository} is gated: its authors want their terms to be accepted before they let it be downloaded.",
            f"Accept them on {constants.ENDPOINT}/{repository}, then log in with `hf auth login` or set HF_TOKEN.",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise KnnError(f"{repository} has no revision {revision} on the Hugging Face hub.", "Name another.") from error
    except errors.RepositoryNotFoundError as error:
        message = f"There is no model {repository} on the Hugging Face hub, or it is private."
        raise KnnError(message, similar or "Check the name; for a private one, log in with `hf auth login`.") from error
    except errors.OfflineModeIsEnabled as error:
        message = f"{repository} is not in the Hugging Face cache, and HF_HUB_OFFLINE forbids to download it."
        raise KnnError(message, "Unset HF_HUB_OFFLINE, or download the folder by other means.") from error
    except errors.HfHubHTTPError as error:
        raise KnnError(
            f"The Hugging Face hub does not give {repository}: {_first_line(error)}.", _OTHER_MEANS
        ) from error
    except errors.HTTPError as error:  # of the connection
        raise KnnError(
            f"The Hugging Face hub cannot be reached for {repository}: {_first_line(error)}.",
            f"{_OTHER_MEANS} What is downloaded already is kept.",
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full_disk(repository, cache) from error
        raise KnnError(
            f"The Hugging Face cache {cache} cannot be used: {error.strerror or error}.",
            "Name another folder with HF_HOME.",
        ) from error
    except errors.HFValidationError as error:
        raise KnnError(f"{repository} is no name of a model: {_first_line(error)}.", "It is OWNER/NAME.") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # what is no answer of the hub
        raise KnnError(
            f"{constants.ENDPOINT} does not answer as the Hugging Face hub: {_first_line(error)}.", "Check HF_ENDPOINT."
        ) from error


def full_disk(repository: str, cache: Path, size: int | None = None) -> KnnError:
    """The error of a disk that is full, or too small for the `size` bytes that are still to come."""
    free = None
    with suppress(OSError):
        free = shutil.disk_usage(cache).free
    needs = "more" if size is None else f"{size / 1e6:,.0f} MB more"
    has = "" if free is None else f" has {free / 1e6:,.0f} MB left and"
    return KnnError(
        f"The disk of the Hugging Face cache {cache}{has} has no room for {repository}, which needs {needs}.",
        "Free some, or name a folder on another disk with HF_HOME; what is downloaded already is kept.",
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
