"""Equal error rates on held-out speakers: any models and resemblyzer side by side, and the cost of each.

    python -m benchmarks.speakers --models voice ours=OLD int8=FOLDER [--resemblyzer PYTHON] [--seconds 3]

The speakers are `tools.shipped_models.data.held_out_speakers` except for ambiguous names, with up to four recordings
each and two crops per recording. Every pair of crops is a trial, scored by the cosine; intervals are from resampling
speakers. Conditions: as recorded, and mixed: a seeded draw convolves each crop with a measured room impulse response,
adds babble of six other speakers (5 to 20 dB) or limits it to a telephone band, or any combination.
A model is the name or the folder of a bundle, with a name for the table before `=` if it should have another; PYTHON is
an interpreter of an environment with resemblyzer 0.1.4. The last output is a table for docs/benchmarks.md.

Costs are processor seconds per second of audio for filter bank and network together, with all networks in the same
process (resemblyzer in its own), one clip of 3 s at a time: the median of alternating runs. MB are of the weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import butter, fftconvolve, sosfilt

from knn_cli.embedding.embedder import Embedder
from knn_cli.evaluation.detection_rates import equal_error_rate
from knn_cli.evaluation.metrics import eer
from knn_cli.networks.bundle import WEIGHTS
from tools.shipped_models.data import held_out_speakers, is_ambiguous_speaker, read_16k, read_manifest

Floats = NDArray[np.float32]
RATE = 16000
SECONDS = (2, 3, 5)
RECORDINGS = 4

COST_SECONDS, COST_RUNS = 3, 8
RESEMBLYZER = """
import sys, time
import numpy as np
import resemblyzer
encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)
crops, costs, rows = np.load(sys.argv[1]), [], []
for crop in crops:
    start = time.process_time()
    rows.append(encoder.embed_utterance(crop))
    costs.append((time.process_time() - start) * 16000 / len(crop))
np.savez(sys.argv[2], rows=np.stack(rows), cost=np.median(costs))
"""
RESEMBLYZER_SIZE = """
import pathlib, resemblyzer
print((pathlib.Path(resemblyzer.__file__).parent / "pretrained.pt").stat().st_size / 1e6)
"""


def crops(data: Path, seconds: int) -> tuple[Floats, NDArray[np.str_], NDArray[np.bool_]]:
    """Waveforms (N, S), their speakers, and whether each is from LibriSpeech."""
    rows = read_manifest(data / "speech" / "manifest.tsv")
    hidden, taken = {name for name in held_out_speakers(rows) if not is_ambiguous_speaker(name)}, dict[str, int]()
    waveforms, who, libri = [], [], []
    for row in rows:
        speaker, size = row["speaker"], seconds * RATE
        if speaker not in hidden or float(row["seconds"]) < 2 * seconds or taken.get(speaker, 0) >= RECORDINGS:
            continue
        taken[speaker] = taken.get(speaker, 0) + 1
        waveform = read_16k(data / "speech" / row["path"])
        for crop in (waveform[:size], waveform[-size:]):
            waveforms.append(crop)
            who.append(speaker)
            libri.append(row["source"] == "librispeech")
    return np.stack(waveforms), np.array(who), np.array(libri)


def mixed(waveforms: Floats, who: NDArray[np.str_], data: Path) -> Floats:
    """Each crop with a room, babble or telephone band by a seeded draw; at least one of them is always applied.

    Neither these rooms nor these speakers were used in training.
    """
    rng = np.random.default_rng(5)
    rooms = [read_16k(path) for path in sorted((data / "noise" / "rir").glob("*.flac"))]
    band = butter(6, (300, 3400), "bandpass", fs=RATE, output="sos")
    result = []
    for speaker, clean in zip(who, waveforms, strict=True):
        waveform, which = clean, rng.random(3) < 0.5
        if not which.any():
            which[rng.integers(3)] = True
        if which[0]:
            room = rooms[rng.integers(len(rooms))]
            waveform = fftconvolve(waveform, room[np.abs(room).argmax() :])[: len(waveform)]
        if which[1]:
            babble = waveforms[rng.choice(np.flatnonzero(who != speaker), 6, replace=False)].sum(0)
            gain = np.sqrt(np.mean(waveform**2) / np.mean(babble**2) * 10 ** (-rng.uniform(5, 20) / 10))
            waveform = waveform + gain * babble
        if which[2]:
            waveform = sosfilt(band, waveform)
        result.append(0.3 * waveform / np.abs(waveform).max())
    return np.stack(result).astype(np.float32)


def error_rates(embeddings: Floats, who: NDArray[np.str_], libri: NDArray[np.bool_]) -> dict[str, float]:
    """EER in percent over all pairs, and over those within LibriSpeech."""
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosines, same = units @ units.T, who[:, None] == who
    result = {}
    for name, kept in (("all", np.ones(len(who), bool)), ("LibriSpeech", libri)):
        pairs = np.triu(np.outer(kept, kept), 1)
        result[name] = round(100 * eer(cosines[pairs & same], cosines[pairs & ~same]), 1)
    return result


def interval(embeddings: Floats, who: NDArray[np.str_], draws: int = 300) -> list[float]:
    """95 % interval of the EER over all pairs in percent, from resampling speakers.

    A speaker drawn n times has weight n in target trials, and n m in trials against a speaker drawn m times.
    """
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    left, right = np.triu_indices(len(who), 1)
    _, speaker = np.unique(who, return_inverse=True)
    left, right = left[order := np.argsort((units @ units.T)[left, right])], right[order]
    first, second = speaker[left], speaker[right]
    same, rng = first == second, np.random.default_rng(0)
    rates = []
    for _ in range(draws):
        times = np.bincount(rng.integers(speaker.max() + 1, size=speaker.max() + 1), minlength=speaker.max() + 1)
        weights = np.where(same, times[first], times[first] * times[second]).astype(float)
        below = np.cumsum(np.stack([weights * same, weights * ~same], axis=1), axis=0)  # each score: (pairs, 2)
        miss, alarm = np.vstack([np.zeros(2), below / below[-1]]).T
        rates.append(float(equal_error_rate(miss[:, None], 1 - alarm[:, None])[0]))
    return [round(100 * float(edge), 1) for edge in np.percentile(rates, [2.5, 97.5])]


def costs(embedders: dict[str, Embedder]) -> dict[str, float]:
    """Processor seconds per second of audio of each network."""
    clip = [np.random.default_rng(0).normal(0, 0.1, COST_SECONDS * RATE).astype(np.float32)]
    spent: dict[str, list[float]] = {name: [] for name in embedders}
    for _ in range(COST_RUNS):
        for name, embedder in embedders.items():
            start = time.process_time()
            embedder(clip)
            spent[name].append(time.process_time() - start)
    return {name: float(np.median(times[2:])) / COST_SECONDS for name, times in spent.items()}


class Resemblyzer:
    """Resemblyzer, run by the interpreter of another environment, with its cost on the crops that it embedded last."""

    def __init__(self, python: str) -> None:
        self.python, self.cost = python, float("nan")

    def __call__(self, waveforms: list[Floats]) -> Floats:
        with tempfile.TemporaryDirectory() as folder:
            crops_path, output = Path(folder) / "sound.npy", Path(folder) / "made.npz"
            np.save(crops_path, np.stack(waveforms))
            subprocess.run([self.python, "-c", RESEMBLYZER, str(crops_path), str(output)], check=True)
            made = np.load(output)
            self.cost = float(made["cost"])
            embeddings: Floats = made["rows"]
            return embeddings

    def megabytes(self) -> float:
        """Size of its weights."""
        done = subprocess.run([self.python, "-c", RESEMBLYZER_SIZE], check=True, capture_output=True, text=True)
        return float(done.stdout)


def named_embedders(models: list[str]) -> dict[str, Embedder]:
    """Name for the table -> embedder, of NAME=MODEL or MODEL."""
    parts = [
        (name, model) if model else (Path(name).name, name) for name, _, model in (m.partition("=") for m in models)
    ]
    return {name: Embedder(model, device="cpu") for name, model in parts}


def table(rows: list[dict[str, Any]], cost: dict[str, float], size: dict[str, float]) -> str:
    """Markdown: EER with its interval by system and condition, then cost and size."""
    columns = list(dict.fromkeys((row["seconds"], row["condition"]) for row in rows))
    cells = {(row["system"], row["seconds"], row["condition"]): row for row in rows}
    lines = [
        f"| system | {' | '.join(f'{seconds} s, {condition}' for seconds, condition in columns)} | CPU s per s | MB |",
        "|---|" + "---|" * (len(columns) + 2),
    ]
    for system in dict.fromkeys(row["system"] for row in rows):
        found = [cells[system, seconds, condition] for seconds, condition in columns]
        rates = " | ".join(f"{row['EER all']} ({row['95 %'][0]} to {row['95 %'][1]})" for row in found)
        lines.append(f"| {system} | {rates} | {cost[system]:.4f} | {size[system]:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--models", nargs="+", default=["voice"], metavar="[NAME=]MODEL")
    parser.add_argument("--resemblyzer", metavar="PYTHON")
    parser.add_argument("--seconds", type=int, nargs="+", default=list(SECONDS))
    parser.add_argument("--clean", action="store_true", help="as recorded only")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    embedders = named_embedders(args.models)
    systems: dict[str, Callable[[list[Floats]], Floats]] = dict(embedders)
    peer = Resemblyzer(args.resemblyzer) if args.resemblyzer else None
    if peer is not None:
        systems["resemblyzer"] = peer
    rows: list[dict[str, Any]] = []
    for seconds in args.seconds:
        clean, who, libri = crops(args.data, seconds)
        conditions = (
            {"as recorded": clean} if args.clean else {"as recorded": clean, "mixed": mixed(clean, who, args.data)}
        )
        for condition, waveforms in conditions.items():
            for name, system in systems.items():
                embeddings = system(list(waveforms))
                row = {"seconds": seconds, "condition": condition, "system": name, "crops": len(who)}
                row |= {"trials": len(who) * (len(who) - 1) // 2, "95 %": interval(embeddings, who)}
                row |= {f"EER {key}": value for key, value in error_rates(embeddings, who, libri).items()}
                rows.append(row)
                print(json.dumps(row), flush=True)
    cost = costs(embedders)
    size = {name: (one.bundle.folder / WEIGHTS).stat().st_size / 1e6 for name, one in embedders.items()}
    if peer is not None:
        cost["resemblyzer"], size["resemblyzer"] = peer.cost, peer.megabytes()
    print(table(rows, cost, size))


if __name__ == "__main__":
    main()
