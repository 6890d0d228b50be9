"""Speech activity: where in a recording somebody speaks, by silero-vad.

The network remembers, so that its last part goes step by step. Waveforms go through it side by side, and a long
recording is cut into lanes of a minute, each with a few seconds of warm-up on what comes before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import soxr
import torch
from pyannote.core import Timeline

from knn_cli.audio import silero
from knn_cli.audio.segments import binarize
from knn_cli.core.parallel import parallel_map
from knn_cli.core.values import Floats, Waveform

RATE, FRAME = silero.RATE, silero.FRAME
LANE_FRAMES = 60 * RATE // FRAME
WARM_UP_FRAMES = 4 * RATE // FRAME


def probabilities(waveforms: Iterable[Floats]) -> list[Floats]:
    """Speech probability of every 32 ms frame of 16 kHz waveforms; few of them are held at once.

    waveforms : (S,) float32 each, of any lengths
    Returns (ceil(S / 512),) float32 each; the last frame is filled up with silence.
    """
    network = silero.network()

    def heard(waveform: Floats) -> Floats:
        whole = np.pad(waveform, (0, -len(waveform) % FRAME))
        with torch.inference_mode():
            result: Floats = network(torch.from_numpy(whole)[None])[0].numpy()
        return result

    with parallel_map(torch.device("cpu")) as each:
        return list(each(heard, waveforms))


def speech(blocks: Iterable[Waveform], **thresholds: float) -> Timeline:
    """Speech regions of one recording from its consecutive blocks, in the memory of some minutes of sound.

    blocks     : consecutive, of any rate (resampled to 16 kHz) and length
    thresholds : settings of `segments.binarize`
    """
    lanes: list[tuple[int, float]] = []  # frames of warm-up, and where each ends

    def sounds() -> Iterator[Floats]:
        for lane in _lanes(blocks):
            lanes.append((WARM_UP_FRAMES if lane.start > 0 else 0, lane.start + lane.seconds))
            yield lane.samples

    found = probabilities(sounds())
    pieces = [one[skip:] for one, (skip, _) in zip(found, lanes, strict=True)]
    joined = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.float32)
    return binarize(joined, FRAME / RATE, end=lanes[-1][1] if lanes else 0.0, **thresholds)


def _lanes(blocks: Iterable[Waveform]) -> Iterator[Waveform]:
    """A recording in lanes; all but the first begin with a warm-up."""
    size, warm = LANE_FRAMES * FRAME, WARM_UP_FRAMES * FRAME
    before = held = np.zeros(0, dtype=np.float32)
    position = 0

    def lane(count: int) -> Waveform:
        return Waveform(np.concatenate([before, held[:count]]), RATE, (position - len(before)) / RATE)

    for samples in _at_rate(blocks):
        held = np.concatenate([held, samples])
        while len(held) >= size:
            yield lane(size)
            before, held, position = held[size - warm : size], held[size:], position + size
    if len(held):
        yield lane(len(held))


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
