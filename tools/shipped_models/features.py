"""Encode every recording once with the frozen trunk and save its layers.

    python -m tools.shipped_models.features --work WORK

Writes WORK/feats/<set>-<copy>.npy (frames of 40 ms, layers, 384) float16 with <set>-<copy>.npz (offsets, and the
recordings' numbers): `real-0` as recorded, `real-1` and `synth-1` with random vocal tract, room, channel and noise,
and `other-0`, languages outside the fifteen, which are not used in training. Frames of 20 ms are averaged in pairs. At
most 40 recordings per speaker, language and family are used (4 for other languages), 160 synthetic recordings per
language, and 12 seconds of each.
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
from tools.shipped_models.data import TARGET_LANGUAGES, UNLABELLED_FAMILIES, Corpus, Row, read_manifest, write_array

ENCODER_ARGS = {"blocks": 3, "final_norm": False, "level": 0.97, "normalised": True}
SETS = ("real-0", "synth-1", "real-1", "other-0")
LIMIT = 1200  # mel frames per recording
SYNTHETIC = 160  # recordings per language; synthetic recording i of language l has the number 1000 l + i


def trunk(work: Path) -> Whisper:
    """The first blocks of the trunk."""
    encoder: Whisper = ENCODERS.build("whisper", **ENCODER_ARGS)
    weights = load_file(str(work / "trunk.safetensors"))
    encoder.load_state_dict({key: weights[key] for key in encoder.state_dict()}, strict=True)
    return encoder.eval()


def has_target_language(row: Row) -> bool:
    """Whether a recording is used to train and test languages."""
    return row["language"] in TARGET_LANGUAGES and row["family"] not in UNLABELLED_FAMILIES


def has_other_language(row: Row) -> bool:
    """Whether the language of a recording is outside the fifteen."""
    return row["language"] not in TARGET_LANGUAGES


def choose_recordings(
    rows: list[Row], quota: int, seconds: float, kind: Callable[[Row], bool] = has_target_language
) -> list[int]:
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
    """The (corpus, index) pairs of a set, and the recording numbers that are saved with it."""
    if kind == "synth":
        corpora = [Corpus(cache, f"mel-synth-{language}") for language in TARGET_LANGUAGES]
        pairs = [(number, i) for number, corpus in enumerate(corpora) for i in range(min(SYNTHETIC, len(corpus)))]
        return [(corpora[number], i) for number, i in pairs], [1000 * number + i for number, i in pairs]
    rows, real = read_manifest(cache / "reels.tsv"), Corpus(cache, "mel-real")
    numbers = (
        choose_recordings(rows, 4, 5.0, has_other_language) if kind == "other" else choose_recordings(rows, 40, 3.0)
    )
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
