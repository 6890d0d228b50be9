"""Windows of made-up recordings, so that speakers and turns can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from knn_cli.audio.segments import FRAME_SECONDS
from knn_cli.core.values import Doubles, Floats
from knn_cli.diarization import reconstruction
from knn_cli.diarization.pipeline import WindowEmbeddings
from knn_cli.diarization.reconstruction import LocalSpeaker, Segmentation

WINDOW, HOP = 250, 63


def windows_of(
    turns: Sequence[tuple[float, float, int]], seconds: float, voices: Doubles, *, noise: float = 0.05, seed: int = 0
) -> WindowEmbeddings:
    """Windows of turns (start, end, speaker); embeddings are the mean of the `voices` (S, D) in them, and noise."""
    rng = np.random.default_rng(seed)
    frames = round(seconds / FRAME_SECONDS)
    speaking = np.zeros((frames + WINDOW, len(voices)), dtype=bool)
    for start, end, speaker in turns:
        speaking[round(start / FRAME_SECONDS) : round(end / FRAME_SECONDS), speaker] = True
    starts = np.arange(0, max(1, frames - WINDOW + HOP), HOP, dtype=np.int64)
    chances = np.zeros((len(starts), WINDOW, len(voices)), dtype=np.float16)
    for row, start in zip(chances, starts.tolist(), strict=True):
        row[:] = speaking[start : start + WINDOW][:, rng.permutation(len(voices))] * 0.9  # local speakers in any order
    segmentation = Segmentation(starts, chances, frames)
    short_windows = reconstruction.single_speaker_windows(reconstruction.speech_probability(segmentation))

    def embedded(where: Segmentation, local: Sequence[LocalSpeaker]) -> tuple[Floats, Floats]:
        rows = np.zeros((len(local), voices.shape[1]), dtype=np.float32)
        lengths = np.zeros(len(local), dtype=np.float32)
        for row, one in enumerate(local):
            inside = np.flatnonzero(one.embedding_mask) + where.starts[one.window]
            rows[row] = speaking[inside].mean(0) @ voices + rng.normal(0, noise, voices.shape[1])
            lengths[row] = len(inside) * FRAME_SECONDS
        return rows, lengths

    short, local = reconstruction.local_speakers(short_windows), reconstruction.local_speakers(segmentation)
    vectors, lengths = embedded(short_windows, short)
    local_vectors, _ = embedded(segmentation, local)
    levels = np.where(speaking[:frames].any(1), -30, -70).astype(np.int8)
    return WindowEmbeddings(segmentation, levels, short_windows, short, vectors, lengths, vectors, local, local_vectors)
