"""Weights of `knn_cli.diarization.no_speech`: which turns of the diarizer are music or noise.

    python -m tools.shipped_models.no_speech [--data ../shared/data] [--model M] [--segmentation M] [--recordings 40]

Recordings are made in which clips of speech and of music or noise (animals, machines, weather) follow each other with
short pauses, the latter 20 dB below speech to 5 dB above it. The weights are fitted to the clips, since a good
segmentation network takes few of them for speech; both kinds weigh the same. Half of the sources (speakers; pieces of
music; recordings of noise) are for fitting, the others for figures, of clips and of the diarizer's turns: a turn is a
speaker's if at least half of it is speech, none's if at most a tenth is, and left out in between.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from benchmarks.diarization import recordings as reference_recordings
from knn_cli.core.values import Segment, Turn
from knn_cli.diarization.no_speech import EVIDENCE, turn_evidence
from knn_cli.diarization.options import DiarizationOptions
from knn_cli.diarization.pipeline import diarize
from knn_cli.diarization.segmentation import Segmenter
from knn_cli.embedding.embedder import Embedder
from tools.shipped_models.data import read_16k, read_manifest

RATE = 16_000
SPEECH_CLIPS = NOISE_CLIPS = 4  # of a recording
RIDGE = 0.01  # of the fit: half of this times the square of each weight
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def halves(names: list[str], generator: np.random.Generator) -> tuple[set[str], set[str]]:
    """Names in two halves."""
    shuffled = generator.permutation(sorted(set(names))).tolist()
    return set(shuffled[::2]), set(shuffled[1::2])


def sources(data: Path, generator: np.random.Generator) -> list[tuple[list[list[Path]], list[list[Path]]]]:
    """For fitting and for figures: files of each speaker, and files of music and of noise."""
    speakers: dict[str, list[Path]] = {}
    for row in read_manifest(data / "speech" / "manifest.tsv"):
        if row["family"] != "gcompris":
            speakers.setdefault(row["speaker"], []).append(data / "speech" / row["path"])
    music = sorted((data / "noise" / "music").iterdir())
    noise = [path for path in sorted((data / "noise" / "esc10").iterdir())]
    origin = {path: path.stem.rpartition("-")[0] or path.stem for path in noise}  # -A, -B: parts of one recording
    names = halves(list(speakers), generator)
    pieces = halves([path.name for path in music], generator)
    origins = halves(list(origin.values()), generator)
    return [
        (
            [files for speaker, files in sorted(speakers.items()) if speaker in names[half]],
            [
                [path for path in music if path.name in pieces[half]],
                [path for path in noise if origin[path] in origins[half]],
            ],
        )
        for half in (0, 1)
    ]


def crop(path: Path, seconds: float, generator: np.random.Generator) -> Floats:
    """A part of a recording with a mean square of 1."""
    sound = read_16k(path)
    size = min(len(sound), round(seconds * RATE))
    first = int(generator.integers(len(sound) - size + 1))
    part = sound[first : first + size]
    return part / np.float32(max(1e-6, float(np.sqrt(np.mean(np.square(part))))))


def made_up(
    speakers: list[list[Path]], noises: list[list[Path]], generator: np.random.Generator
) -> tuple[Floats, list[Turn]]:
    """A recording, and its clips as turns of the speakers "speech" and "none"."""
    kinds = generator.permutation([True] * SPEECH_CLIPS + [False] * NOISE_CLIPS)
    level = 10 ** (generator.uniform(-35, -20) / 20)
    parts: list[Floats] = []
    clips: list[Turn] = []
    at = 0
    present = generator.choice(len(speakers), 2, replace=False)
    for is_speech in kinds:
        if is_speech:
            files = speakers[int(generator.choice(present))]
            clip = crop(files[int(generator.integers(len(files)))], generator.uniform(2, 6), generator)
        else:
            files = noises[int(generator.integers(len(noises)))]
            gain = np.float32(10 ** (generator.uniform(-20, 5) / 20))
            clip = crop(files[int(generator.integers(len(files)))], generator.uniform(2, 6), generator) * gain
        clips.append(Turn(at / RATE, (at + len(clip)) / RATE, "speech" if is_speech else "none"))
        pause = np.zeros(round(generator.uniform(0.5, 1.5) * RATE), dtype=np.float32)
        parts += [clip, pause]
        at += len(clip) + len(pause)
    sound = np.concatenate(parts) * np.float32(level)
    sound += generator.normal(0, level * 10 ** (generator.uniform(-50, -25) / 20), len(sound)).astype(np.float32)
    return sound.clip(-0.99, 0.99), clips


def labels(turns: tuple[Turn, ...], speech: list[Turn]) -> Doubles:
    """(N,) 1 for turns that are none's, 0 for speakers', NaN in between."""
    shares = [sum((Segment(turn.start, turn.end) & part).duration for part in speech) / turn.duration for turn in turns]
    return np.array([1.0 if share <= 0.1 else 0.0 if share >= 0.5 else np.nan for share in shares])


def fit(evidence: Doubles, none: Doubles) -> tuple[Doubles, float]:
    """Weights and bias of a logistic regression in which both classes weigh the same."""
    scale = evidence.std(0) + 1e-9
    middle = evidence.mean(0)
    x = np.column_stack([(evidence - middle) / scale, np.ones(len(evidence))])
    share = np.where(none == 1, 0.5 / max(1, (none == 1).sum()), 0.5 / max(1, (none == 0).sum()))

    def loss(weights: Doubles) -> float:
        z = x @ weights
        return float(share @ (np.logaddexp(0, z) - none * z) + 0.5 * RIDGE * np.square(weights[:-1]).sum())

    found = minimize(loss, np.zeros(x.shape[1]), method="BFGS").x
    weights = found[:-1] / scale
    return weights, float(found[-1] - weights @ middle)


def area(scores: Doubles, none: Doubles) -> float:
    """Area under the curve: how often a turn of none's has the larger score than one of a speaker."""
    positive, negative = scores[none == 1], scores[none == 0]
    return float(np.mean((positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)))


def report(title: str, evidence: Doubles, none: Doubles, weights: Doubles, bias: float) -> None:
    """Print AUC and errors at a probability of one half."""
    p = expit(evidence @ weights + bias)
    missed, alarms = float(np.mean(p[none == 1] < 0.5)), float(np.mean(p[none == 0] >= 0.5))
    print(f"{title}: {int((none == 1).sum())} turns of no speaker, {int((none == 0).sum())} of speakers")
    print(f"  AUC {area(p, none):.3f}; {missed:.1%} of no speaker unflagged, {alarms:.1%} of speakers flagged")


def main() -> None:
    """Fit and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model")
    parser.add_argument("--segmentation")
    parser.add_argument("--recordings", type=int, default=40, help="of each half")
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    embedder = Embedder(arguments.model, device="cpu")
    options = DiarizationOptions(segmentation=Segmenter(arguments.segmentation, embedder=embedder))
    figures: dict[str, tuple[Doubles, Doubles]] = {}
    for half, (speakers, noises) in zip(("fitted", "held out"), sources(arguments.data, generator), strict=True):
        of_clips, of_turns = [], []
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(arguments.recordings):
                sound, clips = made_up(speakers, noises, generator)
                path = Path(folder) / "a.flac"
                soundfile.write(path, sound, RATE)
                of_clips.append(
                    (turn_evidence(clips, path), np.array([clip.speaker == "none" for clip in clips]) * 1.0)
                )
                turns = diarize(path, model=embedder, options=options).turns
                spoken = [clip for clip in clips if clip.speaker == "speech"]
                of_turns.append((turn_evidence(turns, path), labels(turns, spoken)))
        for kind, pairs in (("clips", of_clips), ("turns", of_turns)):
            evidence, none = (np.concatenate(columns) for columns in zip(*pairs, strict=True))
            figures[f"{half}, {kind}"] = evidence[np.isfinite(none)], none[np.isfinite(none)]
    weights, bias = fit(*figures["fitted, clips"])
    print("WEIGHTS", dict(zip(EVIDENCE, weights.round(2).tolist(), strict=True)), "BIAS", round(bias, 2))
    for title, part in figures.items():
        report(title, *part, weights, bias)
    for case in reference_recordings(arguments.data / "diar"):
        turns = diarize(case.path, model=embedder, options=options).turns
        p = expit(turn_evidence(turns, case.path) @ weights + bias)
        print(f"{case.path.stem}: {np.count_nonzero(p >= 0.5)} of {len(p)} turns flagged")


if __name__ == "__main__":
    main()
