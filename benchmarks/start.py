"""Processor seconds from the start of a process to its first answer, beside those of an import alone.

    python -m benchmarks.start [--runs 7]

`knn embed`, `classify` and `diarize` of a clip of 5 s are measured against `import torch`, and `knn --help` against
`import typer`. All processes take turns, and the figures are medians of user and system time.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import soundfile

MEETING = Path(__file__).resolve().parents[1] / "examples" / "meeting.flac"
CLIP_SECONDS = 5
COMMANDS = ("embed", "classify", "diarize")


def processor_seconds(arguments: list[str]) -> float:
    """User and system time of a Python process; CalledProcessError where it fails."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def write_clip(folder: Path) -> Path:
    """The beginning of the example meeting, as a file in a folder."""
    clip = folder / "clip.wav"
    samples, rate = soundfile.read(MEETING, stop=CLIP_SECONDS * 16_000)
    soundfile.write(clip, samples, rate)
    return clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program has its bytecode
    with tempfile.TemporaryDirectory() as folder:
        clip = str(write_clip(Path(folder)))
        processes = {"import typer": ["-c", "import typer"], "knn --help": ["-m", "knn_cli", "--help"]}
        processes["import torch"] = ["-c", "import torch"]
        processes |= {f"knn {name}": ["-m", "knn_cli", name, clip] for name in COMMANDS}
        for arguments in processes.values():
            processor_seconds(arguments)  # so that files are in memory, and bytecode is there
        seconds: dict[str, list[float]] = {name: [] for name in processes}
        for _ in range(runs):
            for name, arguments in processes.items():
                seconds[name].append(processor_seconds(arguments))
    print("| process | processor s | ratio |\n|---|---:|---:|")
    for name, values in seconds.items():
        base = seconds["import typer" if name in ("import typer", "knn --help") else "import torch"]
        ratio = statistics.median(one / other for one, other in zip(values, base, strict=True))
        print(f"| `{name}` | {statistics.median(values):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
