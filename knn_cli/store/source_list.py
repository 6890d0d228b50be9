"""Which sources the rows of a store are of, so that a command that is given again does only what is new.

The group `Sources` of a store has the attribute `plan`, a digest of the settings that its rows follow from, and

    digest   (S,) uint64   of each source: its name, size and time of change, labels and settings
    rows     (S,) int64    how many rows are of it; sources follow each other as their rows do

Other programs need not know of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from knn_cli.core.errors import StoreError
from knn_cli.core.output_records import OutputRecords, OutputTask
from knn_cli.core.urls import UrlPath
from knn_cli.store import hdf5_reading
from knn_cli.store.corpora.recordings import CorpusRecording
from knn_cli.store.hdf5 import Store
from knn_cli.store.shards import Written

GROUP = "Sources"


@dataclass(frozen=True)
class Repetition:
    """How a command goes on with the store that it has written itself.

    Attributes
    ----------
    task : OutputTask
        What makes the store. One that the same command wrote, and nobody changed since, is gone on with: sources that
        have not changed keep their rows. Any other is refused, unless `force` or the task's `backup`.
    again : bool
        Write all anew.
    begun : callable
        Called once before the work begins, with the number of sources that are finished and of all; where these are
        not known, with the number of rows and None.
    """

    task: OutputTask
    again: bool = False
    begun: Callable[[int, int | None], None] = lambda finished, total: None


def source_stamp(path: Path) -> tuple[str, int, int]:
    """Return (absolute path, bytes, time of change in ns) of a source: if it differs, a run is not resumed.

    Bytes and time are -1 where the system does not give them; reading the source then says why. Of a URL the time is a
    number that follows from its entity tag, or from the time that its server gives.
    """
    if isinstance(path, UrlPath):
        from knn_cli.core import url_reading

        return url_reading.stamp(path)
    try:
        status = path.stat()
    except OSError:
        return str(path.resolve()), -1, -1
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def source_facts(recordings: Sequence[CorpusRecording]) -> dict[str, list[Any]]:
    """What the rows of each recording follow from, beside settings: `StoreWriter` takes it."""
    stamps = {recording.sound.path: source_stamp(recording.sound.path) for recording in recordings}
    return {str(one.sound): [*stamps[one.sound.path], one.sound.member, one.parts] for one in recordings}


def check_embedder(store: Path, embedder: str, task: OutputTask) -> None:
    """Refuse to replace our own embeddings by those of another model, which nobody may have asked for.

    Raises
    ------
    StoreError
        The task's command made the store with another embedder.
    """
    if not embedder or OutputRecords().state(store, task) != "unchanged":
        return
    with Store(store) as opened:
        before = opened.embedder
    if before not in ("", embedder):
        hint = "Give this model, name another output, or replace the store with `force=True`."
        raise StoreError(f"{store} was made with the model {before}, not {embedder}.", hint)


def write(file: h5py.File, plan: str, sources: Sequence[Written]) -> None:
    """Add the list of sources to a new store."""
    group = file.create_group(GROUP)
    group.attrs["plan"] = plan
    group.create_dataset("digest", data=np.array([source.digest for source in sources], dtype=np.uint64))
    group.create_dataset("rows", data=np.array([source.rows for source in sources], dtype=np.int64))


def read(store: Path) -> tuple[str, list[Written]]:
    """The plan of a store and its sources in the order of their rows; ("", []) where it has no such list."""
    try:
        with hdf5_reading.opened(store) as file, hdf5_reading.reading(store):
            if GROUP not in file:
                return "", []
            group = file[GROUP]
            pairs = zip(group["rows"][()].tolist(), group["digest"][()].tolist(), strict=True)
            return str(group.attrs["plan"]), [Written(*pair) for pair in pairs]
    except StoreError:
        return "", []
