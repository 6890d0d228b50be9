"""Workers of a cluster against one process: embeddings of files, and statistics of a store that is larger than memory.

    python -m benchmarks.cluster [--files 64] [--runs 3] [--rows 10000000] [--dimension 256] [--folder FOLDER]

Files of 20 s are embedded by one and by two workers (`local:1`, `local:2`), by turns, once their models are loaded; the
ratio is the median of seconds over seconds. A store of rows of 20 classes, as float16, is written block by block
(5.1 GB for the defaults, removed afterwards); classifiers of two training sets are fitted to a tenth of it and to all,
here and by two workers, each in a process of its own whose largest resident memory is told, and that of its largest
worker. `--rows 0` and `--files 0` leave a part out.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

import h5py
import numpy as np
import psutil
import soundfile

from benchmarks.start import MEETING
from knn_cli.core.cluster import opened_cluster
from knn_cli.embedding.cluster_embedding import EmbedderPlace, embed_on_cluster
from knn_cli.embedding.embedder import Embedder
from knn_cli.embedding.options import EmbeddingOptions
from knn_cli.recognition.training_steps.embedding_source import EmbeddingSource
from knn_cli.recognition.training_steps.fitting import FitOptions, FitRows, fit_classifiers
from knn_cli.store.corpora.registry import read_corpora

CLASSES = 20
BLOCK_ROWS = 1 << 15
CLIP_SECONDS = 20


def compare_workers(folder: Path, files: int, runs: int) -> None:
    """Print the seconds in which one worker and two embed files, and their ratio."""
    samples, rate = soundfile.read(MEETING, dtype="float32")
    for number in range(files):
        first = number * 16_000 // 2 % (len(samples) - CLIP_SECONDS * rate)
        soundfile.write(folder / f"{number:03d}.wav", samples[first : first + CLIP_SECONDS * rate], rate)
    recordings = read_corpora([folder])
    place = EmbedderPlace.of(Embedder(device="cpu"), "cpu")
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with ExitStack() as held:
        clusters = {workers: held.enter_context(opened_cluster(f"local:{workers}")) for workers in seconds}
        for run in range(runs + 1):  # the first loads the models
            for workers, cluster in clusters.items():
                begun = time.monotonic()
                for _ in embed_on_cluster(cluster, recordings, place, EmbeddingOptions()):
                    pass
                if run:
                    seconds[workers].append(time.monotonic() - begun)
    ratio = statistics.median(one / two for one, two in zip(seconds[1], seconds[2], strict=True))
    print(f"embed {files} files of {CLIP_SECONDS} s: ", end="")
    print(f"one worker {statistics.median(seconds[1]):.1f} s, two {statistics.median(seconds[2]):.1f} s, {ratio:.2f} x")


def write_rows(path: Path, rows: int, dimension: int) -> None:
    """Write a store of embeddings about the means of classes, block by block."""
    random = np.random.default_rng(0)
    noise = random.standard_normal((BLOCK_ROWS, dimension)).astype(np.float32)
    means = random.standard_normal((CLASSES, dimension)).astype(np.float32)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("Data", (rows, dimension), "f2", chunks=(1024, dimension))
        names = file.create_dataset("Name", (rows,), "S8", chunks=(BLOCK_ROWS,))
        for first in range(0, rows, BLOCK_ROWS):
            count = min(BLOCK_ROWS, rows - first)
            turned = np.roll(noise, int(random.integers(dimension)), axis=1)[:count]
            data[first : first + count] = turned + means[np.arange(first, first + count) % CLASSES]
            names[first : first + count] = b"row"


def measure_statistics(path: Path, rows: int, workers: int) -> dict[str, object]:
    """Fit classifiers to the first rows of a store: seconds, memory, and a digest of what they are."""
    number = np.arange(rows)
    classes = np.asarray([f"class-{place:02d}" for place in range(CLASSES)])
    with ExitStack() as held:
        source = EmbeddingSource(path)
        if workers:
            source = EmbeddingSource(path, reduce=held.enter_context(opened_cluster(f"local:{workers}")).reduced)
        begun = time.monotonic()
        cell = (number // CLASSES % 2).astype(np.int32)
        fits = fit_classifiers(FitRows(source, number % CLASSES, classes, cell), [[0], [0, 1]], FitOptions())
        seconds = time.monotonic() - begun
        peaks = [_peak_megabytes(child.pid) for child in psutil.Process().children(recursive=True)]
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    digest = sha256(b"".join(one.statistics.scatter.tobytes() for one in fits)).hexdigest()[:12]
    return {"seconds": seconds, "own": own, "worker": max(peaks, default=0.0), "digest": digest}


def _peak_megabytes(pid: int) -> float:
    """The largest resident memory that a process had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return max((float(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM")), default=0.0)


def compare_statistics(folder: Path, rows: int, dimension: int) -> None:
    """Print seconds, memory and digests of the statistics of a tenth of a store and of all of it."""
    path = folder / "rows.h5"
    begun = time.monotonic()
    write_rows(path, rows, dimension)
    size = path.stat().st_size / 1e9
    print(f"{rows} rows of {dimension} values, {size:.1f} GB, written in {time.monotonic() - begun:.0f} s\n")
    print("| rows | workers | s | MB of the command | MB of a worker | digest |\n|---:|---:|---:|---:|---:|---|")
    for count in (rows // 10, rows):
        for workers in (0, 1, 2):
            command = [sys.executable, "-m", "benchmarks.cluster", "--measure", str(path), str(count), str(workers)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            memory = f"{found['own']:.0f} | {found['worker']:.0f}"
            print(
                f"| {count} | {workers or 'none'} | {found['seconds']:.1f} | {memory} | {found['digest']} |", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        path, rows, workers = options.measure
        print(json.dumps(measure_statistics(Path(path), int(rows), int(workers))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.files:
            compare_workers(Path(folder), options.files, options.runs)
        if options.rows:
            compare_statistics(Path(folder), options.rows, options.dimension)


if __name__ == "__main__":
    main()
