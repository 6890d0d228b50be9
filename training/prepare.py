"""Decode the recordings once and cache their mel powers.

    python -m training.prepare --data ../shared/data --work WORK

Writes to WORK/cache: `reels.tsv` (the manifest's rows in cache order), `real.npy` (all frames one after the other,
float16 natural logarithms of mel powers, (frames, 80)) and `real.offsets.npy` ((recordings + 1,) int64), the same for
`noise`, and `split.json`: speakers that no model ever hears, for the speaker figures.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from knn_cli.encoders import MelPower

FLOOR = 1.1920929e-07  # what Kaldi adds before the logarithm; half precision holds its logarithm
EXAM_LANGUAGES = tuple("bg ca cs da de el en es fr it nl pl ro ru zh".split())


def read_manifest(path: Path) -> list[dict[str, str]]:
    """Rows of a tab-separated table with a header."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def log_mel(waveform: NDArray[np.float32], mel: MelPower) -> NDArray[np.float16]:
    """(S,) in [-1, 1] at 16 kHz -> (N, 80) float16 log powers."""
    if len(waveform) < mel.length:
        waveform = np.pad(waveform, (0, mel.length - len(waveform)))
    with torch.inference_mode():
        powers = mel(torch.from_numpy(waveform)[None])[0]  # (N, 80)
        logs: NDArray[np.float16] = powers.clamp_min(FLOOR).log().half().numpy()
        return logs


def write_array(path: Path, array: NDArray[np.generic]) -> None:
    """Save under a temporary name, then rename: a killed run leaves no half file."""
    temporary = path.with_name(path.name + ".tmp.npy")
    np.save(temporary, array)
    temporary.replace(path)


def write_cache(folder: Path, name: str, parts: Iterable[NDArray[np.float16]]) -> None:
    """Write frames of several recordings end to end, with offsets, each file atomically; offsets last."""
    kept = list(parts)
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in kept])]).astype(np.int64)
    write_array(folder / f"{name}.npy", np.concatenate(kept))
    write_array(folder / f"{name}.offsets.npy", offsets)


def read_16k(path: Path) -> NDArray[np.float32]:
    """A mono recording at 16 kHz as float32; ValueError for anything else."""
    waveform, rate = soundfile.read(path, dtype="float32", always_2d=True)
    if rate != 16000:
        raise ValueError(f"{path} is at {rate} Hz, 16000 expected")
    return np.ascontiguousarray(waveform.mean(1))


def held_out_speakers(rows: list[dict[str, str]], seed: int) -> list[str]:
    """Speakers for the speaker figures: 40 of LibriSpeech with one reel, and 24 others with two reels or more.

    The others are drawn from languages outside the fifteen, so that the language side loses nothing.
    """
    rng = np.random.default_rng(seed)
    libri = sorted({r["speaker"] for r in rows if r["source"] == "librispeech"})
    chosen = list(rng.choice(libri, 40, replace=False))
    count: dict[str, int] = {}
    exam = {r["speaker"] for r in rows if r["language"] in EXAM_LANGUAGES}
    for row in rows:
        count[row["speaker"]] = count.get(row["speaker"], 0) + 1
    others = sorted(speaker for speaker, n in count.items() if n >= 4 and speaker not in exam)
    return sorted(chosen + list(rng.choice(others, min(24, len(others)), replace=False)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cache: Path = args.work / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    mel = MelPower()

    rows = read_manifest(args.data / "speech" / "manifest.tsv")
    if not (cache / "real.offsets.npy").exists():
        write_cache(cache, "real", (log_mel(read_16k(args.data / "speech" / r["path"]), mel) for r in rows))
    with (cache / "reels.tsv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (cache / "split.json").write_text(json.dumps({"held_out_speakers": held_out_speakers(rows, args.seed)}))
    if not (cache / "noise.offsets.npy").exists():
        paths = sorted(p for kind in ("esc10", "music") for p in (args.data / "noise" / kind).iterdir())
        write_cache(cache, "noise", (log_mel(read_16k(path), mel) for path in paths))


if __name__ == "__main__":
    main()
