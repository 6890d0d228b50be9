"""From local speakers of windows to turns of the recording's speakers: the second half of diarization.

Arrays only. Windows come from `segmentation`; the pieces that an embedding is made of are chosen here, and once a
clustering has said which local speakers are one person, windows that overlap vote frame by frame on who speaks
(Bredin, "pyannote.audio 2.1 speaker diarization pipeline", Interspeech 2023, section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import groupby, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knn_cli.audio.segments import EPSILON, FRAME_SECONDS
from knn_cli.core.values import Doubles, Floats

ENOUGH = 12  # clean frames below which overlapped ones are heard too
FAINT = 30.0  # decibels
SILENCE = -80.0  # dBFS under which nobody is heard whatever a network says
SURE = 0.75  # probability that a stretch of speech has somewhere
CERTAIN = 0.9  # and one that needs no second opinion
ACTIVE = 0.5  # probability from which a local speaker speaks
LEAST_FRAMES = 8  # of a window that is cut finer than usual
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Segmentation:
    """Local speakers of W windows.

    starts        : (W,) int64, first frame of each window, ascending
    probabilities : (W, T, K) float16, that local speaker k speaks in frame t; zeros past the recording's end
    frames        : frames of the recording, the last one maybe not whole
    """

    starts: NDArray[np.int64]
    probabilities: NDArray[np.float16]
    frames: int


@dataclass(frozen=True)
class LocalSpeaker:
    """One voice of one window.

    window, speaker : where it is in `Segmentation.probabilities`
    active          : (T,) bool, its frames
    clean           : (T,) bool, those of them where nobody else speaks
    """

    window: int
    speaker: int
    active: NDArray[np.bool_]
    clean: NDArray[np.bool_]

    @property
    def chosen(self) -> NDArray[np.bool_]:
        """(T,) bool: the frames that its embedding is made of, overlapped ones only where too few are clean."""
        return self.clean if self.clean.sum() >= ENOUGH else self.active


def of_speech(speech: NDArray[np.floating], *, size: int = 38, hop: int = 19) -> Segmentation:
    """Windows with one local speaker each, for detectors that know speech but not voices.

    speech : (frames,) probability of speech, FRAME_SECONDS a frame
    size, hop : frames of a window and from one to the next: a second and a half, and half of that
    """
    frames = len(speech)
    starts = np.arange(0, max(1, frames - size + hop), hop, dtype=np.int64) if frames else np.zeros(0, dtype=np.int64)
    table = np.zeros((len(starts), size, 1), dtype=np.float16)
    for row, start in zip(table, starts.tolist(), strict=True):
        heard = speech[start : start + size]
        row[: len(heard), 0] = heard
    return Segmentation(starts, table, frames)


def local_speakers(segmentation: Segmentation) -> list[LocalSpeaker]:
    """Who speaks at all, window by window."""
    active = segmentation.probabilities >= ACTIVE  # (W, T, K)
    alone = active.sum(2, keepdims=True) == 1
    clean = active & alone
    found = np.argwhere(active.any(1))
    return [
        LocalSpeaker(int(window), int(speaker), active[window, :, speaker], clean[window, :, speaker])
        for window, speaker in found
    ]


def assign(similarity: Doubles, windows: NDArray[np.int64]) -> Labels:
    """The speaker (N,) of each local speaker: the most similar, but two of one window are two while there are enough.

    similarity : (N, S) of local speakers to speakers
    windows    : (N,) the window of each, ascending
    """
    labels: Labels = similarity.argmax(1).astype(np.int64)
    for rows in np.split(np.arange(len(windows)), np.flatnonzero(np.diff(windows)) + 1):
        if len(set(labels[rows].tolist())) < len(rows) <= similarity.shape[1]:
            # The best choice of r different columns takes each row's from that row's r best.
            likely = np.argsort(-similarity[rows], axis=1, kind="stable")[:, : len(rows)]
            choices = [one for one in product(*likely.tolist()) if len(set(one)) == len(rows)]
            labels[rows] = max(choices, key=lambda choice: float(similarity[rows, choice].sum()))
    return labels


def heard(segmentation: Segmentation) -> Floats:
    """(frames,) how many windows hear each frame."""
    size = segmentation.probabilities.shape[1]
    edges = np.zeros(segmentation.frames + 1, dtype=np.float32)
    np.add.at(edges, segmentation.starts, 1)
    np.add.at(edges, np.minimum(segmentation.starts + size, segmentation.frames), -1)
    result: Floats = edges.cumsum()[:-1]
    return result


def count(segmentation: Segmentation) -> NDArray[np.int64]:
    """(frames,) how many speak at once, on the average of the windows that hear a frame."""
    mean = _mean(segmentation, lambda chances: (chances >= ACTIVE).sum(1))
    speakers: NDArray[np.int64] = np.floor(mean + 0.5).astype(np.int64)
    return speakers


def speech(segmentation: Segmentation) -> Floats:
    """(frames,) probability that anybody speaks, on the average of the windows that hear a frame."""
    return _mean(segmentation, lambda chances: 1 - np.prod(1 - chances.astype(np.float32), axis=1))


def _mean(segmentation: Segmentation, said: Callable[[NDArray[np.float16]], NDArray[Any]]) -> Floats:
    """(frames,) float32: what windows say of a frame, (T, K) to (T,), on the average of those that hear it."""
    total = np.zeros(segmentation.frames, dtype=np.float32)
    for start, chances in zip(segmentation.starts.tolist(), segmentation.probabilities, strict=True):
        part = total[start : start + len(chances)]
        part += said(chances)[: len(part)]
    total /= np.maximum(heard(segmentation), 1)
    return total


def vote(segmentation: Segmentation, local: Sequence[LocalSpeaker], shares: Floats) -> Floats:
    """(frames, S) float32: probability that each speaker speaks, on the average of the windows that hear a frame.

    shares : (N, S) how much each local speaker is each speaker, 0 to 1
    """
    total = np.zeros((segmentation.frames, shares.shape[1]), dtype=np.float32)
    for window, group in groupby(zip(local, shares, strict=True), key=lambda pair: pair[0].window):
        score = np.zeros((segmentation.probabilities.shape[1], shares.shape[1]), dtype=np.float32)
        for one, share in group:  # where two are one speaker, the surer counts
            np.maximum(score, segmentation.probabilities[window, :, one.speaker, None] * share, out=score)
        part = total[segmentation.starts[window] :][: len(score)]
        part += score[: len(part)]
    total /= np.maximum(heard(segmentation), 1)[:, None]
    return total


def decide(counts: NDArray[np.int64], votes: Floats) -> NDArray[np.bool_]:
    """(frames, S) bool, who speaks: in each frame so many as `counts` (frames,) say, those with the most votes."""
    left = votes.copy()
    active = np.zeros(votes.shape, dtype=bool)
    for place in range(min(int(counts.max(initial=0)), votes.shape[1])):
        rows = np.flatnonzero(counts > place)
        best = left[rows].argmax(1)
        some = left[rows, best] > 0
        rows, best = rows[some], best[some]
        active[rows, best], left[rows, best] = True, 0
    return active


def give_everybody_a_place(
    active: NDArray[np.bool_], segmentation: Segmentation, local: Sequence[LocalSpeaker], labels: Labels
) -> None:
    """Speakers who lost every frame of `active` (frames, S) to others get the frames of one of their local speakers.

    labels : (N,) the speaker of each local speaker
    """
    for speaker in np.flatnonzero(~active.any(0)).tolist():
        totals = active.sum(0)
        found: list[tuple[int, NDArray[np.int64]]] = []
        for row in np.flatnonzero(labels == speaker).tolist():
            frames = np.flatnonzero(local[row].chosen) + segmentation.starts[local[row].window]
            frames = frames[frames < len(active)]
            taken = active[frames].sum(0)
            spared = bool((totals[taken > 0] > taken[taken > 0]).all())  # nobody loses all they have
            found.append((len(frames) if spared else 0, frames))
        if not found:
            continue
        spare, frames = max(found, key=lambda one: one[0])
        if spare:
            active[frames] = False
        active[frames, speaker] = True  # where nobody can spare frames, beside them


def doubted(segmentation: Segmentation, levels: Floats) -> tuple[NDArray[np.bool_], list[tuple[int, int]]]:
    """(frames,) bool, where nobody speaks after all, and stretches (first frame, one past the last) of doubt.

    A network that brings everything to one level hears speech in the noise of a silent room. Nobody speaks in stretches
    that are nowhere SURE, or FAINT under loud speech, a stretch being as loud as the loudest tenth of its frames, loud
    speech as the loudest twentieth of all the recording's speech. Stretches that are nowhere CERTAIN are in doubt.

    levels : (frames,) dBFS
    """
    chances = speech(segmentation)
    spoken = chances >= ACTIVE
    doubt: list[tuple[int, int]] = []
    nobody = ~spoken  # what single windows hear beside a stretch is no turn
    if not spoken.any():
        return nobody, doubt
    least = max(SILENCE, np.percentile(levels[spoken], 95) - FAINT)
    for first, last in _runs(spoken):
        surest = chances[first:last].max()
        if surest < SURE or np.percentile(levels[first:last], 90) < least:
            nobody[first:last] = True
        elif surest < CERTAIN:
            doubt.append((first, last))
    return nobody, doubt


def without(segmentation: Segmentation, nobody: NDArray[np.bool_]) -> Segmentation:
    """The same, but nobody speaks where `nobody` (frames,) says so."""
    size = segmentation.probabilities.shape[1]
    silent = np.append(nobody, np.zeros(size, dtype=bool))
    kept = segmentation.probabilities.copy()
    for window, start in zip(kept, segmentation.starts.tolist(), strict=True):
        window[silent[start : start + size]] = 0
    return Segmentation(segmentation.starts, kept, segmentation.frames)


def finer(segmentation: Segmentation, least: int) -> Segmentation:
    """Windows of one local speaker each over all speech, short enough that about twice `least` of them hear speech."""
    spoken = speech(segmentation)
    frames = int((spoken >= ACTIVE).sum())
    size = int(np.clip(frames // (2 * least), LEAST_FRAMES, 38))
    return of_speech(spoken, size=size, hop=size)


Turn = tuple[int, int, int]  # first frame, one past the last, speaker


def turns(active: NDArray[np.bool_], *, min_turn: float = 0.0, max_gap: float = 0.0, margin: float = 0.0) -> list[Turn]:
    """Turns of (frames, S) activity, by time: pauses up to `max_gap` seconds filled, short turns given away, margins.

    A turn under `min_turn` seconds goes to whoever speaks right before or after it, the longer turn of the two; where
    nobody does, or somebody speaks meanwhile, it is dropped. A speaker's longest turn always stays. Then turns reach
    into the silence beside them, `margin` seconds behind their ends and a fifth of it before them: words fade, and who
    marks turns by ear ends them later than a network that was taught by the level of sound. Where both sides want more
    silence than there is, it goes to the end. Times are whole frames.
    """
    found = _joined(((first, last, s) for s in range(active.shape[1]) for first, last in _runs(active[:, s])), max_gap)
    found = _joined(_without_short(found, min_turn), max_gap) if min_turn > 0 else found
    return _joined(_with_margins(found, len(active), margin), 0.0) if margin > 0 else found


def _with_margins(found: Sequence[Turn], frames: int, margin: float) -> list[Turn]:
    """See `turns`."""
    after = round(margin / FRAME_SECONDS)
    before = round(margin / 5 / FRAME_SECONDS)
    silent = np.ones(frames, dtype=bool)
    for first, last, _ in found:
        silent[first:last] = False
    ends, beginnings = {}, {}
    for first, last in _runs(silent):
        ends[first] = min(first + after, last)
        beginnings[last] = max(last - before, ends[first] if first else 0)
    return [(beginnings.get(first, first), ends.get(last, last), speaker) for first, last, speaker in found]


def _joined(found: Iterable[Turn], max_gap: float) -> list[Turn]:
    """Turns of one speaker that are at most `max_gap` seconds apart become one; by time."""
    joined: list[Turn] = []
    for first, last, speaker in sorted(found, key=lambda turn: (turn[2], turn)):
        if joined and joined[-1][2] == speaker and (first - joined[-1][1]) * FRAME_SECONDS <= max_gap + EPSILON:
            joined[-1] = (joined[-1][0], last, speaker)
        else:
            joined.append((first, last, speaker))
    return sorted(joined)


def _runs(active: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(active.astype(np.int8), prepend=0, append=0))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


def _without_short(found: list[Turn], min_turn: float) -> list[Turn]:
    """See `turns`; the shortest first."""
    there = set(found)
    speaking = np.zeros(max((last for _, last, _ in found), default=0), dtype=np.int32)  # how many turns hold a frame
    begin: dict[int, set[Turn]] = {}
    end: dict[int, set[Turn]] = {}
    longest: dict[int, list[tuple[int, Turn]]] = {}  # heaps; turns that are gone are left in until they come up
    short: list[tuple[int, Turn]] = []

    def add(one: Turn, by: int) -> None:
        speaking[one[0] : one[1]] += by
        for edges, place in ((begin, one[0]), (end, one[1])):
            mine = edges.setdefault(place, set())
            mine.add(one) if by > 0 else mine.remove(one)
        there.add(one) if by > 0 else there.remove(one)
        if by > 0:
            heappush(longest.setdefault(one[2], []), (one[0] - one[1], one))
            if (one[1] - one[0]) * FRAME_SECONDS < min_turn - EPSILON:
                heappush(short, (one[1] - one[0], one))

    def is_longest(one: Turn) -> bool:
        heap = longest[one[2]]
        while heap[0][1] not in there:
            heappop(heap)
        return heap[0][1] == one

    for one in found:
        add(one, 1)
    stays: dict[int, Turn] = {}  # short ones that are their speaker's longest
    while short:
        _, one = heappop(short)
        if one not in there:
            continue
        if is_longest(one):
            stays[one[2]] = one
            continue
        add(one, -1)
        beside = end.get(one[0], set()) | begin.get(one[1], set())
        if beside and not speaking[one[0] : one[1]].any():
            taker = max(beside, key=lambda turn: (turn[1] - turn[0], turn))
            joined = one[0], one[1], taker[2]
            for other in [other for other in beside if other[2] == taker[2]]:
                add(other, -1)
                joined = min(joined[0], other[0]), max(joined[1], other[1]), taker[2]
            add(joined, 1)
            kept = stays.pop(taker[2], None)
            if kept in there:
                heappush(short, (kept[1] - kept[0], kept))
    return sorted(there)
