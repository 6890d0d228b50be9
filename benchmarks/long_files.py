"""Memory and time of `knn diarize` against the length of the file: it should stay flat.

    python benchmarks/long_files.py [--minutes 5 30 120] [--model NAME]

The file is the example meeting, played over and over at changing loudness. Peak memory is the whole process's, as the
system counts it; CPU seconds include loading; their ratio to the sound's length is the real-time factor.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "meeting.flac"


def make(path: Path, minutes: float) -> None:
    """A FLAC file of so many minutes, written piece by piece."""
    sound, rate = soundfile.read(EXAMPLE, dtype="float32")
    left = round(minutes * 60 * rate)
    generator = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", rate, 1) as file:
        while left > 0:
            piece = sound[:left] * generator.uniform(0.3, 1.0)
            file.write(piece)
            left -= len(piece)


def measure(path: Path, model: list[str]) -> tuple[float, float, str]:
    """(CPU seconds, peak MB, last line of stderr) of one diarization in a process of its own."""
    command = [sys.executable, "-m", "knn_cli", "-v", "diarize", str(path), "--rttm", os.devnull, *model]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    talk = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(talk)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, talk.strip().splitlines()[-1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[5.0, 30.0, 120.0])
    parser.add_argument("--model", nargs=1, default=[])
    arguments = parser.parse_args()
    model = ["--model", *arguments.model] if arguments.model else []
    print("| minutes | CPU s | real-time factor | peak memory |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for minutes in arguments.minutes:
            path = Path(folder) / f"{minutes:g}.flac"
            make(path, minutes)
            seconds, peak, _ = measure(path, model)
            print(f"| {minutes:g} | {seconds:.1f} | {seconds / (minutes * 60):.4f} | {peak:.0f} MB |", flush=True)
            path.unlink()


if __name__ == "__main__":
    main()
