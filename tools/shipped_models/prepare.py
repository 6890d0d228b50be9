"""Decode the recordings once and cache their log powers.

    python -m tools.shipped_models.prepare --data ../shared/data --work WORK

Writes to WORK/cache: `reels.tsv` (the rows of the manifest in cache order), `mel-real.npy` (natural logarithms of
Whisper's mel powers, float16, frames of all recordings concatenated) with `mel-real.offsets.npy`, the
same for `mel-noise`
and, with Kaldi's mel powers, `fbank-real` for the teacher of the speaker network; and `split.json`: the held-out
speakers, whom no speaker model is trained on.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from knn_cli.networks.encoders.whisper import WhisperMel
from knn_cli.networks.features import MelPower
from tools.shipped_models.data import FLOOR, Frames, held_out_speakers, read_16k, read_manifest, write_cache, write_json


def log_powers(waveform: NDArray[np.float32], powers: Callable[[Tensor], Tensor]) -> Frames:
    """(S,) in [-1, 1] at 16 kHz -> (N, 80) float16 natural log powers."""
    waveform = np.pad(waveform, (0, max(0, 400 - len(waveform))))
    with torch.inference_mode():
        logs: Frames = powers(torch.from_numpy(waveform)[None])[0].clamp_min(FLOOR).log().half().numpy()
    return logs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cache: Path = args.work / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(args.data / "speech" / "manifest.tsv", cache / "reels.tsv")
    rows = read_manifest(cache / "reels.tsv")
    write_json(cache / "split.json", {"held_out_speakers": held_out_speakers(rows)})
    speech = [args.data / "speech" / row["path"] for row in rows]
    noise = sorted(path for kind in ("esc10", "music") for path in (args.data / "noise" / kind).iterdir())
    for name, paths, powers in (
        ("mel-real", speech, WhisperMel().powers),
        ("mel-noise", noise, WhisperMel().powers),
        ("fbank-real", speech, MelPower()),
    ):
        if not (cache / f"{name}.offsets.npy").exists():
            write_cache(cache, name, (log_powers(read_16k(path), powers) for path in paths))


if __name__ == "__main__":
    main()
