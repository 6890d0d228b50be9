"""From local speakers of windows to turns of the recording's speakers: the second half of diarization.

Arrays only. Windows come from `segmentation`; the pieces that an embedding is made of are chosen here, and once a
clustering has said which local speakers are one person, windows that overlap vote frame by frame on who speaks
(Bredin, "pyannote.audio 2.1 speaker diarization pipeline", Interspeech 2023, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, product

import numpy as np
from numpy.typing import NDArray

from knn_cli.segments import EPSILON, FRAME_SECONDS
from knn_cli.types import Doubles, Floats

ACTIVE = 0.5  # probability from which a local speaker speaks
LEAST_FRAMES = 8  # of a window that is cut finer than usual
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Segmentation:
    """Local speakers of W windows.

    starts        : (W,) int64, first frame of each window, ascending
    probabilities : (W, T, K) float16, that local speaker k speaks in frame t; zeros past the recording's end
    frames        : frames of the recording
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
    total = np.zeros(segmentation.frames, dtype=np.float32)
    for start, chances in zip(segmentation.starts.tolist(), segmentation.probabilities, strict=True):
        part = total[start : start + len(chances)]
        part += (chances >= ACTIVE).sum(1)[: len(part)]
    return np.floor(total / np.maximum(heard(segmentation), 1) + 0.5).astype(np.int64)


def speech(segmentation: Segmentation) -> Floats:
    """(frames,) probability that anybody speaks, on the average of the windows that hear a frame."""
    total = np.zeros(segmentation.frames, dtype=np.float32)
    for start, chances in zip(segmentation.starts.tolist(), segmentation.probabilities, strict=True):
        part = total[start : start + len(chances)]
        part += 1 - np.prod(1 - chances.astype(np.float32), axis=1)[: len(part)]
    return (total / np.maximum(heard(segmentation), 1)).astype(np.float32)


def vote(segmentation: Segmentation, local: Sequence[LocalSpeaker], labels: Labels, speakers: int) -> Floats:
    """(frames, S) float32: probability that each speaker speaks, on the average of the windows that hear a frame.

    labels : (N,) the speaker of each local speaker, -1 for none
    """
    total = np.zeros((segmentation.frames, speakers), dtype=np.float32)
    score = np.zeros((segmentation.probabilities.shape[1], speakers), dtype=np.float32)
    for _, group in groupby(zip(local, labels.tolist(), strict=True), key=lambda pair: pair[0].window):
        score[:] = 0
        for one, label in group:
            if label >= 0:  # where two are one speaker, the surer counts
                chances = segmentation.probabilities[one.window, :, one.speaker]
                np.maximum(score[:, label], chances, out=score[:, label])
        part = total[segmentation.starts[one.window] :][: len(score)]
        part += score[: len(part)]
    return (total / np.maximum(heard(segmentation), 1)[:, None]).astype(np.float32)


def decide(
    segmentation: Segmentation, local: Sequence[LocalSpeaker], labels: Labels, votes: Floats
) -> NDArray[np.bool_]:
    """(frames, S) bool, who speaks: as many as the windows say, those with the most votes; every speaker somewhere.

    votes : as of `vote`
    """
    speakers = votes.shape[1]
    counts = np.minimum(count(segmentation), speakers)
    order = np.argsort(-votes, axis=1, kind="stable")
    active = np.zeros(votes.shape, dtype=bool)
    for place in range(int(counts.max(initial=0))):
        rows = np.flatnonzero((counts > place) & (np.take_along_axis(votes, order[:, place, None], 1)[:, 0] > 0))
        active[rows, order[rows, place]] = True
    _give_everybody_a_place(segmentation, local, labels, active)
    return active


def _give_everybody_a_place(
    segmentation: Segmentation, local: Sequence[LocalSpeaker], labels: Labels, active: NDArray[np.bool_]
) -> None:
    """Speakers who lost every frame to others' votes get the frames of one of their local speakers."""
    for speaker in np.flatnonzero(~active.any(0)).tolist():
        best: tuple[int, NDArray[np.int64]] | None = None
        for row in np.flatnonzero(labels == speaker).tolist():
            one = local[row]
            frames = np.flatnonzero(one.clean if one.clean.any() else one.active) + segmentation.starts[one.window]
            frames = frames[frames < len(active)]
            left = active.sum(0) - active[frames].sum(0)
            if (left > 0)[active[frames].any(0)].all() and (best is None or len(frames) > best[0]):
                best = len(frames), frames
        if best is None:  # nobody can spare a whole window's frames: the speaker is heard beside them
            rows = np.flatnonzero(labels == speaker)
            if not len(rows):
                continue
            one = local[int(rows[0])]
            frames = np.flatnonzero(one.active) + segmentation.starts[one.window]
            active[frames[frames < len(active)], speaker] = True
            continue
        active[best[1]] = False
        active[best[1], speaker] = True


def finer(segmentation: Segmentation, least: int) -> Segmentation:
    """Windows of one local speaker each over all speech, short enough that about twice `least` of them hear speech."""
    spoken = speech(segmentation)
    frames = int((spoken >= ACTIVE).sum())
    size = int(np.clip(frames // (2 * least), LEAST_FRAMES, 38))
    return of_speech(spoken, size=size, hop=size)


Turn = tuple[int, int, int]  # first frame, one past the last, speaker


def turns(active: NDArray[np.bool_], *, min_turn: float = 0.0, max_gap: float = 0.0) -> list[Turn]:
    """Turns of (frames, S) activity, by time: pauses of up to `max_gap` seconds filled, then short turns given away.

    A turn under `min_turn` seconds goes to whoever speaks right before or after it, the longer turn of the two; where
    nobody does, or somebody speaks meanwhile, it is dropped. A speaker's longest turn always stays.
    """
    found: list[Turn] = []
    for speaker in range(active.shape[1]):
        mine: list[Turn] = []
        for first, last in _runs(active[:, speaker]):
            if mine and (first - mine[-1][1]) * FRAME_SECONDS <= max_gap + EPSILON:
                mine[-1] = (mine[-1][0], last, speaker)
            else:
                mine.append((first, last, speaker))
        found += mine
    return _without_short(sorted(found), min_turn)


def _runs(active: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(active.astype(np.int8), prepend=0, append=0))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


def _without_short(found: list[Turn], min_turn: float) -> list[Turn]:
    """See `turns`; the shortest first."""
    while True:
        longest: dict[int, Turn] = {}
        for one in found:
            if one[2] not in longest or one[1] - one[0] > longest[one[2]][1] - longest[one[2]][0]:
                longest[one[2]] = one
        short = [
            one
            for one in found
            if (one[1] - one[0]) * FRAME_SECONDS < min_turn - EPSILON and longest[one[2]] is not one
        ]
        if not short:
            return found
        one = min(short, key=lambda turn: (turn[1] - turn[0], turn))
        found.remove(one)
        meanwhile = any(other[0] < one[1] and other[1] > one[0] for other in found)
        beside = [other for other in found if other[1] == one[0] or other[0] == one[1]]
        if beside and not meanwhile:
            taker = max(beside, key=lambda turn: (turn[1] - turn[0], turn))
            found.remove(taker)
            joined = (min(one[0], taker[0]), max(one[1], taker[1]), taker[2])
            touching = [
                other for other in found if other[2] == joined[2] and other[0] <= joined[1] and other[1] >= joined[0]
            ]
            for other in touching:
                found.remove(other)
                joined = (min(joined[0], other[0]), max(joined[1], other[1]), joined[2])
            found = sorted([*found, joined])
