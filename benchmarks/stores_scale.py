"""Stores of up to ten million rows: what is written, added and read, and what commands on them take.

    python -m benchmarks.stores_scale [--rows 1000000 2000000 10000000] [--dimension 64] [--folder DIR]
    python -m benchmarks.stores_scale --chunks

Rows are ten a recording, whose names have 60 characters, of 20 groups. They are written by `StoreWriter`, recording
after recording, as `knn embed` does; then a hundredth more is added to the store. Seconds are of a processor (user and
system), and memory is the largest that was resident, each in a process of its own with its start. `--chunks` compares
chunks and compression of the embeddings on 200,000 rows of 256 values.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from knn_cli.core.output_records import OutputTask
from knn_cli.core.values import EmbeddingSet
from knn_cli.store.hdf5 import Store
from knn_cli.store.source_list import Repetition
from knn_cli.store.writer import StoreWriter

GROUPS = 20
ROWS_A_RECORDING = 10
SOURCE_ROWS = 10_000
BLOCK_ROWS = 1 << 15
TRIALS = 1000
MEASURE = Path(__file__).resolve().parent / "peers" / "measure.py"
CHUNK_ROWS, CHUNK_WIDTH = 200_000, 256
COMPRESSIONS: dict[str, dict[str, Any]] = {
    "none, checksum": {"fletcher32": True},
    "lzf, shuffle": {"compression": "lzf", "shuffle": True},
    "gzip 1, shuffle": {"compression": "gzip", "compression_opts": 1, "shuffle": True},
}


def name(row: int) -> str:
    """The recording of a row, 60 characters."""
    return f"archive/collection-17/interviews-of-2026/recording-{row // ROWS_A_RECORDING:09d}"


def source_rows(first: int, dimension: int) -> EmbeddingSet:
    """Rows of one source: noise about the means of their groups."""
    random = np.random.default_rng(first)
    number = np.arange(first, first + SOURCE_ROWS)
    group = number // ROWS_A_RECORDING % GROUPS
    means = np.random.default_rng(0).standard_normal((GROUPS, dimension)).astype(np.float32)
    noise = random.standard_normal((SOURCE_ROWS, dimension), dtype=np.float32)
    labels = [f"group-{one:02d}" for one in group.tolist()]
    start = number % ROWS_A_RECORDING * 3.0
    names = [name(row) for row in number.tolist()]
    return EmbeddingSet.from_columns(2 * noise + means[group], names, group=labels, start=start, end=start + 3)


def write(path: Path, rows: int, dimension: int) -> None:
    """Write a store of so many rows, or add what it lacks of them."""
    sources = {str(first): 0 for first in range(0, rows, SOURCE_ROWS)}
    again = Repetition(OutputTask("embed"))
    with StoreWriter(path, "embeddings", {}, plan={}, sources=sources, repetition=again) as writer:
        for source in sources:
            if source not in writer.finished:
                writer.add(source, source_rows(int(source), dimension))


def make(rows: int, dimension: int) -> None:
    """The rows that `write` writes, without writing them."""
    for first in range(0, rows, SOURCE_ROWS):
        source_rows(first, dimension)


def read_labels(path: Path) -> None:
    """All labels of a store, as codes and distinct texts."""
    with Store(path) as store:
        for field in ("name", "group", "subgroup", "speaker"):
            store.encoded(field)


def read_all(path: Path) -> None:
    """All rows of a store, block by block."""
    with Store(path) as store:
        for _ in store.blocks(BLOCK_ROWS):
            pass


STEPS: dict[str, Callable[[Path, int, int], None]] = {
    "rows are made": lambda path, rows, dimension: make(rows, dimension),
    "rows are made, written": write,
    "add 1 %": lambda path, rows, dimension: write(path, rows + rows // 100, dimension),
    "open": lambda path, rows, dimension: Store(path).__exit__(),
    "labels": lambda path, rows, dimension: read_labels(path),
    "all rows": lambda path, rows, dimension: read_all(path),
}


def measured(command: list[str]) -> str:
    """Seconds of a processor and the largest resident memory of a command, its start included."""
    run = [sys.executable, "-S", str(MEASURE), *command]
    done = subprocess.run(run, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    cost = json.loads(done.stdout)
    return f"{cost['cpu']:.1f} s, {cost['peak']:.0f} MB"


def compare_sizes(folder: Path, sizes: list[int], dimension: int) -> None:
    """Print what steps and commands take on stores of several sizes."""
    results: dict[str, list[str]] = {}
    for rows in sizes:
        path = folder / f"{rows}.h5"
        own = [sys.executable, "-m", "benchmarks.stores_scale", "--measure"]
        for step in STEPS:
            results.setdefault(step, []).append(measured([*own, step, str(path), str(rows), str(dimension)]))
        results.setdefault("bytes a row", []).append(f"{path.stat().st_size / (rows + rows // 100):.0f}")
        for title, arguments in _commands(folder, path, rows).items():
            results.setdefault(title, []).append(measured([sys.executable, "-m", "knn_cli", *arguments]))
            print(f"{rows} {title}: {results[title][-1]}", file=sys.stderr, flush=True)
        path.unlink()
    print(f"| | {' | '.join(f'{rows:,} rows' for rows in sizes)} |\n|---|{'--:|' * len(sizes)}")
    for title, cells in results.items():
        print(f"| {title} | {' | '.join(cells)} |")


def _commands(folder: Path, path: Path, rows: int) -> dict[str, list[str]]:
    """Commands on a store, by what they are called."""
    drawn = np.random.default_rng(0).integers(0, rows, (TRIALS, 2)).tolist()
    trials, split, model = folder / "trials.txt", folder / f"{rows}.tsv", folder / f"model-{rows}"
    trials.write_text("".join(f"{name(one)} {name(other)}\n" for one, other in drawn))
    level = ["--level", "group"]
    return {
        "knn info": ["info", str(path)],
        "knn split": ["split", str(path), "-o", str(split), *level],
        "knn verify": ["verify", str(trials), str(path)],
        "knn train": ["train", str(path), "-o", str(model), *level, "--split", str(split)],
        "knn evaluate": ["evaluate", str(path), "--model", str(model), "--split", str(split), "--draws", "0"],
    }


def compare_chunks(folder: Path, runs: int) -> None:
    """Print what embeddings take in chunks of several sizes, compressed or not."""
    from benchmarks.glc import best  # which takes torch, and memory

    vectors = np.random.default_rng(0).standard_normal((CHUNK_ROWS, CHUNK_WIDTH), dtype=np.float32)
    draws = np.random.default_rng(1).integers(0, CHUNK_ROWS, 200).tolist()
    print("| embeddings | chunk | bytes a row | µs a row to write | to read all | to read one |")
    print("|---|--:|--:|--:|--:|--:|")
    for title, filters in COMPRESSIONS.items():
        for size in (32, 256, 2048):
            path = folder / "chunks.h5"
            chunks = (size * 1024 // (4 * CHUNK_WIDTH), CHUNK_WIDTH)

            def put(path: Path = path, chunks: Any = chunks, filters: dict[str, Any] = filters) -> None:
                with h5py.File(path, "w") as file:
                    file.create_dataset("Data", data=vectors, chunks=chunks, **filters)

            def get(path: Path = path) -> None:
                with h5py.File(path) as file:
                    for first in range(0, CHUNK_ROWS, BLOCK_ROWS):
                        file["Data"][first : first + BLOCK_ROWS]

            def one(path: Path = path) -> None:
                with h5py.File(path) as file:
                    for row in draws:
                        file["Data"][row]

            seconds = best({"put": put, "get": get, "one": one}, runs)
            cells = [
                1e6 * seconds[key] / count for key, count in (("put", CHUNK_ROWS), ("get", CHUNK_ROWS), ("one", 200))
            ]
            times = " | ".join(f"{cell:.1f}" for cell in cells[:2])
            print(f"| {title} | {size} KiB | {path.stat().st_size / CHUNK_ROWS:.0f} | {times} | {cells[2]:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 2_000_000, 10_000_000])
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--chunks", action="store_true")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        step, path, rows, dimension = options.measure
        STEPS[step](Path(path), int(rows), int(dimension))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.chunks:
            compare_chunks(Path(folder), options.runs)
        else:
            compare_sizes(Path(folder), options.rows, options.dimension)


if __name__ == "__main__":
    main()
