"""Channels to one: a channel that is picked, or the mix of all, in which channels of opposite polarity do not cancel.

A cable or an editor may invert a channel. The mean of left = -right is silence, although both are heard well. So a
channel is turned round where the mix would otherwise lose more than 6 dB; ordinary stereo is mixed as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from knn_cli.audio import reading_notes
from knn_cli.core.errors import AudioError
from knn_cli.core.values import Doubles, Floats

WINDOW_SECONDS = 0.5  # for which the polarity of channels is decided
MAX_LOSS = 0.25  # power that a mix may keep of what it has with the best polarities, before these are taken
MIN_POWER = 1e-6  # of a window, -60 dBFS, below which polarities stay
MIN_SHARE_OF_LOUDEST = 1e-3  # of the power of the loudest window so far, -30 dB, below which they stay
MAX_SAMPLE = 2.0**32  # largest number that any format of integers could have left in floats


@dataclass
class Levels:
    """How loud the sound was that was read: largest absolute sample, and samples above full scale."""

    peak: float = 0.0
    above: int = 0

    def add(self, samples: Floats) -> None:
        """Take note of (n,) samples."""
        size = np.abs(samples)
        self.peak = max(self.peak, float(size.max(initial=0.0)))
        self.above += int(np.count_nonzero(size > 1))


_levels: ContextVar[Levels | None] = ContextVar("levels", default=None)


@contextmanager
def measuring() -> Iterator[Levels]:
    """Measure the sound that is read within the block: one channel, before any resampling."""
    levels = Levels()
    token = _levels.set(levels)
    try:
        yield levels
    finally:
        _levels.reset(token)


def mixed(path: Path, pieces: Iterable[tuple[int, Floats]], pick: int | None = None) -> Iterator[tuple[int, Floats]]:
    """Yield a recording's pieces as one channel; the result does not depend on how it is cut into pieces.

    Parameters
    ----------
    path : Path
        The recording, for messages.
    pieces : iterable of (int, (n, C) float32 array)
        Sampling rate and frames of all channels; both may change.
    pick : int or None
        Index of the channel that is wanted; None for the mean of all.

    Yields
    ------
    tuple of int and (n,) float32 array

    Raises
    ------
    AudioError
        For NaN, infinite or absurdly large samples, and for a channel that the recording lacks.
    """
    levels = _levels.get()
    for rate, samples in _one_channel(path, pieces, pick):
        if levels is not None:
            levels.add(samples)
        yield rate, samples


def _one_channel(path: Path, pieces: Iterable[tuple[int, Floats]], pick: int | None) -> Iterator[tuple[int, Floats]]:
    """See `mixed`."""
    mixer: _Mixer | None = None
    for rate, frames in pieces:
        count = frames.shape[1]
        if pick is not None and pick >= count:
            plural = "s" * (count > 1)
            raise AudioError(f"{path} has {count} channel{plural}, not channel {pick + 1}.", 'Try `channel="mix"`.')
        if mixer is not None and (rate, count) != (mixer.rate, mixer.channels):
            yield mixer.rate, mixer.rest()
            mixer = None
        if pick is not None or count == 1:
            samples = np.ascontiguousarray(frames[:, pick or 0])
            _check(path, samples)
            yield rate, samples
        else:
            _check(path, frames)
            mixer = mixer or _Mixer(path, rate, count)
            yield rate, mixer.add(frames)
    if mixer is not None:
        yield mixer.rate, mixer.rest()


def _check(path: Path, frames: Floats) -> None:
    """Refuse samples that are no sound: AudioError."""
    peak = float(np.abs(frames).max(initial=0.0))  # NaN where a sample is
    if not np.isfinite(peak):
        raise AudioError(f"{path} holds NaN or infinite samples.", "Write it again from its source.")
    if peak > MAX_SAMPLE:
        raise AudioError(
            f"{path} holds samples of up to {peak:.1e}, where 1 is full scale.",
            "Write it again from its source: these may be numbers in another byte order.",
        )


class _Mixer:
    """Mixes the channels of frames, in windows of fixed length from the first frame on."""

    def __init__(self, path: Path, rate: int, channels: int) -> None:
        self.path, self.rate, self.channels = path, rate, channels
        self._window = max(1, round(WINDOW_SECONDS * rate))
        self._signs = np.ones(channels, dtype=np.float32)
        self._held = np.zeros((0, channels), dtype=np.float32)
        self._loudest = 0.0

    def add(self, frames: Floats) -> Floats:
        """(S,) mix of the whole windows that have come so far; the frames behind them are held back."""
        frames = np.concatenate([self._held, frames])
        whole = len(frames) // self._window * self._window
        self._held = frames[whole:]
        return self._mixed(frames[:whole].reshape(-1, self._window, self.channels))

    def rest(self) -> Floats:
        """(S,) mix of the frames that are held back, at the end."""
        return self._mixed(self._held[None]) if len(self._held) else self._held[:, 0]

    def _mixed(self, windows: Floats) -> Floats:
        """(n * S,) mean of the channels of n windows (n, S, C)."""
        means: Floats = windows.mean(axis=2)
        for number, products in enumerate(_covariances(windows)):
            self._decide(products)
            if self._signs.min() < 0:
                means[number] = (windows[number] * self._signs).mean(axis=1)
        return means.ravel()

    def _decide(self, products: Doubles) -> None:
        """Choose the polarities of channels from the covariances (C, C) of a window."""
        power = float(np.trace(products)) / len(products)
        self._loudest = max(self._loudest, power)
        if power < max(MIN_POWER, MIN_SHARE_OF_LOUDEST * self._loudest):
            return
        reference = int(np.argmax(np.diag(products)))
        best = np.where(products[reference] < 0, -1.0, 1.0)
        if self._signs @ products @ self._signs >= MAX_LOSS * (best @ products @ best):
            return
        self._signs = best.astype(np.float32)
        inverted = np.flatnonzero(self._signs < 0) + 1
        if len(inverted):
            reading_notes.note(self.path, _clause(inverted))


def _covariances(windows: Floats) -> Doubles:
    """(n, C, C) covariances of the channels in each of n windows (n, S, C)."""
    centred = windows - windows.mean(axis=1, keepdims=True)
    products: Doubles = np.matmul(centred.transpose(0, 2, 1), centred).astype(np.float64)
    products /= windows.shape[1]
    return products


def _clause(inverted: NDArray[np.integer]) -> str:
    numbers = ", ".join(map(str, inverted.tolist()))
    several = len(inverted) > 1
    turned = "they are turned round" if several else "it is turned round"
    return f"has channel{'s' * several} {numbers} inverted; {turned}, since channels would cancel in the mix"
