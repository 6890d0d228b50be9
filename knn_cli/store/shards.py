"""Finished parts of a store in `OUT.parts/`, from which an interrupted run goes on.

    OUT.parts/owner        that the folder is ours, and the lock of the process that works in it
              plan         digest of everything that decides the content of the store
              000000.h5    a shard: rows as in a store, on the disk before it has its name
              000000.json  its sources with their rows and digests, and the SHA-256 of its bytes, by which it is
                           known to be whole
              finished     which file the shards were joined to

Shards that are damaged, empty or of another plan are written again. Files that are none of these are never touched.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from knn_cli.core.atomic import replacing_text, replacing_together
from knn_cli.core.errors import StoreError
from knn_cli.core.file_digests import file_sha256
from knn_cli.core.locks import NO_FOLLOW, lock, read_mark, write_mark
from knn_cli.core.output_paths import resolved
from knn_cli.core.temporary import sweep

_KIND = "parts of a store"
_OWNER, _PLAN, _FINISHED = "owner", "plan", "finished"
_SHARD = re.compile(r"\d{6,}\.(h5|json)")


class Written(NamedTuple):
    """What is written of a source: its number of rows, and the digest of all that they follow from."""

    rows: int
    digest: int


class ShardFolder:
    """The folder of the shards of one store.

    Parameters
    ----------
    store : Path
        The store, without links.

    Attributes
    ----------
    path : Path
        The folder.
    sources : dict
        Path of each shard that is whole -> its sources and what is written of them, in the order of the rows.
    """

    def __init__(self, store: Path) -> None:
        self.store = store
        self.path = store.with_name(f"{store.name}.parts")
        self.sources: dict[Path, dict[str, Written]] = {}
        self._owner: int | None = None

    def open(self, plan: str, *, force: bool) -> None:
        """Make the folder, or find the whole shards in it.

        Parameters
        ----------
        plan : str
            What decides the content of the store.
        force : bool
            Whether shards of another plan are dropped.

        Raises
        ------
        StoreError
            If it is in use, holds shards of another plan and `force` is false, or is not ours.
        OSError
            If it cannot be written.
        """
        self.path.mkdir(exist_ok=True)
        self._own()
        sweep(self.path)
        file = self.path / _PLAN
        if not file.is_file() or file.read_text(encoding="utf-8", errors="replace") != plan:
            if not force and self._find_whole():
                raise StoreError(
                    f"{self.path} holds unfinished work of another command, or of sources that have changed.",
                    "Repeat that command to resume it, or drop it with `force=True`.",
                )
            self._drop_shards()
            with replacing_text(file) as stream:
                stream.write(plan)
        self.keep(self._find_whole())

    def keep(self, shards: dict[Path, dict[str, Written]]) -> None:
        """Remove all shards but these."""
        self.sources = shards
        self._drop_shards(keep=shards)

    def _own(self) -> None:
        """Lock the folder and mark it as ours. StoreError where it is somebody else's, or in use."""
        if self.path.is_symlink():
            raise StoreError(f"{self.path} is a link, and unfinished work is kept there.", "Remove the link.")
        file = os.open(self.path / _OWNER, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
        try:
            if lock(file) is False:
                raise StoreError(f"{self.store} is being written by another process.", "Wait for it to end.")
            mark = read_mark(file, _KIND)
            foreign = _OWNER if mark is None else next(iter(self._files()), None) if not mark else None
            if foreign is not None:
                hint = "Move it, or name another store."
                raise StoreError(f"{self.path} holds {foreign}, which is not of this program.", hint)
            if not mark:
                write_mark(file, _KIND, self.store.name)
        except BaseException:
            os.close(file)
            raise
        self._owner = file

    def _files(self) -> list[str]:
        """Names of our files, but for the owner."""
        names = [path.name for path in self.path.iterdir()]
        return sorted(name for name in names if name in (_PLAN, _FINISHED) or _SHARD.fullmatch(name))

    def _find_whole(self) -> dict[Path, dict[str, Written]]:
        """The shards that are whole."""
        names = [name for name in self._files() if name.endswith(".h5")]
        shards = [self.path / name for name in sorted(names, key=lambda name: int(name[:-3]))]
        listed = {shard: _listed(shard) for shard in shards}
        return {shard: sources for shard, sources in listed.items() if sources is not None}

    def _drop_shards(self, keep: dict[Path, dict[str, Written]] | None = None) -> None:
        for name in self._files():
            shard = (self.path / name).with_suffix(".h5")
            if name != _PLAN and shard not in (keep or {}):
                (self.path / name).unlink()

    def add(self, image: bytes, sources: dict[str, Written]) -> None:
        """Write a shard, the bytes of an HDF5 file; it is on the disk when this returns. KnnError if it cannot be."""
        number = max((int(shard.stem) for shard in self.sources), default=-1) + 1
        shard = self.path / f"{number:06d}.h5"
        facts = {"sources": sources, "bytes": len(image), "sha256": hashlib.sha256(image).hexdigest()}
        with replacing_together([shard, shard.with_suffix(".json")]) as (shard_part, list_part):
            shard_part.write_bytes(image)
            list_part.write_text(json.dumps(facts), encoding="ascii")
        self.sources[shard] = sources

    def finish(self, joined: Path) -> None:
        """Note the file that is about to become the store: once it has, the shards are of no use."""
        with replacing_text(self.path / _FINISHED) as stream:
            json.dump(_stamp(joined), stream)

    def close(self, *, remove: bool = False) -> None:
        """Let go of the folder; remove our files first, and the folder where nothing else is in it."""
        if self._owner is None:
            return
        if remove:
            with suppress(OSError):
                names = self._files()
                for name in sorted(names, key=lambda name: (name == _FINISHED, name)):
                    (self.path / name).unlink()
                (self.path / _OWNER).unlink()
                self.path.rmdir()
        os.close(self._owner)
        self._owner = None


def clear_finished(store: Path) -> None:
    """Remove the shards of a store that was killed after it had become whole; nothing else, and without an error."""
    store = resolved(store)
    folder = ShardFolder(store)
    try:
        stamp = json.loads((folder.path / _FINISHED).read_text(encoding="ascii"))
        if stamp != _stamp(store):
            return
        folder._own()
    except (OSError, ValueError, StoreError):
        return
    folder.close(remove=True)


def _listed(shard: Path) -> dict[str, Written] | None:
    """The sources of a shard; None where it or its list is not whole."""
    try:
        facts = json.loads(shard.with_suffix(".json").read_text(encoding="ascii"))
        sources = {name: Written(int(rows), int(digest)) for name, (rows, digest) in facts["sources"].items()}
        if shard.is_symlink() or shard.stat().st_size != facts["bytes"]:
            return None
        return sources if file_sha256(shard) == facts["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns]
