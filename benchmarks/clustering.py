"""Time, memory and error of each clustering method on long recordings.

    python -m benchmarks.clustering [--embeddings 40000] [--speakers 8] [--threads 2]

Embeddings are synthetic: speaker centroids and noise are Gaussian, with the dimension of the `voice` model and cosines
of about 0.45 within a speaker and 0 between speakers. Speakers take turns and speak unequally. Each method runs in a
separate process, without and with the number of speakers; memory is the peak of that process, libraries and embeddings
included. 40,000 embeddings correspond to ten hours of windows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from knn_cli.core.registry import CLUSTERERS
from knn_cli.core.values import Doubles, Floats
from knn_cli.diarization.clustering.base import Labels
from knn_cli.diarization.clustering.plda import EmbeddingPLDA

DIMENSION = 192
NOISE = 1.1  # norm of the noise, relative to centroids of norm 1
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "ahc, average": ("ahc", {"linkage": "average"}),
    "ahc, centroid": ("ahc", {"linkage": "centroid"}),
    "ahc, ward": ("ahc", {"linkage": "ward"}),
    "spectral": ("spectral", {}),
    "hdbscan": ("hdbscan", {}),
    "vbx": ("vbx", {}),
    "vbx, loop 0.9": ("vbx", {"loop": 0.9}),
}


def embeddings(count: int, speakers: int) -> tuple[Floats, NDArray[np.integer]]:
    """(N, DIMENSION) float32 embeddings and (N,) speakers: turns of 12 windows on average, speaker 0 most active."""
    generator = np.random.default_rng(0)
    share = 1 / np.arange(1, speakers + 1)
    turns = generator.choice(speakers, count, p=share / share.sum())
    truth = np.repeat(turns, generator.geometric(1 / 12, count))[:count]
    centroids = generator.normal(size=(speakers, DIMENSION)) / np.sqrt(DIMENSION)
    rows = centroids[truth] + NOISE / np.sqrt(DIMENSION) * generator.normal(size=(count, DIMENSION))
    return rows.astype(np.float32), truth


def plda() -> EmbeddingPLDA:
    """The exact PLDA of these embeddings after length normalisation."""
    zeros, eye = np.zeros(DIMENSION), np.eye(DIMENSION)
    within: Doubles = eye * np.sqrt(DIMENSION * (1 + NOISE**2)) / NOISE
    return EmbeddingPLDA(zeros, eye, zeros, zeros, within, np.full(DIMENSION, 1 / NOISE**2))


def measure(method: str, count: int, speakers: int) -> dict[str, float]:
    """Seconds, peak GiB, estimated number of speakers; share of wrong labels without and with the number given."""
    rows, truth = embeddings(count, speakers)
    name, settings = METHODS[method]
    cluster = CLUSTERERS.build(name, **settings, **({"plda": plda()} if name == "vbx" else {}))
    started = time.perf_counter(), time.process_time()
    labels = cluster(rows)
    seconds, processor = time.perf_counter() - started[0], time.process_time() - started[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of KiB, on Linux
    estimated = int(labels.max()) + 1
    wrong, wrong_given_count = (error(predicted, truth) for predicted in (labels, cluster(rows, num_speakers=speakers)))
    figures = {"seconds": seconds, "processor": processor, "gigabytes": peak}
    return {**figures, "speakers": estimated, "wrong": wrong, "wrong_given_count": wrong_given_count}


def error(labels: Labels, truth: NDArray[np.integer]) -> float:
    """Share of embeddings with a wrong label, under the best mapping of labels to speakers."""
    shared = np.zeros((labels.max() + 1, truth.max() + 1))
    np.add.at(shared, (labels, truth), 1)
    return float(1 - shared[linear_sum_assignment(shared, maximize=True)].sum() / len(truth))


def main() -> None:
    """Print a table with a row per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", type=int, default=40000)
    parser.add_argument("--speakers", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--method", choices=METHODS, help="measure only this method, in this process, and print JSON")
    arguments = parser.parse_args()
    if arguments.method:
        print(json.dumps(measure(arguments.method, arguments.embeddings, arguments.speakers)))
        return
    print(f"{arguments.embeddings} embeddings of {arguments.speakers} speakers, {arguments.threads} threads\n")
    print("| method | seconds | processor seconds | peak GiB | speakers | wrong labels | wrong labels, number given |")
    print("|---|---|---|---|---|---|---|")
    threads = {name: str(arguments.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    for method in METHODS:
        again = [sys.executable, "-m", "benchmarks.clustering", "--method", method]
        again += ["--embeddings", str(arguments.embeddings), "--speakers", str(arguments.speakers)]
        done = subprocess.run(again, capture_output=True, text=True, check=True, env={**os.environ, **threads})
        row = json.loads(done.stdout)
        print(
            f"| {method} | {row['seconds']:.1f} | {row['processor']:.1f} | {row['gigabytes']:.2f} | "
            f"{row['speakers']} | {row['wrong']:.2%} | {row['wrong_given_count']:.2%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
