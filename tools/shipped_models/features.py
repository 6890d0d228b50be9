"""Hear every recording once with the trunk, whose weights stay as they are, and keep its layers.

    python -m tools.shipped_models.features --work WORK

Writes WORK/feats/<set>-<copy>.npy (frames of 40 ms, layers, 384) float16 with <set>-<copy>.npz (offsets, and the
recordings' numbers): `real-0` as recorded, `real-1` and `synth-1` through another voice, room, line and noise, and
`other-0`, languages outside the fifteen, which no training hears. Frames of 20 ms are averaged in pairs. At most 40
recordings of a speaker in a language and family are heard, 4 of other languages, 160 synthetic ones of a language, 12
seconds of each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from knn_cli.core.registry import ENCODERS
from knn_cli.networks.encoders.whisper import Whisper
from tools.shipped_models.augment import augment
from tools.shipped_models.data import EXAM_LANGUAGES, NO_LABELS, Corpus, Row, read_manifest, write_array

ENCODER_ARGS = {"blocks": 3, "final_norm": False, "level": 0.97, "normalised": True}
SETS = ("real-0", "synth-1", "real-1", "other-0")
LIMIT = 1200  # mel frames of a recording
SYNTHETIC = 160  # recordings a language; synthetic recording i of language l has the number 1000 l + i


def trunk(work: Path) -> Whisper:
    """The trunk's first blocks."""
    encoder: Whisper = ENCODERS.build("whisper", **ENCODER_ARGS)
    theirs = load_file(str(work / "trunk.safetensors"))
    encoder.load_state_dict({key: theirs[key] for key in encoder.state_dict()}, strict=True)
    return encoder.eval()


def labelled(row: Row) -> bool:
    """Whether a recording may teach and test languages."""
    return row["language"] in EXAM_LANGUAGES and row["family"] not in NO_LABELS


def other(row: Row) -> bool:
    """Whether a recording is of none of the fifteen languages."""
    return row["language"] not in EXAM_LANGUAGES


def chosen(rows: list[Row], quota: int, seconds: float, kind: Callable[[Row], bool] = labelled) -> list[int]:
    """Up to `quota` recordings of a kind of each speaker in each language and family, in order."""
    taken: dict[tuple[str, str, str], int] = {}
    result = []
    for index in np.random.default_rng(0).permutation(len(rows)).tolist():
        row = rows[index]
        if not kind(row) or float(row["seconds"]) < seconds:
            continue
        key = (row["language"], row["family"], row["speaker"])
        taken[key] = taken.get(key, 0) + 1
        if taken[key] <= quota:
            result.append(index)
    return sorted(result)


def sources(cache: Path, kind: str) -> tuple[list[tuple[Corpus, int]], list[int]]:
    """What a set holds: (corpus, number in it) pairs, and the numbers that the set's table gives them."""
    if kind == "synth":
        corpora = [Corpus(cache, f"mel-synth-{language}") for language in EXAM_LANGUAGES]
        pairs = [(number, i) for number, corpus in enumerate(corpora) for i in range(min(SYNTHETIC, len(corpus)))]
        return [(corpora[number], i) for number, i in pairs], [1000 * number + i for number, i in pairs]
    rows, real = read_manifest(cache / "reels.tsv"), Corpus(cache, "mel-real")
    numbers = chosen(rows, 4, 5.0, other) if kind == "other" else chosen(rows, 40, 3.0)
    return [(real, number) for number in numbers], numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = args.work / "feats"
    folder.mkdir(parents=True, exist_ok=True)
    encoder, noise, start = trunk(args.work), Corpus(args.work / "cache", "mel-noise"), time.monotonic()
    for name in SETS:
        if (folder / f"{name}.npz").exists():
            continue
        kind, copy = name.split("-")
        pairs, numbers = sources(args.work / "cache", kind)
        parts = []
        for done, ((corpus, index), number) in enumerate(zip(pairs, numbers, strict=True)):
            logs = torch.from_numpy(corpus.whole(index, LIMIT).astype(np.float32))[None]
            if copy != "0":
                logs = augment(logs, noise, np.random.default_rng([int(copy), number]), warp=0.6, plain=0.3)
            with torch.inference_mode():
                layers = torch.cat(list(encoder.encode(logs.exp()))).transpose(0, 1)  # (T, L, C)
            layers = layers[: len(layers) // 2 * 2].unflatten(0, (-1, 2)).mean(1)
            parts.append(layers.half().numpy())
            if done % 300 == 0:
                print(f"{name}: {done} of {len(pairs)}, {(time.monotonic() - start) / 60:.1f} min", flush=True)
        write_array(folder / f"{name}.npy", np.concatenate(parts))
        np.savez(folder / f"{name}.tmp.npz", offsets=np.cumsum([0, *map(len, parts)]), numbers=numbers)
        (folder / f"{name}.tmp.npz").replace(folder / f"{name}.npz")


if __name__ == "__main__":
    main()
