"""Writing HDF5 stores: atomic and resumable.

`StoreWriter` puts finished shards into `OUT.parts/` (see `shards`), and joins them to OUT at the end by one rename. A
killed writer leaves the old OUT or none, and shards from which the same command resumes, as long as neither it nor its
sources have changed. HDF5 files that were open when a process died are never read again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from knn_cli.audio.flac_bytes import encode_flac
from knn_cli.core.atomic import replacing
from knn_cli.core.errors import KnnError, StoreError
from knn_cli.core.locks import locked
from knn_cli.core.output_paths import resolved
from knn_cli.core.values import EmbeddingSet
from knn_cli.store.hdf5 import PAYLOAD_DATASETS, SCHEMA, TEXT_DATASETS, AudioRow
from knn_cli.store.hdf5_files import filling_hdf5, hdf5_image, new_hdf5
from knn_cli.store.shards import ShardFolder, clear_finished

_TEXT_TYPE = h5py.string_dtype("utf-8")
_BYTES_TYPE = h5py.vlen_dtype(np.uint8)
_CHUNK_ROWS = 1024
_SHARD_BYTES = 64 << 20
_SHARD_SECONDS = 30.0

Columns = dict[str, Any]  # dataset -> values of rows


def source_stamp(path: Path) -> tuple[str, int, int]:
    """Return (absolute path, bytes, time of change in ns) of a source: if it differs, a run is not resumed.

    Bytes and time are -1 where the system does not give them; reading the source then says why.
    """
    try:
        status = path.stat()
    except OSError:
        return str(path.resolve()), -1, -1
    return str(path.resolve()), status.st_size, status.st_mtime_ns


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
    path = Path(path)
    check_free(path, force)
    with new_hdf5(path, embeddings.data.nbytes) as file:
        file.attrs.update(_file_attributes("embeddings", {"embedder": embeddings.embedder}))
        _append(file, _embedding_columns(embeddings))


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
        Everything that decides the content: `source_stamp`s, labels, settings. Unfinished shards of the same plan are
        resumed.
    force : bool
        Replace an existing store, and drop unfinished shards of another plan.

    Attributes
    ----------
    finished : frozenset of str
        Sources that an interrupted run has written, known once the writer is entered.

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
        force: bool = False,
    ) -> None:
        self.path = Path(path)
        self.kind = kind
        self._attributes = attributes
        text = json.dumps({"schema": SCHEMA, "kind": kind, **attributes, **plan}, sort_keys=True, default=str)
        self._plan = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        self._force = force
        self._shards = ShardFolder(resolved(self.path))
        self._held = ExitStack()
        self._pending: list[tuple[str, dict[str, Any]]] = []
        self._pending_bytes = 0
        self._last_flush = time.monotonic()
        check_free(self.path, force)

    def __enter__(self) -> StoreWriter:
        if not self.path.parent.is_dir():
            raise StoreError(f"The folder {self.path.parent} does not exist.", "Create it first.")
        with _disk_errors(self.path), ExitStack() as held:
            held.enter_context(locked(self.path))
            check_free(self.path, self._force)  # another process may have written it since
            held.callback(self._shards.close)
            self._shards.open(self._plan, force=self._force)
            self._held = held.pop_all()
        self.finished: frozenset[str] = frozenset(name for names in self._shards.sources.values() for name in names)
        return self

    def add(self, source: str, rows: EmbeddingSet | Iterable[AudioRow] | Columns) -> int:
        """Add all rows of one source, which may be `audio_columns` already, and return their number.

        Once in a shard, `source` is in `finished` of later runs. Audio rows are encoded as they come, so that a long
        recording is never in memory as float32. If they raise, nothing of the source is added.
        """
        if isinstance(rows, EmbeddingSet):
            columns = _embedding_columns(rows)
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
        joined = {name: _concatenate([columns[name] for _, columns in self._pending]) for name in self._pending[0][1]}
        with hdf5_image() as (file, images):
            file.attrs.update(_file_attributes(self.kind, self._attributes))
            _append(file, joined)
        with _disk_errors(self.path):
            self._shards.add(images[0], [source for source, _ in self._pending])
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

    def _finish(self) -> None:
        """Join the shards, and let the result take the place of the store."""
        self.flush()
        shards = list(self._shards.sources)
        if not shards:
            raise StoreError(f"There is nothing to write into {self.path}.")
        with _disk_errors(self.path):
            with replacing(self.path) as part:
                if len(shards) == 1:
                    shutil.copyfile(shards[0], part)
                else:
                    self._join(shards, part)
                self._shards.finish(part)
            self._shards.close(remove=True)

    def _join(self, shards: list[Path], part: Path) -> None:
        """Write the rows of several shards to one file."""
        with filling_hdf5(part, sum(shard.stat().st_size for shard in shards)) as file:
            file.attrs.update(_file_attributes(self.kind, self._attributes))
            for shard in shards:
                with h5py.File(shard, "r") as rows:
                    _append(file, {name: rows[name][...] for name in rows})


def _embedding_columns(rows: EmbeddingSet) -> dict[str, Any]:
    """Datasets of an embedding store."""
    texts = {dataset: getattr(rows, field).astype(object) for field, dataset in TEXT_DATASETS.items()}
    return {"Data": rows.data, **texts, "Start": rows.start, "End": rows.end}


def audio_columns(rows: Iterable[AudioRow]) -> Columns:
    """Datasets of an audio store: the rows, encoded as they come."""
    fields = [*TEXT_DATASETS, "start", "end"]
    flac: list[NDArray[np.uint8]] = []
    values: dict[str, list[Any]] = {field: [] for field in fields}
    for row in rows:
        flac.append(np.frombuffer(encode_flac(row.waveform.samples, row.waveform.rate), dtype=np.uint8))
        for field in fields:
            values[field].append(getattr(row, field))
    texts = {name: np.array(values[field], dtype=object) for field, name in TEXT_DATASETS.items()}
    return {"Audio": flac, **texts, "Start": np.array(values["start"]), "End": np.array(values["end"])}


def _concatenate(columns: list[Any]) -> Any:
    if isinstance(columns[0], list):
        return [item for column in columns for item in column]
    return np.concatenate(columns)


def _append(file: h5py.File, columns: Mapping[str, Any]) -> None:
    """Append rows to the datasets of an open file; the first call creates these, in chunks and compressed."""
    for name, values in columns.items():
        count = len(values)
        if name not in file:
            if name == "Audio":
                file.create_dataset(name, (0,), maxshape=(None,), chunks=(_CHUNK_ROWS,), dtype=_BYTES_TYPE)
            elif name == "Data":
                width = values.shape[1]
                settings = {"chunks": (_CHUNK_ROWS, width), "compression": "gzip", "compression_opts": 1}
                file.create_dataset(name, (0, width), maxshape=(None, width), dtype="f4", shuffle=True, **settings)
            else:
                dtype = "f8" if name in {"Start", "End"} else _TEXT_TYPE
                file.create_dataset(name, (0,), maxshape=(None,), chunks=(_CHUNK_ROWS,), dtype=dtype)
        dataset = file[name]
        first = len(dataset)
        if name == "Data" and dataset.shape[1] != values.shape[1]:
            raise StoreError(f"Embeddings of {values.shape[1]} values cannot join embeddings of {dataset.shape[1]}.")
        dataset.resize(first + count, axis=0)
        if name == "Audio":  # h5py would take items of equal length for a matrix
            for offset, item in enumerate(values):
                dataset[first + offset] = item
        elif count:
            dataset[first:] = values


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
