"""Averages of consecutive segments: by hand, against a plain loop, and the curve that they give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, EmbeddingSet, ScoreTable
from knn_cli.evaluation.duration_curve import average_segments, duration_curve


def test_remainder_by_hand() -> None:
    """Five segments of one recording and one of another, out of order, by twos."""
    rows = EmbeddingSet.from_columns(
        [[1, 10], [7, 0], [3, 20], [5, 40], [9, 60], [2, 2]],
        ["r", "q", "r", "r", "r", "r"],
        subgroup=list("axaaaa"),
        start=[0, 0, 2, 6, 8, 4],
        end=[2, 3, 4, 8, 9, 6],
        embedder="m@1",
    )
    averaged = average_segments(rows, 2)
    assert averaged.name.tolist() == ["r", "r", "r", "q"] and averaged.subgroup.tolist() == list("aaax")
    assert averaged.data.tolist() == [[2, 15], [3.5, 21], [9, 60], [7, 0]]  # the remainder is itself, not halved
    assert averaged.start.tolist() == [0, 4, 8, 0] and averaged.end.tolist() == [4, 8, 9, 3]
    assert averaged.embedder == "m@1" and averaged.data.dtype == np.float32
    assert average_segments(rows, 99).data.tolist() == [[4, pytest.approx(26.4)], [7, 0]]


def test_rows_without_speech_are_left_out_and_unknown_times_stay_unknown() -> None:
    rows = EmbeddingSet.from_columns([[1.0], [np.nan], [3.0], [np.inf], [8.0]], ["r"] * 5)
    averaged = average_segments(rows, 2)
    assert averaged.data.tolist() == [[2.0], [8.0]]
    assert np.isnan(averaged.start).all() and np.isnan(averaged.end).all()
    assert len(average_segments(rows.take([1, 3]), 2)) == 0 and len(average_segments(rows.take([]), 1)) == 0
    with pytest.raises(KnnError, match="0 segments"):
        average_segments(rows, 0)


def test_no_average_mixes_labels() -> None:
    rows = EmbeddingSet.from_columns([[1.0], [2.0], [3.0], [4.0]], ["r"] * 4, group=list("abab"), start=[0, 1, 2, 3])
    averaged = average_segments(rows, 3)
    assert averaged.data.tolist() == [[2.0], [3.0]] and averaged.group.tolist() == ["a", "b"]
    two = EmbeddingSet.from_columns([[1.0], [2.0]], ["r"] * 2, speaker=["s", "t"])
    assert len(average_segments(two, 2)) == 2


@given(st.integers(0, 10**6), st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_equals_a_loop(seed: int, segments: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 25))
    data = rng.normal(size=(count, 3)).astype(np.float32)
    data[rng.random(count) < 0.15, 1] = np.nan
    start = rng.integers(0, 9, count).astype(float)
    rows = EmbeddingSet.from_columns(
        data, rng.choice(list("pq"), count), group=rng.choice(list("ab"), count), start=start
    )
    runs: dict[tuple[str, str], list[int]] = {}
    for row in range(count):
        if not np.isnan(data[row]).any():
            runs.setdefault((rows.name[row], rows.group[row]), []).append(row)
    wanted, starts = [], []
    for members in runs.values():
        members.sort(key=lambda row: start[row])
        for first in range(0, len(members), segments):
            part = members[first : first + segments]
            wanted.append(sum(data[row].astype(float) for row in part) / len(part))
            starts.append(start[part[0]])
    averaged = average_segments(rows, segments)
    assert averaged.start.tolist() == starts
    np.testing.assert_allclose(averaged.data, np.reshape(wanted, (-1, 3)), atol=1e-6)


def test_one_segment_a_row_changes_nothing() -> None:
    rows = EmbeddingSet.from_columns(np.random.default_rng(0).normal(size=(6, 4)), list("aabbcc"), start=[0, 1] * 3)
    np.testing.assert_array_equal(average_segments(rows, 1).data, rows.data)


def _score(rows: EmbeddingSet, seconds: Doubles) -> ScoreTable:
    return ScoreTable(("a", "b"), rows.data.astype(np.float64), rows.name, rows.start, rows.end, rows.group)


def test_curve_by_hand() -> None:
    # Recording r (a): right, wrong, right; q (b): right. Overlaps of one second in r, a gap before its last segment.
    rows = EmbeddingSet.from_columns(
        [[2, 0], [0, 1], [1, 0], [0, 3]], list("rrrq"), group=list("aaab"), start=[0, 2, 10, 0], end=[3, 5, 12, 4]
    )
    one, two, four = duration_curve(rows, _score, (1, 2, 4), bootstrap=20)
    assert (one.segments, one.rows, one.accuracy.value) == (1, 4, 0.75)
    assert one.seconds == pytest.approx((3 + 3 + 2 + 4) / 4)
    assert (two.rows, two.accuracy.value) == (3, 1.0) and two.seconds == pytest.approx((5 + 2 + 4) / 3)
    # Detection LLRs 2/3 and 3 nats: the first is missed at log(9), one miss of two labels at one beta of two.
    assert (four.rows, four.cprimary, four.min_cprimary) == (2, 0.25, 0.0)
    assert four.seconds == pytest.approx((7 + 4) / 2)
    assert np.isnan(one.accuracy.low)  # one recording a label


def test_curve_has_intervals_and_says_when_no_times_are_known() -> None:
    rng = np.random.default_rng(1)
    rows = EmbeddingSet.from_columns(
        rng.normal(size=(40, 2)) + np.repeat([[1, 0], [0, 1]], 20, axis=0),
        [f"r{row // 4}" for row in range(40)],
        group=["a"] * 20 + ["b"] * 20,
    )
    for point in duration_curve(rows, _score, (1, 3)):
        assert 0 < point.accuracy.low <= point.accuracy.value <= point.accuracy.high <= 1
        assert np.isnan(point.seconds)


def test_curve_ends_where_every_recording_is_whole_and_scores_know_how_much_is_spoken() -> None:
    # Two segments of three seconds with a gap of four, and one segment: by twos all is whole.
    rows = EmbeddingSet.from_columns(
        [[2, 0], [1, 0], [0, 3]], list("rrq"), group=list("aab"), start=[0, 7, 0], end=[3, 10, 4]
    )
    scored_seconds = []

    def score(rows: EmbeddingSet, seconds: Doubles) -> ScoreTable:
        scored_seconds.append(seconds.tolist())
        return _score(rows, seconds)

    points = duration_curve(rows, score, range(1, 9), bootstrap=0)
    assert [point.segments for point in points] == [1, 2]
    assert scored_seconds == [[3, 3, 4], [6, 4]]  # not the 10 seconds from the first start to the last end
