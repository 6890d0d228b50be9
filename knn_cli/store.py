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
which the same command goes on; HDF5 files that were open when a process died are never looked at again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from knn_cli import audio
from knn_cli.errors import StoreError
from knn_cli.types import EmbeddingSet, Waveform

SCHEMA = 1
KINDS = ("audio", "embeddings")

_TEXT = h5py.string_dtype("utf-8")
_BYTES = h5py.vlen_dtype(np.uint8)
_ROWS_A_CHUNK = 1024
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

    def __init__(self, path: Path | str, kind: str | None = None) -> None:
        self.path = Path(path)
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
        schema = int(file.attrs.get("schema", SCHEMA))
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
        if found == "embeddings" and file["Data"].ndim != 2:
            raise StoreError(f"{self.path}: Data has shape {file['Data'].shape}, (rows, dimensions) is needed.")
        rows = len(file[_PAYLOAD[found]])
        for name in (*_COLUMNS.values(), "Start", "End"):
            if name in file and file[name].shape not in {(rows,), (rows, 1)}:
                raise StoreError(f"{self.path}: {name} has shape {file[name].shape}, {(rows,)} is needed.")

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

    def column(self, field: str) -> NDArray[np.str_]:
        """(N,) text of name, group, subgroup or speaker; "" where the store lacks it."""
        dataset = self._file.get(_COLUMNS[field])
        if dataset is None:
            return np.full(len(self), "", dtype=np.str_)
        return np.array([_text(value) for value in dataset[...].reshape(-1)], dtype=np.str_)

    def times(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(N,) start and (N,) end in seconds, NaN where unknown."""
        first, last = (
            np.asarray(self._file[name][...], dtype=np.float64).reshape(-1)
            if name in self._file
            else np.full(len(self), np.nan)
            for name in ("Start", "End")
        )
        return first, last

    def embeddings(self) -> EmbeddingSet:
        """All rows of an embedding store."""
        data = self._file["Data"][...].astype(np.float32, copy=False)
        start, end = self.times()
        texts = {field: self.column(field) for field in _COLUMNS}
        return EmbeddingSet(data, start=start, end=end, embedder=self.embedder, **texts)

    def segments(self) -> Iterator[AudioRow]:
        """The rows of an audio store, one after the other."""
        name, group, subgroup, speaker = (self.column(field) for field in _COLUMNS)
        starts, ends = self.times()
        for row in range(len(self)):
            samples = audio.decode_flac(self._file["Audio"][row].tobytes())
            labels = str(name[row]), str(group[row]), str(subgroup[row]), str(speaker[row])
            yield AudioRow(Waveform(samples, self.rate), *labels, float(starts[row]), float(ends[row]))


def kind_of(path: Path) -> str | None:
    """`audio` or `embeddings` for a store, None for any other file. Raises StoreError for a damaged store."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return None
    with Store(path) as store:
        return store.kind


def read(path: Path | str) -> EmbeddingSet:
    """The whole of an embedding store. Raises StoreError as `Store` does."""
    with Store(path, "embeddings") as store:
        return store.embeddings()


def write(path: Path | str, embeddings: EmbeddingSet, *, force: bool = False) -> None:
    """An embedding store in one go. Raises StoreError as `StoreWriter` does."""
    attributes = {"embedder": embeddings.embedder}
    with StoreWriter(path, "embeddings", attributes, plan={"embeddings": len(embeddings)}, force=force) as writer:
        writer.add("all", embeddings)


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
    plan       : whatever decides the content (sources, settings); unfinished shards of the same plan are gone on with
    force      : replace an existing store, drop unfinished shards of another plan

    Raises StoreError: the store exists and `force` is not set, shards of another plan are there, the folder cannot
    be written, the disk is full.
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
        self._attributes = {"schema": SCHEMA, "kind": kind, **attributes}
        self._plan = json.dumps({"kind": kind, **plan}, sort_keys=True, default=str)
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
            plan = self._folder / "plan.json"
            if self._folder.exists() and (not plan.exists() or plan.read_text() != self._plan):
                if not self._force and any(self._folder.glob("*.h5")):
                    raise StoreError(
                        f"{self._folder} holds unfinished work of another command.",
                        "Repeat that command to go on with it, or drop it with --force.",
                    )
                shutil.rmtree(self._folder)
            self._folder.mkdir(exist_ok=True)
            if not plan.exists():
                _rename_into(plan, lambda temporary: temporary.write_text(self._plan))
        self.finished: frozenset[str] = frozenset(source for shard in self._shards() for source in _sources(shard))
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
        sources = [source for source, _ in self._pending]
        joined = {name: _concatenate([columns[name] for _, columns in self._pending]) for name in self._pending[0][1]}
        shard = self._folder / f"{len(self._shards()):06d}.h5"

        def write_shard(temporary: Path) -> None:
            with h5py.File(temporary, "w") as file:
                file.attrs["sources"] = json.dumps(sources)
                file.attrs["created"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
                file.attrs.update(self._attributes)
                _append(file, joined)

        with _disk(self.path):
            _rename_into(shard, write_shard)
        self._pending, self._pending_bytes, self._last_flush = [], 0, time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None:
            if any(len(columns["Name"]) for _, columns in self._pending) and not isinstance(error, StoreError):
                self.flush()  # finished sources are kept for the next run
            if not self._shards():
                shutil.rmtree(self._folder, ignore_errors=True)
            return
        self.flush()
        with _disk(self.path):
            shards = self._shards()
            if not shards:
                shutil.rmtree(self._folder)
                raise StoreError(f"There is nothing to write into {self.path}.")
            whole = shards[0] if len(shards) == 1 else self._merge(shards)
            with h5py.File(whole, "r+") as file:
                del file.attrs["sources"]
            whole.replace(self.path)
            shutil.rmtree(self._folder)

    def _merge(self, shards: list[Path]) -> Path:
        merged = self._folder / "merged.tmp"
        with h5py.File(merged, "w") as file:
            for shard in shards:
                with h5py.File(shard, "r") as part:
                    if shard is shards[0]:
                        file.attrs.update(part.attrs)
                    _append(file, {name: part[name][...] for name in part})
        return merged

    def _shards(self) -> list[Path]:
        return sorted(self._folder.glob("[0-9]*.h5"))


def _embedding_columns(rows: EmbeddingSet) -> dict[str, Any]:
    texts = {dataset: getattr(rows, field).astype(object) for field, dataset in _COLUMNS.items()}
    return {"Data": rows.data, **texts, "Start": rows.start, "End": rows.end}


def _audio_columns(rows: Iterable[AudioRow]) -> dict[str, Any]:
    fields = [*_COLUMNS, "start", "end"]
    flac: list[NDArray[np.uint8]] = []
    values: dict[str, list[Any]] = {field: [] for field in fields}
    for row in rows:
        flac.append(np.frombuffer(audio.encode_flac(row.waveform.samples, row.waveform.rate), dtype=np.uint8))
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
    with h5py.File(shard, "r") as file:
        sources: list[str] = json.loads(file.attrs["sources"])
    return sources


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
