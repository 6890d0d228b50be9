"""Speech regions from probabilities, windows over speech, and segments of equal length.

Pure functions; times are seconds from the beginning of the recording.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import MIN_SECONDS, Segment

# Seconds: above the rounding error of sums of float64 times, far below one sample.
EPSILON = 5e-10
FRAME_SECONDS = 0.04  # resolution of the decisions on who speaks
BEYOND_SECONDS = 0.25  # by which turns may outlast their recording without a word, as by rounding and padding
MAX_GAP_SECONDS = 0.4  # pauses up to this long inside one speaker's turn are part of it


def binarize(
    probabilities: NDArray[np.floating],
    step: float,
    *,
    onset: float = 0.5,
    offset: float = 0.35,
    min_speech: float = 0.1,
    min_silence: float = 0.6,
    pad: float = 0.1,
    end: float | None = None,
) -> list[Segment]:
    """Find speech regions by hysteresis: speech begins at a frame >= `onset` and ends before a frame < `offset`.

    Then silences shorter than `min_silence` are filled, regions shorter than `min_speech` are dropped, and the others
    are widened by `pad` on both sides, clipped to [0, end] and merged where they meet.

    Parameters
    ----------
    probabilities : (N,) array
        Speech probability of each frame; frame i covers [i * step, (i + 1) * step).
    step : float
        Seconds per frame.
    onset, offset : float
        Probabilities.
    min_speech, min_silence, pad : float
        Seconds.
    end : float, optional
        Duration of the recording in seconds, by default N * step (the last frame may reach past the end).

    Returns
    -------
    list of Segment
        Sorted by start.
    """
    if probabilities.ndim != 1:
        raise ValueError(f"probabilities are (N,), not {probabilities.shape}")
    if step <= 0 or offset > onset:
        raise ValueError("binarize needs step > 0 and offset <= onset")
    count = len(probabilities)
    limit = count * step if end is None else end
    above, below = probabilities >= onset, probabilities < offset
    # A frame between the two thresholds keeps the state of the last frame that was outside them.
    last = np.maximum.accumulate(np.where(above | below, np.arange(count), -1))  # (N,)
    state = np.where(last >= 0, above[np.maximum(last, 0)], False) if count else above
    change = np.flatnonzero(np.diff(state.astype(np.int8), prepend=0, append=0))  # starts and ends alternate
    regions: list[list[float]] = []
    for begin, end_frame in change.reshape(-1, 2):  # (regions, 2)
        start, stop = float(begin * step), min(float(end_frame * step), limit)
        if regions and start - regions[-1][1] < min_silence - EPSILON:
            regions[-1][1] = stop
        elif stop > start:
            regions.append([start, stop])
    kept = (region for region in regions if region[1] - region[0] >= min_speech - EPSILON)
    return merge(Segment(max(0.0, start - pad), min(limit, stop + pad)) for start, stop in kept)


def merge(segments: Iterable[Segment]) -> list[Segment]:
    """Return segments sorted by start, with those that overlap or touch joined and empty ones left out."""
    merged: list[Segment] = []
    for segment in sorted(segment for segment in segments if segment.duration > MIN_SECONDS):
        if merged and segment.start - merged[-1].end <= MIN_SECONDS:
            merged[-1] = Segment(merged[-1].start, max(merged[-1].end, segment.end))
        else:
            merged.append(segment)
    return merged


def crop(segments: Iterable[Segment], limits: Segment) -> list[Segment]:
    """Return the parts of segments that lie within `limits`; empty ones are left out."""
    return [part for segment in segments if (part := segment & limits).duration > MIN_SECONDS]


def total_seconds(segments: Iterable[Segment]) -> float:
    """Return the seconds of segments that do not overlap."""
    return sum(segment.duration for segment in segments)


def windows(
    speech: Iterable[Segment], *, duration: float = 1.5, step: float = 0.75, minimum: float = 0.0
) -> list[Segment]:
    """Place windows of `duration` seconds every `step` seconds within each region of speech.

    The last window of a region is moved back to end with the region, so that all of it is covered; a region no
    longer than `duration` is one window. Regions shorter than `minimum` get none, unless all are that short: then the
    longest gets one, so that speech always has at least one window.

    Raises
    ------
    KnnError
        If `step` or `duration` are not positive, or windows would leave gaps.
    """
    if duration <= 0 or not 0 < step <= duration:
        raise KnnError(
            f"Windows of {duration:g} s every {step:g} s do not cover the speech.",
            "Take a step above 0 and no longer than the window.",
        )
    regions = merge(speech)
    long_enough = [region for region in regions if region.duration >= minimum - EPSILON]
    if not long_enough and regions:
        long_enough = [max(regions, key=lambda region: region.duration)]
    placed: list[Segment] = []
    for region in long_enough:
        spare = region.duration - duration
        if spare <= EPSILON:
            placed.append(region)
            continue
        steps = math.floor(spare / step + EPSILON)
        placed += [Segment(region.start + k * step, region.start + k * step + duration) for k in range(steps + 1)]
        if spare - steps * step > EPSILON:
            placed.append(Segment(region.end - duration, region.end))
    return placed


def cut(seconds: float, segment: float, minimum: float) -> tuple[list[Segment], float]:
    """Cut a recording into segments of equal length.

    Parameters
    ----------
    seconds : float
        Duration of the recording.
    segment : float
        Seconds per segment; the last one may be shorter.
    minimum : float
        A remainder shorter than this is dropped.

    Returns
    -------
    segments : list of Segment
    dropped : float
        Seconds of the remainder that was dropped.
    """
    if segment <= 0 or minimum < 0:
        raise KnnError(
            f"A recording cannot be cut into segments of {segment:g} s with a minimum of {minimum:g} s.",
            "Take a segment length above 0 and a minimum of 0 or more.",
        )
    whole = math.floor(seconds / segment + EPSILON)
    segments = [Segment(k * segment, (k + 1) * segment) for k in range(whole)]
    remainder = max(0.0, seconds - whole * segment)
    if remainder <= EPSILON:
        return segments, 0.0
    if remainder < minimum - EPSILON:
        return segments, remainder
    return [*segments, Segment(whole * segment, seconds)], 0.0
