"""Spans of sound muted, cut out or shortened, counted in samples. Pure: the same for every size of block.

An edit never leaves a trace of its spans: fades lie outside them, in the sound that stays.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.values import Doubles

if TYPE_CHECKING:
    from knn_cli.audio.writing import Frames

FADE_SECONDS = 0.05  # beside what is muted or cut
SILENCE_FADE_SECONDS = 0.01  # where silence was taken out: enough against a click, too short to hear the noise dip
SILENCE_KEPT_SECONDS = 0.2  # of a silence that is shortened, half at each side
BLOCKS_A_SECOND = 100  # the level of sound is measured so often
SLACK = 1e-6  # of a sample: what seconds times rate may be off by

Span = tuple[int, int]  # first sample, the one after the last


@dataclass(frozen=True)
class Edit:
    """One change of a sound, in samples of the sound that it is applied to.

    spans   : sorted, none empty, none touching the next
    fade    : samples, outside the spans, over which the sound falls before a span and rises after it
    removes : whether the spans are taken out; else their samples become zero
    """

    spans: tuple[Span, ...]
    fade: int
    removes: bool

    def within(self, samples: int) -> int:
        """How many of the first `samples` lie in spans."""
        return sum(max(0, min(last, samples) - first) for first, last in self.spans)

    def left(self, samples: int) -> int:
        """How long a sound of `samples` is afterwards."""
        return samples - self.within(samples) if self.removes else samples

    def steps(self, first: int, last: int) -> NDArray[np.int64]:
        """Gain of the samples from `first` to before `last`, times fade + 1.

        0 in a span, k at the k-th sample from the nearest one, at most fade + 1. So fades are straight lines, a fade
        has `fade` samples that are neither silent nor whole, and where two meet in a short gap the lower one counts.
        """
        steps = np.full(last - first, self.fade + 1, dtype=np.int64)
        begin = bisect_left(self.spans, first - self.fade, key=lambda span: span[1])
        end = bisect_right(self.spans, last + self.fade, key=lambda span: span[0])
        for start, stop in self.spans[begin:end]:
            low, high = max(first, start - self.fade), min(last, start)
            if low < high:
                part = steps[low - first : high - first]
                np.minimum(part, start - np.arange(low, high), out=part)
            steps[max(first, start) - first : max(first, min(last, stop)) - first] = 0
            low, high = max(first, stop), min(last, stop + self.fade)
            if low < high:
                part = steps[low - first : high - first]
                np.minimum(part, np.arange(low, high) - stop + 1, out=part)
        return steps

    def apply(self, blocks: Iterable[Frames]) -> Iterator[Frames]:
        """The sound changed, block by block; samples that no span and no fade touches are passed on as they are.

        Whole numbers stay whole, rounded to the nearest (halves to even).
        """
        at = 0
        for block in blocks:
            steps = self.steps(at, at + len(block))
            at += len(block)
            if (steps <= self.fade).any():
                block = block.copy()
                block[steps == 0] = 0  # not multiplied: NaN and infinity become silent too
                fading = np.flatnonzero((steps > 0) & (steps <= self.fade))
                scaled = block[fading] * (steps[fading] / (self.fade + 1))[:, None]  # (fading, channels)
                block[fading] = np.rint(scaled) if block.dtype.kind == "i" else scaled
                if self.removes:
                    block = block[steps > 0]
            if len(block):
                yield block

    def moved(self, samples: Sequence[float] | Doubles) -> Doubles:
        """Where these instants, in samples, come to lie; those in a span that is taken out, at its joint."""
        times = np.asarray(samples, dtype=np.float64)
        if not (self.removes and self.spans):
            return times
        firsts = np.array([first for first, _ in self.spans], dtype=np.float64)
        lengths = [last - first for first, last in self.spans]
        gone = np.array(list(accumulate(lengths, initial=0)), dtype=np.float64)  # before each span; all of it
        place = np.searchsorted(firsts, times, side="right") - 1  # the last span that begins before, -1: none
        inside = np.minimum(times - firsts[np.maximum(place, 0)], np.array(lengths)[np.maximum(place, 0)])
        shift = np.where(place >= 0, gone[np.maximum(place, 0)] + inside, 0.0)
        return np.asarray(times - shift)


def spans(times: Iterable[tuple[float, float]], rate: int) -> tuple[Span, ...]:
    """All samples that (start, end) in seconds touch, as spans: sorted, overlapping and adjacent ones joined."""
    found: list[Span] = []
    for start, end in sorted(times):
        if not end > start:
            continue
        first, last = max(0, math.floor(start * rate + SLACK)), math.ceil(end * rate - SLACK)
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        elif last > first:
            found.append((first, last))
    return tuple(found)


def unwanted(times: Iterable[tuple[float, float]], rate: int, *, removes: bool) -> Edit:
    """These (start, end) in seconds muted, or taken out, with fades of 50 ms."""
    return Edit(spans(times, rate), round(FADE_SECONDS * rate), removes)


def silences(
    blocks: Iterable[Frames], rate: int, *, full_scale: float, longest: float, threshold: float
) -> tuple[Edit, int]:
    """All but 200 ms of every silence longer than `longest` seconds taken out, with fades of 10 ms at the joints.

    Silence is where in blocks of 10 ms the root mean square of the loudest channel stays below the threshold. The
    first and the last 100 ms of a silence stay, in whole blocks, so that doing it again finds nothing more.

    full_scale : what the largest sample counts
    threshold  : dB against full scale; a square wave of full scale has 0, a sine -3

    Returns the edit, and the length of the sound in samples.
    """
    size = max(1, rate // BLOCKS_A_SECOND)
    limit = (full_scale * 10 ** (threshold / 20)) ** 2 * size  # of a block's sum of squares
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
    if waiting:  # what is left is measured by its own length
        flags.append(_energies(np.concatenate(held), waiting) * (size / waiting) < limit)
    quiet = np.concatenate(flags) if flags else np.zeros(0, dtype=np.bool_)
    change = np.flatnonzero(np.diff(quiet.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)  # (silences, 2)
    margin = round(SILENCE_KEPT_SECONDS / 2 * BLOCKS_A_SECOND) * size
    found: list[Span] = []
    for first, last in change.tolist():
        start, stop = first * size, min(last * size, total)
        if stop - start > longest * rate + SLACK and stop - margin > start + margin:
            found.append((start + margin, stop - margin))
    return Edit(tuple(found), round(SILENCE_FADE_SECONDS * rate), removes=True), total


def _energies(block: Frames, size: int) -> Doubles:
    """Sums of squares of the loudest channel, one for every `size` samples."""
    cut = block.astype(np.float64).reshape(-1, size, block.shape[1])  # (blocks, size, channels)
    return np.asarray(np.einsum("bsc,bsc->bc", cut, cut).max(axis=1))
