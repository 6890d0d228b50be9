"""From local speakers to turns: votes and turns by hand, and what must hold for any windows."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from knn_cli.audio.segments import FRAME_SECONDS
from knn_cli.diarization import reconstruction
from knn_cli.diarization.post_processing import FrameTurn, frame_turns
from knn_cli.diarization.reconstruction import Segmentation


def windows(starts: list[int], rows: list[list[list[float]]], frames: int) -> Segmentation:
    """Windows of local speakers, each a list of probabilities by frame: rows[w][k][t]."""
    table = np.array(rows, dtype=np.float16).transpose(0, 2, 1)
    return Segmentation(np.array(starts, dtype=np.int64), table, frames)


def shares(labels: NDArray[np.integer], speakers: int) -> NDArray[np.float32]:
    """(N, S): all of each local speaker is one speaker, none of those of label -1."""
    result: NDArray[np.float32] = (labels[:, None] == np.arange(speakers)).astype(np.float32)
    return result


def decided(found: Segmentation, labels: NDArray[np.integer], speakers: int) -> NDArray[np.bool_]:
    """Who speaks: votes, counts, and a place for everybody."""
    local = reconstruction.local_speakers(found)
    active = reconstruction.select_active(
        reconstruction.speaker_count(found), reconstruction.aggregate(found, local, shares(labels, speakers))
    )
    reconstruction.ensure_every_speaker(active, found, local, labels)
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
    assert [(one.window, one.speaker) for one in local] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    active = ["1111", "0001", "0111", "1000"]
    clean = ["1110", "0000", "0111", "1000"]
    for one, mine, alone in zip(local, active, clean, strict=True):
        assert "".join(map(str, one.active.astype(int))) == mine
        assert "".join(map(str, one.clean.astype(int))) == alone
    silent = windows([0], [[[0.4, 0.49], [0.0, 0.3]]], 2)
    assert reconstruction.local_speakers(silent) == []


def test_votes_and_counts_by_hand() -> None:
    local = reconstruction.local_speakers(BY_HAND)
    assert reconstruction.window_count(BY_HAND).tolist() == [1, 1, 2, 2, 1, 1]
    assert reconstruction.speaker_count(BY_HAND).tolist() == [1, 1, 1, 2, 1, 1]  # frame 3: two and one, 1.5 is two
    votes = reconstruction.aggregate(BY_HAND, local, shares(LABELS, 2))
    expected = [[0.9, 0], [0.8, 0.1], [0.65, 0.1], [0.5, 0.7], [0, 1.0], [0, 0.8]]
    np.testing.assert_allclose(votes, expected, atol=1e-3)
    active = reconstruction.select_active(reconstruction.speaker_count(BY_HAND), votes)
    assert np.array_equal(decided(BY_HAND, LABELS, 2), active)
    assert active.astype(int).T.tolist() == [[1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]]
    assert frame_turns(active) == [(0, 4, 0), (3, 6, 1)]


def test_of_two_local_speakers_with_one_label_the_surer_counts() -> None:
    local = reconstruction.local_speakers(BY_HAND)
    votes = reconstruction.aggregate(BY_HAND, local, np.ones((4, 1), dtype=np.float32))
    np.testing.assert_allclose(votes[:, 0], [0.9, 0.8, 0.65, 0.75, 1.0, 0.8], atol=1e-3)
    votes = reconstruction.aggregate(BY_HAND, local, shares(np.array([0, -1, -1, 0]), 1))
    np.testing.assert_allclose(votes[:, 0], [0.9, 0.8, 0.65, 0.5, 0, 0], atol=1e-3)
    half = np.array([[0.5, 0.5], [0, 0], [0, 0], [0.25, 0.75]], dtype=np.float32)  # the surer of 0.6 and none
    votes = reconstruction.aggregate(BY_HAND, local, half)
    np.testing.assert_allclose(votes[:3], [[0.45, 0.45], [0.4, 0.4], [0.25, 0.4]], atol=1e-3)


def test_speech_is_that_anybody_speaks() -> None:
    expected = [0.9, 1 - 0.2 * 0.9, (1 - 0.3 * 0.8 + 0.6) / 2, (0.8 + 0.94) / 2, 1.0, 0.8]
    np.testing.assert_allclose(reconstruction.speech_probability(BY_HAND), expected, atol=1e-3)


def test_frames_that_no_window_hears_are_silent() -> None:
    one = windows([0], [[[1.0, 1.0]]], 5)
    assert reconstruction.window_count(one).tolist() == [1, 1, 0, 0, 0]
    assert reconstruction.speaker_count(one).tolist() == [1, 1, 0, 0, 0]
    assert reconstruction.aggregate(one, reconstruction.local_speakers(one), np.ones((1, 1), np.float32))[
        :, 0
    ].tolist() == [
        1,
        1,
        0,
        0,
        0,
    ]
    longer = windows([0], [[[1.0, 1.0, 0.0]]], 2)  # a window that reaches past the end
    assert reconstruction.window_count(longer).tolist() == [1, 1]


# --- who is who in a window


def test_assign_by_hand() -> None:
    similarity = np.array([[0.9, 0.8, 0.0], [0.7, 0.1, 0.0], [0.2, 0.6, 0.5], [0.3, 0.9, 0.8]])
    # Both are most like 0; the second would lose more by giving it up (0.8 + 0.7 against 0.9 + 0.1).
    assert reconstruction.assign_speakers(similarity[:2], np.array([0, 0])).tolist() == [1, 0]
    assert reconstruction.assign_speakers(similarity, np.array([0, 1, 2, 3])).tolist() == [0, 0, 1, 1]
    assert reconstruction.assign_speakers(np.array([[0.9], [0.8]]), np.array([5, 5])).tolist() == [
        0,
        0,
    ]  # there are not enough
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
        best = max(similarity[rows, list(one)].sum() for one in permutations(range(speakers), len(rows)))
        assert similarity[rows, labels[rows]].sum() == pytest.approx(best)


# --- everybody gets a place


def test_who_lost_every_vote_gets_a_place() -> None:
    """Speaker 1 is heard by one of three windows only; its frames are taken from speaker 0, who keeps others."""
    rows = [[[1.0] * 4, [0.0] * 4], [[1.0, 1.0, 1.0, 0.0], [0.0] * 4], [[0.0, 0.0, 0.9, 0.0], [0.0] * 4]]
    found = windows([0, 0, 0], rows, 4)
    active = decided(found, np.array([0, 0, 1]), 2)
    assert active.astype(int).T.tolist() == [[1, 1, 0, 0], [0, 0, 1, 0]]


def test_where_nobody_can_spare_frames_two_are_heard_at_once() -> None:
    rows = [[[1.0, 1.0]], [[0.9, 0.9]]]
    found = windows([0, 0], rows, 2)
    assert decided(found, np.array([0, 1]), 2).all()


def random_case(seed: int) -> tuple[Segmentation, NDArray[np.int64], int]:
    rng = np.random.default_rng(seed)
    size, hop, speakers = int(rng.integers(2, 12)), int(rng.integers(1, 6)), int(rng.integers(1, 5))
    frames = int(rng.integers(1, 60))
    starts = list(range(0, max(1, frames - size + 1), hop))
    table = rng.random((len(starts), size, int(rng.integers(1, 4)))) ** rng.integers(1, 4)
    table *= rng.random((len(starts), 1, table.shape[2])) < 0.7
    for row, start in zip(table, starts, strict=True):
        row[max(0, frames - start) :] = 0
    found = Segmentation(np.array(starts, dtype=np.int64), table.astype(np.float16), frames)
    count = len(reconstruction.local_speakers(found))
    return found, rng.integers(-1, speakers, count), speakers


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 8), st.integers(0, 8))
def test_every_speaker_speaks_somewhere_whatever_the_turns(seed: int, least: int, gap: int) -> None:
    found, labels, speakers = random_case(seed)
    votes = reconstruction.aggregate(found, reconstruction.local_speakers(found), shares(labels, speakers))
    assert votes.dtype == np.float32 and votes.min(initial=0) >= 0 and votes.max(initial=0) <= 1
    active = decided(found, labels, speakers)
    there = {int(label) for label in labels if label >= 0}
    assert set(np.flatnonzero(active.any(0)).tolist()) == there
    made = frame_turns(active, min_turn=least * FRAME_SECONDS, max_gap=gap * FRAME_SECONDS)
    assert {speaker for _, _, speaker in made} == there
    assert made == sorted(made) and all(0 <= first < last <= found.frames for first, last, _ in made)
    check_apart(made)


def check_apart(made: list[FrameTurn]) -> None:
    """A speaker's turns neither overlap nor touch."""
    for speaker in {one[2] for one in made}:
        mine = [(first, last) for first, last, other in made if other == speaker]
        assert all(one[1] < other[0] for one, other in pairwise(mine))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9))
def test_as_many_speak_as_the_windows_say(seed: int) -> None:
    """Brute force by frame: the first `count` by votes, of equal ones the first, none without votes."""
    rng = np.random.default_rng(seed)
    frames, speakers = int(rng.integers(0, 30)), int(rng.integers(1, 5))
    votes = rng.choice([0.0, 0.3, 0.6, 0.9], (frames, speakers)).astype(np.float32)
    counts, before = rng.integers(0, 6, frames), votes.copy()
    expected = np.zeros((frames, speakers), dtype=bool)
    for frame, row in enumerate(votes):
        order = np.argsort(-row, kind="stable")[: counts[frame]]
        expected[frame, order[row[order] > 0]] = True
    assert np.array_equal(reconstruction.select_active(counts, votes), expected)
    assert np.array_equal(votes, before)


# --- turns


def activity(*speakers: str) -> NDArray[np.bool_]:
    """One string a speaker, 1 where it speaks."""
    return np.array([[mark == "1" for mark in one] for one in speakers]).T


def seconds(frames: float) -> float:
    return frames * FRAME_SECONDS


def test_pauses_up_to_max_gap_are_filled() -> None:
    active = activity("1101001000111")
    assert frame_turns(active) == [(0, 2, 0), (3, 4, 0), (6, 7, 0), (10, 13, 0)]
    assert frame_turns(active, max_gap=seconds(1)) == [(0, 4, 0), (6, 7, 0), (10, 13, 0)]
    assert frame_turns(active, max_gap=seconds(2)) == [(0, 7, 0), (10, 13, 0)]
    assert frame_turns(active, max_gap=seconds(2.9)) == [(0, 7, 0), (10, 13, 0)]
    assert frame_turns(active, max_gap=seconds(3)) == [(0, 13, 0)]


def test_short_turns_by_hand() -> None:
    # B's short turn lies right between A and C; C's turn is the longer one.
    active = activity("111000000011", "000110000000", "000001111000", "000000000000")
    active[:2, 3], active[0, 1] = False, False
    long_b = np.concatenate([active, activity("00000", "01111", "00000", "00000")])
    assert frame_turns(long_b, min_turn=seconds(3)) == [(0, 3, 0), (3, 9, 2), (13, 17, 1)]
    # Nobody right beside it: dropped. (A's own longest stays, though short.)
    assert frame_turns(activity("0110000", "0000100"), min_turn=seconds(4)) == [(1, 3, 0), (4, 5, 1)]
    assert frame_turns(activity("01100001111"), min_turn=seconds(3)) == [(7, 11, 0)]
    # Somebody speaks meanwhile: dropped, though others are right beside it.
    active = activity("11100000", "00011000", "00001111")
    assert frame_turns(np.concatenate([active, activity("0000", "0111", "0000")]), min_turn=seconds(3)) == [
        (0, 3, 0),
        (4, 8, 2),
        (9, 12, 1),
    ]


def test_a_turn_given_away_joins_what_it_touches() -> None:
    """A, a short B, A again: one turn of A."""
    active = activity("1110011100000", "0001100001111")
    assert frame_turns(active, min_turn=seconds(3)) == [(0, 8, 0), (9, 13, 1)]


def test_equal_turns_the_first_stays() -> None:
    assert frame_turns(activity("1100110011"), min_turn=seconds(5)) == [(0, 2, 0)]


def test_no_pause_up_to_max_gap_is_left() -> None:
    active = activity("11110000000111", "00001000000000")
    active = np.concatenate([active, activity("000000", "001111")])  # B's longest
    assert frame_turns(active, min_turn=seconds(2), max_gap=seconds(6)) == [(0, 14, 0), (16, 20, 1)]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9))
def test_turns_are_the_activity(seed: int) -> None:
    rng = np.random.default_rng(seed)
    active = rng.random((int(rng.integers(0, 50)), int(rng.integers(1, 4)))) < rng.random()
    again = np.zeros_like(active)
    for first, last, speaker in frame_turns(active):
        assert not again[first:last, speaker].any()
        again[first:last, speaker] = True
    assert np.array_equal(again, active)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 10), st.integers(0, 6))
def test_short_turns_that_stay_are_longest(seed: int, least: int, gap: int) -> None:
    rng = np.random.default_rng(seed)
    active = np.repeat(rng.random((25, 3)) < rng.random() * 0.8, rng.integers(1, 5, 25), axis=0)
    made = frame_turns(active, min_turn=seconds(least), max_gap=seconds(gap))
    check_apart(made)
    assert {one[2] for one in made} == set(np.flatnonzero(active.any(0)).tolist())
    for first, last, speaker in made:
        if last - first < least:
            assert all(other[2] != speaker or other == (first, last, speaker) for other in made)
    # Nobody speaks where nobody spoke, but in filled pauses.
    if gap == 0:
        said = np.zeros(len(active), dtype=bool)
        for first, last, _ in made:
            said[first:last] = True
        assert not (said & ~active.any(1)).any()


def test_thousands_of_short_turns_do_not_take_for_ever() -> None:
    """Each short turn once: 12,000 turns, most of them under the minimum."""
    rng = np.random.default_rng(0)
    speaker = np.repeat(rng.integers(0, 6, 12_000), rng.integers(1, 30, 12_000))
    active = np.zeros((len(speaker), 6), dtype=bool)
    active[np.arange(len(speaker)), speaker] = rng.random(len(speaker)) < 0.97
    made = frame_turns(active, min_turn=0.8, max_gap=0.0)
    check_apart(made)
    assert {one[2] for one in made} == set(range(6))


def test_margins_reach_into_silence_only() -> None:
    """Ends keep five frames, beginnings one; a turn inside another keeps its edges; the end comes first."""
    active = np.zeros((43, 2), dtype=bool)
    told = [(2, 10, 0), (4, 6, 1), (17, 20, 1), (23, 30, 0), (36, 40, 1), (39, 41, 0)]
    for first, last, speaker in told:
        active[first:last, speaker] = True
    assert frame_turns(active) == told
    expected = [(1, 15, 0), (4, 6, 1), (16, 23, 1), (23, 35, 0), (35, 40, 1), (39, 43, 0)]
    assert frame_turns(active, margin=0.2) == expected
    assert frame_turns(np.ones((9, 1), dtype=bool), margin=0.2) == [(0, 9, 0)]
    assert frame_turns(np.zeros((9, 1), dtype=bool), margin=0.2) == []


def test_turns_that_margins_bring_together_are_one() -> None:
    assert frame_turns(activity("11000000110000"), margin=seconds(5)) == [(0, 14, 0)]
    assert frame_turns(activity("11000000011000"), margin=seconds(5)) == [(0, 7, 0), (8, 14, 0)]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 12))
def test_margins_make_no_overlap(seed: int, margin: int) -> None:
    rng = np.random.default_rng(seed)
    active = np.repeat(rng.random((25, 3)) < rng.random() * 0.8, rng.integers(1, 9, 25), axis=0)
    wider = np.zeros_like(active)
    made = frame_turns(active, margin=seconds(margin))
    check_apart(made)
    for first, last, speaker in made:
        wider[first:last, speaker] = True
    there = active.any(1)
    assert np.array_equal(wider[there], active[there])
    reach = np.array([there[max(0, at - margin) : at + 1 + round(margin / 5)].any() for at in range(len(there))])
    assert np.array_equal(wider.any(1), reach)


# --- what is doubtful


def test_what_is_faint_or_nowhere_sure_is_nobody() -> None:
    """Speech at -20 dB; at -45, in doubt; 35 dB below the first, which goes; loud, but never SURE, which goes too."""
    speech = [0.95] * 6 + [0.0] * 2 + [0.8] * 4 + [0.0] * 2 + [0.95] * 6 + [0.0] * 2 + [0.6] * 4
    levels = np.array([-20.0] * 8 + [-45] * 6 + [-55] * 8 + [-20] * 4, dtype=np.float32)
    found = windows([0, 12], [[speech[:14]], [speech[12:]]], 26)
    nobody, doubt = reconstruction.find_non_speech(found, levels)
    assert doubt == [(8, 12)]
    assert [int(at) for at in np.flatnonzero(nobody)] == [6, 7, *range(12, 26)]
    kept = reconstruction.mask_out(found, nobody)
    assert (kept.starts.tolist(), kept.frames) == ([0, 12], 26)
    assert np.array_equal(kept.probabilities[0, :12], found.probabilities[0, :12])
    assert found.probabilities[1].any() and not kept.probabilities[1].any()
    silent = windows([0], [[[0.3] * 4]], 4)
    nobody, doubt = reconstruction.find_non_speech(silent, levels[:4])
    assert nobody.all() and doubt == []


def test_digital_silence_is_nobody() -> None:
    found = windows([0], [[[0.9] * 8]], 8)
    nobody, doubt = reconstruction.find_non_speech(found, np.full(8, -120, dtype=np.float32))
    assert nobody.all() and doubt == [] and not reconstruction.mask_out(found, nobody).probabilities.any()


# --- windows over speech


@pytest.mark.parametrize("frames", [0, 1, 37, 38, 39, 57, 58, 100, 1000])
def test_windows_over_speech_cover_it(frames: int) -> None:
    speech = np.random.default_rng(frames).random(frames).astype(np.float32)
    found = reconstruction.single_speaker_windows(speech)
    assert found.frames == frames and found.probabilities.shape == (len(found.starts), 38, 1)
    if not frames:
        assert len(found.starts) == 0 and reconstruction.local_speakers(found) == []
        return
    assert reconstruction.window_count(found).min() >= 1 and reconstruction.window_count(found).max() <= 2
    for start, row in zip(found.starts.tolist(), found.probabilities, strict=True):
        there = speech[start : start + 38]
        np.testing.assert_allclose(row[: len(there), 0], there, atol=1e-3)
        assert not row[len(there) :].any()
    np.testing.assert_allclose(reconstruction.speech_probability(found), speech, atol=1e-3)


def test_finer_windows_hear_one_voice_in_turn() -> None:
    fine = reconstruction.shorter_windows(BY_HAND, 2)
    assert fine.frames == 6 and fine.probabilities.shape == (1, reconstruction.MIN_WINDOW_FRAMES, 1)
    speech = np.zeros(400, dtype=np.float32)
    speech[100:300] = 1
    fine = reconstruction.shorter_windows(
        reconstruction.single_speaker_windows(speech), 10
    )  # 200 frames for 20 windows
    assert fine.probabilities.shape[1] == 10 and (np.diff(fine.starts) == 10).all()
    local = reconstruction.local_speakers(fine)
    assert len(local) == 20 and all(one.active.all() and one.clean.all() for one in local)
    assert (
        reconstruction.shorter_windows(reconstruction.single_speaker_windows(speech), 1000).probabilities.shape[1]
        == reconstruction.MIN_WINDOW_FRAMES
    )
    assert reconstruction.shorter_windows(reconstruction.single_speaker_windows(speech), 1).probabilities.shape[1] == 38
