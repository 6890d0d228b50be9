"""Ratios that must hold, for CI: the program's speed beside that of others, within bounds that noise does not reach.

    python -m benchmarks.check [NAME ...]

Both sides of a ratio take turns in one run and count processor seconds, of which the least of several turns is taken,
so that other programs on the machine matter little. A bound lies well above what docs/benchmarks.md has; a ratio above
it is measured again, up to ATTEMPTS times, and the check fails if it never is below. What becomes slower by half is
found so; finer comparisons are `python -m benchmarks`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ATTEMPTS = 3


@dataclass(frozen=True)
class Check:
    """A ratio and its bound.

    Attributes
    ----------
    what : str
        Ours / theirs.
    measure : callable
        The ratio of processor seconds, less is better.
    bound : float
    package : str
        That it needs besides knn's.
    """

    what: str
    measure: Callable[[], float]
    bound: float
    package: str = ""


def classifier() -> float:
    """Fit and posteriors of 20,000 x 256 rows of 50 classes, beside scikit-learn's LDA."""
    import numpy as np
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    from benchmarks.glc import best
    from knn_cli.recognition.glc import GaussianLinearClassifier

    rng = np.random.default_rng(0)
    codes = np.arange(20_000) % 50
    rows = (rng.normal(size=(50, 256))[codes] + rng.normal(size=(len(codes), 256))).astype(np.float32)
    labels, double = codes.astype(str), rows.astype(np.float64)
    ours, theirs = GaussianLinearClassifier(priors="empirical"), LinearDiscriminantAnalysis(solver="lsqr")
    seconds = best(
        {
            "ours": lambda: ours.fit(rows, labels).predict_proba(rows),
            "theirs": lambda: theirs.fit(double, labels).predict_proba(double),
        },
        3,
    )
    return seconds["ours"] / seconds["theirs"]


def wavlm() -> float:
    """A clip of 10 s through WavLM-Base + MHFA, beside transformers and a stacked MHFA."""
    import torch

    from benchmarks.glc import best
    from benchmarks.wavlm import our_network, their_network, write_model

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        write_model(Path(folder))
        ours, theirs = our_network(Path(folder)), their_network(Path(folder))
        clip = torch.randn(1, 160_000, generator=torch.Generator().manual_seed(1)) * 0.1
        seconds = best({"ours": lambda: ours(clip), "theirs": lambda: theirs(clip)}, 3)
    return seconds["ours"] / seconds["theirs"]


def start(arguments: list[str], base: list[str]) -> float:
    """A process from its start to its end, beside another one."""
    from benchmarks.start import processor_seconds

    ours, theirs = [], []
    for turn in range(4):  # the first brings files into memory
        for seconds, words in ((ours, arguments), (theirs, base)):
            spent = processor_seconds(words)
            if turn:
                seconds.append(spent)
    return min(ours) / min(theirs)


def help_page() -> float:
    """`knn --help`, beside `import typer`."""
    return start(["-m", "knn_cli", "--help"], ["-c", "import typer"])


def first_embedding() -> float:
    """`knn embed` of a clip of 5 s, beside `import torch`."""
    from benchmarks.start import write_clip

    with tempfile.TemporaryDirectory() as folder:
        clip = write_clip(Path(folder))
        return start(["-m", "knn_cli", "embed", str(clip)], ["-c", "import torch"])


def store() -> float:
    """20,000 rows of 256 values into a store, beside a writer that resizes compressed datasets row by row."""
    import numpy as np

    from benchmarks.glc import best
    from benchmarks.stores import write_row_by_row
    from knn_cli.core.values import EmbeddingSet
    from knn_cli.store.writer import write_store

    vectors = np.random.default_rng(0).standard_normal((20_000, 256), dtype=np.float32)
    names = [f"recording-{row // 10}" for row in range(len(vectors))]
    rows = EmbeddingSet.from_columns(vectors, names)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs, few = Path(folder) / "ours.h5", Path(folder) / "theirs.h5", 500
        seconds = best(
            {
                "ours": lambda: write_store(ours, rows, force=True),
                "theirs": lambda: write_row_by_row(theirs, vectors[:few], names[:few]),
            },
            3,
        )
    return (seconds["ours"] / len(rows)) / (seconds["theirs"] / few)


CHECKS = {
    "store": Check("embeddings into a store / row by row", store, 0.1, "sklearn"),
    "classifier": Check("Gaussian linear classifier / scikit-learn's LDA", classifier, 0.8, "sklearn"),
    "wavlm": Check("WavLM-Base + MHFA, 10 s / transformers", wavlm, 1.2, "transformers"),
    "help": Check("knn --help / import typer", help_page, 3.2),
    "embed": Check("knn embed, 5 s / import torch", first_embedding, 1.8),
}


def run(check: Check) -> tuple[bool, list[float]]:
    """Whether a ratio is below its bound in one of the attempts, and the ratios."""
    ratios: list[float] = []
    while len(ratios) < ATTEMPTS and not (ratios and ratios[-1] <= check.bound):
        ratios.append(check.measure())
    return ratios[-1] <= check.bound, ratios


def main() -> int:
    """Print a line for each ratio; the number of those that are too high."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CHECKS))
    failed = 0
    for name in parser.parse_args().names or CHECKS:
        check = CHECKS[name]
        if check.package and find_spec(check.package) is None:
            print(f"skipped  {check.what}: needs the package {check.package}")
            continue
        holds, ratios = run(check)
        failed += not holds
        tried = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"{'ok      ' if holds else 'TOO SLOW'} {check.what}: {tried} (at most {check.bound:g})", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
