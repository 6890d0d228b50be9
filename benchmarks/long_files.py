"""Memory and time of `knn diarize` against the length of the file: memory should stay flat.

    python -m benchmarks.long_files [--minutes 5 30 120 600] [--data ../shared/data] [--folder DIR] [--arguments "..."]

The file is a meeting without end: recordings of many speakers take turns, each of 1 to 15 s, with short pauses; every
ten minutes four to eight speakers sit down anew. Without --data it is the example meeting, played over and over
at changing loudness. The file is written piece by piece to DIR or the system's temporary
folder (FLAC: about 65 MB an hour).

Peak memory is the whole process's, as the system counts it; processor seconds are user and system, loading
included; their ratio to the sound's length is the real-time factor.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from benchmarks.diarization import System, run
from tools.shipped_models.data import read_16k, read_manifest

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "meeting.flac"
RATE = 16_000
SESSION = 600 * RATE  # samples after which other speakers come
FADE = RATE // 100


def looped() -> Iterator[NDArray[np.float32]]:
    """The example meeting over and over."""
    sound, rate = soundfile.read(EXAMPLE, dtype="float32")
    assert rate == RATE
    generator = np.random.default_rng(0)
    while True:
        yield sound * np.float32(generator.uniform(0.3, 1.0))


def meeting(data: Path) -> Iterator[NDArray[np.float32]]:
    """Turns and pauses of all speakers with half a minute of speech or more, some at a time."""
    generator = np.random.default_rng(0)
    said: dict[str, float] = defaultdict(float)
    paths: dict[str, list[Path]] = defaultdict(list)
    for row in read_manifest(data / "speech" / "manifest.tsv"):
        paths[row["speaker"]].append(data / "speech" / row["path"])
        said[row["speaker"]] += float(row["active_seconds"])
    everybody = sorted(speaker for speaker, seconds in said.items() if seconds >= 30)
    while True:
        present = generator.choice(everybody, int(generator.integers(4, 9)), replace=False)
        gains = {one: 10 ** generator.uniform(-0.5, 0.3) for one in present}
        passed, last = 0, ""
        while passed < SESSION:
            one = str(generator.choice([name for name in present if name != last]))
            sound = read_16k(paths[one][int(generator.integers(len(paths[one])))])
            size = min(len(sound), round(generator.uniform(1, 15) * RATE))
            first = int(generator.integers(len(sound) - size + 1))
            turn = sound[first : first + size] * np.float32(0.1 * gains[one] / max(1e-3, float(np.abs(sound).std())))
            ramp = np.arange(size)
            turn *= np.minimum(1, np.minimum(ramp, ramp[::-1]) / FADE).astype(np.float32)
            pause = generator.normal(0, 1e-4, round(generator.exponential(0.4) * RATE)).astype(np.float32)
            yield np.concatenate([turn.clip(-0.99, 0.99), pause])
            passed, last = passed + len(turn) + len(pause), one


def make(path: Path, minutes: float, data: Path | None = None) -> None:
    """A FLAC file of so many minutes, written piece by piece."""
    left = round(minutes * 60 * RATE)
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        for piece in meeting(data) if data else looped():
            file.write(piece[:left])
            left -= len(piece)
            if left <= 0:
                return


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[5.0, 30.0, 120.0])
    parser.add_argument("--data", type=Path, help="folder with speech/manifest.tsv")
    parser.add_argument("--folder", type=Path, help="where the sound is written; about 0.7 GB for ten hours")
    parser.add_argument("--arguments", default="", help="more for `knn diarize`, as one text")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "knn_cli", "diarize", *shlex.split(arguments.arguments)]
    system = System("knn", command, "--out-dir")
    print("| minutes | CPU s | real-time factor | s | peak memory | speakers |\n|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for minutes in arguments.minutes:
            path = Path(folder) / f"{minutes:g}.flac"
            make(path, minutes, arguments.data)
            cost = run(system, [path], Path(folder) / "out", arguments.threads)
            rttm = (Path(folder) / "out" / f"{path.stem}.rttm").read_text().splitlines()
            found = len({line.split()[7] for line in rttm})
            print(
                f"| {minutes:g} | {cost.cpu:.1f} | {cost.cpu / (minutes * 60):.4f} | {cost.wall:.0f} "
                f"| {cost.peak:.0f} MB | {found} |",
                flush=True,
            )
            path.unlink()


if __name__ == "__main__":
    main()
