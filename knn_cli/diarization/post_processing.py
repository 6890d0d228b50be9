"""Post-processing: pauses are filled, short turns are reassigned or dropped, and margins of silence are added."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from knn_cli.audio.segments import EPSILON, FRAME_SECONDS
from knn_cli.diarization.reconstruction import active_runs

FrameTurn = tuple[int, int, int]  # first frame, one past the last, speaker
MAX_TAIL_MARGINS = 3  # how many times the margin an audible tail of a turn may be
TAIL_DB = 10.0  # by which a tail is above the silence around it
SILENCE_SECONDS = 10.0  # of silence on either side of a pause, whose level is its floor
FLOOR_QUANTILE = 0.2  # of the levels of silent frames


def frame_turns(
    active: NDArray[np.bool_],
    levels: NDArray[np.int8] | None = None,
    *,
    min_turn: float = 0.0,
    max_gap: float = 0.0,
    margin: float = 0.0,
) -> list[FrameTurn]:
    """Convert frame-wise speaker activity to turns.

    Pauses up to `max_gap` are filled. A turn shorter than `min_turn` is assigned to the speaker of the adjacent turn
    (the longer one of two); where there is none, or another speaker is active at the same time, it is dropped. The
    longest turn of a speaker always stays. Then turns are extended into adjacent silence, by `margin` after their ends
    and a fifth of it before their starts: words fade, and human annotators end turns later than networks do. While the
    sound is still TAIL_DB above the silence around it, turns are extended further, to MAX_TAIL_MARGINS times as much
    in all. Where there is too little silence for both, the end of the earlier turn takes precedence.

    Parameters
    ----------
    active : (frames, S) bool array
        Active speakers in each frame.
    levels : (frames,) int8 array, optional
        Level of each frame in dBFS; without it, there are no tails.
    min_turn, max_gap, margin : float
        Seconds.

    Returns
    -------
    list of (first frame, one past the last, speaker)
        By time.
    """
    turns = _merge_gaps(
        ((first, last, s) for s in range(active.shape[1]) for first, last in active_runs(active[:, s])), max_gap
    )
    turns = _merge_gaps(_reassign_short(turns, min_turn), max_gap) if min_turn > 0 else turns
    return _merge_gaps(_add_margins(turns, len(active), levels, margin), 0.0) if margin > 0 else turns


def _add_margins(
    turns: Sequence[FrameTurn], frames: int, levels: NDArray[np.int8] | None, margin: float
) -> list[FrameTurn]:
    """Extend turns into adjacent silence."""
    after = round(margin / FRAME_SECONDS)
    before = round(margin / 5 / FRAME_SECONDS)
    silent = np.ones(frames, dtype=bool)
    for first, last, _ in turns:
        silent[first:last] = False
    audible = np.zeros(frames, dtype=bool) if levels is None else _audible(silent, levels)
    ends, beginnings = {}, {}
    for first, last in active_runs(silent):
        ends[first] = min(first + _reach(audible[first:last], after), last)
        free = ends[first] if first else 0
        beginnings[last] = max(last - _reach(audible[free:last][::-1], before), free)
    return [(beginnings.get(first, first), ends.get(last, last), speaker) for first, last, speaker in turns]


def _reach(audible: NDArray[np.bool_], margin: int) -> int:
    """Frames that belong to a turn, of those that follow it: the margin, and more while they are audible."""
    tail = audible[margin : MAX_TAIL_MARGINS * margin]
    return margin + (len(tail) if tail.all() else int(tail.argmin()))


def _audible(silent: NDArray[np.bool_], levels: NDArray[np.int8]) -> NDArray[np.bool_]:
    """(frames,) whether silent frames are TAIL_DB above the silence around the nearer end of their pause."""
    audible = np.zeros(len(silent), dtype=bool)
    places = np.flatnonzero(silent)
    quiet = levels[places]
    around = round(SILENCE_SECONDS / FRAME_SECONDS)
    for first, last in active_runs(silent):
        middle = (first + last) // 2
        for begin, end, edge in ((first, middle, first), (middle, last, last)):
            place = int(np.searchsorted(places, edge))
            floor = _floor(quiet[max(0, place - around) : place + around])
            audible[begin:end] = levels[begin:end] >= floor + TAIL_DB
    return audible


def _floor(levels: NDArray[np.int8]) -> float:
    """The quantile of levels, FLOOR_QUANTILE, interpolated as `numpy.quantile` does, which is slow for so few."""
    place = FLOOR_QUANTILE * (len(levels) - 1)
    low = int(place)
    high = min(low + 1, len(levels) - 1)
    first, second = np.partition(levels, (low, high))[[low, high]].tolist()
    return float(first + (place - low) * (second - first))


def _merge_gaps(turns: Iterable[FrameTurn], max_gap: float) -> list[FrameTurn]:
    """Merge turns of the same speaker with gaps up to `max_gap` seconds; by time."""
    joined: list[FrameTurn] = []
    for first, last, speaker in sorted(turns, key=lambda turn: (turn[2], turn)):
        if joined and joined[-1][2] == speaker and (first - joined[-1][1]) * FRAME_SECONDS <= max_gap + EPSILON:
            joined[-1] = (joined[-1][0], last, speaker)
        else:
            joined.append((first, last, speaker))
    return sorted(joined)


def _reassign_short(turns: list[FrameTurn], min_turn: float) -> list[FrameTurn]:
    """Assign short turns to an adjacent speaker or drop them, the shortest first."""
    current = set(turns)
    speaking = np.zeros(
        max((last for _, last, _ in turns), default=0), dtype=np.int32
    )  # number of turns over each frame
    begin: dict[int, set[FrameTurn]] = {}
    end: dict[int, set[FrameTurn]] = {}
    longest: dict[int, list[tuple[int, FrameTurn]]] = {}  # heaps; removed turns stay in them until they reach the top
    short: list[tuple[int, FrameTurn]] = []

    def update(turn: FrameTurn, by: int) -> None:
        speaking[turn[0] : turn[1]] += by
        for edges, place in ((begin, turn[0]), (end, turn[1])):
            touching = edges.setdefault(place, set())
            touching.add(turn) if by > 0 else touching.remove(turn)
        current.add(turn) if by > 0 else current.remove(turn)
        if by > 0:
            heappush(longest.setdefault(turn[2], []), (turn[0] - turn[1], turn))
            if (turn[1] - turn[0]) * FRAME_SECONDS < min_turn - EPSILON:
                heappush(short, (turn[1] - turn[0], turn))

    def is_longest(turn: FrameTurn) -> bool:
        heap = longest[turn[2]]
        while heap[0][1] not in current:
            heappop(heap)
        return heap[0][1] == turn

    for turn in turns:
        update(turn, 1)
    kept_longest: dict[int, FrameTurn] = {}  # short turns that are the longest of their speaker
    while short:
        _, turn = heappop(short)
        if turn not in current:
            continue
        if is_longest(turn):
            kept_longest[turn[2]] = turn
            continue
        update(turn, -1)
        adjacent = end.get(turn[0], set()) | begin.get(turn[1], set())
        if adjacent and not speaking[turn[0] : turn[1]].any():
            recipient = max(adjacent, key=lambda turn: (turn[1] - turn[0], turn))
            joined = turn[0], turn[1], recipient[2]
            for other in [other for other in adjacent if other[2] == recipient[2]]:
                update(other, -1)
                joined = min(joined[0], other[0]), max(joined[1], other[1]), recipient[2]
            update(joined, 1)
            kept = kept_longest.pop(recipient[2], None)
            if kept in current:
                heappush(short, (kept[1] - kept[0], kept))
    return sorted(current)
