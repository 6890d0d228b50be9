"""Diarize files with resemblyzer: silero-vad, embeddings of 1.6 s of speech every 0.4 s, spectral clustering.

The clustering is `spectralcluster` with the settings of its ICASSP 2018 paper (2 to 7 speakers). Each instant gets the
speaker of the window with the nearest centre.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import soundfile
import torch
from common import THREADS, arguments, write
from resemblyzer import VoiceEncoder, normalize_volume
from resemblyzer.hparams import audio_norm_target_dBFS
from silero_vad import get_speech_timestamps, load_silero_vad
from spectralcluster import configs

RATE = 16000
WINDOWS = 2.5  # per second


def main() -> None:
    """Diarize the files."""
    files, folder, _ = arguments()
    vad = load_silero_vad()  # it sets one thread for the process
    torch.set_num_threads(THREADS)
    encoder = VoiceEncoder("cpu", verbose=False)
    for path in files:
        samples, rate = soundfile.read(path, dtype="float32")
        assert rate == RATE
        samples = normalize_volume(samples, audio_norm_target_dBFS, increase_only=True)
        rows, regions = [], []
        for region in get_speech_timestamps(torch.from_numpy(samples), vad, sampling_rate=RATE):
            start, end = region["start"], region["end"]
            _, embeddings, cuts = encoder.embed_utterance(samples[start:end], return_partials=True, rate=WINDOWS)
            middles = [start + (cut.start + min(cut.stop, end - start)) / 2 for cut in cuts]
            regions.append((start, end, middles, len(rows)))
            rows.extend(embeddings)
        labels = configs.icassp2018_clusterer.predict(np.stack(rows)) if len(rows) > 1 else [0] * len(rows)
        turns = []
        for start, end, middles, first in regions:
            edges = [start, *((a + b) / 2 for a, b in pairwise(middles)), end]
            for place, label in enumerate(labels[first : first + len(middles)]):
                left, right, who = edges[place] / RATE, edges[place + 1] / RATE, f"SPEAKER_{label:02d}"
                if place and turns[-1][2] == who:
                    turns[-1] = (turns[-1][0], right, who)
                else:
                    turns.append((left, right, who))
        write(folder, path, turns)


if __name__ == "__main__":
    main()
