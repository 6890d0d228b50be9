"""Post-processing: turns by hand, and invariants of any activity."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from knn_cli.audio.segments import FRAME_SECONDS
from knn_cli.diarization import post_processing
from knn_cli.diarization.post_processing import FrameTurn, frame_turns


def check_disjoint(turns: list[FrameTurn]) -> None:
    """A speaker's turns neither overlap nor touch."""
    for speaker in {turn[2] for turn in turns}:
        spans = [(first, last) for first, last, label in turns if label == speaker]
        assert all(before[1] < after[0] for before, after in pairwise(spans))


def activity(*speakers: str) -> NDArray[np.bool_]:
    """(frames, S) bool from one string per speaker, 1 where it is active."""
    return np.array([[mark == "1" for mark in marks] for marks in speakers]).T


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
    # B's short turn lies between A and C; C's turn is the longer one.
    active = activity("111000000011", "000110000000", "000001111000", "000000000000")
    active[:2, 3], active[0, 1] = False, False
    long_b = np.concatenate([active, activity("00000", "01111", "00000", "00000")])
    assert frame_turns(long_b, min_turn=seconds(3)) == [(0, 3, 0), (3, 9, 2), (13, 17, 1)]
    # No turn is adjacent: dropped. (A's own longest stays, though short.)
    assert frame_turns(activity("0110000", "0000100"), min_turn=seconds(4)) == [(1, 3, 0), (4, 5, 1)]
    assert frame_turns(activity("01100001111"), min_turn=seconds(3)) == [(7, 11, 0)]
    # Another speaker is active at the same time: dropped, though other turns are adjacent.
    active = activity("11100000", "00011000", "00001111")
    assert frame_turns(np.concatenate([active, activity("0000", "0111", "0000")]), min_turn=seconds(3)) == [
        (0, 3, 0),
        (4, 8, 2),
        (9, 12, 1),
    ]


def test_short_turn_between_two_turns_of_a_speaker_joins_them() -> None:
    """A, a short turn of B, A again: a single turn of A."""
    active = activity("1110011100000", "0001100001111")
    assert frame_turns(active, min_turn=seconds(3)) == [(0, 8, 0), (9, 13, 1)]


def test_first_of_equally_long_turns_stays() -> None:
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
def test_short_turns_stay_only_as_longest_turns(seed: int, min_frames: int, max_gap: int) -> None:
    rng = np.random.default_rng(seed)
    active = np.repeat(rng.random((25, 3)) < rng.random() * 0.8, rng.integers(1, 5, 25), axis=0)
    turns = frame_turns(active, min_turn=seconds(min_frames), max_gap=seconds(max_gap))
    check_disjoint(turns)
    assert {turn[2] for turn in turns} == set(np.flatnonzero(active.any(0)).tolist())
    for first, last, speaker in turns:
        if last - first < min_frames:
            assert all(other[2] != speaker or other == (first, last, speaker) for other in turns)
    # No turn covers a frame without an active speaker, except in filled pauses.
    if max_gap == 0:
        spoken = np.zeros(len(active), dtype=bool)
        for first, last, _ in turns:
            spoken[first:last] = True
        assert not (spoken & ~active.any(1)).any()


def test_thousands_of_short_turns_are_fast() -> None:
    """12,000 turns, most of them below the minimum; each short turn is treated once."""
    rng = np.random.default_rng(0)
    speaker = np.repeat(rng.integers(0, 6, 12_000), rng.integers(1, 30, 12_000))
    active = np.zeros((len(speaker), 6), dtype=bool)
    active[np.arange(len(speaker)), speaker] = rng.random(len(speaker)) < 0.97
    turns = frame_turns(active, min_turn=0.8, max_gap=0.0)
    check_disjoint(turns)
    assert {turn[2] for turn in turns} == set(range(6))


def test_margins_extend_turns_into_silence_only() -> None:
    """Five frames after ends and one before starts; a turn inside another keeps its edges; ends take precedence."""
    active = np.zeros((43, 2), dtype=bool)
    turns = [(2, 10, 0), (4, 6, 1), (17, 20, 1), (23, 30, 0), (36, 40, 1), (39, 41, 0)]
    for first, last, speaker in turns:
        active[first:last, speaker] = True
    assert frame_turns(active) == turns
    expected = [(1, 15, 0), (4, 6, 1), (16, 23, 1), (23, 35, 0), (35, 40, 1), (39, 43, 0)]
    assert frame_turns(active, margin=0.2) == expected
    assert frame_turns(np.ones((9, 1), dtype=bool), margin=0.2) == [(0, 9, 0)]
    assert frame_turns(np.zeros((9, 1), dtype=bool), margin=0.2) == []


def test_turns_that_touch_after_margins_are_merged() -> None:
    assert frame_turns(activity("11000000110000"), margin=seconds(5)) == [(0, 14, 0)]
    assert frame_turns(activity("11000000011000"), margin=seconds(5)) == [(0, 7, 0), (8, 14, 0)]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 12))
def test_margins_create_no_overlap(seed: int, margin: int) -> None:
    rng = np.random.default_rng(seed)
    active = np.repeat(rng.random((25, 3)) < rng.random() * 0.8, rng.integers(1, 9, 25), axis=0)
    wider = np.zeros_like(active)
    turns = frame_turns(active, margin=seconds(margin))
    check_disjoint(turns)
    for first, last, speaker in turns:
        wider[first:last, speaker] = True
    speech = active.any(1)
    assert np.array_equal(wider[speech], active[speech])
    reach = np.array([speech[max(0, at - margin) : at + 1 + round(margin / 5)].any() for at in range(len(speech))])
    assert np.array_equal(wider.any(1), reach)


# --- audible tails


def test_tails_are_kept_while_they_are_audible() -> None:
    """A turn of 3 frames with a margin of 2; silence at -70 dB, whose tail at -60 dB reaches to 4, then to 9 frames."""
    active = activity("000111" + "0" * 30)
    levels = np.full(36, -70, dtype=np.int8)
    levels[3:6] = -20
    margin = seconds(2)
    assert frame_turns(active, levels, margin=margin) == [(3, 8, 0)]  # a fifth of 2 frames is none
    levels[6:10] = -60
    assert frame_turns(active, levels, margin=margin) == [(3, 10, 0)]
    levels[6:15] = -60
    assert frame_turns(active, levels, margin=margin) == [(3, 12, 0)]  # three margins at most
    levels[6:15] = -61  # 9 dB above the silence
    assert frame_turns(active, levels, margin=margin) == [(3, 8, 0)]
    assert frame_turns(active, levels) == [(3, 6, 0)]


def test_the_floor_of_a_tail_is_the_silence_around_it() -> None:
    """In the noisy half, sound at the level of its noise is no tail, however silent the other half is."""
    active = np.zeros((1600, 1), dtype=bool)
    active[400:410] = active[1200:1210] = True
    levels = np.repeat(np.array([-80, -50], dtype=np.int8), 800)
    assert frame_turns(active, levels, margin=0.2) == [(399, 415, 0), (1199, 1215, 0)]
    levels[410:425] = -50
    assert frame_turns(active, levels, margin=0.2) == [(399, 425, 0), (1199, 1215, 0)]


def test_the_floor_is_the_quantile_of_numpy() -> None:
    generator = np.random.default_rng(0)
    for count in (1, 2, 5, 38, 999):
        levels = generator.integers(-120, 0, count).astype(np.int8)
        assert post_processing._floor(levels) == pytest.approx(np.quantile(levels, post_processing.FLOOR_QUANTILE))
