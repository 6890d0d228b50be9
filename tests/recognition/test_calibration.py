"""Calibration: gradient, recovery of a known distortion, and what it promises on any scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, special

from knn_cli.core.errors import KnnError
from knn_cli.recognition.calibration import PSEUDO_DATA, RIDGE, Calibration, objective, smoothing_of


def drawn(rows: int, classes: int, seed: int, spread: float = 1.5) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Log-likelihoods that are calibrated as they are: unit Gaussians about the corners of a simplex."""
    rng = np.random.default_rng(seed)
    truth = np.arange(rows) % classes
    points = spread * np.eye(classes)
    X = points[truth] + rng.normal(size=(rows, classes))
    return X @ points.T - spread**2 / 2, truth


def cross_entropy(calibration: Calibration, scores: NDArray[np.float64], truth: NDArray[np.int64]) -> float:
    true_logs = special.log_softmax(calibration.apply(scores), axis=1)[np.arange(len(truth)), truth]
    return -float(np.mean([true_logs[truth == column].mean() for column in np.unique(truth)]))


@given(st.integers(0, 10**6), st.integers(2, 5))
@settings(max_examples=20, deadline=None)
def test_gradient(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    scores, truth = rng.normal(size=(12, classes)) * 3, np.arange(12) % classes
    at = rng.normal(size=1 + classes) / 2
    numeric = optimize.approx_fprime(at, lambda x: objective(x, scores, truth, 0.1)[0], 1e-7)
    np.testing.assert_allclose(objective(at, scores, truth, 0.1)[1], numeric, atol=1e-5)


@given(st.integers(0, 10**6), st.integers(2, 5), st.booleans(), st.booleans())
@settings(max_examples=20, deadline=None)
def test_gradient_of_temperature_and_exponent(seed: int, classes: int, lasting: bool, affine: bool) -> None:
    rng = np.random.default_rng(seed)
    scores, truth = rng.normal(size=(12, classes)) * 3, np.arange(12) % classes
    lengths = rng.normal(size=12) if lasting else None
    at = rng.normal(size=1 + lasting + classes * affine) / 2
    numeric = optimize.approx_fprime(at, lambda x: objective(x, scores, truth, 0.1, lengths)[0], 1e-7)
    np.testing.assert_allclose(objective(at, scores, truth, 0.1, lengths)[1], numeric, atol=2e-5)


def test_objective_by_hand() -> None:
    scores = np.log([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]])
    loss, _ = objective(np.zeros(3), scores, np.asarray([0, 0, 1]), 0.3)
    assert loss == pytest.approx(-((np.log(0.5) + np.log(0.9)) / 2 + np.log(0.8)) / 2)


def test_recovers_an_affine_distortion() -> None:
    scores, truth = drawn(20_000, 4, seed=1)
    names = np.asarray(["a", "b", "c", "d"])
    scale, offsets = 7.0, np.asarray([3.0, -1.0, -2.0, 0.0])
    rows = 100 * np.random.default_rng(0).normal(size=(len(scores), 1))  # a constant a row must not matter
    fitted = Calibration.fit(scale * (scores - offsets) + rows, names[truth], names)
    assert fitted.scale == pytest.approx(1 / scale, rel=0.03)
    np.testing.assert_allclose(fitted.offsets, offsets - offsets.mean(), atol=0.06)
    np.testing.assert_allclose(fitted.offsets.mean(), 0, atol=1e-6)
    already = Calibration.fit(scores, names[truth], names)
    assert already.scale == pytest.approx(1, abs=0.03)
    np.testing.assert_allclose(already.offsets, 0, atol=0.06)


def test_recovers_a_temperature() -> None:
    scores, truth = drawn(20_000, 4, seed=4)
    fitted = Calibration.fit(5 * scores, truth.astype(str), list("0123"), kind="temperature")
    assert fitted.scale == pytest.approx(1 / 5, rel=0.03) and fitted.exponent == 0
    np.testing.assert_array_equal(fitted.offsets, 0)
    # Offsets that only the affine kind can take away stay.
    bent = 5 * scores + [10.0, 0, 0, 0]
    both = [Calibration.fit(bent, truth.astype(str), list("0123"), kind=kind) for kind in ("temperature", "affine")]
    assert cross_entropy(both[0], bent, truth) > cross_entropy(both[1], bent, truth) + 0.1


@pytest.mark.parametrize("kind", ["affine", "temperature"])
def test_recovers_how_scores_grow_with_length(kind: str) -> None:
    """Scores that are calibrated, made overconfident by twice the root of their length over 4 s."""
    scores, truth = drawn(20_000, 3, seed=5)
    seconds = np.exp(np.random.default_rng(5).normal(size=len(scores)))
    bent = scores * (2 * np.sqrt(seconds / 4))[:, None]
    names = truth.astype(str)
    fitted = Calibration.fit(bent, names, list("012"), kind=kind, seconds=seconds)  # type: ignore[arg-type]
    assert fitted.exponent == pytest.approx(-0.5, abs=0.03)
    assert fitted.reference == pytest.approx(np.exp(np.log(seconds).mean()))
    assert fitted.scale * fitted.reference**0.5 == pytest.approx(1, rel=0.04)  # a = 1 / 2 at 4 s, 1 at 1 s
    np.testing.assert_allclose(fitted.apply(bent, seconds), scores, atol=0.8)
    blind = Calibration.fit(bent, names, list("012"), kind=kind)  # type: ignore[arg-type]
    true_logs = special.log_softmax(fitted.apply(bent, seconds), axis=1)[np.arange(len(truth)), truth]
    assert -true_logs.mean() < cross_entropy(blind, bent, truth) - 0.01


def test_uninformative_durations_change_nothing() -> None:
    scores, truth = drawn(300, 3, seed=6)
    names = truth.astype(str)
    plain = Calibration.fit(2 * scores, names, list("012"))
    unknown = Calibration.fit(2 * scores, names, list("012"), seconds=np.full(300, np.nan))
    assert (unknown.scale, unknown.exponent, unknown.reference) == (plain.scale, 0, 1)
    alike = Calibration.fit(2 * scores, names, list("012"), seconds=np.full(300, 7.0))
    assert alike.scale == pytest.approx(plain.scale, rel=1e-6)
    assert (alike.exponent, alike.reference) == (pytest.approx(0, abs=1e-6), pytest.approx(7))


def test_durations_by_hand() -> None:
    calibration = Calibration(2.0, np.asarray([0.0, 1.0]), exponent=0.5, reference=4.0)
    scores = [[1.0, 3.0]] * 5
    seconds = [4.0, 16.0, 1.0, np.nan, 0.0]  # nothing lasts 0 s: unknown
    wanted = [[2, 7], [4, 13], [1, 4], [2, 7], [2, 7]]
    np.testing.assert_allclose(calibration.apply(scores, seconds), wanted)
    np.testing.assert_allclose(calibration.apply(scores), [[2, 7]] * 5)


def test_classes_weigh_alike() -> None:
    """A class with 50 times the rows of the others gets no larger offset for it."""
    scores, truth = drawn(30_000, 3, seed=2)
    keep = (truth == 0) | (np.arange(len(truth)) % 50 < 3)
    fitted = Calibration.fit(scores[keep], truth[keep].astype(str), ["0", "1", "2"])
    np.testing.assert_allclose(fitted.offsets, 0, atol=0.15)


@given(st.integers(0, 10**6), st.integers(2, 4), st.floats(1e-3, 1e3), st.integers(4, 30))
@settings(max_examples=40, deadline=None)
def test_never_worse_than_the_identity_on_its_own_rows(seed: int, classes: int, size: float, rows: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.arange(max(rows, classes)) % classes
    scores = size * rng.normal(size=(len(truth), classes))
    names = [str(column) for column in range(classes)]
    fitted = Calibration.fit(scores, truth.astype(str), names)
    assert fitted.scale > 0 and np.isfinite(fitted.offsets).all()
    assert cross_entropy(fitted, scores, truth) <= cross_entropy(Calibration.identity(classes), scores, truth) + 1e-12


@pytest.mark.parametrize("gap", [1e-2, 1.0, 1e4])
def test_separable_rows_stay_finite(gap: float) -> None:
    truth = np.arange(30) % 3
    fitted = Calibration.fit(gap * np.eye(3)[truth], truth.astype(str), ["0", "1", "2"])
    assert 0 < fitted.scale < 1e6
    np.testing.assert_allclose(fitted.offsets, 0, atol=1e-4)
    assert cross_entropy(fitted, gap * np.eye(3)[truth], truth) < 50 * RIDGE * (1 + abs(np.log(gap)))


def test_absent_classes_keep_offset_zero() -> None:
    scores, truth = drawn(3000, 4, seed=3)
    keep = truth != 2
    fitted = Calibration.fit(3 * scores[keep] + [0, 2, 0, 0], truth[keep].astype(str), ["0", "1", "2", "3"])
    assert fitted.offsets[2] == 0
    three = Calibration.fit((3 * scores[keep] + [0, 2, 0, 0])[:, [0, 1, 3]], truth[keep].astype(str), ["0", "1", "3"])
    np.testing.assert_allclose(fitted.offsets[[0, 1, 3]], three.offsets)
    assert fitted.scale == three.scale


def test_apply_by_hand() -> None:
    calibration = Calibration(2.0, np.asarray([0.0, np.log(3.0)]))
    np.testing.assert_allclose(calibration.apply([[1.0, 0.5]]), [[2.0, 1 + np.log(3)]])
    np.testing.assert_array_equal(Calibration.identity(3).apply([[1.0, 2.0, 3.0]]), [[1.0, 2.0, 3.0]])


def test_mistakes_are_named() -> None:
    scores, truth = drawn(12, 3, seed=0)
    labels = truth.astype(str)
    with pytest.raises(KnnError, match="at least two classes"):
        Calibration.fit(scores[labels == "0"], labels[labels == "0"], ["0", "1", "2"])
    with pytest.raises(KnnError, match="'2' is none of the 2 classes"):
        Calibration.fit(scores[:, :2], labels, ["0", "1"])
    with pytest.raises(KnnError, match="do not fit"):
        Calibration.fit(scores[:, :2], labels, ["0", "1", "2"])
    scores[0, 0] = np.nan
    with pytest.raises(KnnError, match="NaN"):
        Calibration.fit(scores, labels, ["0", "1", "2"])
    with pytest.raises(KnnError, match="for 3 classes, the scores have 2"):
        Calibration.identity(3).apply([[1.0, 2.0]])
    with pytest.raises(ValueError, match="positive"):
        Calibration(0.0, np.zeros(2))
    for exponent, reference in ((np.nan, 1.0), (0.5, 0.0), (0.5, np.inf)):
        with pytest.raises(ValueError, match="exponent"):
            Calibration(1.0, np.zeros(2), exponent, reference)
    scores, _ = drawn(12, 3, seed=0)
    with pytest.raises(KnnError, match="no calibration 'isotonic'"):
        Calibration.fit(scores, labels, ["0", "1", "2"], kind="isotonic")  # type: ignore[arg-type]
    with pytest.raises(KnnError, match="12 rows of scores and durations of shape"):
        Calibration.fit(scores, labels, ["0", "1", "2"], seconds=[1.0])


# ---- smoothing ----


def elub(target: NDArray[np.float64], others: NDArray[np.float64]) -> tuple[float, float]:
    """Bounds of log-likelihood ratios by Vergeer et al. (2016), by trying thresholds.

    Between them a set with one more misleading score on either side is more useful than no scores at all, at the prior
    odds for which the threshold is that of Bayes.
    """
    target, others = np.append(target, -np.inf), np.append(others, np.inf)
    useful = []
    for threshold in np.linspace(-12, 12, 24_001):
        missed, false = np.mean(target <= threshold), np.mean(others > threshold)
        if missed + math.exp(threshold) * false < min(1.0, math.exp(threshold)):
            useful.append(threshold)
    return min(useful), max(useful)


@pytest.mark.parametrize(("units", "classes"), [(10, 2), (50, 2), (20, 5)])
def test_the_bounds_are_those_of_the_empirical_method_for_classes_that_separate(units: int, classes: int) -> None:
    low, high = Calibration.identity(classes, smoothing_of([units] * classes)).llr_bounds
    assert (math.exp(low), math.exp(high)) == (
        pytest.approx(1 / (units + 1)),
        pytest.approx((classes - 1) * units + 1),
    )
    least, most = elub(np.full(units, 100.0), np.full((classes - 1) * units, -100.0))
    assert low == pytest.approx(least, abs=0.2) and high == pytest.approx(most, abs=0.2)


@given(st.integers(0, 10**6), st.integers(2, 6), st.floats(0.001, 0.999))
@settings(max_examples=30, deadline=None)
def test_smoothing_keeps_order_and_bounds(seed: int, classes: int, smoothing: float) -> None:
    scores = 20 * np.random.default_rng(seed).normal(size=(9, classes))
    calibration = Calibration.identity(classes, smoothing)
    bounded = calibration.bounded(scores)
    chances = special.softmax(bounded, axis=1)
    np.testing.assert_allclose(chances, (1 - smoothing) * special.softmax(scores, axis=1) + smoothing / classes)
    np.testing.assert_allclose(special.logsumexp(bounded, axis=1), special.logsumexp(scores, axis=1))
    np.testing.assert_array_equal(chances.argmax(axis=1), scores.argmax(axis=1))
    llr = np.log(chances / (1 - chances)) + math.log(classes - 1)
    low, high = calibration.llr_bounds
    assert low - 1e-9 <= llr.min() and llr.max() <= high + 1e-9
    np.testing.assert_array_equal(Calibration.identity(classes).bounded(scores), scores)
    assert Calibration.identity(classes).llr_bounds == (-math.inf, math.inf)


def test_smoothing_in_the_fit_is_pseudo_data_of_every_label() -> None:
    scores, truth = drawn(60, 3, seed=8)
    at, smoothing = np.asarray([0.3, 0.1, -0.2, 0.4]), 0.12
    as_each = np.concatenate([scores] * 3), np.repeat(np.arange(3), 60)  # all of the same weight, as the rows are
    own, other = (np.asarray(objective(at, *rows, 0.0)[1]) for rows in ((scores, truth), as_each))
    expected = (1 - smoothing) * own + smoothing * other
    np.testing.assert_allclose(objective(at, scores, truth, 0.0, None, smoothing)[1], expected, atol=1e-12)
    numeric = optimize.approx_fprime(at, lambda x: objective(x, scores, truth, 0.1, None, smoothing)[0], 1e-7)
    np.testing.assert_allclose(objective(at, scores, truth, 0.1, None, smoothing)[1], numeric, atol=1e-5)


def test_the_scale_of_rows_that_separate_by_hand() -> None:
    """Two classes with differences of +-2: the posterior of the fit is the share of a row that is its own label's."""
    scores, truth = np.asarray([[2.0, 0.0], [0.0, 2.0]] * 5), ["a", "b"] * 5
    fitted = Calibration.fit(scores, truth, ["a", "b"], ridge=0.0, smoothing=0.2)
    share = PSEUDO_DATA * 0.2
    assert 2 * fitted.scale == pytest.approx(special.logit(1 - share / 2), rel=1e-5)
    assert fitted.smoothing == 0.2


def test_rows_that_overlap_lose_little() -> None:
    scores, truth = drawn(4000, 3, seed=9)
    names = truth.astype(str)
    sure, smoothed = (
        Calibration.fit(scores, names, list("012"), smoothing=smoothing) for smoothing in (0.0, smoothing_of([100] * 3))
    )
    unseen, truth = drawn(4000, 3, seed=10)
    losses = [
        -special.log_softmax(one.bounded(one.apply(unseen)), axis=1)[np.arange(4000), truth].mean()
        for one in (sure, smoothed)
    ]
    assert losses[1] < losses[0] * 1.02


def test_smoothing_is_a_share() -> None:
    with pytest.raises(ValueError, match="smoothing"):
        Calibration(1.0, np.zeros(2), smoothing=1.0)
