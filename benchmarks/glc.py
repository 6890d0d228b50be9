"""Speed of the Gaussian linear classifier relative to scikit-learn's LDA and to a linear solve per batch.

    python -m benchmarks.glc --rows 100000 --dimension 256 --classes 107
    python -m benchmarks.glc --store 2000000 --folder DIR

Times are CPU seconds over all threads (set OMP_NUM_THREADS=1 to compare algorithms and not thread pools), so that
other programs on the machine matter little: the best of `--repeats` alternating runs on the same rows. LDA works in the
precision of its rows and is timed in both; ours computes in double precision and is given float32 rows, as stores hold
them. Only LDA in double precision gives the same posteriors.

With `--store`, an HDF5 store of that many rows is written under DIR; a separate process trains on it like `knn train`
(including cross-validation, calibration and held-out metrics) and scores it like `knn classify`. The peak memory of
that process is printed and the store removed. Recording names have 60 characters, since labels take memory too.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from knn_cli.recognition.classifier import Classifier
from knn_cli.recognition.gaussian_statistics import BLOCK_ROWS
from knn_cli.recognition.glc import GaussianLinearClassifier
from knn_cli.recognition.train_classifier import train_classifier


def best(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """CPU seconds of the fastest of `repeats` alternating runs of each call, so that load affects all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = process_time()
            call()
            times[name].append(process_time() - start)
    return {name: min(seconds) for name, seconds in times.items()}


def solve_per_batch(means: NDArray[Any], covariance: NDArray[Any], X: NDArray[Any], batch: int = 64) -> NDArray[Any]:
    """Quadratic forms (N, C) by a linear solve for every batch and class, without caching a factorisation."""
    scores = np.empty((len(X), len(means)))
    for first in range(0, len(X), batch):
        for column, mean in enumerate(means):
            rows = X[first : first + batch] - mean
            scores[first : first + batch, column] = -0.5 * np.sum(rows.T * np.linalg.solve(covariance, rows.T), axis=0)
    return scores


def write_store(path: Path, rows: int, dimension: int, classes: int) -> None:
    """An embedding store (see `knn_cli.store.hdf5`) of random rows, in the memory of one block."""
    rng = np.random.default_rng(0)
    means = 0.3 * rng.normal(size=(classes, dimension)).astype(np.float32)
    folder = "corpus/of/recordings/with/long/names/".ljust(50, "-")
    with h5py.File(path, "w") as file:
        file.attrs["schema"], file.attrs["kind"] = 1, "embeddings"
        settings = {"chunks": (1024, dimension), "compression": "gzip", "compression_opts": 1, "shuffle": True}
        data = file.create_dataset("Data", (rows, dimension), dtype="f4", **settings)
        texts = [file.create_dataset(name, (rows,), dtype=h5py.string_dtype()) for name in ("Name", "SubgroupID")]
        for first in range(0, rows, BLOCK_ROWS):
            count = min(BLOCK_ROWS, rows - first)
            recordings = (first + np.arange(count)) // 40
            codes = recordings % classes
            data[first : first + count] = means[codes] + rng.standard_normal((count, dimension), dtype=np.float32)
            texts[0][first : first + count] = [f"{folder}{recording:010d}" for recording in recordings]
            texts[1][first : first + count] = [f"language-{code:03d}" for code in codes]


def stream(path: Path) -> dict[str, float]:
    """Train a classifier on a store and score the store with it, block by block."""
    start = process_time()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        trained = train_classifier(path, Path(folder) / "model")
        training = process_time() - start
        classifier = Classifier(trained.bundle.folder)
        rows = sum(len(table) for table in classifier.score_store(path))
        scoring = process_time() - start - training
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"rows": rows, "train": training, "score": scoring, "accuracy": trained.accuracy, "peak_gb": peak / 1e9}


def streamed(rows: int, dimension: int, classes: int, folder: str | None) -> None:
    """Write the store, train and score in a new process, and print its results."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "rows.h5"
        write_store(path, rows, dimension, classes)
        size = path.stat().st_size / 1e9
        command = [sys.executable, "-m", "benchmarks.glc", "--stream", str(path)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout)
    print(
        f"{result['rows']} x {dimension} float32 from HDF5 ({size:.2f} GB), {classes} classes, "
        f"blocks of {BLOCK_ROWS} rows"
    )
    print(f"CPU seconds: train {result['train']:.1f}, scores {result['score']:.1f}")
    print(f"peak memory {result['peak_gb']:.2f} GB; held-out accuracy {result['accuracy']:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--classes", type=int, default=107)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--solve-rows", type=int, default=128, help="rows of the solve-per-batch scorer, scaled up")
    parser.add_argument("--store", type=int, metavar="ROWS", help="train on a store with this many rows instead")
    parser.add_argument("--folder", help="folder for that store")
    parser.add_argument("--stream", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stream:
        print(json.dumps(stream(args.stream)))
        return
    if args.store:
        streamed(args.store, args.dimension, args.classes, args.folder)
        return
    rng = np.random.default_rng(0)
    codes = np.concatenate([np.arange(args.classes), rng.integers(args.classes, size=args.rows - args.classes)])
    X = rng.normal(size=(args.classes, args.dimension))[codes] * 0.3 + rng.normal(size=(args.rows, args.dimension))
    X = X.astype(np.float32)
    double = X.astype(np.float64)
    y = np.asarray([f"language-{code:03d}" for code in codes])

    ours, balanced = GaussianLinearClassifier(priors="empirical"), GaussianLinearClassifier(balanced=True)
    lda, lda32 = (LinearDiscriminantAnalysis(solver="lsqr") for _ in range(2))
    seconds = best(
        {
            "fit": lambda: ours.fit(X, y),
            "posteriors": lambda: ours.predict_proba(X),
            "fit, balanced": lambda: balanced.fit(X, y),
            "log densities": lambda: ours.log_likelihood(X),
            "LDA fit": lambda: lda.fit(double, y),
            "LDA posteriors": lambda: lda.predict_proba(double),
            "LDA32 fit": lambda: lda32.fit(X, y),
            "LDA32 posteriors": lambda: lda32.predict_proba(X),
        },
        args.repeats,
    )
    part = double[: args.solve_rows]
    plain = (
        best({"": lambda: solve_per_batch(ours.means_, ours.covariance_, part)}, 1)[""] * args.rows / args.solve_rows
    )
    probabilities, theirs = ours.predict_proba(X), lda.predict_proba(double)
    single = np.abs(lda32.predict_proba(X) - theirs).max()

    print(f"{args.rows} x {args.dimension} float32, {args.classes} classes; LDA in double and in single precision\n")
    print("| | knn, CPU s | LDA, double | ratio | LDA, single | ratio |\n|---|--:|--:|--:|--:|--:|")
    for name in ("fit", "posteriors"):
        _line(name, *(seconds[kind + name] for kind in ("", "LDA ", "LDA32 ")))
    _line("both", *(seconds[f"{kind}fit"] + seconds[f"{kind}posteriors"] for kind in ("", "LDA ", "LDA32 ")))
    for name in ("fit, balanced", "log densities"):
        print(f"| {name} | {seconds[name]:.3f} | | | | |")
    print(f"\nsolve per batch / log densities: {plain / seconds['log densities']:.0f} (from {args.solve_rows} rows)")
    difference = np.abs(probabilities - theirs).max()
    print(
        f"largest difference from the posteriors of LDA in double precision: {difference:.1e}; of LDA32: {single:.1e}"
    )


def _line(name: str, knn: float, lda: float, lda32: float) -> None:
    print(f"| {name} | {knn:.3f} | {lda:.3f} | {lda / knn:.1f}x | {lda32:.3f} | {lda32 / knn:.1f}x |")


if __name__ == "__main__":
    main()
