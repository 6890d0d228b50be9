"""From local speakers of windows to the activity of the recording's speakers.

Arrays only. Windows come from `segmentation`. The frames that an embedding is made of are chosen here, and once a
clustering has assigned local speakers to speakers, windows that overlap are averaged frame by frame
(Bredin, "pyannote.audio 2.1 speaker diarization pipeline", Interspeech 2023, section 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.values import Doubles, Floats

MIN_CLEAN_FRAMES = 12  # below this, overlapped frames of a local speaker are embedded too
ONSET = 0.5  # probability from which a local speaker is active
WINDOW_FRAMES = 38  # of a short window: a second and a half
HOP_FRAMES = 19  # from one short window to the next
MIN_WINDOW_FRAMES = 8  # of a window that is shorter than usual
FRAMES_AT_ONCE = 100_000  # whose scores are copied at once
WINDOWS_AT_ONCE = 64  # whose scores are computed at once: a minute, in which few of many speakers speak
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

    @property
    def several(self) -> bool:
        """Whether windows distinguish speakers."""
        return int(self.probabilities.shape[2]) > 1


@dataclass(frozen=True)
class LocalSpeaker:
    """One speaker of one window.

    window, speaker : where it is in `Segmentation.probabilities`
    active          : (T,) bool, its frames
    clean           : (T,) bool, those of them without overlap
    """

    window: int
    speaker: int
    active: NDArray[np.bool_]
    clean: NDArray[np.bool_]

    @cached_property
    def embedding_mask(self) -> NDArray[np.bool_]:
        """(T,) bool: the frames that its embedding is made of, overlapped ones only where too few are clean."""
        return self.clean if self.clean.sum() >= MIN_CLEAN_FRAMES else self.active


@dataclass(frozen=True)
class WindowsBetween:
    """The windows over some frames of a recording.

    first        : frame of the recording from which the part's frames are counted
    segmentation : the windows, with all frames that they cover
    rows         : where `local` stands among the recording's local speakers
    local        : the local speakers of these windows
    """

    first: int
    segmentation: Segmentation
    rows: slice
    local: Sequence[LocalSpeaker]

    @property
    def last(self) -> int:
        """One past the last frame."""
        return self.first + self.segmentation.frames


def windows_between(segmentation: Segmentation, local: Sequence[LocalSpeaker], first: int, last: int) -> WindowsBetween:
    """The windows over frames from `first` to before `last`, and beyond as far as these windows reach."""
    size = segmentation.probabilities.shape[1]
    low, high = np.searchsorted(segmentation.starts, [first - size + 1, last]).tolist()
    windows = np.fromiter((speaker.window for speaker in local), np.int64, len(local))
    rows = slice(*np.searchsorted(windows, [low, high]).tolist())
    starts = segmentation.starts[low:high]
    if len(starts):
        first, last = min(first, int(starts[0])), max(last, min(int(starts[-1]) + size, segmentation.frames))
    moved = [replace(speaker, window=speaker.window - low) for speaker in local[rows]]
    return WindowsBetween(
        first, Segmentation(starts - first, segmentation.probabilities[low:high], last - first), rows, moved
    )


def single_speaker_windows(
    speech: NDArray[np.floating], *, size: int = WINDOW_FRAMES, hop: int = HOP_FRAMES
) -> Segmentation:
    """Windows with one local speaker each, for detectors of speech that do not tell speakers apart.

    speech : (frames,) probability of speech, FRAME_SECONDS a frame
    size, hop : frames of a window and from one to the next
    """
    frames = len(speech)
    starts = np.arange(0, max(1, frames - size + hop), hop, dtype=np.int64) if frames else np.zeros(0, dtype=np.int64)
    table = np.zeros((len(starts), size, 1), dtype=np.float16)
    for row, start in zip(table, starts.tolist(), strict=True):
        inside = speech[start : start + size]
        row[: len(inside), 0] = inside
    return Segmentation(starts, table, frames)


def local_speakers(segmentation: Segmentation) -> list[LocalSpeaker]:
    """The local speakers that are active in some frame, window by window."""
    active = segmentation.probabilities >= ONSET  # (W, T, K)
    alone = active.sum(2, keepdims=True) == 1
    clean = active & alone
    rows = np.argwhere(active.any(1))
    return [
        LocalSpeaker(int(window), int(speaker), active[window, :, speaker], clean[window, :, speaker])
        for window, speaker in rows
    ]


def assign_speakers(similarity: Doubles, windows: NDArray[np.int64]) -> Labels:
    """The speaker (N,) of each local speaker: the most similar, but two of one window are two while there are enough.

    similarity : (N, S) of local speakers to speakers
    windows    : (N,) the window of each, ascending
    """
    labels: Labels = similarity.argmax(1).astype(np.int64)
    for rows in np.split(np.arange(len(windows)), np.flatnonzero(np.diff(windows)) + 1):
        if len(set(labels[rows].tolist())) < len(rows) <= similarity.shape[1]:
            # The best choice of r different columns takes each row's from that row's r best.
            likely = np.argsort(-similarity[rows], axis=1, kind="stable")[:, : len(rows)]
            choices = [choice for choice in product(*likely.tolist()) if len(set(choice)) == len(rows)]
            labels[rows] = max(choices, key=lambda choice: float(similarity[rows, choice].sum()))
    return labels


def window_count(segmentation: Segmentation) -> Floats:
    """(frames,) number of windows over each frame."""
    size = segmentation.probabilities.shape[1]
    edges = np.zeros(segmentation.frames + 1, dtype=np.float32)
    np.add.at(edges, segmentation.starts, 1)
    np.add.at(edges, np.minimum(segmentation.starts + size, segmentation.frames), -1)
    result: Floats = edges.cumsum()[:-1]
    return result


def speaker_count(segmentation: Segmentation) -> NDArray[np.int64]:
    """(frames,) number of speakers at once, on the average of the windows over a frame."""
    mean = _mean(segmentation, lambda chances: (chances >= ONSET).sum(1))
    speakers: NDArray[np.int64] = np.floor(mean + 0.5).astype(np.int64)
    return speakers


def speech_probability(segmentation: Segmentation) -> Floats:
    """(frames,) probability of speech, on the average of the windows over a frame."""
    return _mean(segmentation, lambda chances: 1 - np.prod(1 - chances.astype(np.float32), axis=1))


def _mean(segmentation: Segmentation, value: Callable[[NDArray[np.float16]], NDArray[Any]]) -> Floats:
    """(frames,) float32: a value per frame of a window, (T, K) to (T,), on the average of the windows over a frame."""
    total = np.zeros(segmentation.frames, dtype=np.float32)
    for start, chances in zip(segmentation.starts.tolist(), segmentation.probabilities, strict=True):
        part = total[start : start + len(chances)]
        part += value(chances)[: len(part)]
    total /= np.maximum(window_count(segmentation), 1)
    return total


def aggregate(segmentation: Segmentation, local: Sequence[LocalSpeaker], soft_assignment: Floats) -> Floats:
    """(frames, S) float32: score of each speaker, on the average of the windows over a frame.

    soft_assignment : (N, S) of local speakers to speakers, 0 to 1
    """
    scores = np.zeros((segmentation.frames, soft_assignment.shape[1]), dtype=np.float32)
    for first, block in score_blocks(segmentation, local, soft_assignment):
        scores[first : first + len(block)] = block
    return scores


def score_blocks(
    segmentation: Segmentation, local: Sequence[LocalSpeaker], soft_assignment: Floats
) -> Iterator[tuple[int, Floats]]:
    """Yield the scores of `aggregate` for some frames after the other: the first of them, and (F, S) float32."""
    windows = np.array([speaker.window for speaker in local], dtype=np.int64)
    places = np.array([speaker.speaker for speaker in local], dtype=np.int64)
    count_over: Floats = np.maximum(window_count(segmentation), 1)[:, None]
    begins = np.flatnonzero(np.diff(windows, prepend=-1))  # of the local speakers of a window, which follow each other
    members = np.diff(begins, append=len(windows))
    base, total = 0, np.zeros((0, soft_assignment.shape[1]), dtype=np.float32)  # of frames that windows still cover
    for at in range(0, len(begins), WINDOWS_AT_ONCE):
        rows, count = begins[at : at + WINDOWS_AT_ONCE], members[at : at + WINDOWS_AT_ONCE]
        starts = segmentation.starts[windows[rows]]
        done = min(int(starts[0]) - base, len(total))
        if done:
            yield base, total[:done] / count_over[base : base + done]
        end = min(int(starts[-1]) + segmentation.probabilities.shape[1], segmentation.frames)
        new = np.zeros((end - int(starts[0]), total.shape[1]), dtype=np.float32)
        new[: len(total) - done] = total[done:]
        base, total = int(starts[0]), new
        shares = soft_assignment[rows[0] : rows[-1] + count[-1]]
        speakers = slice(None) if shares.all() else np.flatnonzero(shares.any(0))
        shares = shares[:, speakers]
        chances = segmentation.probabilities[windows[rows]].swapaxes(1, 2).astype(np.float32)  # (W, K, T)
        scores = chances[np.arange(len(rows)), places[rows], :, None] * shares[rows - rows[0], None]  # (W, T, S)
        for place in range(1, int(count.max())):
            more = np.flatnonzero(count > place)
            others = rows[more] + place
            score = chances[more, places[others], :, None] * shares[others - rows[0], None]
            scores[more] = np.maximum(scores[more], score)  # where two are one speaker, the larger one counts
        for start, score in zip((starts - base).tolist(), scores, strict=True):
            part = total[start : start + len(score)]
            part[:, speakers] += score[: len(part)]
    yield base, total / count_over[base : base + len(total)]


def select_active(counts: NDArray[np.int64], scores: Floats) -> NDArray[np.bool_]:
    """(frames, S) bool, who speaks: in each frame the `counts` (frames,) speakers with the highest scores."""
    active = np.zeros(scores.shape, dtype=bool)
    for at in range(0, len(scores), FRAMES_AT_ONCE):
        block = slice(at, at + FRAMES_AT_ONCE)
        left = scores[block].copy()
        for place in range(min(int(counts[block].max()), scores.shape[1])):
            rows = np.flatnonzero(counts[block] > place)
            best = left[rows].argmax(1)
            some = left[rows, best] > 0
            rows, best = rows[some], best[some]
            active[at + rows, best], left[rows, best] = True, 0
    return active


def ensure_every_speaker(
    active: NDArray[np.bool_], segmentation: Segmentation, local: Sequence[LocalSpeaker], labels: Labels
) -> None:
    """Give speakers without any frame in `active` (frames, S) the frames of one of their local speakers.

    labels : (N,) the speaker of each local speaker
    """
    for speaker in np.flatnonzero(~active.any(0)).tolist():
        totals = active.sum(0)
        candidates: list[tuple[int, NDArray[np.int64]]] = []
        for row in np.flatnonzero(labels == speaker).tolist():
            frames = np.flatnonzero(local[row].embedding_mask) + segmentation.starts[local[row].window]
            frames = frames[frames < len(active)]
            taken = active[frames].sum(0)
            spared = bool((totals[taken > 0] > taken[taken > 0]).all())  # no speaker loses its last frame
            candidates.append((len(frames) if spared else 0, frames))
        if not candidates:
            continue
        spare, frames = max(candidates, key=lambda candidate: candidate[0])
        if spare:
            active[frames] = False
        active[frames, speaker] = True  # where no speaker can spare frames, in overlap


def shorter_windows(segmentation: Segmentation, min_windows: int) -> Segmentation:
    """Windows of one local speaker each, short enough that about twice `min_windows` of them hold speech."""
    spoken = speech_probability(segmentation)
    frames = int((spoken >= ONSET).sum())
    size = int(np.clip(frames // (2 * min_windows), MIN_WINDOW_FRAMES, WINDOW_FRAMES))
    return single_speaker_windows(spoken, size=size, hop=size)


def active_runs(active: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Runs of true frames in (frames,) activity: (first, one past the last)."""
    edges = np.flatnonzero(np.diff(active.astype(np.int8), prepend=0, append=0))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]
