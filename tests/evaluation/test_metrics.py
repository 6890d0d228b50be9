"""Metrics of language recognition: answers by hand, and loops that follow the formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knn_cli.core.errors import KnnError
from knn_cli.evaluation.metrics import (
    accuracy,
    balanced_accuracy,
    cavg,
    cllr,
    confusion,
    cprimary,
    detection_llr,
    eer,
    error_rates,
    min_cavg,
    min_cprimary,
    prior_weights,
)

# Segments 0-1 are label 0, 2-3 label 1, 4 label 2.
TRUTH = [0, 0, 1, 1, 2]
LLR = np.array(
    [
        [3.0, -4.0, -4.0],
        [1.0, 0.5, -4.0],
        [-4.0, 3.0, -4.0],
        [3.0, -1.0, 0.0],
        [-4.0, 2.5, 1.0],
    ]
)


def test_cavg_by_hand() -> None:
    # Threshold 0 (beta 1): misses: label 1 half of its two. False alarms: for 0: half of 1's segments; for 1: half
    # of 0's and all of 2's; for 2: half of 1's (0.0 is accepted).
    # 1/3 [(0 + 1/2 (1/2 + 0)) + (1/2 + 1/2 (1/2 + 1)) + (0 + 1/2 (0 + 1/2))] = 1/3 [1/4 + 5/4 + 1/4]
    assert cavg(LLR, TRUTH, 1.0) == pytest.approx(7 / 12)
    # Threshold log 9 = 2.197 (beta 9): misses: 0 half, 1 half, 2 all. False alarms: 0 half of 1's; 1 all of 2's.
    # 1/3 [(1/2 + 9/2 * 1/2) + (1/2 + 9/2 * 1) + 1] = 1/3 [11/4 + 5 + 1]
    assert cavg(LLR, TRUTH, 9.0) == pytest.approx(35 / 12)
    assert cprimary(LLR, TRUTH) == pytest.approx((7 / 12 + 35 / 12) / 2)
    # Rejecting everything costs 1, whatever beta is; beta 9 does no better than that here: 3.0 ties with a false alarm.
    assert cavg(LLR, TRUTH, 9.0, threshold=99.0) == pytest.approx(1.0)
    assert min_cavg(LLR, TRUTH, 9.0) == pytest.approx(1.0)
    # beta 1, best between 0.5 and 1: misses half of 1; accepts half of 1's for 0 (1/4) and 2's for 1 (1/2).
    assert min_cavg(LLR, TRUTH, 1.0) == pytest.approx((1 / 4 + 1 / 2 + 1 / 2) / 3)
    assert min_cprimary(LLR, TRUTH) == pytest.approx((5 / 12 + 1) / 2)


def test_error_rates_by_hand() -> None:
    miss, alarm = error_rates(LLR, TRUTH, 0.0)
    assert miss.tolist() == [0, 1 / 2, 0] and alarm.tolist() == [1 / 4, 3 / 4, 1 / 4]


def test_prior_weights_by_hand() -> None:
    assert prior_weights({"b": 2}, ("a", "b", "c")).tolist() == [0.25, 0.5, 0.25]
    with pytest.raises(KnnError, match="'d' has a prior"):
        prior_weights({"d": 2}, ("a", "b"))


def test_cllr_by_hand() -> None:
    likelihood = np.log([[6.0, 1.0, 1.0], [2.0, 2.0, 4.0], [1.0, 1.0, 2.0]])
    # -log2 of 6/8; of 1/4 and 1/4 for label 1, which weighs as much
    assert cllr(likelihood, [0, 1, 1]) == pytest.approx((np.log2(8 / 6) + 2) / 2)
    assert cllr(np.full((2, 8), -900.0), [3, 5]) == pytest.approx(3.0)  # no information about 8 labels
    with pytest.raises(KnnError):
        cllr(np.zeros((0, 2)), [])


def test_detection_llr_by_hand() -> None:
    likelihood = np.log(np.array([[6.0, 2.0, 1.0]]))
    np.testing.assert_allclose(detection_llr(likelihood), np.log([[6 / 1.5, 2 / 3.5, 1 / 4]]))
    weighted = detection_llr(likelihood, priors=[0.5, 0.25, 0.25])
    np.testing.assert_allclose(weighted, np.log([[6 / 1.5, 2 / (13 / 3), 1 / (14 / 3)]]))
    np.testing.assert_allclose(detection_llr(likelihood - 5000), np.log([[6 / 1.5, 2 / 3.5, 1 / 4]]))
    with pytest.raises(KnnError):
        detection_llr(np.zeros((2, 1)))
    with pytest.raises(ValueError):
        detection_llr(likelihood, priors=[1.0, 0.0, 1.0])


def test_counts_by_hand() -> None:
    predicted, truth = [0, 1, 1, 1, 0], [0, 0, 1, 1, 3]
    assert accuracy(predicted, truth) == 0.6
    assert balanced_accuracy(predicted, truth) == 0.5  # (1/2 + 1 + 0) / 3
    assert confusion(predicted, truth, 4).tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    with pytest.raises(KnnError):
        accuracy([], [])


def plain_cavg(llr: np.ndarray, truth: np.ndarray, beta: float, threshold: float) -> float:
    """NIST LRE 2022 section 3.1, word by word."""
    labels = sorted(set(truth.tolist()))
    return sum(_label_cost(llr, truth, beta, target, threshold) for target in labels) / len(labels)


def _label_cost(llr: np.ndarray, truth: np.ndarray, beta: float, target: int, threshold: float) -> float:
    labels = sorted(set(truth.tolist()))
    targets = [row[target] for row, t in zip(llr, truth, strict=True) if t == target]
    miss = sum(score < threshold for score in targets) / len(targets)
    alarms = 0.0
    for other in labels:
        if other != target:
            theirs = [row[target] for row, t in zip(llr, truth, strict=True) if t == other]
            alarms += sum(score >= threshold for score in theirs) / len(theirs)
    return float(miss + beta / (len(labels) - 1) * alarms)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100_000), st.integers(2, 5), st.sampled_from([0.5, 1.0, 9.0]), st.booleans())
def test_cavg_equals_loops(seed: int, labels: int, beta: float, ties: bool) -> None:
    generator = np.random.default_rng(seed)
    truth = np.concatenate([[0, labels - 1], generator.integers(0, labels, 20)])
    llr = generator.normal(size=(len(truth), labels)) * 3
    if ties:
        llr = np.round(llr)
    assert cavg(llr, truth, beta) == pytest.approx(plain_cavg(llr, truth, beta, math.log(beta)))
    minimum = min(plain_cavg(llr, truth, beta, t) for t in [*np.unique(llr), np.inf])
    assert min_cavg(llr, truth, beta) == pytest.approx(minimum)
    assert min_cavg(llr, truth, beta) <= cavg(llr, truth, beta) + 1e-12


def test_labels_without_test_segments_are_left_out() -> None:
    wider = np.insert(LLR, 1, 50.0, axis=1)  # a label that accepts everything, never true
    moved = [0, 0, 2, 2, 3]
    assert cavg(wider, moved, 1.0) == cavg(LLR, TRUTH, 1.0)
    assert min_cavg(wider, moved, 9.0) == min_cavg(LLR, TRUTH, 9.0)
    with pytest.raises(KnnError):
        cavg(LLR, [1, 1, 1, 1, 1], 1.0)


def test_eer_by_hand() -> None:
    assert eer([2.0, 3.0], [0.0, 1.0]) == 0.0
    assert eer([0.0, 1.0], [2.0, 3.0]) == 1.0
    assert eer([1.0], [1.0]) == 0.5  # all equal: the line from (0, 1) to (1, 0)
    assert eer([1.0, 3.0, 4.0, 5.0], [0.0, 1.5, 2.0, -1.0]) == 0.25
    # Between (P_fa, P_miss) = (1/2, 1/3) and (0, 2/3) on the line: 1/2 - s/2 = 1/3 + s/3, s = 1/5.
    assert eer([1.0, 2.0, 4.0], [0.0, 2.0]) == pytest.approx(0.4)
    with pytest.raises(KnnError):
        eer([], [1.0])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-3, 5), min_size=1, max_size=15),
    st.lists(st.integers(-5, 3), min_size=1, max_size=15),
)
def test_eer_equals_bisection_on_the_roc(targets: list[int], nontargets: list[int]) -> None:
    from sklearn.metrics import roc_curve

    truth = [1] * len(targets) + [0] * len(nontargets)
    alarm, hit, _ = roc_curve(truth, targets + nontargets, drop_intermediate=False)
    low, high = 0.0, float(len(alarm) - 1)  # walk along the curve
    position = np.arange(len(alarm))
    for _ in range(60):
        middle = (low + high) / 2
        if 1 - np.interp(middle, position, hit) > np.interp(middle, position, alarm):
            low = middle
        else:
            high = middle
    expected = np.interp(low, position, alarm)
    assert eer(np.array(targets, float), np.array(nontargets, float)) == pytest.approx(expected, abs=1e-9)
