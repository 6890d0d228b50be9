"""The only HDF5 schema: audio stores and embedding stores, readable by anyone with h5py.

Both kinds hold one row a segment in plain datasets at the root:

    Name, GroupID, SubgroupID, Speaker   (N,) UTF-8 strings, "" where unknown
    Start, End                           (N,) float64 seconds in the recording, NaN where unknown
    Data   (embeddings)                  (N, D) float32
    Audio  (audio)                       (N,) variable-length bytes: 16-bit mono FLAC at the attribute `rate`

and the attributes `schema`, `kind`, `created`, and for embeddings `embedder` (the fingerprint of the bundle that made
them). Files of the mother project (`Data`, `Name`, `GroupID`, `SubgroupID` as bytes of shape (N,) or (N, 1), no
attributes) are read as they are.

Writing is atomic and resumable. `StoreWriter` puts finished shards into `OUT.parts/`, each renamed into place when it
is whole, and makes OUT of them at the end by one rename. A killed writer leaves the old OUT or none, and shards from
which the same command goes on, as long as neither it nor its sources have changed; HDF5 files that were open when a
process died are never looked at again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import h5py
import numpy as np
from numpy.typing import NDArray

from knn_cli.audio import reading
from knn_cli.core.atomic import replacing
from knn_cli.core.errors import StoreError
from knn_cli.core.values import EmbeddingSet, Floats, Waveform

SCHEMA = 1
KINDS = ("audio", "embeddings")
SUFFIXES = frozenset([".h5", ".hdf5"])

_TEXT = h5py.string_dtype("utf-8")
_BYTES = h5py.vlen_dtype(np.uint8)
_ROWS_A_CHUNK = 1024
_TEXTS_AT_ONCE = 1 << 16
_SHARD_BYTES = 64 << 20
_SHARD_SECONDS = 30.0
_COLUMNS = {"name": "Name", "group": "GroupID", "subgroup": "SubgroupID", "speaker": "Speaker"}
_PAYLOAD = {"audio": "Audio", "embeddings": "Data"}


@dataclass(frozen=True)
class AudioRow:
    """One segment of an audio store; `start` and `end` are seconds in the recording."""

    waveform: Waveform
    name: str
    group: str
    subgroup: str
    speaker: str
    start: float
    end: float


class Store:
    """An HDF5 store opened for reading; use as a context manager.

    Raises StoreError when the path is missing, is not HDF5, is of an unknown schema, or lacks a dataset.
    """

    def __init__(self, path: Path | str, kind: str | None = None, *, rows: NDArray[np.int64] | None = None) -> None:
        self.path = Path(path)
        self._rows = rows
        if not self.path.is_file():
            raise StoreError(f"{self.path} does not exist.", "Make a store with `knn convert` or `knn embed -o`.")
        try:
            self._file = h5py.File(self.path, "r")
        except OSError as error:
            raise StoreError(f"{self.path} is not an HDF5 store, or is damaged.", "Make it again.") from error
        try:
            self._check(kind)
        except StoreError:
            self._file.close()
            raise

    def _check(self, kind: str | None) -> None:
        file = self._file
        schema = file.attrs.get("schema", SCHEMA)
        if not isinstance(schema, (int, np.integer)):
            raise StoreError(f"{self.path} has the schema {schema!r}, which is no number.", "Make it again.")
        if schema > SCHEMA:
            raise StoreError(f"{self.path} has schema {schema}; this knn reads up to {SCHEMA}.", "Install a newer knn.")
        found = _text(file.attrs.get("kind", "")) or ("embeddings" if "Data" in file else "")
        if found not in KINDS:
            raise StoreError(f"{self.path} holds neither audio nor embeddings that knn knows.")
        if kind is not None and found != kind:
            hint = "Make embeddings of it with `knn embed`." if kind == "embeddings" else "Make one with `knn convert`."
            raise StoreError(f"{self.path} holds {found}, not {kind}.", hint)
        self.kind: str = found
        needed = [_PAYLOAD[found], "Name"]
        if missing := [name for name in needed if not isinstance(file.get(name), h5py.Dataset)]:
            raise StoreError(f"{self.path} lacks the dataset {', '.join(missing)}.")
        payload = file[_PAYLOAD[found]]
        if found == "embeddings" and (payload.ndim != 2 or payload.dtype.kind not in "fiu"):
            raise StoreError(
                f"{self.path}: Data is {payload.dtype} of shape {payload.shape}, not numbers (rows, dimensions)."
            )
        if found == "audio" and not isinstance(file.attrs.get("rate"), (int, np.integer)):
            raise StoreError(f"{self.path} does not say how many samples a second it has.", "Convert it again.")
        for name in (*_COLUMNS.values(), "Start", "End"):
            column = file.get(name)
            if column is None:
                continue
            if not isinstance(column, h5py.Dataset) or column.shape not in {(len(payload),), (len(payload), 1)}:
                raise StoreError(f"{self.path}: {name} must be a dataset of shape {(len(payload),)}.")
            if name in {"Start", "End"} and column.dtype.kind not in "fiu":
                raise StoreError(f"{self.path}: {name} must be seconds, it is {column.dtype}.")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._file[_PAYLOAD[self.kind]])

    @property
    def dimension(self) -> int:
        """Values an embedding."""
        return int(self._file["Data"].shape[1])

    @property
    def rate(self) -> int:
        """Samples a second of an audio store."""
        return int(self._file.attrs["rate"])

    @property
    def embedder(self) -> str:
        """Fingerprint of the bundle that made the embeddings, "" where unknown."""
        return _text(self._file.attrs.get("embedder", ""))

    @property
    def attributes(self) -> dict[str, str]:
        return {key: _text(value) for key, value in self._file.attrs.items()}

    def column(self, field: str, first: int = 0, last: int | None = None) -> NDArray[np.str_]:
        """(n,) text of name, group, subgroup or speaker, of all rows or some; "" where the store lacks it."""
        rows = range(len(self))[first:last]
        dataset = self._file.get(_COLUMNS[field])
        if dataset is None:
            return np.full(len(rows), "", dtype=np.str_)
        parts = [np.zeros(0, dtype=np.str_)]
        for at in range(rows.start, rows.stop, _TEXTS_AT_ONCE):  # Python's texts are many times as large as numpy's
            texts = dataset[at : min(at + _TEXTS_AT_ONCE, rows.stop)].reshape(-1)
            parts.append(np.array([_text(value) for value in texts], dtype=np.str_))
        return np.concatenate(parts)

    def times(self, first: int = 0, last: int | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(n,) start and (n,) end in seconds, of all rows or some; NaN where unknown."""
        start, end = (
            np.asarray(self._file[name][first:last], dtype=np.float64).reshape(-1)
            if name in self._file
            else np.full(len(range(len(self))[first:last]), np.nan)
            for name in ("Start", "End")
        )
        return start, end

    def labels(self, first: int = 0, last: int | None = None) -> EmbeddingSet:
        """Rows of a store of either kind without their vectors or sound: names, labels, times, and `data` (n, 0)."""
        with self._reading():
            start, end = self.times(first, last)
            texts = {field: self.column(field, first, last) for field in _COLUMNS}
        empty = np.zeros((len(start), 0), np.float32)
        return EmbeddingSet(empty, start=start, end=end, embedder=self.embedder, **texts)

    def data(self, first: int = 0, last: int | None = None) -> Floats:
        """(n, D) float32 embeddings of all rows or some. Raises StoreError for NaN or infinite values."""
        with self._reading():
            data: Floats = self._file["Data"][first:last].astype(np.float32, copy=False)
        with np.errstate(invalid="ignore"):
            suspect = not np.isfinite(data.sum(dtype=np.float64))  # one pass without a copy
        if suspect and len(bad := np.flatnonzero(~np.isfinite(data).all(axis=1))):
            row = first + int(bad[0])
            raise StoreError(
                f"{self.path} holds NaN or infinite values in {len(bad)} of {len(data)} embeddings, first in row "
                f"{row} ({self.column('name', row, row + 1)[0]}).",
                "Embed these recordings again.",
            )
        return data

    def blocks(self, size: int) -> Iterator[EmbeddingSet]:
        """The rows of an embedding store, `size` at a time, in the memory of one block."""
        for first in range(0, len(self), size):
            last = first + size
            yield replace(self.labels(first, last), data=self.data(first, last))

    def embeddings(self) -> EmbeddingSet:
        """All rows of an embedding store."""
        return replace(self.labels(), data=self.data())

    def segments(self) -> Iterator[AudioRow]:
        """The rows of an audio store, or the `rows` that it was opened for. Raises StoreError for a damaged row."""
        with self._reading():
            name, group, subgroup, speaker = (self.column(field) for field in _COLUMNS)
            starts, ends = self.times()
        for row in range(len(self)) if self._rows is None else self._rows.tolist():
            with self._reading(f", row {row},"):
                samples = reading.decode_flac(self.flac(row))
            labels = str(name[row]), str(group[row]), str(subgroup[row]), str(speaker[row])
            yield AudioRow(Waveform(samples, self.rate), *labels, float(starts[row]), float(ends[row]))

    def find(self, name: str, start: float) -> int | None:
        """The row of a recording that begins at `start` seconds (of several the first), None where there is none."""
        starts, hashes = self._index
        rows = np.flatnonzero((hashes == hash(name)) & np.isclose(starts, start, atol=1e-3))
        return int(rows[0]) if len(rows) else None

    @cached_property
    def _index(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(N,) starts and (N,) hashes of the names, read once: 16 bytes a row however long the names are."""
        with self._reading():
            names = (self.column("name", at, at + _TEXTS_AT_ONCE) for at in range(0, len(self), _TEXTS_AT_ONCE))
            return self.times()[0], np.fromiter((hash(str(one)) for some in names for one in some), np.int64, len(self))

    def flac(self, row: int) -> bytes:
        """The sound of a row as a FLAC file."""
        with self._reading(f", row {row},"):
            return bytes(self._file["Audio"][row].tobytes())

    @contextmanager
    def _reading(self, where: str = "") -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # what h5py and soundfile raise for bytes that make no sense
            raise StoreError(f"{self.path}{where} is damaged.", "Copy it again, or make it again.") from error


def stamp(path: Path) -> tuple[str, int, int]:
    """(whole path, bytes, time of change) of a source: what makes it another source for an interrupted run."""
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def kind_of(path: Path) -> str | None:
    """`audio` or `embeddings` for a store, None for any other file. Raises StoreError for a damaged store."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return None
    with Store(path) as store:
        return store.kind


def is_store(path: Path) -> bool:
    """Whether a path is an HDF5 store; StoreError for a damaged one, or another file with a store's suffix."""
    if path.suffix.lower() in SUFFIXES:
        with Store(path):
            return True
    return kind_of(path) is not None


def labels(path: Path | str) -> EmbeddingSet:
    """Names, labels and times of a store of either kind, without its vectors or sound; see `Store.labels`."""
    with Store(path) as store:
        return store.labels()


def read(path: Path | str) -> EmbeddingSet:
    """The whole of an embedding store. Raises StoreError as `Store` does."""
    with Store(path, "embeddings") as store:
        return store.embeddings()


def write(path: Path | str, embeddings: EmbeddingSet, *, force: bool = False) -> None:
    """An embedding store in one go. Raises StoreError when it exists and `force` is not set, KnnError from the disk."""
    path = Path(path)
    check_free(path, force)
    with replacing(path) as part, h5py.File(part, "w") as file:
        file.attrs.update(_described("embeddings", {"embedder": embeddings.embedder}))
        _append(file, _embedding_columns(embeddings))


def _described(kind: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"schema": SCHEMA, "kind": kind, "created": created, **attributes}


def check_free(path: Path, force: bool) -> None:
    """StoreError when no file can be written at `path`: call it before hours of work, `StoreWriter` calls it again."""
    if path.is_dir():
        raise StoreError(f"{path} is a folder.", "Name a file to write, such as corpus.h5.")
    if path.exists() and not force:
        raise StoreError(f"{path} exists already.", "Name another file, or replace it with --force.")


class StoreWriter:
    """Writes a store source by source; use as a context manager, which makes the store when its block ends well.

    path       : the store to be
    kind       : "audio" or "embeddings"
    attributes : more attributes of the file, such as `embedder` and `rate`
    plan       : whatever decides the content (`stamp`s of sources, labels, settings); unfinished shards of the same
                 plan are gone on with
    force      : replace an existing store, drop unfinished shards of another plan

    Raises StoreError: the store exists and `force` is not set, shards of another plan are there, another process is
    writing it, the folder cannot be written, the disk is full.
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
        self._folder = self.path.with_name(self.path.name + ".parts")
        self._pending: list[tuple[str, dict[str, Any]]] = []
        self._pending_bytes = 0
        self._last_flush = time.monotonic()
        check_free(self.path, force)

    def __enter__(self) -> StoreWriter:
        with _disk(self.path):
            if not self.path.parent.is_dir():
                raise StoreError(f"The folder {self.path.parent} does not exist.", "Make it first.")
            self._folder.mkdir(exist_ok=True)
            self._lock = _lock(self._folder, self.path)
            plan = self._folder / "plan"
            if not plan.exists() or plan.read_text() != self._plan:
                if not self._force and self._shards():
                    _unlock(self._lock)
                    raise StoreError(
                        f"{self._folder} holds unfinished work of another command, or of sources that have changed.",
                        "Repeat that command to go on with it, or drop it with --force.",
                    )
                for leftover in self._folder.glob("[0-9]*"):
                    leftover.unlink()
                _rename_into(plan, lambda temporary: temporary.write_text(self._plan))
        self.finished: frozenset[str] = frozenset(one for shard in self._shards() for one in _sources(shard))
        return self

    def add(self, source: str, rows: EmbeddingSet | Iterable[AudioRow]) -> int:
        """All rows of one source, and how many they were; once in a shard, `source` is in `finished` of later runs.

        Audio rows are encoded as they come, so that a long recording is never in memory as float32. When they raise,
        nothing of the source is added.
        """
        columns = _embedding_columns(rows) if isinstance(rows, EmbeddingSet) else _audio_columns(rows)
        self._pending.append((source, columns))
        payload = columns[_PAYLOAD[self.kind]]
        self._pending_bytes += payload.nbytes if isinstance(payload, np.ndarray) else sum(map(len, payload))
        late = time.monotonic() - self._last_flush > _SHARD_SECONDS
        if self._pending_bytes >= _SHARD_BYTES or late:
            self.flush()
        return len(payload)

    def flush(self) -> None:
        """Write what is pending into a shard of its own."""
        if not self._pending:
            return
        sources = json.dumps([source for source, _ in self._pending])
        joined = {name: _concatenate([columns[name] for _, columns in self._pending]) for name in self._pending[0][1]}
        number = max((int(shard.stem) for shard in self._shards()), default=-1) + 1
        shard = self._folder / f"{number:06d}.h5"

        def write_shard(temporary: Path) -> None:
            with h5py.File(temporary, "w") as file:
                file.attrs.update(_described(self.kind, self._attributes))
                _append(file, joined)

        with _disk(self.path):
            # The list first: a shard counts once it has both, and is then whole.
            _rename_into(shard.with_suffix(".json"), lambda temporary: temporary.write_text(sources))
            _rename_into(shard, write_shard)
        self._pending, self._pending_bytes, self._last_flush = [], 0, time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                self._finish()
                return
            if any(len(columns["Name"]) for _, columns in self._pending) and not isinstance(error, StoreError):
                self.flush()  # finished sources are kept for the next run
            if not self._shards():
                shutil.rmtree(self._folder, ignore_errors=True)
        finally:
            _unlock(self._lock)

    def _finish(self) -> None:
        self.flush()
        with _disk(self.path):
            shards = self._shards()
            if not shards:
                shutil.rmtree(self._folder)
                raise StoreError(f"There is nothing to write into {self.path}.")
            whole = shards[0] if len(shards) == 1 else self._merge(shards)
            whole.replace(self.path)
            shutil.rmtree(self._folder)

    def _merge(self, shards: list[Path]) -> Path:
        merged = self._folder / "merged.tmp"
        with h5py.File(merged, "w") as file:
            file.attrs.update(_described(self.kind, self._attributes))
            for shard in shards:
                with h5py.File(shard, "r") as part:
                    _append(file, {name: part[name][...] for name in part})
        return merged

    def _shards(self) -> list[Path]:
        """Shards that are whole; what a crash of the system may have left of others counts as not there."""
        found = self._folder.glob("[0-9]*.h5")
        return sorted(shard for shard in found if shard.with_suffix(".json").exists() and h5py.is_hdf5(shard))


def _embedding_columns(rows: EmbeddingSet) -> dict[str, Any]:
    texts = {dataset: getattr(rows, field).astype(object) for field, dataset in _COLUMNS.items()}
    return {"Data": rows.data, **texts, "Start": rows.start, "End": rows.end}


def _audio_columns(rows: Iterable[AudioRow]) -> dict[str, Any]:
    fields = [*_COLUMNS, "start", "end"]
    flac: list[NDArray[np.uint8]] = []
    values: dict[str, list[Any]] = {field: [] for field in fields}
    for row in rows:
        flac.append(np.frombuffer(reading.encode_flac(row.waveform.samples, row.waveform.rate), dtype=np.uint8))
        for field in fields:
            values[field].append(getattr(row, field))
    texts = {name: np.array(values[field], dtype=object) for field, name in _COLUMNS.items()}
    return {"Audio": flac, **texts, "Start": np.array(values["start"]), "End": np.array(values["end"])}


def _concatenate(parts: list[Any]) -> Any:
    if isinstance(parts[0], list):
        return [item for part in parts for item in part]
    return np.concatenate(parts)


def _append(file: h5py.File, columns: Mapping[str, Any]) -> None:
    """Add rows to the datasets of an open file, made at the first call: whole chunks, compressed."""
    for name, values in columns.items():
        count = len(values)
        if name not in file:
            if name == "Audio":
                file.create_dataset(name, (0,), maxshape=(None,), chunks=(_ROWS_A_CHUNK,), dtype=_BYTES)
            elif name == "Data":
                width = values.shape[1]
                settings = {"chunks": (_ROWS_A_CHUNK, width), "compression": "gzip", "compression_opts": 1}
                file.create_dataset(name, (0, width), maxshape=(None, width), dtype="f4", shuffle=True, **settings)
            else:
                dtype = "f8" if name in {"Start", "End"} else _TEXT
                file.create_dataset(name, (0,), maxshape=(None,), chunks=(_ROWS_A_CHUNK,), dtype=dtype)
        dataset = file[name]
        first = len(dataset)
        if name == "Data" and dataset.shape[1] != values.shape[1]:
            raise StoreError(f"Embeddings of {values.shape[1]} values cannot join embeddings of {dataset.shape[1]}.")
        dataset.resize(first + count, axis=0)
        if name == "Audio":  # h5py would take equally long items for a matrix
            for offset, item in enumerate(values):
                dataset[first + offset] = item
        elif count:
            dataset[first:] = values


def _sources(shard: Path) -> list[str]:
    return list(json.loads(shard.with_suffix(".json").read_text()))


def _lock(folder: Path, store: Path) -> TextIO | None:
    """An exclusive lock that dies with this process; None where the system has no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    file = (folder / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise StoreError(f"{store} is being written by another process.", "Wait for it to end.") from error
    return file


def _unlock(lock: TextIO | None) -> None:
    if lock is not None:
        lock.close()


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _rename_into(path: Path, write_to: Any) -> None:
    """Call `write_to(temporary)` and rename the temporary to `path` when it has returned."""
    temporary = path.with_name(path.name + ".tmp")
    write_to(temporary)
    temporary.replace(path)


class _disk:
    """Turns the disk's refusals into StoreErrors that name the store."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise StoreError(
                f"{self.path} cannot be written: {reason}.",
                "Check the folder's permissions and free space; finished work is kept for the same command.",
            ) from error
