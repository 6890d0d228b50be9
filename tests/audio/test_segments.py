"""Segments by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.core import Segment as PyannoteSegment
from pyannote.core import Timeline

from knn_cli.audio.segments import binarize, crop, cut, merge, total_seconds, windows
from knn_cli.core.errors import KnnError
from knn_cli.core.values import Segment

BARE = {"min_speech": 0.0, "min_silence": 0.0, "pad": 0.0}


def spans(timeline: list[Segment]) -> list[tuple[float, float]]:
    return [(round(s.start, 6), round(s.end, 6)) for s in timeline]


def test_hysteresis_starts_high_and_ends_low() -> None:
    p = np.array([0.4, 0.6, 0.4, 0.4, 0.3, 0.4, 0.4, 0.5], dtype=np.float32)
    # 0.4 lies between the thresholds: silence before any onset and after an offset, speech after an onset.
    assert spans(binarize(p, 0.1, **BARE)) == [(0.1, 0.4), (0.7, 0.8)]


def test_gaps_are_filled_before_short_speech_is_dropped() -> None:
    p = np.array([1, 0, 1, 0, 0, 0, 1, 0, 0, 0], dtype=np.float32)
    assert spans(binarize(p, 0.1, **BARE | {"min_silence": 0.2, "min_speech": 0.3})) == [(0.0, 0.3)]
    assert spans(binarize(p, 0.1, **BARE | {"min_silence": 0.1})) == [(0.0, 0.1), (0.2, 0.3), (0.6, 0.7)]


def test_padding_is_clipped_and_merged() -> None:
    p = np.array([1, 0, 0, 1, 0, 0, 0, 0, 1], dtype=np.float32)
    got = binarize(p, 0.1, **BARE | {"pad": 0.1}, end=0.85)
    assert spans(got) == [(0.0, 0.5), (0.7, 0.85)]
    assert spans(binarize(p, 0.1, **BARE, end=0.8)) == [(0.0, 0.1), (0.3, 0.4)]  # nothing after the end


@pytest.mark.parametrize("p", [np.zeros(0, np.float32), np.zeros(5, np.float32)])
def test_no_speech(p: np.ndarray) -> None:
    assert not binarize(p, 0.1)


def test_windows_by_hand() -> None:
    speech = [Segment(0, 4), Segment(10, 11), Segment(20, 21.5), Segment(30, 33)]
    assert spans(windows(speech)) == [
        (0.0, 1.5), (0.75, 2.25), (1.5, 3.0), (2.25, 3.75), (2.5, 4.0),  # the last one moved back
        (10.0, 11.0), (20.0, 21.5),  # short, and exactly one
        (30.0, 31.5), (30.75, 32.25), (31.5, 33.0),  # exactly three
    ]  # fmt: skip


def test_short_regions_give_no_window_unless_all_are_short() -> None:
    speech = [Segment(0, 0.2), Segment(1, 1.4), Segment(2, 4)]
    assert spans(windows(speech, minimum=0.5, duration=2, step=1)) == [(2.0, 4.0)]
    assert spans(windows(crop(speech, Segment(0, 1.5)), minimum=0.5)) == [(1.0, 1.4)]
    assert windows([]) == []


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0.01, 20)), max_size=5),
    st.floats(0.3, 3),
    st.floats(0.1, 1),
)
def test_windows_cover_speech_and_nothing_else(
    regions: list[tuple[float, float]], duration: float, share: float
) -> None:
    speech = merge(Segment(a, a + b) for a, b in regions)
    found = windows(speech, duration=duration, step=duration * share)
    assert all(window.duration <= duration + 1e-6 for window in found)
    covered = merge(found)
    assert len(covered) <= len(speech)
    assert total_seconds(covered) == pytest.approx(total_seconds(speech), abs=1e-5)


@pytest.mark.parametrize(("duration", "step"), [(0, 0.5), (1, 0), (1, 1.5)])
def test_windows_that_leave_holes_are_refused(duration: float, step: float) -> None:
    with pytest.raises(KnnError):
        windows([Segment(0, 3)], duration=duration, step=step)


@pytest.mark.parametrize(
    ("seconds", "expected", "dropped"),
    [
        (100.0, [(0, 40), (40, 80), (80, 100)], 0.0),
        (84.0, [(0, 40), (40, 80)], 4.0),
        (85.0, [(0, 40), (40, 80), (80, 85)], 0.0),
        (80.0, [(0, 40), (40, 80)], 0.0),
        (3.0, [], 3.0),
        (0.0, [], 0.0),
    ],
)
def test_cut(seconds: float, expected: list[tuple[float, float]], dropped: float) -> None:
    parts, lost = cut(seconds, 40.0, 5.0)
    assert spans(parts) == expected
    assert lost == pytest.approx(dropped)


def test_cut_does_not_lose_a_segment_to_rounding() -> None:
    parts, lost = cut(0.3, 0.1, 0.05)  # 0.3 / 0.1 is a little under 3 in floating point
    assert len(parts) == 3 and lost == 0.0
    with pytest.raises(KnnError):
        cut(10.0, 0.0, 0.0)


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 20)), max_size=6), st.tuples(st.floats(0, 50), st.floats(0, 60))
)
def test_merged_and_cropped_segments_equal_pyannote(
    regions: list[tuple[float, float]], limits: tuple[float, float]
) -> None:
    segments = [Segment(start, start + seconds) for start, seconds in regions]
    theirs = Timeline([PyannoteSegment(segment.start, segment.end) for segment in segments]).support()
    ours = merge(segments)
    assert ours == [Segment(one.start, one.end) for one in theirs]
    assert total_seconds(ours) == theirs.duration()
    cropped = theirs.crop(PyannoteSegment(limits[0], sum(limits)))
    assert crop(ours, Segment(limits[0], sum(limits))) == [Segment(one.start, one.end) for one in cropped]
