"""Compare settings of the diarizer on conversations simulated from held-out speakers.

    python -m tools.shipped_models.tune_diarization --data ../shared/data --work WORK [--count 24] [--seed 99]

The speakers are `tools.shipped_models.data.held_out_speakers` except for ambiguous names. Real meetings are kept for
evaluation. Prints, for each setting, the diarization error rate (collar 0, overlap scored; mean over conversations, and
pooled with its components) and the error of the number of speakers.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from pyannote.core import Annotation

from knn_cli.diarization.options import DiarizationOptions
from knn_cli.diarization.pipeline import diarize
from knn_cli.diarization.segmentation import Segmenter
from knn_cli.embedding.embedder import Embedder
from knn_cli.evaluation.diarization_error import diarization_error
from tools.shipped_models.conversations import RATE, SpeakerRecordings, simulate
from tools.shipped_models.data import held_out_speakers, is_ambiguous_speaker, read_manifest


def conversations(data: Path, work: Path, folder: Path, count: int, seed: int) -> dict[Path, Annotation]:
    """Seeded conversations of held-out speakers, 30 to 120 seconds each, written to a folder, with their references."""
    rows = read_manifest(data / "speech" / "manifest.tsv")
    recordings = SpeakerRecordings(
        data, work, {name for name in held_out_speakers(rows) if not is_ambiguous_speaker(name)}
    )
    references = {}
    for number in range(count):
        generator = np.random.default_rng([seed, number])
        conversation = simulate(recordings, generator, seconds=float(generator.uniform(30, 120)))
        path = folder / f"{number:03}.flac"
        soundfile.write(path, conversation.samples, RATE)
        references[path] = conversation.truth
    return references


def configurations() -> list[tuple[str, dict[str, Any]]]:
    """The clustering methods and settings that are compared."""
    average = [("ahc", {"linkage": "average", "threshold": value}) for value in (0.6, 0.65, 0.7, 0.75, 0.8)]
    ward = [("ahc", {"linkage": "ward", "threshold": value}) for value in (0.02, 0.04, 0.07)]
    spectral = [("spectral", {"share_of_few": value}) for value in (0.1, 0.15, 0.2, 0.26, 0.3)]
    return [*average, *ward, *spectral, ("spectral", {"one_or_more": 0.7}), ("spectral", {"minimum_neighbours": 12})]


def score(
    truths: Mapping[Path, Annotation], name: str, settings: dict[str, Any], embedder: Embedder, segmenter: Segmenter
) -> str:
    """A row of the table."""
    errors, off = [], []
    for path, truth in truths.items():
        options = DiarizationOptions(segmentation=segmenter, clusterer=name, clusterer_settings=settings)
        hypothesis = diarize(path, model=embedder, options=options).annotation
        errors.append(diarization_error(truth, hypothesis))
        off.append(len(hypothesis.labels()) - len(truth.labels()))
    whole = sum(errors[1:], errors[0])
    parts = ", ".join(f"{100 * part / whole.total:.1f}" for part in (whole.missed, whole.false_alarm, whole.confusion))
    shown = ", ".join(f"{key} {value}" for key, value in settings.items())
    rates = f"{np.mean([error.rate for error in errors]):.1%} | {whole.rate:.1%}"
    return f"| {name} | {shown} | {rates} | {parts} | {np.mean(off):+.1f} ({np.abs(off).mean():.1f}) |"


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
    embedder = Embedder(arguments.model, device="cpu")
    segmenter = Segmenter(arguments.segmentation, embedder=embedder)
    print(
        "| method | settings | DER, mean | DER, pooled | missed, false alarm, confusion | speaker count error (abs.) |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        truths = conversations(arguments.data, arguments.work, Path(folder), arguments.count, arguments.seed)
        for name, settings in configurations():
            print(score(truths, name, settings, embedder, segmenter), flush=True)


if __name__ == "__main__":
    main()
