"""Writing HDF5 stores: atomic and resumable.

`StoreWriter` puts finished shards into `OUT.parts/` (see `shards`), and joins them to OUT at the end by one rename. A
killed writer leaves the old OUT or none, and shards from which the same command resumes. HDF5 files that were open when
a process died are never read again.

What rows follow from is known of each source by a digest, of the settings and of what the caller says of the source. A
store has them in the group `Sources` (`source_list`), so that a command that has written a store, and is given again,
takes from it the rows of all sources that have not changed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from knn_cli.core.atomic import replacing
from knn_cli.core.errors import KnnError, StoreError
from knn_cli.core.locks import locked
from knn_cli.core.output_paths import resolved
from knn_cli.core.output_records import OutputRecords, check_replaceable
from knn_cli.core.values import EmbeddingSet
from knn_cli.store import hdf5_reading, source_list
from knn_cli.store.hdf5 import PAYLOAD_DATASETS, SCHEMA, AudioRow
from knn_cli.store.hdf5_files import filling_hdf5, hdf5_image, new_hdf5
from knn_cli.store.row_columns import Columns, RowFile, audio_columns, concatenate, embedding_columns
from knn_cli.store.shards import ShardFolder, Written, clear_finished
from knn_cli.store.source_list import Repetition

_PLAN_SCHEMA = 1  # since when rows mean the same, so that work of then is gone on with
_SHARD_BYTES = 64 << 20
_SHARD_SECONDS = 30.0


def write_store(path: Path | str, embeddings: EmbeddingSet, *, force: bool = False) -> None:
    """Write an embedding store at once.

    Parameters
    ----------
    path : path
    embeddings : EmbeddingSet
    force : bool
        Replace an existing store.

    Raises
    ------
    KnnError
        If the store exists and `force` is false, or if the file system refuses.
    """
    blocks, size = [embedding_columns(embeddings)], embeddings.data.nbytes
    write_blocks(Path(path), "embeddings", {"embedder": embeddings.embedder}, blocks, size=size, force=force)


def write_blocks(
    path: Path,
    kind: str,
    attributes: Mapping[str, Any],
    blocks: Iterable[Columns],
    *,
    size: int,
    force: bool,
    finish: Callable[[h5py.File], None] | None = None,
) -> None:
    """Write a store of a kind from blocks of its rows, of roughly `size` bytes together; else as `write_store`.

    `finish` adds to the file what is not in the blocks.
    """
    check_free(path, force)
    with new_hdf5(path, size) as file:
        file.attrs.update(_file_attributes(kind, attributes))
        rows = RowFile(file)
        for columns in blocks:
            rows.add(columns)
        if finish is not None:
            finish(file)


def _file_attributes(kind: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of a new file."""
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"schema": SCHEMA, "kind": kind, "created": created, **attributes}


def check_free(path: Path, force: bool) -> None:
    """Refuse a path where no file can be written: StoreError for a folder, and for a file unless `force` is true."""
    if path.is_dir():
        raise StoreError(f"{path} is a folder.", "Name a file to write, such as corpus.h5.")
    clear_finished(path)
    if path.exists() and not force:
        raise StoreError(f"{path} exists already.", "Name another file, or replace it with `force=True`.")


class StoreWriter:
    """Writes a store source by source; use as a context manager, which completes the store when its block ends well.

    Parameters
    ----------
    path : path
        The store.
    kind : str
        "audio" or "embeddings".
    attributes : mapping
        More attributes of the file, such as `embedder` and `rate`.
    plan : mapping
        The settings that decide the content. Unfinished shards of the same plan are resumed.
    sources : mapping, optional
        Source -> all else that its rows follow from, such as its `source_stamp` and labels. None where the plan says
        all, so that a store of the same plan is finished.
    force : bool
        Replace an existing store, and drop unfinished shards of another plan.
    repetition : Repetition, optional
        Goes on with an existing store.

    Attributes
    ----------
    finished : frozenset of str
        Sources that earlier runs have written, known once the writer is entered.
    is_finished : bool
        Whether there is nothing to be done.

    Raises
    ------
    StoreError
        If the store exists or there are shards of another plan and `force` is false, if another process is writing it,
        if the folder cannot be written or if the disk is full.
    """

    def __init__(
        self,
        path: Path | str,
        kind: str,
        attributes: Mapping[str, Any],
        *,
        plan: Mapping[str, Any],
        sources: Mapping[str, Any] | None = None,
        force: bool = False,
        repetition: Repetition | None = None,
    ) -> None:
        self.path = Path(path)
        self.kind = kind
        self._attributes = attributes
        self._plan = _digest({"schema": _PLAN_SCHEMA, "kind": kind, **attributes, **plan})
        self._digests = None if sources is None else {name: self._digest(name, sources[name]) for name in sources}
        self._force, self._repetition = force, repetition
        self._task = None if repetition is None else repetition.task
        self._shards = ShardFolder(resolved(self.path))
        self._held = ExitStack()
        self._before: dict[str, Written] = {}  # sources of the store that is there, in the order of its rows
        self._kept: frozenset[str] = frozenset()  # those of them whose rows are taken from it
        self._pending: list[tuple[str, dict[str, Any]]] = []
        self._pending_bytes = 0
        self._last_flush = time.monotonic()
        self.finished: frozenset[str] = frozenset()
        self.is_finished = False
        self._check_free()

    def _digest(self, name: str, facts: Any) -> int:
        return int(_digest([self._plan, name, facts])[:16], 16)

    def _check_free(self) -> None:
        check_free(self.path, self._force or self._repetition is not None)
        if self._task is not None:
            check_replaceable({self.path: self._task}, force=self._force)
            if not self._force:
                source_list.check_embedder(self.path, str(self._attributes.get("embedder", "")), self._task)

    def __enter__(self) -> StoreWriter:
        if not self.path.parent.is_dir():
            raise StoreError(f"The folder {self.path.parent} does not exist.", "Create it first.")
        with _disk_errors(self.path), ExitStack() as held:
            held.enter_context(locked(self.path))
            self._check_free()  # another process may have written it since
            held.callback(self._shards.close)
            self._shards.open(self._plan, force=self._force)
            self._held = held.pop_all()
        shards = self._shards.sources.items()
        again = self._repetition is not None and self._repetition.again
        self._shards.keep(
            {shard: found for shard, found in shards if not again and all(map(self._holds, found.items()))}
        )
        self._take_from_store()
        in_shards = {name for found in self._shards.sources.values() for name in found}
        self._kept -= in_shards
        self.finished = self._kept | in_shards
        self.is_finished = self.is_finished and not in_shards
        if self._repetition is not None:
            if self._digests is None:
                rows = sum(one.rows for found in self._shards.sources.values() for one in found.values())
                self._repetition.begun(rows, None)
            else:
                self._repetition.begun(len(self.finished), len(self._digests))
        return self

    def _holds(self, found: tuple[str, Written]) -> bool:
        """Whether rows of a source are those that it would have now."""
        name, written = found
        return self._digests is None or self._digests.get(name) == written.digest

    def _take_from_store(self) -> None:
        """Find the sources whose rows can be taken from the store that is there."""
        repetition = self._repetition
        if repetition is None or repetition.again or not self.path.is_file():
            return
        if OutputRecords().state(self.path, repetition.task) != "unchanged":
            return
        plan, written = source_list.read(self.path)
        if plan != self._plan:
            return
        if self._digests is None:
            self.is_finished = True
            return
        names = {digest: name for name, digest in self._digests.items()}
        self._before = {names.get(one.digest, f"gone {number}"): one for number, one in enumerate(written)}
        self._kept = frozenset(filter(self._digests.__contains__, self._before))
        self.is_finished = self._before.keys() == self._digests.keys()

    def add(self, source: str, rows: EmbeddingSet | Iterable[AudioRow] | Columns) -> int:
        """Add all rows of one source, which may be `audio_columns` already, and return their number.

        Once in a shard, `source` is in `finished` of later runs. Audio rows are encoded as they come, so that a long
        recording is never in memory as float32. If they raise, nothing of the source is added.
        """
        if isinstance(rows, EmbeddingSet):
            columns = embedding_columns(rows)
        else:
            columns = rows if isinstance(rows, dict) else audio_columns(rows)
        self._pending.append((source, columns))
        payload = columns[PAYLOAD_DATASETS[self.kind]]
        self._pending_bytes += payload.nbytes if isinstance(payload, np.ndarray) else sum(map(len, payload))
        late = time.monotonic() - self._last_flush > _SHARD_SECONDS
        if self._pending_bytes >= _SHARD_BYTES or late:
            self.flush()
        return len(payload)

    def flush(self) -> None:
        """Write pending rows to a new shard."""
        if not self._pending:
            return
        with hdf5_image() as (file, images):
            file.attrs.update(_file_attributes(self.kind, self._attributes))
            RowFile(file).add(concatenate([columns for _, columns in self._pending]))
        with _disk_errors(self.path):
            self._shards.add(images[0], {source: self._written(source, columns) for source, columns in self._pending})
        self._pending, self._pending_bytes, self._last_flush = [], 0, time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with self._held:
            try:
                if kind is None:
                    self._finish()
                elif any(len(columns["Name"]) for _, columns in self._pending) and not isinstance(error, StoreError):
                    self.flush()  # finished sources are kept for the next run
            finally:
                if not self._shards.sources:
                    self._shards.close(remove=True)

    def _written(self, source: str, columns: Mapping[str, Any]) -> Written:
        digest = self._digest(source, None) if self._digests is None else self._digests[source]
        return Written(len(columns["Start"]), digest)

    def _finish(self) -> None:
        """Join what is kept of the store and the shards, and let the result take the place of the store."""
        self.flush()
        if self.is_finished or (self._before and len(self._kept) == len(self._before) and not self._shards.sources):
            self._shards.close(remove=True)
            return  # it is as it would be
        if not self._shards.sources and not self._kept:
            raise StoreError(f"There is nothing to write into {self.path}.")
        with _disk_errors(self.path):
            with replacing(self.path, task=self._task) as part:
                self._join(part)
                self._shards.finish(part)
            self._shards.close(remove=True)

    def _join(self, part: Path) -> None:
        """Write the rows that are kept and those of the shards to one file."""
        old = [self.path] if self._kept else []
        written = [one for name, one in self._before.items() if name in self._kept]
        with filling_hdf5(part, sum(path.stat().st_size for path in (*old, *self._shards.sources))) as file:
            file.attrs.update(_file_attributes(self.kind, self._attributes))
            joined = RowFile(file)
            if self._kept:
                with hdf5_reading.opened(self.path) as rows:
                    joined.copy(rows, None if len(written) == len(self._before) else self._kept_rows())
            for shard, sources in self._shards.sources.items():
                with h5py.File(shard, "r") as rows:
                    joined.copy(rows)
                written += sources.values()
            source_list.write(file, self._plan, written)

    def _kept_rows(self) -> list[range]:
        """The rows of the store that are kept."""
        rows, first = list[range](), 0
        for name, one in self._before.items():
            if name in self._kept:
                rows.append(range(first, first + one.rows))
            first += one.rows
        return rows


def _digest(facts: Any) -> str:
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


@contextmanager
def _disk_errors(store: Path) -> Iterator[None]:
    """Turn errors of the file system into StoreErrors that name the store."""
    try:
        yield
    except (OSError, KnnError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        raise StoreError(
            f"{store} cannot be written: {cause.strerror or cause}.",
            "Check the folder's permissions and free space; finished work is kept for the same command.",
        ) from error
