"""Halves, leave-one-out and intervals of error rates, against answers worked out by hand."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

import benchmarks.folds
from benchmarks.folds import difference, estimate, folds, halves, leave_one_out, markdown

# `b` is better on the mean because of the single recording d.
TABLE = {
    "a": {"a": 0.2, "b": 0.2, "c": 0.2, "d": 0.9},
    "b": {"a": 0.3, "b": 0.3, "c": 0.3, "d": 0.3},
}


def test_examples() -> None:
    assert doctest.testmod(benchmarks.folds).failed == 0


def test_intervals_are_those_of_the_mean_and_do_not_change() -> None:
    rates = np.random.default_rng(1).normal(0.3, 0.1, 400)
    first = estimate(rates)
    assert first == estimate(rates) and first.mean == pytest.approx(rates.mean())
    deviation = rates.std() / np.sqrt(400)
    assert first.low == pytest.approx(first.mean - 1.96 * deviation, abs=0.2 * deviation)
    assert first.high == pytest.approx(first.mean + 1.96 * deviation, abs=0.2 * deviation)


def test_means_without_one_recording_show_what_a_single_one_does() -> None:
    whole = estimate([0.2, 0.2, 0.2, 0.9])
    assert (whole.least, whole.most) == pytest.approx((0.2, 1.3 / 3))
    assert estimate([0.4]) == benchmarks.folds.Estimate(0.4, 0.4, 0.4, 0.4, 0.4, 1)


def test_what_is_chosen_on_one_half_is_reported_on_the_other() -> None:
    assert halves("dbca") == (["a", "c"], ["b", "d"])
    even, odd = folds(TABLE)
    assert (even.setting, even.chosen.mean, even.reported.mean) == ("a", 0.2, pytest.approx(0.55))
    assert (odd.setting, odd.chosen.mean, odd.reported.mean) == ("b", 0.3, pytest.approx(0.3))


def test_leaving_one_out_unmasks_a_setting_that_wins_on_one_recording() -> None:
    left = leave_one_out(TABLE)
    assert left.rates == {"a": 0.3, "b": 0.3, "c": 0.3, "d": 0.9}
    assert left.settings == {"a": 1, "b": 3} and left.estimate.mean == pytest.approx(0.45)


def test_differences_are_taken_within_recordings() -> None:
    shifted = {"a": {str(k): k / 10 for k in range(10)}, "b": {str(k): k / 10 + 0.01 for k in range(10)}}
    gap = difference(shifted, "b", "a")
    assert (gap.mean, gap.low, gap.high) == pytest.approx((0.01, 0.01, 0.01))


def test_table_of_settings_shows_the_half_that_was_not_chosen_on_in_bold() -> None:
    lines = markdown(TABLE).splitlines()
    assert lines[2].endswith("| 20.0 to 43.3 | 20.0 | 55.0 |")
    assert lines[4] == "| chosen on the even half: a | | | 20.0 | **55.0** |"
    assert lines[5] == "| chosen on the odd half: b | | | **30.0** | 30.0 |"
    assert lines[6].startswith("| leave-one-out (a 1x, b 3x) | 45.0 (")


def test_tables_with_holes_are_refused() -> None:
    with pytest.raises(ValueError, match="the same recordings"):
        folds({"a": {"x": 0.1}, "b": {"y": 0.1}})
    with pytest.raises(ValueError, match="at least two"):
        leave_one_out({"a": {"x": 0.1}})
    with pytest.raises(ValueError, match="no recordings"):
        estimate([])
