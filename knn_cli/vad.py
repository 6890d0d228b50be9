"""Speech activity: where in a recording somebody speaks, by silero-vad.

The network remembers, so that its last part goes step by step. Equal waveforms go through it side by side, and a long
recording is cut into lanes of a minute that run side by side, each after a few seconds of warm-up on what comes before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import soxr
import torch
from pyannote.core import Timeline

from knn_cli import silero
from knn_cli.segments import binarize
from knn_cli.types import Floats, Waveform
from knn_cli.workers import one_thread

RATE, FRAME = silero.RATE, silero.FRAME
LANE_FRAMES = 60 * RATE // FRAME
WARM_UP_FRAMES = 4 * RATE // FRAME
LANES = 16


def probabilities(waveforms: Sequence[Floats]) -> list[Floats]:
    """Speech probability of every 32 ms frame of 16 kHz waveforms.

    waveforms : (S,) float32 each, of any lengths
    Returns (ceil(S / 512),) float32 each; the last frame is filled up with silence.
    """
    counts = [-(-len(waveform) // FRAME) for waveform in waveforms]
    found: list[Floats] = [np.zeros(0, dtype=np.float32)] * len(waveforms)
    order = sorted(range(len(waveforms)), key=counts.__getitem__)
    for first in range(0, len(order), LANES):
        rows = order[first : first + LANES]
        lanes = np.zeros((len(rows), max(counts[row] for row in rows) * FRAME), dtype=np.float32)
        for lane, row in zip(lanes, rows, strict=True):
            lane[: len(waveforms[row])] = waveforms[row]
        result = _run(lanes)
        for lane, row in zip(result, rows, strict=True):
            found[row] = lane[: counts[row]]
    return found


def _run(lanes: Floats) -> Floats:
    """(B, n * 512) samples -> (B, n) probabilities, each lane from a fresh state."""
    with torch.inference_mode(), one_thread():  # a memory goes step by step, and its steps are small
        result: Floats = silero.network()(torch.from_numpy(lanes)).numpy()
    return result


def speech(blocks: Iterable[Waveform], **thresholds: float) -> Timeline:
    """Speech regions of one recording from its consecutive blocks, in the memory of some minutes of sound.

    blocks     : consecutive, of any rate (resampled to 16 kHz) and length
    thresholds : settings of `segments.binarize`
    """
    total = 0.0
    pieces: list[Floats] = []
    for lanes, end in _lanes(blocks):
        total = end
        warm = [WARM_UP_FRAMES * FRAME if lane.start > 0 else 0 for lane in lanes]
        for found, skip in zip(probabilities([lane.samples for lane in lanes]), warm, strict=True):
            pieces.append(found[skip // FRAME :])
    joined = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.float32)
    return binarize(joined, FRAME / RATE, end=total, **thresholds)


def _lanes(blocks: Iterable[Waveform]) -> Iterator[tuple[list[Waveform], float]]:
    """Groups of up to LANES lanes and the seconds heard so far; all lanes but the first begin with a warm-up."""
    size, warm = LANE_FRAMES * FRAME, WARM_UP_FRAMES * FRAME
    ready: list[Waveform] = []
    before = np.zeros(0, dtype=np.float32)
    held = np.zeros(0, dtype=np.float32)
    position = 0

    def take(count: int) -> None:
        nonlocal before, held, position
        ready.append(Waveform(np.concatenate([before, held[:count]]), RATE, position / RATE))
        before, held, position = held[max(0, count - warm) : count], held[count:], position + count

    for samples in _at_rate(blocks):
        held = np.concatenate([held, samples])
        while len(held) >= size:
            take(size)
            if len(ready) == LANES:
                yield ready, position / RATE
                ready = []
    if len(held):
        take(len(held))
    if ready:
        yield ready, position / RATE


def _at_rate(blocks: Iterable[Waveform]) -> Iterator[Floats]:
    resampler = None
    for block in blocks:
        if block.rate == RATE:
            yield block.samples
            continue
        resampler = resampler or soxr.ResampleStream(block.rate, RATE, 1, dtype="float32")
        yield resampler.resample_chunk(block.samples)
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
