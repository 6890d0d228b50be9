"""Channels of a recording that hold the same sound, as where one microphone was recorded as stereo.

Two channels are alike where one is nearly the other, at any level, of either polarity, up to a small delay: the largest
cross-correlation over the whole recording, within MAX_DELAY, divided by the product of their levels, is at least
MIN_CORRELATION. It reads each channel once, at a low rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from knn_cli.audio import reading
from knn_cli.core.values import Doubles, Floats

MIN_CORRELATION = 0.9  # 81 % of the power of one explained by the other; a call's echo also has the other party
MAX_DELAY = 0.05  # seconds
RATE = 8000
BLOCK_SECONDS = 4.0


def first_alike(path: Path, names: Sequence[str]) -> list[int]:
    """Return, for each channel, the index of the first one that has the same sound; its own where there is none.

    Parameters
    ----------
    path : Path
    names : sequence of str
        Its channels, as `reading.read` names them.

    Raises
    ------
    AudioError
        See `reading.read`.
    """
    size = round(BLOCK_SECONDS * RATE)
    channels = len(names)
    streams = [reading.blocks(path, rate=RATE, channel=name, seconds=BLOCK_SECONDS) for name in names]
    products = np.zeros((channels, channels, 2 * size))
    for blocks in zip(*streams, strict=True):
        products += _correlations(np.stack([_padded(block.samples, size) for block in blocks]))
    delay = round(MAX_DELAY * RATE)
    near = np.concatenate([products[:, :, : delay + 1], products[:, :, -delay:]], axis=2)
    largest = np.abs(near).max(axis=2)
    levels = np.sqrt(np.diagonal(products[:, :, 0]))
    alike = (largest >= MIN_CORRELATION * np.outer(levels, levels)) & (levels > 0) & (levels[:, None] > 0)
    np.fill_diagonal(alike, True)
    return [int(row.argmax()) for row in alike]


def _padded(samples: Floats, size: int) -> Doubles:
    """(size,) samples without their mean, then zeros."""
    padded = np.zeros(size)
    padded[: len(samples)] = samples - samples.mean()
    return padded


def _correlations(blocks: Doubles) -> Doubles:
    """(C, C, 2 S) cross-correlations of the channels (C, S) of a block; negative delays at the end."""
    spectra = np.fft.rfft(blocks, 2 * blocks.shape[1])
    return np.fft.irfft(spectra[:, None] * spectra[None].conj(), 2 * blocks.shape[1])
