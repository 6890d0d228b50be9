"""Muting, cutting and shortening spans of sound, exact to the sample and independent of the size of blocks.

No sample of an edited span remains audible: fades lie outside it, in the sound that is kept.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.values import Doubles

if TYPE_CHECKING:
    from knn_cli.audio.writing import Frames

FADE_SECONDS = 0.05  # beside what is muted or cut
SILENCE_FADE_SECONDS = 0.01  # beside silence that is cut out: avoids a click, too short for an audible dip in the noise
SILENCE_KEPT_SECONDS = 0.2  # of a shortened silence, half at each end
LEVELS_PER_SECOND = 100
ROUNDING_SAMPLES = 1e-6  # tolerance for the rounding error of seconds times rate

Span = tuple[int, int]  # first sample, the one after the last


@dataclass(frozen=True)
class Edit:
    """Spans to be muted or cut out of a sound, in samples of that sound.

    Attributes
    ----------
    spans : tuple of (int, int)
        Sorted, none empty, none touching the next.
    fade : int
        Samples, outside the spans, over which the sound fades out before a span and in after it.
    removes : bool
        Whether the spans are cut out; otherwise their samples become zero.
    """

    spans: tuple[Span, ...]
    fade: int
    removes: bool

    def covered_samples(self, samples: int) -> int:
        """Return how many of the first `samples` lie in spans."""
        return sum(max(0, min(last, samples) - first) for first, last in self.spans)

    def output_length(self, samples: int) -> int:
        """Return the length, after the edit, of a sound of `samples`."""
        return samples - self.covered_samples(samples) if self.removes else samples

    def gain_steps(self, first: int, last: int) -> NDArray[np.int64]:
        """Return the gain of the samples from `first` to before `last`, times fade + 1.

        It is 0 in a span, k at the k-th sample from the nearest one, at most fade + 1. So fades are linear, a fade
        has `fade` samples that are neither silent nor at full gain, and of two that overlap the lower gain counts.
        """
        steps = np.full(last - first, self.fade + 1, dtype=np.int64)
        begin = bisect_left(self.spans, first - self.fade, key=lambda span: span[1])
        end = bisect_right(self.spans, last + self.fade, key=lambda span: span[0])
        for start, stop in self.spans[begin:end]:
            low, high = max(first, start - self.fade), min(last, start)
            if low < high:
                fade_out = steps[low - first : high - first]
                np.minimum(fade_out, start - np.arange(low, high), out=fade_out)
            steps[max(first, start) - first : max(first, min(last, stop)) - first] = 0
            low, high = max(first, stop), min(last, stop + self.fade)
            if low < high:
                fade_in = steps[low - first : high - first]
                np.minimum(fade_in, np.arange(low, high) - stop + 1, out=fade_in)
        return steps

    def apply(self, blocks: Iterable[Frames]) -> Iterator[Frames]:
        """Yield the edited sound block by block; samples outside spans and fades are passed on unchanged.

        Integer samples are rounded to the nearest integer (halves to even).
        """
        at = 0
        for block in blocks:
            steps = self.gain_steps(at, at + len(block))
            at += len(block)
            if (steps <= self.fade).any():
                block = block.copy()
                block[steps == 0] = 0  # not multiplied, so that NaN and infinity become silent too
                fading = np.flatnonzero((steps > 0) & (steps <= self.fade))
                scaled = block[fading] * (steps[fading] / (self.fade + 1))[:, None]  # (fading, channels)
                block[fading] = np.rint(scaled) if block.dtype.kind == "i" else scaled
                if self.removes:
                    block = block[steps > 0]
            if len(block):
                yield block

    def new_positions(self, samples: Sequence[float] | Doubles) -> Doubles:
        """Return the positions, in samples, after the edit; those within a span that is cut out move to the joint."""
        times = np.asarray(samples, dtype=np.float64)
        if not (self.removes and self.spans):
            return times
        firsts = np.array([first for first, _ in self.spans], dtype=np.float64)
        lengths = [last - first for first, last in self.spans]
        removed = np.array(list(accumulate(lengths, initial=0)), dtype=np.float64)  # before each span; in all
        place = np.searchsorted(firsts, times, side="right") - 1  # the last span that begins before, -1: none
        inside = np.minimum(times - firsts[np.maximum(place, 0)], np.array(lengths)[np.maximum(place, 0)])
        shift = np.where(place >= 0, removed[np.maximum(place, 0)] + inside, 0.0)
        return np.asarray(times - shift)


def outside(start: float, end: float, spans: Sequence[Span]) -> Iterator[tuple[float, float]]:
    """Yield the parts of [start, end) outside the spans, which are sorted and disjoint."""
    at = bisect_right(spans, start, key=lambda span: span[1])
    while at < len(spans) and spans[at][0] < end:
        if spans[at][0] > start:
            yield start, spans[at][0]
        start = spans[at][1]
        at += 1
    if end > start:
        yield start, end


def joined(groups: Iterable[Sequence[Span]]) -> Edit:
    """Return all spans of a sound that are in any of the groups, as an edit without fades that mutes."""
    return Edit(sample_spans(chain.from_iterable(groups), 1), 0, removes=False)


def sample_spans(times: Iterable[tuple[float, float]], rate: int) -> tuple[Span, ...]:
    """Return the spans of all samples that (start, end) in seconds touch: sorted, those that meet joined."""
    joined: list[Span] = []
    for start, end in sorted(times):
        if not end > start:
            continue
        first, last = max(0, math.floor(start * rate + ROUNDING_SAMPLES)), math.ceil(end * rate - ROUNDING_SAMPLES)
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        elif last > first:
            joined.append((first, last))
    return tuple(joined)


def mute_or_cut(times: Iterable[tuple[float, float]], rate: int, *, removes: bool) -> Edit:
    """Return the edit that mutes the spans (start, end) in seconds, or cuts them out, with fades of 50 ms."""
    return Edit(sample_spans(times, rate), round(FADE_SECONDS * rate), removes)


def shorten_silences(
    blocks: Iterable[Frames], rate: int, *, full_scale: float, max_silence: float, threshold: float
) -> tuple[Edit, int]:
    """Find the edit that cuts all but 200 ms out of every long silence, with fades of 10 ms at the joints.

    Silence is where in blocks of 10 ms the root mean square of the loudest channel stays below the threshold. The
    first and the last 100 ms of a silence are kept, in whole blocks, so that a second pass changes nothing.

    Parameters
    ----------
    blocks : iterable of (n, channels) array
        The sound.
    rate : int
        Samples per second.
    full_scale : float
        Value of the largest sample.
    max_silence : float
        Longer silences, in seconds, are shortened.
    threshold : float
        dB against full scale; a square wave of full scale has 0, a sine -3.

    Returns
    -------
    edit : Edit
    length : int
        Samples of the sound.
    """
    size = max(1, rate // LEVELS_PER_SECOND)
    limit = (full_scale * 10 ** (threshold / 20)) ** 2 * size  # of the sum of squares of a block
    flags: list[NDArray[np.bool_]] = []
    held: list[Frames] = []
    total, waiting = 0, 0
    for block in blocks:
        total += len(block)
        waiting += len(block)
        held.append(block)
        if waiting >= size:
            joined = np.concatenate(held)
            whole = waiting // size * size
            flags.append(_energies(joined[:whole], size) < limit)
            held, waiting = [joined[whole:]], waiting - whole
    if waiting:  # the remainder is measured over its own length
        flags.append(_energies(np.concatenate(held), waiting) * (size / waiting) < limit)
    quiet = np.concatenate(flags) if flags else np.zeros(0, dtype=np.bool_)
    change = np.flatnonzero(np.diff(quiet.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)  # (silences, 2)
    margin = round(SILENCE_KEPT_SECONDS / 2 * LEVELS_PER_SECOND) * size
    cuts: list[Span] = []
    for first, last in change.tolist():
        start, stop = first * size, min(last * size, total)
        if stop - start > max_silence * rate + ROUNDING_SAMPLES and stop - margin > start + margin:
            cuts.append((start + margin, stop - margin))
    return Edit(tuple(cuts), round(SILENCE_FADE_SECONDS * rate), removes=True), total


def _energies(block: Frames, size: int) -> Doubles:
    """Sums of squares of the loudest channel over blocks of `size` samples."""
    cut = block.astype(np.float64).reshape(-1, size, block.shape[1])  # (blocks, size, channels)
    return np.asarray(np.einsum("bsc,bsc->bc", cut, cut).max(axis=1))
