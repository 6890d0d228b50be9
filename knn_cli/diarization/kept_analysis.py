"""Kept analyses: all of a diarization that takes time, in one HDF5 file per recording, to cluster it again at once.

A file holds the fields of `WindowEmbeddings` under their names, readable by anyone with h5py:

    levels                          (frames,) int8 dBFS
    segmentation/, short_windows/   starts (W,) int64, probabilities (W, T, K) float16; attribute frames
    short/, local/                  window, speaker (N,) int64, active, clean (N, T) bool: one row per local speaker
    vectors, full_vectors           (N, D), (N, E) float32 of `short`; one dataset where they are the same
    seconds                         (N,) float32
    local_vectors                   (L, D) float32 of `local`
    clustering/                     trees, spectra and labels by the clustering method that was used, which are not
                                    needed to cluster again, but take most of its time (see `clustering.memory`)

and the attributes `schema`, `kind` ("diarization"), `created`, `recording`, `source` (where the sound was), `duration`
(seconds), `channel`, `frame_seconds`, and the fingerprints of the models, `embedder` and `segmentation` ("silero-vad"
without a network). Nothing is rounded, so that turns are exactly those of the sound. Datasets have checksums; all but
embeddings are compressed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from knn_cli.audio.segments import FRAME_SECONDS
from knn_cli.core.errors import KnnError, StoreError
from knn_cli.core.output_records import OutputTask
from knn_cli.core.visible_text import readable
from knn_cli.diarization.clustering.memory import Memory
from knn_cli.diarization.options import DiarizationOptions
from knn_cli.diarization.pipeline import WindowEmbeddings
from knn_cli.diarization.reconstruction import LocalSpeaker, Segmentation
from knn_cli.store import hdf5_reading
from knn_cli.store.hdf5_files import new_hdf5
from knn_cli.store.writer import check_free

SCHEMA = 1
KIND = "diarization"
SILERO = "silero-vad"
KEEP_AGAIN = "Diarize the sound again, and `keep` it."

# How fields are kept that are neither arrays nor numbers: as a group, or as a group with a column per field.
_GROUPS: dict[str, type] = {"segmentation": Segmentation, "short_windows": Segmentation}
_ROWS: dict[str, type] = {"short": LocalSpeaker, "local": LocalSpeaker}
_TEXTS = ("recording", "channel", "embedder", "segmentation", "source")
_CHECKSUM = {"fletcher32": True}
_COMPRESSION = {"compression": "gzip", "compression_opts": 4, "shuffle": True, **_CHECKSUM}

Fields = TypeVar("Fields")


@dataclass(frozen=True)
class KeptAnalysis:
    """The windows of a recording with their embeddings, and where they come from.

    Attributes
    ----------
    windows : WindowEmbeddings
    recording : str
        The recording's name.
    seconds : float
        Its duration.
    channel : str
        The channel that was read, see `audio.reading.read`.
    embedder : str
        Fingerprint of the embedding model.
    segmentation : str
        Fingerprint of the segmentation network, or SILERO.
    source : str
        Where the sound was, for players.
    clustering : dict
        Trees and spectra of the embeddings; clustering inside `remembering` of it adds what it lacks.
    """

    windows: WindowEmbeddings
    recording: str
    seconds: float
    channel: str
    embedder: str
    segmentation: str
    source: str = ""
    clustering: Memory = dataclasses.field(default_factory=dict)


def save(analysis: KeptAnalysis, path: Path | str, *, force: bool = False, task: OutputTask | None = None) -> None:
    """Write an analysis to a file, atomically.

    Parameters
    ----------
    analysis : KeptAnalysis
    path : path
    force : bool
        Replace an existing file.
    task : OutputTask, optional
        See `atomic.replacing`.

    Raises
    ------
    KnnError
        Where the file exists and `force` is false, or the file system refuses.
    """
    check_free(Path(path), force)
    with new_hdf5(path, task=task) as file:
        file.attrs["schema"], file.attrs["kind"] = SCHEMA, KIND
        file.attrs["created"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        file.attrs["frame_seconds"], file.attrs["duration"] = FRAME_SECONDS, analysis.seconds
        for name in _TEXTS:
            file.attrs[name] = readable(getattr(analysis, name))
        _write_fields(file, analysis.windows)
        remembered = file.create_group("clustering")
        for key, arrays in analysis.clustering.items():
            result = remembered.create_group(key)
            for number, array in enumerate(arrays):
                _write_array(result, str(number), array)


def load(path: Path | str) -> KeptAnalysis:
    """Read the analysis of a file.

    Parameters
    ----------
    path : path

    Returns
    -------
    KeptAnalysis

    Raises
    ------
    StoreError
        Where the file is missing, no kept analysis, damaged, or of another schema.
    """
    path = Path(path)
    with _opened(path) as file:
        texts = {name: str(file.attrs[name]) for name in _TEXTS}
        windows = _read_fields(file, WindowEmbeddings)
        for rows, vectors in ((windows.short, windows.vectors), (windows.local, windows.local_vectors)):
            if len(rows) != len(vectors):
                raise ValueError("one row per local speaker")
        clustering = {
            key: tuple(_read_array(result[str(number)]) for number in range(len(result)))
            for key, result in file["clustering"].items()
        }
        return KeptAnalysis(windows, seconds=float(file.attrs["duration"]), clustering=clustering, **texts)


def check_windows(windows: WindowEmbeddings, options: DiarizationOptions) -> None:
    """Raise KnnError where other options would have made other windows of the sound."""
    starts = windows.segmentation.starts
    if not windows.segmentation.several or len(starts) == 0:
        return
    same_step = len(starts) < 3 or starts[1] - starts[0] == max(1, round(options.step / FRAME_SECONDS))
    if not same_step or windows.short_windows.several == options.short_windows:
        raise KnnError("The kept analysis has other windows than these options ask for.", KEEP_AGAIN)


def describe(path: Path | str) -> dict[str, str]:
    """Return the attributes of a kept analysis as texts. StoreError as `load`."""
    with _opened(Path(path)) as file:
        return {name: str(file.attrs[name]) for name in ("kind", "created", "duration", *_TEXTS)}


def is_kept(path: Path) -> bool:
    """Whether a file is a kept analysis; False for one that cannot be opened, other files, and where there is none."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    try:
        with hdf5_reading.opened(path) as file, hdf5_reading.reading(path):
            return bool(str(file.attrs.get("kind")) == KIND)
    except StoreError:
        return False


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """A file of our kind and schema, with what is raised about its content as a StoreError."""
    if not path.exists():
        raise StoreError(f"{path} does not exist.", "Diarize a recording, and `keep` it.")
    what = "no kept diarization"
    damaged = hdf5_reading.reading(path, "", KEEP_AGAIN, f"{what}, or is damaged")
    with hdf5_reading.opened(path, KEEP_AGAIN, what) as file, damaged:
        if str(file.attrs.get("kind")) != KIND:
            raise StoreError(f"{path} is no kept diarization, but another HDF5 file.", KEEP_AGAIN)
        if file.attrs.get("schema") != SCHEMA:
            schema = f"has schema {file.attrs.get('schema')}; this knn reads {SCHEMA}"
            raise StoreError(f"The kept diarization {path} {schema}.", KEEP_AGAIN)
        yield file


def _write_fields(group: h5py.Group, value: Any) -> None:
    """Write the fields of a dataclass: arrays as datasets, numbers as attributes."""
    for field in fields(value):
        item = getattr(value, field.name)
        if field.name in _GROUPS:
            _write_fields(group.create_group(field.name), item)
        elif field.name in _ROWS:
            columns = group.create_group(field.name)
            for column in fields(_ROWS[field.name]):
                _write_array(columns, column.name, np.array([getattr(row, column.name) for row in item]))
        elif isinstance(item, np.ndarray):
            _write_array(group, field.name, item)
        else:
            group.attrs[field.name] = item


def _write_array(group: h5py.Group, name: str, array: NDArray[Any]) -> None:
    """Write a dataset; where an equal one is there, it gets a second name."""
    datasets = [other for other in group.values() if isinstance(other, h5py.Dataset) and other.shape == array.shape]
    for other in datasets:
        if other.dtype == array.dtype and np.array_equal(other[()], array):
            group[name] = other
            return
    # Embeddings would shrink by a tenth, and take longer to read than all the rest.
    filters = _CHECKSUM if array.dtype == np.float32 else _COMPRESSION
    group.create_dataset(name, data=array, **(filters if array.size else {}))


def _read_fields(group: h5py.Group, kind: type[Fields]) -> Fields:
    """Read what `_write_fields` has written."""
    values: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        name = field.name
        if name in _GROUPS:
            values[name] = _read_fields(group[name], _GROUPS[name])
        elif name in _ROWS:
            values[name] = list(_rows(group[name], _ROWS[name]))
        else:
            values[name] = group.attrs[name].item() if name in group.attrs else _read_array(group[name])
    return kind(**values)


def _rows(group: h5py.Group, kind: type) -> Iterator[Any]:
    columns: Sequence[Iterable[Any]] = [_read_array(group[field.name]) for field in fields(kind)]
    values = (column.tolist() if column.ndim == 1 else column for column in columns)  # type: ignore[attr-defined]
    return (kind(*row) for row in zip(*values, strict=True))


def _read_array(dataset: h5py.Dataset) -> NDArray[Any]:
    array: NDArray[Any] = dataset[()]
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("numbers are finite")
    return array
