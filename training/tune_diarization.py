"""Choose the diarizer's settings on conversations simulated from speakers that no training heard.

    python -m training.tune_diarization --data ../shared/data --work WORK [--count 24] [--seed 99]

The speakers are `training.data.held_out_speakers` but for doubtful names. Real meetings are left alone: they are for
measuring. Prints each setting's diarization error (collar 0, overlap scored; mean a conversation, and pooled with its
parts), and how far the number of speakers was off.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from pyannote.core import Annotation

from knn_cli import diarization, stitching
from knn_cli.der import diarization_error
from knn_cli.embedder import Embedder
from knn_cli.registry import CLUSTERERS
from knn_cli.segmentation import Segmenter
from training.conversations import RATE, Voices, simulate
from training.data import doubtful, held_out_speakers, read_manifest


@dataclass(frozen=True)
class Heard:
    """What the diarizer makes of a conversation before it clusters, which no setting here changes."""

    truth: Annotation
    segmentation: stitching.Segmentation
    voices: Any
    seconds: float


def hear(data: Path, work: Path, model: str, segmentation: str, count: int, seed: int) -> list[Heard]:
    """Seeded conversations of held-out speakers, 30 to 120 seconds each."""
    rows = read_manifest(data / "speech" / "manifest.tsv")
    voices = Voices(data, work, {name for name in held_out_speakers(rows) if not doubtful(name)})
    embedder, segmenter = Embedder(model, device="cpu"), Segmenter(segmentation)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "conversation.flac"
        for number in range(count):
            generator = np.random.default_rng([seed, number])
            one = simulate(voices, generator, seconds=float(generator.uniform(30, 120)))
            soundfile.write(path, one.samples, RATE)
            heard, seconds = diarization._segment(path, segmenter, "ours", embedder, "mix")
            found.append(Heard(one.truth, heard, diarization._voices(path, embedder, heard, "mix"), seconds))
    return found


def trials() -> list[tuple[str, dict[str, Any]]]:
    """The methods and settings that are compared."""
    average = [("ahc", {"linkage": "average", "threshold": value}) for value in (0.6, 0.65, 0.7, 0.75, 0.8)]
    ward = [("ahc", {"linkage": "ward", "threshold": value}) for value in (0.02, 0.04, 0.07)]
    spectral = [("spectral", {"share_of_few": value}) for value in (0.1, 0.15, 0.2, 0.26, 0.3)]
    return [*average, *ward, *spectral, ("spectral", {"one_or_more": 0.7}), ("spectral", {"minimum_neighbours": 12})]


def score(heard: list[Heard], name: str, settings: dict[str, Any]) -> str:
    """A line of the table."""
    cluster = CLUSTERERS.build(name, reliable=diarization.RELIABLE, **settings)
    errors, off = [], []
    for one in heard:
        said = Annotation()
        if one.voices.seconds.any():
            rows = np.flatnonzero(one.voices.seconds)
            labels = np.full(len(one.voices.small), -1, dtype=np.int64)
            labels[rows] = cluster(one.voices.vectors[rows], weights=one.voices.seconds[rows])
            votes = diarization._votes(one.segmentation, one.voices, labels)
            active = stitching.decide(stitching.count(one.segmentation), votes)
            turns = stitching.turns(active, max_gap=diarization.MAX_GAP_SECONDS)
            said = diarization._described(turns, votes, one.voices, labels, one.seconds, "").turns
        errors.append(diarization_error(one.truth, said))
        off.append(len(said.labels()) - len(one.truth.labels()))
    whole = sum(errors[1:], errors[0])
    parts = ", ".join(f"{100 * part / whole.total:.1f}" for part in (whole.missed, whole.false_alarm, whole.confusion))
    told = ", ".join(f"{key} {value}" for key, value in settings.items())
    rates = f"{np.mean([one.rate for one in errors]):.1%} | {whole.rate:.1%}"
    return f"| {name} | {told} | {rates} | {parts} | {np.mean(off):+.1f} ({np.abs(off).mean():.1f}) |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="models/voice")
    parser.add_argument("--segmentation", default="models/segmentation")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--seed", type=int, default=99)
    arguments = parser.parse_args()
    heard = hear(
        arguments.data, arguments.work, arguments.model, arguments.segmentation, arguments.count, arguments.seed
    )
    print("| method | settings | DER, mean | DER, pooled | missed, false alarm, confusion | speakers off (absolute) |")
    print("|---|---|---|---|---|---|")
    for name, settings in trials():
        print(score(heard, name, settings), flush=True)


if __name__ == "__main__":
    main()
