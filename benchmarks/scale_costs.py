"""What a second of sound costs: processor seconds of commands without their start, and bytes of stores.

    python -m benchmarks.scale_costs --data ../shared/data [--seconds 600] [--runs 2] [--rows 200000]

Recordings are drawn at random from those of DATA/speech until they have `--seconds` of sound. Each command has one
thread and a process of its own, for the first recording alone and for all; the difference of their processor seconds
(user and system) is that of the sound of the others, so that imports, loading of models and the first pass of a network
are taken off. Rounds take turns; the median is told. A store of embeddings of `--rows` random rows with names of 24
characters is written to see the bytes of a row.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from benchmarks import machine
from knn_cli.core.values import EmbeddingSet
from knn_cli.store.writer import write_store

HOUR = 3600  # seconds
DIMENSIONS = (192, 512)  # of the shipped models of voices and of languages
COMMANDS = {
    "embed": ["embed", "-o", "voices.h5"],
    "embed --model language": ["embed", "--model", "language", "-o", "languages.h5"],
    "classify": ["classify", "-o", "answers.csv"],
    "convert": ["convert"],
}


def draw(data: Path, folder: Path, seconds: float) -> tuple[float, float]:
    """Lay links to recordings into folder/one and folder/all; seconds of sound of the one and of all."""
    found = sorted(data.rglob("*.opus"))
    random.Random(0).shuffle(found)
    lengths: list[float] = []
    for name in ("one", "all"):
        (folder / name).mkdir()
    for path in found:
        length = soundfile.info(path).duration
        if length < 3:
            continue
        name = f"{len(lengths):04d}{path.suffix}"
        (folder / "all" / name).symlink_to(path.resolve())
        if not lengths:
            (folder / "one" / name).symlink_to(path.resolve())
        lengths.append(length)
        if sum(lengths) >= seconds:
            break
    return lengths[0], sum(lengths)


def spent(arguments: list[str], source: Path, folder: Path) -> float:
    """Processor seconds of a command in an empty folder."""
    folder.mkdir()
    command = [sys.executable, "-m", "knn_cli", arguments[0], str(source), *arguments[1:]]
    if arguments[0] == "convert":
        command.append("sound.h5")
    top = Path(__file__).resolve().parents[1]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(top)}
    before = os.times()
    subprocess.run(command, cwd=folder, env=settings, check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def compare_commands(data: Path, folder: Path, seconds: float, runs: int) -> None:
    """Print the costs of commands for a second of sound, and the bytes of sound in a store."""
    one, every = draw(data / "speech", folder, seconds)
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for run in range(runs):
        for number, (name, arguments) in enumerate(COMMANDS.items()):
            first = spent(arguments, folder / "one", folder / f"one-{run}-{number}")
            whole = spent(arguments, folder / "all", folder / f"all-{run}-{number}")
            costs[name].append((first, (whole - first) / (every - one)))
    print(f"{every:.0f} s of sound, load {machine.describe()['load']:.1f}\n")
    print("| command | CPU s a second of sound | each run | CPU s of the first recording, start included |")
    print("|---|--:|--:|--:|")
    for name, found in costs.items():
        each = [cost for _, cost in found]
        start = statistics.median(first for first, _ in found)
        print(f"| {name} | {statistics.median(each):.4f} | {', '.join(f'{c:.4f}' for c in each)} | {start:.1f} |")
    last = len(COMMANDS) - 1
    sizes = [(folder / f"{part}-0-{last}" / "sound.h5").stat().st_size for part in ("one", "all")]
    links = [path.resolve().stat().st_size for path in (folder / "all").iterdir()]
    stored = (sizes[1] - sizes[0]) / (every - one) * HOUR / 1e6
    print("\n| sound | MB an hour |\n|---|--:|")
    print(f"| as it came (Opus) | {sum(links) / every * HOUR / 1e6:.1f} |\n| in a store (FLAC) | {stored:.1f} |")


def compare_rows(folder: Path, rows: int) -> None:
    """Print the bytes of a row of stores of embeddings."""
    print("\n| dimensions | rows | bytes a row |\n|--:|--:|--:|")
    for dimension in DIMENSIONS:
        vectors = np.random.default_rng(0).standard_normal((rows, dimension)).astype(np.float32)
        names = [f"group/speaker/{row:010d}" for row in range(rows)]
        write_store(folder / f"{dimension}.h5", EmbeddingSet.from_columns(vectors, names))
        print(f"| {dimension} | {rows} | {(folder / f'{dimension}.h5').stat().st_size / rows:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--rows", type=int, default=200_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare_rows(Path(folder), options.rows)
        compare_commands(options.data.resolve(), Path(folder), options.seconds, options.runs)


if __name__ == "__main__":
    main()
