"""Processor seconds to write embeddings, beside a writer that resizes compressed datasets row by row.

    python -m benchmarks.stores [--rows 200000] [--dimension 256] [--runs 3] [--folder DIR]

The row-by-row writer, as scripts of the field have it, is measured on ROWS_ONE_BY_ONE rows and scaled: it compresses a
chunk anew for each of its rows. Both take turns; the least of the runs counts.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import h5py
import numpy as np

from benchmarks.glc import best
from knn_cli.core.values import EmbeddingSet, Floats
from knn_cli.store.hdf5 import Store
from knn_cli.store.writer import write_store

ROWS_ONE_BY_ONE = 2000
BLOCK_ROWS = 65_536


def write_row_by_row(path: Path, vectors: Floats, names: list[str]) -> None:
    """A store as a loop that appends one row after the other writes it."""
    with h5py.File(path, "w") as file:
        width = vectors.shape[1]
        data = file.create_dataset("Data", (0, width), maxshape=(None, width), dtype="f4", compression="gzip")
        labels = file.create_dataset("Name", (0,), maxshape=(None,), dtype=h5py.string_dtype())
        for row, (vector, name) in enumerate(zip(vectors, names, strict=True)):
            data.resize(row + 1, axis=0)
            labels.resize(row + 1, axis=0)
            data[row], labels[row] = vector, name


def read(path: Path) -> None:
    """All rows of a store, block by block."""
    with Store(path) as store:
        for _ in store.blocks(BLOCK_ROWS):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    vectors = np.random.default_rng(0).standard_normal((options.rows, options.dimension), dtype=np.float32)
    names = [f"recording-{row // 10}" for row in range(options.rows)]
    rows = EmbeddingSet.from_columns(vectors, names, group=["a"] * options.rows)
    few, few_names = vectors[:ROWS_ONE_BY_ONE], names[:ROWS_ONE_BY_ONE]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        ours, theirs = Path(folder) / "ours.h5", Path(folder) / "theirs.h5"
        seconds = best(
            {
                "write_store": lambda: write_store(ours, rows, force=True),
                "row by row, gzip": lambda: write_row_by_row(theirs, few, few_names),
                "Store.blocks": lambda: read(ours),
            },
            options.runs,
        )
        size = ours.stat().st_size / options.rows
    counts = {"row by row, gzip": len(few)}
    least = {name: value / counts.get(name, options.rows) for name, value in seconds.items()}
    print(f"{options.rows} x {options.dimension} float32, {size:.0f} bytes a row\n")
    print("| | µs of a processor a row | of the row-by-row writer |\n|---|--:|--:|")
    for name, value in least.items():
        print(f"| {name} | {1e6 * value:.1f} | {least['row by row, gzip'] / value:.0f}x |")


if __name__ == "__main__":
    main()
