"""Choose the diarizer's settings on conversations simulated from speakers that no training heard.

    python -m training.tune_diarization --data ../shared/data --work WORK --model models/voice

WORK/cache/split.json names those speakers (see `prepare`). Real meetings are left alone: they are for measuring. Prints
the pooled diarization error (collar 0, overlap scored) of each setting, and how far the number of speakers was off.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyannote.core import Annotation, Segment, Timeline
from scipy.signal import fftconvolve

from knn_cli import audio, segments, vad
from knn_cli.der import DiarizationError, diarization_error
from knn_cli.embedder import Embedder
from knn_cli.registry import CLUSTERERS
from knn_cli.types import Floats, Waveform
from training.data import read_manifest

RATE = audio.RATE


@dataclass(frozen=True)
class Conversation:
    """Sound of a simulated conversation and who speaks when."""

    waveform: Waveform
    truth: Annotation


def simulate(
    voices: dict[str, list[Path]], rooms: list[Floats], noises: list[Path], generator: np.random.Generator
) -> Conversation:
    """Two to six voices taking turns of 0.6-7 s, some over the end of the last, each from its own spot of a room."""
    speakers = list(generator.choice(sorted(voices), int(generator.integers(2, 7)), replace=False))
    sounds = {one: np.concatenate([audio.read(path).samples for path in voices[one]]) for one in speakers}
    spots = {one: rooms[int(generator.integers(len(rooms)))] for one in speakers}
    gains = {one: 10 ** (generator.uniform(-6, 6) / 20) for one in speakers}
    seconds = float(generator.uniform(40, 150))
    mix = np.zeros(round((seconds + 10) * RATE), dtype=np.float32)
    truth = Annotation()
    now, last = 0.5, ""
    for turn in range(1000):
        if now >= seconds:
            break
        one = str(
            generator.choice([name for name in speakers if name != last] if generator.random() < 0.85 else speakers)
        )
        length = float(np.clip(generator.lognormal(0.7, 0.7), 0.6, 7.0))
        sound = sounds[one]
        first = int(generator.integers(0, max(1, len(sound) - round(length * RATE))))
        piece = sound[first : first + round(length * RATE)] * gains[one]
        start = round(now * RATE)
        wet = fftconvolve(piece, spots[one])[: len(mix) - start]
        mix[start : start + len(wet)] += wet.astype(np.float32)
        truth[Segment(now, now + len(piece) / RATE), turn] = one
        now += len(piece) / RATE + float(generator.exponential(0.5) - 0.25 if generator.random() < 0.8 else -0.6)
        now, last = max(now, 0.5), one
    background = audio.read(noises[int(generator.integers(len(noises)))]).samples
    floor = np.resize(background, len(mix))
    level = np.sqrt(np.mean(mix**2)) / max(1e-6, float(np.sqrt(np.mean(floor**2))))
    mix += floor * level * 10 ** (-generator.uniform(12, 35) / 20)
    mix *= 0.5 / np.abs(mix).max()
    return Conversation(Waveform(mix, RATE), truth)


def conversations(data: Path, held_out: set[str], count: int, seed: int) -> list[Conversation]:
    """Seeded conversations of held-out speakers."""
    voices: dict[str, list[Path]] = defaultdict(list)
    for row in read_manifest(data / "speech" / "manifest.tsv"):
        if row["speaker"] in held_out:
            voices[row["speaker"]].append(data / "speech" / row["path"])
    rooms = [np.ones(1, dtype=np.float32)]
    for path in sorted((data / "noise" / "rir").glob("*")):
        room = audio.read(path).samples
        first = int(np.abs(room).argmax())
        room = room[first : first + RATE // 2]
        rooms.append(room / np.sqrt(np.sum(room**2)))
    noises = sorted((data / "noise" / "esc10").glob("*.opus"))
    generator = np.random.default_rng(seed)
    return [simulate(voices, rooms, noises, generator) for _ in range(count)]


def main() -> None:
    """Print a table of settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="models/voice")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    held_out = set(json.loads((arguments.work / "cache" / "split.json").read_text())["held_out_speakers"])
    embedder = Embedder(arguments.model, device="cpu")
    heard = conversations(arguments.data, held_out, arguments.count, arguments.seed)
    speech = [vad.speech([one.waveform]) for one in heard]
    print("| window | step | clusterer | settings | DER | speakers found - true, mean (mean absolute) |")
    print("|---|---|---|---|---|---|")
    for duration, step in ((1.5, 0.75), (2.0, 0.75), (3.0, 1.0)):
        cut = [segments.windows(region, duration=duration, step=step, minimum=0.4) for region in speech]
        rows = [embed(embedder, one, spans) for one, spans in zip(heard, cut, strict=True)]
        for name, settings in trials():
            total, counts = score(heard, speech, cut, rows, name, settings)
            told = ", ".join(f"{key} {value}" for key, value in settings.items())
            print(
                f"| {duration:g} | {step:g} | {name} | {told} | {total.rate:.2%} | {counts.mean():+.1f} "
                f"({np.abs(counts).mean():.1f}) |",
                flush=True,
            )


def trials() -> list[tuple[str, dict[str, Any]]]:
    """The settings that are compared."""
    average = [{"linkage": "average", "threshold": round(0.3 + 0.05 * k, 2)} for k in range(11)]
    centroid = [{"linkage": "centroid", "threshold": round(0.15 + 0.05 * k, 2)} for k in range(7)]
    spectral: list[dict[str, Any]] = [{"neighbours": share} for share in (0.05, 0.1, 0.2)]
    return [("ahc", one) for one in [*average, *centroid]] + [("spectral", one) for one in spectral]


def embed(embedder: Embedder, one: Conversation, spans: list[Segment]) -> NDArray[np.float32]:
    """(N, E) speaker views of the windows."""
    rows = embedder([one.waveform.crop(span.start, span.end).samples for span in spans])
    return rows[:, embedder.bundle.view("speaker")]


def score(
    heard: list[Conversation],
    speech: list[Timeline],
    cut: list[list[Segment]],
    rows: list[NDArray[np.float32]],
    name: str,
    settings: dict[str, Any],
) -> tuple[DiarizationError, NDArray[np.int64]]:
    """Pooled error and the error in the number of speakers of each conversation."""
    cluster = CLUSTERERS.build(name, **settings)
    errors, counts = [], []
    for one, regions, spans, vectors in zip(heard, speech, cut, rows, strict=True):
        found = segments.turns(spans, cluster(vectors), regions, max_gap=0.5)
        errors.append(diarization_error(one.truth, found))
        counts.append(len(found.labels()) - len(one.truth.labels()))
    return sum(errors[1:], errors[0]), np.array(counts)


if __name__ == "__main__":
    main()
