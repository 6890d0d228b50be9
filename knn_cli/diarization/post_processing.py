"""Post-processing of frames into turns: pauses filled, short turns given away or dropped, margins of silence kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from knn_cli.audio.segments import EPSILON, FRAME_SECONDS
from knn_cli.diarization.reconstruction import active_runs

FrameTurn = tuple[int, int, int]  # first frame, one past the last, speaker


def frame_turns(
    active: NDArray[np.bool_], *, min_turn: float = 0.0, max_gap: float = 0.0, margin: float = 0.0
) -> list[FrameTurn]:
    """Turn the activity of speakers into turns.

    Pauses up to `max_gap` are filled. A turn under `min_turn` goes to the speaker right before or after it, the longer
    turn of the two; where there is none, or somebody speaks meanwhile, it is dropped. A speaker's longest turn always
    stays. Then turns are extended into the silence beside them, by `margin` after their ends and a fifth of it before
    their starts: words fade, and people who mark turns by ear end them later than a network that was trained on the
    level of the sound. Where both sides want more silence than there is, the end of the earlier turn comes first.

    Parameters
    ----------
    active : (frames, S) bool array
        Who speaks in each frame.
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
    turns = _merge_gaps(_give_away_short(turns, min_turn), max_gap) if min_turn > 0 else turns
    return _merge_gaps(_add_margins(turns, len(active), margin), 0.0) if margin > 0 else turns


def _add_margins(turns: Sequence[FrameTurn], frames: int, margin: float) -> list[FrameTurn]:
    """Turns with the silence beside them."""
    after = round(margin / FRAME_SECONDS)
    before = round(margin / 5 / FRAME_SECONDS)
    silent = np.ones(frames, dtype=bool)
    for first, last, _ in turns:
        silent[first:last] = False
    ends, beginnings = {}, {}
    for first, last in active_runs(silent):
        ends[first] = min(first + after, last)
        beginnings[last] = max(last - before, ends[first] if first else 0)
    return [(beginnings.get(first, first), ends.get(last, last), speaker) for first, last, speaker in turns]


def _merge_gaps(turns: Iterable[FrameTurn], max_gap: float) -> list[FrameTurn]:
    """Turns of one speaker that are at most `max_gap` seconds apart become one; by time."""
    joined: list[FrameTurn] = []
    for first, last, speaker in sorted(turns, key=lambda turn: (turn[2], turn)):
        if joined and joined[-1][2] == speaker and (first - joined[-1][1]) * FRAME_SECONDS <= max_gap + EPSILON:
            joined[-1] = (joined[-1][0], last, speaker)
        else:
            joined.append((first, last, speaker))
    return sorted(joined)


def _give_away_short(turns: list[FrameTurn], min_turn: float) -> list[FrameTurn]:
    """Short turns go to a neighbour or are dropped, the shortest first."""
    there = set(turns)
    speaking = np.zeros(max((last for _, last, _ in turns), default=0), dtype=np.int32)  # how many turns hold a frame
    begin: dict[int, set[FrameTurn]] = {}
    end: dict[int, set[FrameTurn]] = {}
    longest: dict[int, list[tuple[int, FrameTurn]]] = {}  # heaps; turns that are gone stay until they come up
    short: list[tuple[int, FrameTurn]] = []

    def add(turn: FrameTurn, by: int) -> None:
        speaking[turn[0] : turn[1]] += by
        for edges, place in ((begin, turn[0]), (end, turn[1])):
            mine = edges.setdefault(place, set())
            mine.add(turn) if by > 0 else mine.remove(turn)
        there.add(turn) if by > 0 else there.remove(turn)
        if by > 0:
            heappush(longest.setdefault(turn[2], []), (turn[0] - turn[1], turn))
            if (turn[1] - turn[0]) * FRAME_SECONDS < min_turn - EPSILON:
                heappush(short, (turn[1] - turn[0], turn))

    def is_longest(turn: FrameTurn) -> bool:
        heap = longest[turn[2]]
        while heap[0][1] not in there:
            heappop(heap)
        return heap[0][1] == turn

    for turn in turns:
        add(turn, 1)
    stays: dict[int, FrameTurn] = {}  # short ones that are their speaker's longest
    while short:
        _, turn = heappop(short)
        if turn not in there:
            continue
        if is_longest(turn):
            stays[turn[2]] = turn
            continue
        add(turn, -1)
        beside = end.get(turn[0], set()) | begin.get(turn[1], set())
        if beside and not speaking[turn[0] : turn[1]].any():
            taker = max(beside, key=lambda turn: (turn[1] - turn[0], turn))
            joined = turn[0], turn[1], taker[2]
            for other in [other for other in beside if other[2] == taker[2]]:
                add(other, -1)
                joined = min(joined[0], other[0]), max(joined[1], other[1]), taker[2]
            add(joined, 1)
            kept = stays.pop(taker[2], None)
            if kept in there:
                heappush(short, (kept[1] - kept[0], kept))
    return sorted(there)
