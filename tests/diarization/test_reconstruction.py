"""From local speakers to active speakers: scores and counts by hand, and invariants of any windows."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from knn_cli.audio.segments import FRAME_SECONDS
from knn_cli.diarization import reconstruction
from knn_cli.diarization.post_processing import frame_turns
from knn_cli.diarization.reconstruction import Segmentation


def windows(starts: list[int], rows: list[list[list[float]]], frames: int) -> Segmentation:
    """Windows of local speakers, each a list of probabilities by frame: rows[w][k][t]."""
    table = np.array(rows, dtype=np.float16).transpose(0, 2, 1)
    return Segmentation(np.array(starts, dtype=np.int64), table, frames)


def hard_assignment(labels: NDArray[np.integer], speakers: int) -> NDArray[np.float32]:
    """(N, S): 1 where a local speaker is assigned to a speaker; label -1 is assigned to none."""
    result: NDArray[np.float32] = (labels[:, None] == np.arange(speakers)).astype(np.float32)
    return result


def active_speakers(segmentation: Segmentation, labels: NDArray[np.integer], speakers: int) -> NDArray[np.bool_]:
    """(frames, S) bool: speakers selected by scores and counts, each with at least one frame."""
    local = reconstruction.local_speakers(segmentation)
    scores = reconstruction.aggregate(segmentation, local, hard_assignment(labels, speakers))
    active = reconstruction.select_active(reconstruction.speaker_count(segmentation), scores)
    reconstruction.ensure_every_speaker(active, segmentation, local, labels)
    return active


# Two windows of four frames, the second two frames later: A speaks in 0-3 (k 0, then k 1), B in 3-5 (k 1, then k 0).
BY_HAND = windows(
    [0, 2],
    [
        [[0.9, 0.8, 0.7, 0.6], [0.0, 0.1, 0.2, 0.5]],
        [[0.0, 0.9, 1.0, 0.8], [0.6, 0.4, 0.0, 0.0]],
    ],
    6,
)
LABELS = np.array([0, 1, 1, 0])  # window 0: A, B; window 1: B, A


def test_local_speakers_and_their_clean_frames() -> None:
    local = reconstruction.local_speakers(BY_HAND)
    assert [(speaker.window, speaker.speaker) for speaker in local] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    active = ["1111", "0001", "0111", "1000"]
    clean = ["1110", "0000", "0111", "1000"]
    for speaker, expected_active, expected_clean in zip(local, active, clean, strict=True):
        assert "".join(map(str, speaker.active.astype(int))) == expected_active
        assert "".join(map(str, speaker.clean.astype(int))) == expected_clean
    silent = windows([0], [[[0.4, 0.49], [0.0, 0.3]]], 2)
    assert reconstruction.local_speakers(silent) == []


def test_scores_and_counts_by_hand() -> None:
    local = reconstruction.local_speakers(BY_HAND)
    assert reconstruction.window_count(BY_HAND).tolist() == [1, 1, 2, 2, 1, 1]
    assert reconstruction.speaker_count(BY_HAND).tolist() == [1, 1, 1, 2, 1, 1]  # frame 3: two and one, 1.5 is two
    scores = reconstruction.aggregate(BY_HAND, local, hard_assignment(LABELS, 2))
    expected = [[0.9, 0], [0.8, 0.1], [0.65, 0.1], [0.5, 0.7], [0, 1.0], [0, 0.8]]
    np.testing.assert_allclose(scores, expected, atol=1e-3)
    active = reconstruction.select_active(reconstruction.speaker_count(BY_HAND), scores)
    assert np.array_equal(active_speakers(BY_HAND, LABELS, 2), active)
    assert active.astype(int).T.tolist() == [[1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]]
    assert frame_turns(active) == [(0, 4, 0), (3, 6, 1)]


def test_higher_probability_counts_for_two_local_speakers_with_one_label() -> None:
    local = reconstruction.local_speakers(BY_HAND)
    scores = reconstruction.aggregate(BY_HAND, local, np.ones((4, 1), dtype=np.float32))
    np.testing.assert_allclose(scores[:, 0], [0.9, 0.8, 0.65, 0.75, 1.0, 0.8], atol=1e-3)
    scores = reconstruction.aggregate(BY_HAND, local, hard_assignment(np.array([0, -1, -1, 0]), 1))
    np.testing.assert_allclose(scores[:, 0], [0.9, 0.8, 0.65, 0.5, 0, 0], atol=1e-3)
    half = np.array([[0.5, 0.5], [0, 0], [0, 0], [0.25, 0.75]], dtype=np.float32)  # the larger of 0.6 and 0
    scores = reconstruction.aggregate(BY_HAND, local, half)
    np.testing.assert_allclose(scores[:3], [[0.45, 0.45], [0.4, 0.4], [0.25, 0.4]], atol=1e-3)


def test_speech_probability_is_that_of_any_speaker() -> None:
    expected = [0.9, 1 - 0.2 * 0.9, (1 - 0.3 * 0.8 + 0.6) / 2, (0.8 + 0.94) / 2, 1.0, 0.8]
    np.testing.assert_allclose(reconstruction.speech_probability(BY_HAND), expected, atol=1e-3)


def test_frames_outside_all_windows_are_silent() -> None:
    short = windows([0], [[[1.0, 1.0]]], 5)
    assert reconstruction.window_count(short).tolist() == [1, 1, 0, 0, 0]
    assert reconstruction.speaker_count(short).tolist() == [1, 1, 0, 0, 0]
    scores = reconstruction.aggregate(short, reconstruction.local_speakers(short), np.ones((1, 1), np.float32))
    assert scores[:, 0].tolist() == [1, 1, 0, 0, 0]
    longer = windows([0], [[[1.0, 1.0, 0.0]]], 2)  # a window that reaches past the end
    assert reconstruction.window_count(longer).tolist() == [1, 1]


# --- assignment of local speakers


def test_assign_by_hand() -> None:
    similarity = np.array([[0.9, 0.8, 0.0], [0.7, 0.1, 0.0], [0.2, 0.6, 0.5], [0.3, 0.9, 0.8]])
    # Both are most like 0; the second would lose more by giving it up (0.8 + 0.7 against 0.9 + 0.1).
    assert reconstruction.assign_speakers(similarity[:2], np.array([0, 0])).tolist() == [1, 0]
    assert reconstruction.assign_speakers(similarity, np.array([0, 1, 2, 3])).tolist() == [0, 0, 1, 1]
    too_few_speakers = np.array([[0.9], [0.8]])
    assert reconstruction.assign_speakers(too_few_speakers, np.array([5, 5])).tolist() == [0, 0]
    assert reconstruction.assign_speakers(np.zeros((0, 2)), np.zeros(0, dtype=np.int64)).tolist() == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=6), st.integers(1, 5), st.integers(0, 10**6))
def test_assign_is_the_best_choice_of_different_speakers(sizes: list[int], speakers: int, seed: int) -> None:
    similarity = np.random.default_rng(seed).normal(size=(sum(sizes), speakers))
    labels = reconstruction.assign_speakers(similarity, np.repeat(np.arange(len(sizes)), sizes))
    for rows in np.split(np.arange(len(labels)), np.cumsum(sizes)[:-1]):
        if len(rows) > speakers:
            assert set(labels[rows].tolist()) <= set(range(speakers))
            continue
        assert len(set(labels[rows].tolist())) == len(rows)
        best = max(similarity[rows, list(order)].sum() for order in permutations(range(speakers), len(rows)))
        assert similarity[rows, labels[rows]].sum() == pytest.approx(best)


# --- every speaker gets a frame


def test_speaker_with_low_scores_keeps_a_frame() -> None:
    """Speaker 1 is active in only one of three windows; its frame is taken from speaker 0, who keeps others."""
    rows = [[[1.0] * 4, [0.0] * 4], [[1.0, 1.0, 1.0, 0.0], [0.0] * 4], [[0.0, 0.0, 0.9, 0.0], [0.0] * 4]]
    segmentation = windows([0, 0, 0], rows, 4)
    active = active_speakers(segmentation, np.array([0, 0, 1]), 2)
    assert active.astype(int).T.tolist() == [[1, 1, 0, 0], [0, 0, 1, 0]]


def test_speakers_overlap_where_no_frame_can_be_spared() -> None:
    rows = [[[1.0, 1.0]], [[0.9, 0.9]]]
    segmentation = windows([0, 0], rows, 2)
    assert active_speakers(segmentation, np.array([0, 1]), 2).all()


def random_case(seed: int) -> tuple[Segmentation, NDArray[np.int64], int]:
    rng = np.random.default_rng(seed)
    size, hop, speakers = int(rng.integers(2, 12)), int(rng.integers(1, 6)), int(rng.integers(1, 5))
    frames = int(rng.integers(1, 60))
    starts = list(range(0, max(1, frames - size + 1), hop))
    table = rng.random((len(starts), size, int(rng.integers(1, 4)))) ** rng.integers(1, 4)
    table *= rng.random((len(starts), 1, table.shape[2])) < 0.7
    for row, start in zip(table, starts, strict=True):
        row[max(0, frames - start) :] = 0
    segmentation = Segmentation(np.array(starts, dtype=np.int64), table.astype(np.float16), frames)
    count = len(reconstruction.local_speakers(segmentation))
    return segmentation, rng.integers(-1, speakers, count), speakers


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 8), st.integers(0, 8))
def test_every_speaker_has_a_turn(seed: int, min_turn: int, max_gap: int) -> None:
    segmentation, labels, speakers = random_case(seed)
    local = reconstruction.local_speakers(segmentation)
    scores = reconstruction.aggregate(segmentation, local, hard_assignment(labels, speakers))
    assert scores.dtype == np.float32 and scores.min(initial=0) >= 0 and scores.max(initial=0) <= 1
    active = active_speakers(segmentation, labels, speakers)
    expected = {int(label) for label in labels if label >= 0}
    assert set(np.flatnonzero(active.any(0)).tolist()) == expected
    turns = frame_turns(active, min_turn=min_turn * FRAME_SECONDS, max_gap=max_gap * FRAME_SECONDS)
    assert {speaker for _, _, speaker in turns} == expected
    assert turns == sorted(turns) and all(0 <= first < last <= segmentation.frames for first, last, _ in turns)
    for first, last, speaker in turns:  # a speaker's turns neither overlap nor touch
        assert not any(
            other != (first, last, speaker) and other[2] == speaker and first <= other[1] and other[0] <= last
            for other in turns
        )


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9))
def test_select_active_takes_the_highest_scores(seed: int) -> None:
    """Brute force by frame: the `count` highest scores, the first of equal ones, never a score of 0."""
    rng = np.random.default_rng(seed)
    frames, speakers = int(rng.integers(0, 30)), int(rng.integers(1, 5))
    scores = rng.choice([0.0, 0.3, 0.6, 0.9], (frames, speakers)).astype(np.float32)
    counts, before = rng.integers(0, 6, frames), scores.copy()
    expected = np.zeros((frames, speakers), dtype=bool)
    for frame, row in enumerate(scores):
        order = np.argsort(-row, kind="stable")[: counts[frame]]
        expected[frame, order[row[order] > 0]] = True
    assert np.array_equal(reconstruction.select_active(counts, scores), expected)
    assert np.array_equal(scores, before)


# --- windows of one local speaker


@pytest.mark.parametrize("frames", [0, 1, 37, 38, 39, 57, 58, 100, 1000])
def test_single_speaker_windows_cover_the_recording(frames: int) -> None:
    speech = np.random.default_rng(frames).random(frames).astype(np.float32)
    segmentation = reconstruction.single_speaker_windows(speech)
    assert segmentation.frames == frames and segmentation.probabilities.shape == (len(segmentation.starts), 38, 1)
    if not frames:
        assert len(segmentation.starts) == 0 and reconstruction.local_speakers(segmentation) == []
        return
    assert reconstruction.window_count(segmentation).min() >= 1 and reconstruction.window_count(segmentation).max() <= 2
    for start, row in zip(segmentation.starts.tolist(), segmentation.probabilities, strict=True):
        there = speech[start : start + 38]
        np.testing.assert_allclose(row[: len(there), 0], there, atol=1e-3)
        assert not row[len(there) :].any()
    np.testing.assert_allclose(reconstruction.speech_probability(segmentation), speech, atol=1e-3)


def test_shorter_windows_have_one_local_speaker() -> None:
    shorter = reconstruction.shorter_windows(BY_HAND, 2)
    assert shorter.frames == 6 and shorter.probabilities.shape == (1, reconstruction.MIN_WINDOW_FRAMES, 1)
    speech = np.zeros(400, dtype=np.float32)
    speech[100:300] = 1
    speech_windows = reconstruction.single_speaker_windows(speech)
    shorter = reconstruction.shorter_windows(speech_windows, 10)  # 200 frames for 20 windows
    assert shorter.probabilities.shape[1] == 10 and (np.diff(shorter.starts) == 10).all()
    local = reconstruction.local_speakers(shorter)
    assert len(local) == 20 and all(speaker.active.all() and speaker.clean.all() for speaker in local)
    shortest = reconstruction.shorter_windows(speech_windows, 1000)
    assert shortest.probabilities.shape[1] == reconstruction.MIN_WINDOW_FRAMES
    assert reconstruction.shorter_windows(speech_windows, 1).probabilities.shape[1] == 38
