"""Memory and time of `knn diarize` for files of increasing duration: memory should stay nearly constant.

    python -m benchmarks.long_files [--minutes 5 30 120 600] [--data ../shared/data] [--folder DIR] [--arguments "..."]
                                    [--peers PEERS [--systems knn senko sherpa resemblyzer]]

The file is a simulated long meeting: turns of 1 to 15 s from recordings of many speakers, with short pauses; every ten
minutes, a new group of four to eight speakers starts. Without --data, the example meeting is repeated with varying
gain. The file is written in blocks to DIR or the temporary folder of the system (FLAC: about 65 MB per hour).

Peak memory is that of the whole process, as reported by the operating system; processor seconds are user and system
time, including loading; their ratio to the duration is the real-time factor. With --peers, the folder of
`benchmarks/peers/setup.sh`, other programs with their defaults diarize the same file, one after the other.
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

from benchmarks.diarization import VERSIONS, System, run, systems
from tools.shipped_models.data import read_16k, read_manifest

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "meeting.flac"
RATE = 16_000
SESSION = 600 * RATE  # samples after which the group of speakers changes
FADE = RATE // 100


def looped() -> Iterator[NDArray[np.float32]]:
    """The example meeting, repeated with varying gain."""
    sound, rate = soundfile.read(EXAMPLE, dtype="float32")
    assert rate == RATE
    generator = np.random.default_rng(0)
    while True:
        yield sound * np.float32(generator.uniform(0.3, 1.0))


def meeting(data: Path) -> Iterator[NDArray[np.float32]]:
    """Turns and pauses of groups of the speakers who have at least 30 s of speech."""
    generator = np.random.default_rng(0)
    speech_seconds: dict[str, float] = defaultdict(float)
    paths: dict[str, list[Path]] = defaultdict(list)
    for row in read_manifest(data / "speech" / "manifest.tsv"):
        paths[row["speaker"]].append(data / "speech" / row["path"])
        speech_seconds[row["speaker"]] += float(row["active_seconds"])
    candidates = sorted(speaker for speaker, seconds in speech_seconds.items() if seconds >= 30)
    while True:
        present = generator.choice(candidates, int(generator.integers(4, 9)), replace=False)
        gains = {speaker: 10 ** generator.uniform(-0.5, 0.3) for speaker in present}
        passed, last = 0, ""
        while passed < SESSION:
            speaker = str(generator.choice([name for name in present if name != last]))
            sound = read_16k(paths[speaker][int(generator.integers(len(paths[speaker])))])
            size = min(len(sound), round(generator.uniform(1, 15) * RATE))
            first = int(generator.integers(len(sound) - size + 1))
            turn = sound[first : first + size] * np.float32(
                0.1 * gains[speaker] / max(1e-3, float(np.abs(sound).std()))
            )
            ramp = np.arange(size)
            turn *= np.minimum(1, np.minimum(ramp, ramp[::-1]) / FADE).astype(np.float32)
            pause = generator.normal(0, 1e-4, round(generator.exponential(0.4) * RATE)).astype(np.float32)
            yield np.concatenate([turn.clip(-0.99, 0.99), pause])
            passed, last = passed + len(turn) + len(pause), speaker


def make(path: Path, minutes: float, data: Path | None = None) -> None:
    """Write a FLAC file of `minutes`, block by block."""
    left = round(minutes * 60 * RATE)
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        for block in meeting(data) if data else looped():
            file.write(block[:left])
            left -= len(block)
            if left <= 0:
                return


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, nargs="+", default=[5.0, 30.0, 120.0])
    parser.add_argument("--data", type=Path, help="folder with speech/manifest.tsv")
    parser.add_argument("--folder", type=Path, help="folder for the audio; about 0.7 GB for ten hours")
    parser.add_argument("--arguments", default="", help="additional arguments of `knn diarize`, as a single string")
    parser.add_argument("--peers", type=Path, help="environments of other programs")
    parser.add_argument("--systems", nargs="+", default=[*VERSIONS], choices=[*VERSIONS])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "knn_cli", "diarize", *shlex.split(arguments.arguments)]
    others = [system for system in systems(arguments.peers, {}) if not system.is_knn]
    chosen = [one for one in (System("knn", command, "--out-dir"), *others) if one.name in arguments.systems]
    print("| minutes | system | CPU s | real-time factor | s | peak memory | speakers |\n|--:|---|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for minutes in arguments.minutes:
            path = Path(folder) / f"{minutes:g}.flac"
            make(path, minutes, arguments.data)
            for system in chosen:
                out = Path(folder) / system.name
                cost = run(system, [path], out, arguments.threads)
                speakers = len({line.split()[7] for line in (out / f"{path.stem}.rttm").read_text().splitlines()})
                print(
                    f"| {minutes:g} | {system.name} | {cost.cpu:.1f} | {cost.cpu / (minutes * 60):.4f} "
                    f"| {cost.wall:.0f} | {cost.peak:.0f} MB | {speakers} |",
                    flush=True,
                )
            path.unlink()


if __name__ == "__main__":
    main()
