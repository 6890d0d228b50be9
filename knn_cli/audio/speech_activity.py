"""Voice activity detection with silero-vad.

The network is recurrent, so its last layers run frame by frame. Waveforms are processed in parallel, and a long
recording is cut into chunks of a minute, each preceded by a few seconds of sound as warm-up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import soxr
import torch

from knn_cli.audio import silero
from knn_cli.audio.segments import binarize
from knn_cli.core.parallel import parallel_map
from knn_cli.core.values import Floats, Segment, Waveform

RATE, FRAME = silero.RATE, silero.FRAME
CHUNK_FRAMES = 60 * RATE // FRAME
WARM_UP_FRAMES = 4 * RATE // FRAME


def probabilities(waveforms: Iterable[Floats]) -> list[Floats]:
    """Compute the speech probability of every 32 ms frame of 16 kHz waveforms, with only a few of them in memory.

    Parameters
    ----------
    waveforms : iterable of (S,) float32 array
        Of any lengths.

    Returns
    -------
    list of (ceil(S / 512),) float32 array
        The last frame of each waveform is padded with zeros.
    """
    network = silero.network()

    def frame_probabilities(waveform: Floats) -> Floats:
        padded = np.pad(waveform, (0, -len(waveform) % FRAME))
        with torch.inference_mode():
            result: Floats = network(torch.from_numpy(padded)[None])[0].numpy()
        return result

    with parallel_map(torch.device("cpu")) as mapped:
        return list(mapped(frame_probabilities, waveforms))


def speech(blocks: Iterable[Waveform], **thresholds: float) -> list[Segment]:
    """Find the speech regions of one recording, with a few minutes of it in memory.

    Parameters
    ----------
    blocks : iterable of Waveform
        Consecutive, of any rate (resampled to 16 kHz) and length.
    **thresholds
        Settings of `segments.binarize`.

    Returns
    -------
    list of Segment
        Sorted by start.
    """
    chunks: list[tuple[int, float]] = []  # frames of warm-up, and the end in seconds

    def sounds() -> Iterator[Floats]:
        for chunk in _chunks(blocks):
            chunks.append((WARM_UP_FRAMES if chunk.start > 0 else 0, chunk.start + chunk.seconds))
            yield chunk.samples

    of_chunks = probabilities(sounds())
    parts = [values[warm_up:] for values, (warm_up, _) in zip(of_chunks, chunks, strict=True)]
    joined = np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
    return binarize(joined, FRAME / RATE, end=chunks[-1][1] if chunks else 0.0, **thresholds)


def _chunks(blocks: Iterable[Waveform]) -> Iterator[Waveform]:
    """A recording in chunks; all but the first begin with a warm-up."""
    size, warm_up = CHUNK_FRAMES * FRAME, WARM_UP_FRAMES * FRAME
    before = buffered = np.zeros(0, dtype=np.float32)
    position = 0

    def chunk(count: int) -> Waveform:
        return Waveform(np.concatenate([before, buffered[:count]]), RATE, (position - len(before)) / RATE)

    for samples in _at_rate(blocks):
        buffered = np.concatenate([buffered, samples])
        while len(buffered) >= size:
            yield chunk(size)
            before, buffered, position = buffered[size - warm_up : size], buffered[size:], position + size
    if len(buffered):
        yield chunk(len(buffered))


def _at_rate(blocks: Iterable[Waveform]) -> Iterator[Floats]:
    """The samples of blocks at 16 kHz."""
    resampler = None
    for block in blocks:
        if block.rate == RATE:
            yield block.samples
            continue
        resampler = resampler or soxr.ResampleStream(block.rate, RATE, 1, dtype="float32")
        yield resampler.resample_chunk(block.samples)
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
