"""Several recordings at a time: seconds of the clock and of processors, and memory, for numbers of processors.

    python -m benchmarks.jobs --folder FOLDER [--jobs 1 2] [--files 64] [--runs 3] [--before CHECKOUT]

`knn embed` and `knn convert` go through FLACs of 5 and 20 s in turns, cut from the example meeting; `knn classify`
through half of them. CHECKOUT is another version of this repository, which is measured beside this one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

TOP = Path(__file__).resolve().parents[1]
SECONDS = (5, 20)


class Cost(NamedTuple):
    """What a command took: seconds of the clock, of processors, and its largest memory in MB."""

    clock: float
    processors: float
    memory: float


def cost(arguments: list[str], checkout: Path) -> Cost:
    """The cost of a command of the `knn` in a checkout; RuntimeError where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "knn_cli", *arguments], cwd=checkout, env=environment, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    clock = time.perf_counter() - begun
    if status:
        raise RuntimeError(f"{' '.join(arguments)} ends with status {status}")
    return Cost(clock, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def write_files(folder: Path, count: int) -> list[str]:
    """FLACs of 5 and 20 s in turns, each from another place of the meeting."""
    sound, rate = soundfile.read(TOP / "examples" / "meeting.flac", dtype="float32")
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03d}.flac" for number in range(count)]
    for number, path in enumerate(paths):
        samples = SECONDS[number % 2] * rate
        start = random.integers(0, len(sound) - samples)
        soundfile.write(path, sound[start : start + samples], rate)
    return [str(path) for path in paths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--files", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--before", type=Path)
    options = parser.parse_args()
    os.environ.pop("OMP_NUM_THREADS", None)
    sounds, out = options.folder.resolve() / "sounds", options.folder.resolve() / "out.h5"
    paths = write_files(sounds, options.files)
    half = paths[: len(paths) // 2]
    commands = {
        f"`embed`, {len(paths)} files": ["embed", *paths],
        f"`classify`, {len(half)} files": ["classify", *half],
        f"`convert`, {len(paths)} files": [
            "convert",
            str(options.folder.resolve() / "sounds"),
            out,
            "--force",
            "--again",
        ],
    }
    kinds = {} if options.before is None else {"before": (options.before.resolve(), [])}
    kinds |= {f"`--jobs {number}`": (TOP, ["--jobs", str(number)]) for number in options.jobs}
    print("| command | | s | processor s | MB |\n|---|---|---:|---:|---:|", flush=True)
    for command, arguments in commands.items():
        costs: dict[str, list[Cost]] = {kind: [] for kind in kinds}
        for _ in range(options.runs):
            for kind, (checkout, more) in kinds.items():
                costs[kind].append(cost([*arguments, *more, "-q"], checkout))
        for kind, found in costs.items():
            clock, processors, memory = (statistics.median(values) for values in zip(*found, strict=True))
            print(f"| {command} | {kind} | {clock:.1f} | {processors:.1f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
