"""Where in a recording: speech regions from probabilities, windows over speech, parts of equal length.

Pure functions. Times are seconds from the beginning of the recording.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from pyannote.core import Segment, Timeline

from knn_cli.core.errors import KnnError

# Half a nanosecond: what a sum of float64 seconds may be off by, far below one sample.
EPSILON = 5e-10
FRAME_SECONDS = 0.04  # of a decision on who speaks
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
) -> Timeline:
    """Speech regions by hysteresis: speech begins at a frame >= `onset` and ends before a frame < `offset`.

    Then silences shorter than `min_silence` are filled, regions shorter than `min_speech` dropped, and the rest
    widened by `pad` on both sides, clipped to [0, end] and merged where they meet.

    probabilities : (N,) speech probability a frame; frame i covers [i * step, (i + 1) * step)
    step          : seconds a frame
    end           : seconds of the recording, N * step when None (the last frame may reach past the end)
    """
    if probabilities.ndim != 1:
        raise ValueError(f"probabilities are (N,), not {probabilities.shape}")
    if step <= 0 or offset > onset:
        raise ValueError("binarize needs step > 0 and offset <= onset")
    count = len(probabilities)
    limit = count * step if end is None else end
    above, below = probabilities >= onset, probabilities < offset
    # A frame between the two thresholds keeps the state of the last frame that was outside them.
    decided = np.maximum.accumulate(np.where(above | below, np.arange(count), -1))  # (N,)
    state = np.where(decided >= 0, above[np.maximum(decided, 0)], False) if count else above
    change = np.flatnonzero(np.diff(state.astype(np.int8), prepend=0, append=0))  # starts and ends take turns
    regions: list[list[float]] = []
    for first, last in change.reshape(-1, 2):  # (regions, 2)
        start, stop = float(first * step), min(float(last * step), limit)
        if regions and start - regions[-1][1] < min_silence - EPSILON:
            regions[-1][1] = stop
        elif stop > start:
            regions.append([start, stop])
    kept = (region for region in regions if region[1] - region[0] >= min_speech - EPSILON)
    return Timeline([Segment(max(0.0, start - pad), min(limit, stop + pad)) for start, stop in kept]).support()


def windows(speech: Timeline, *, duration: float = 1.5, step: float = 0.75, minimum: float = 0.0) -> list[Segment]:
    """Windows of `duration` seconds every `step` seconds over each region of speech, none reaching outside it.

    The last window of a region is moved back to end with the region, so that all of it is covered; a region no
    longer than `duration` is one window. Regions shorter than `minimum` give none, unless all are that short: then the
    longest gives one, so that speech always gives at least one window.
    """
    if duration <= 0 or not 0 < step <= duration:
        raise KnnError(
            f"Windows of {duration:g} s every {step:g} s do not cover the speech.",
            "Take a step above 0 and no longer than the window.",
        )
    regions = list(speech.support())
    long_enough = [region for region in regions if region.duration >= minimum - EPSILON]
    if not long_enough and regions:
        long_enough = [max(regions, key=lambda region: region.duration)]
    found: list[Segment] = []
    for region in long_enough:
        spare = region.duration - duration
        if spare <= EPSILON:
            found.append(region)
            continue
        steps = math.floor(spare / step + EPSILON)
        found += [Segment(region.start + k * step, region.start + k * step + duration) for k in range(steps + 1)]
        if spare - steps * step > EPSILON:
            found.append(Segment(region.end - duration, region.end))
    return found


def cut(seconds: float, segment: float, minimum: float) -> tuple[list[Segment], float]:
    """Cut a recording into parts of `segment` seconds; a rest shorter than `minimum` is dropped.

    Returns the parts and the seconds dropped.
    """
    if segment <= 0 or minimum < 0:
        raise KnnError(
            f"A recording cannot be cut into segments of {segment:g} s with a minimum of {minimum:g} s.",
            "Take a segment length above 0 and a minimum of 0 or more.",
        )
    whole = math.floor(seconds / segment + EPSILON)
    parts = [Segment(k * segment, (k + 1) * segment) for k in range(whole)]
    rest = max(0.0, seconds - whole * segment)
    if rest <= EPSILON:
        return parts, 0.0
    if rest < minimum - EPSILON:
        return parts, rest
    return [*parts, Segment(whole * segment, seconds)], 0.0
