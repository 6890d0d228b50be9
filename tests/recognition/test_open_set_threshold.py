"""Thresholds for rows of no known label: by hand, and against every threshold there is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knn_cli.core.errors import KnnError
from knn_cli.core.values import ScoreTable
from knn_cli.evaluation.open_set import best_answer, best_llr, is_unknown
from knn_cli.recognition.open_set_threshold import OpenSetThreshold, choose_threshold


def table(scores: list[list[float]], labels: tuple[str, ...], threshold: float | None = None) -> ScoreTable:
    rows = len(scores)
    times = np.zeros(rows), np.ones(rows)
    return ScoreTable(labels, np.asarray(scores, float), np.array(["r"] * rows), *times, threshold=threshold)


def test_equal_error_by_hand() -> None:
    # Between 2 and 3 one of four known rows is lost and one of four others gets in.
    chosen = choose_threshold([1.0, 4.0, 5.0, 6.0], [3.0, 2.0, 0.0, -1.0])
    assert chosen == OpenSetThreshold(2.5, 0.25, 0.25, 4, 4, "equal error")
    assert choose_threshold([5.0, 6.0], [1.0, 2.0]) == OpenSetThreshold(3.5, 0.0, 0.0, 2, 2, "equal error")
    # A score that both have falls on one side: accepted.
    assert choose_threshold([2.0], [2.0]) == OpenSetThreshold(2.0, 1.0, 0.0, 1, 1, "equal error")


def test_false_reject_by_hand() -> None:
    known = [1.0, 2.0, 3.0, 4.0, 5.0]
    chosen = choose_threshold(known, [1.5, 3.5, 9.0], false_reject=0.4)
    assert chosen == OpenSetThreshold(2.5, 1 - 1 / 3, 0.4, 5, 3, "false reject at most 0.4")
    assert choose_threshold(known, [0.0], false_reject=0.39).threshold == 1.5  # two of five would be too many
    no_unknown = choose_threshold(known, [], false_reject=0.2)
    assert (no_unknown.threshold, no_unknown.false_reject, no_unknown.unknown) == (1.5, 0.2, 0)
    assert math.isnan(no_unknown.false_accept)
    assert choose_threshold(known, [7.0], false_reject=0.0).threshold == 1.0
    twenty = np.arange(20.0)
    assert choose_threshold(twenty, [], false_reject=0.15).false_reject == 0.15


@given(
    st.lists(st.integers(-5, 9), min_size=1, max_size=15),
    st.lists(st.integers(-9, 5), min_size=1, max_size=15),
    st.sampled_from([None, 0.0, 0.1, 0.5, 0.9]),
)
@settings(max_examples=80, deadline=None)
def test_no_threshold_does_better(known: list[int], unknown: list[int], max_false_reject: float | None) -> None:
    chosen = choose_threshold(np.array(known), np.array(unknown), false_reject=max_false_reject)

    def rates(threshold: float) -> tuple[float, float]:
        return np.mean(np.less(known, threshold)), np.mean(np.greater_equal(unknown, threshold))

    assert rates(chosen.threshold) == (pytest.approx(chosen.false_reject), pytest.approx(chosen.false_accept))
    every = [rates(threshold) for threshold in [*np.arange(-10, 11) - 0.5, *known, *unknown]]
    if max_false_reject is None:
        assert max(chosen.false_reject, chosen.false_accept) == pytest.approx(min(map(max, every)))
    else:
        assert chosen.false_reject <= max_false_reject
        assert chosen.false_accept == pytest.approx(
            min(accept for reject, accept in every if reject <= max_false_reject)
        )


def test_best_llr_by_hand() -> None:
    likelihood = np.log([[6.0, 1, 1], [2, 4, 2], [1, 1, 8]]).tolist()
    np.testing.assert_allclose(np.exp(best_llr(table(likelihood, ("a", "b", "c")))), [6, 2, 8])
    named = table(likelihood, ("a", "b", "unknown"), threshold=math.log(3))
    np.testing.assert_allclose(np.exp(best_llr(named)), [6, 2, 1 / 4.5])
    assert is_unknown(named).tolist() == [False, True, True]
    assert is_unknown(table(likelihood, ("a", "b", "unknown"))).tolist() == [False, False, True]
    assert is_unknown(table(likelihood, ("a", "b", "c"))).tolist() == [False] * 3
    at = table(likelihood, ("a", "b", "c"))
    assert is_unknown(table(likelihood, at.labels, float(best_llr(at)[1]))).tolist() == [False] * 3  # at is not below


def test_mistakes_are_named() -> None:
    with pytest.raises(KnnError, match="no rows of known labels"):
        choose_threshold([], [1.0])
    with pytest.raises(KnnError, match="no rows of unknown labels"):
        choose_threshold([1.0], [])
    with pytest.raises(KnnError, match="NaN"):
        choose_threshold([1.0, np.nan], [1.0])
    for share in (-0.1, 1.0, math.nan):
        with pytest.raises(KnnError, match="lies in"):
            choose_threshold([1.0], [1.0], false_reject=share)


def test_no_speech_does_not_speak_for_a_language_of_a_declared_set() -> None:
    """cs is answered although de is likelier: unknown, however likely no speech is beside it."""
    labels = ("cs", "sk", "zxx", "de", *(f"l{number}" for number in range(96)))
    scores = np.full((1, 100), -5.0)
    scores[0, :4] = 0.0, -8.0, 9.9, 10.0
    every = ScoreTable(labels, scores, np.array([""]), np.array([0.0]), np.array([1.0]), threshold=1.0)
    some = every.restrict(("cs", "sk", "zxx"))
    assert best_answer(some).tolist() == [0] and best_llr(some)[0] < -5
    assert is_unknown(some).tolist() == [True] and is_unknown(every).tolist() == [False]
