"""Gaussian linear classifier against scikit-learn's LDA and against a solve a batch, in one run, as ratios.

    python -m benchmarks.glc --rows 20000 --dimension 256 --classes 107

CPU seconds, all threads together (set OMP_NUM_THREADS=1 to compare algorithms and not thread pools), so that other
programs on the machine matter little; the best of `--repeats`, one after the other, on the same rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from time import process_time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from knn_cli.glc import BLOCK, GaussianLinearClassifier


def best(call: Callable[[], Any], repeats: int) -> float:
    """CPU seconds of the fastest of `repeats` calls."""
    times = []
    for _ in range(repeats):
        start = process_time()
        call()
        times.append(process_time() - start)
    return min(times)


def solve_a_batch(means: NDArray[Any], covariance: NDArray[Any], X: NDArray[Any], batch: int = 64) -> NDArray[Any]:
    """Quadratic forms (N, C) the plain way: a linear system for every batch and class, nothing kept between them."""
    scores = np.empty((len(X), len(means)))
    for first in range(0, len(X), batch):
        for column, mean in enumerate(means):
            rows = X[first : first + batch] - mean
            scores[first : first + batch, column] = -0.5 * np.sum(rows.T * np.linalg.solve(covariance, rows.T), axis=0)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--classes", type=int, default=107)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="of the rows")
    parser.add_argument("--solve-rows", type=int, default=128, help="rows of the solve-a-batch scorer, scaled up")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    codes = np.concatenate([np.arange(args.classes), rng.integers(args.classes, size=args.rows - args.classes)])
    X = rng.normal(size=(args.classes, args.dimension))[codes] * 0.3 + rng.normal(size=(args.rows, args.dimension))
    X = X.astype(args.dtype)
    y = np.asarray([f"language-{code:03d}" for code in codes])

    ours, balanced = GaussianLinearClassifier(priors="empirical"), GaussianLinearClassifier(balanced=True)
    theirs = LinearDiscriminantAnalysis(solver="lsqr")
    seconds = {
        "fit": best(lambda: ours.fit(X, y), args.repeats),
        "fit, balanced": best(lambda: balanced.fit(X, y), args.repeats),
        "posteriors": best(lambda: ours.predict_proba(X), args.repeats),
        "log densities": best(lambda: ours.log_likelihood(X), args.repeats),
    }
    lda = {
        "fit": best(lambda: theirs.fit(X, y), args.repeats),
        "posteriors": best(lambda: theirs.predict_proba(X), args.repeats),
    }
    plain = best(lambda: solve_a_batch(ours.means_, ours.covariance_, X[: args.solve_rows].astype(float)), 1)
    plain *= args.rows / args.solve_rows
    double = LinearDiscriminantAnalysis(solver="lsqr").fit(X.astype(float), y)
    difference = np.abs(ours.predict_proba(X) - double.predict_proba(X.astype(float))).max()

    print(f"{args.rows} x {args.dimension} {args.dtype}, {args.classes} classes, blocks of {BLOCK} rows\n")
    print(f"{'':<22}{'knn':>10}{'LDA':>10}{'LDA/knn':>10}")
    for name, time in seconds.items():
        other = lda.get(name)
        print(f"{name:<22}{time:>10.3f}" + (f"{other:>10.3f}{other / time:>10.1f}" if other else ""))
    both = seconds["fit"] + seconds["posteriors"]
    print(f"{'fit and posteriors':<22}{both:>10.3f}{sum(lda.values()):>10.3f}{sum(lda.values()) / both:>10.1f}")
    print(f"\nsolve a batch / log densities: {plain / seconds['log densities']:.0f} (from {args.solve_rows} rows)")
    print(f"posteriors, largest difference from LDA in float64: {difference:.1e}")


if __name__ == "__main__":
    main()
