"""Embedding sets for tests of stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from knn_cli.core.values import EmbeddingSet, Waveform
from knn_cli.store.hdf5 import AudioRow
from knn_cli.store.writer import StoreWriter


def random_rows(rows: int, seed: int = 0, dimension: int = 4, embedder: str = "m@1") -> EmbeddingSet:
    generator = np.random.default_rng(seed)
    names = [f"rec{seed}_{i} žluťoučký" for i in range(rows)]
    return EmbeddingSet.from_columns(
        generator.normal(size=(rows, dimension)), names, group=["cs"] * rows, start=np.arange(rows), embedder=embedder
    )


def same_rows(a: EmbeddingSet, b: EmbeddingSet) -> bool:
    texts = all((getattr(a, field) == getattr(b, field)).all() for field in ("name", "group", "subgroup", "speaker"))
    times = np.array_equal(a.start, b.start, equal_nan=True) and np.array_equal(a.end, b.end, equal_nan=True)
    return texts and times and np.array_equal(a.data, b.data) and a.embedder == b.embedder


def audio_store(path: Path, names: str, rate: int = 8000) -> Path:
    """An audio store with a short noise for each letter of `names`."""
    with StoreWriter(path, "audio", {"rate": rate}, plan={}) as writer:
        for number, name in enumerate(names):
            samples = np.random.default_rng(ord(name)).uniform(-0.5, 0.5, 400 + 10 * number).astype(np.float32)
            writer.add(name, [AudioRow(Waveform(samples, rate), name, "cs", "cs-1", f"of {name}", 0.25, 0.3)])
    return path


def datasets(path: Path) -> dict[str, Any]:
    """Type, chunks and values of every dataset of a file, in a form that can be compared."""
    found: dict[str, Any] = {}

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            values = item[...]
            bare = [*map(bytes, values)] if values.dtype.hasobject else values.tobytes()
            found[name] = (item.dtype, item.chunks, bare)

    with h5py.File(path) as file:
        file.visititems(note)
    return found
