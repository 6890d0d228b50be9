"""Logistic fusion: its gradient and optimum by others, and what it promises on any scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, special

from knn_cli.core.errors import KnnError
from knn_cli.evaluation.metrics import cllr
from knn_cli.recognition.calibration import RIDGE, Calibration
from knn_cli.recognition.fusion import Fusion, trial_scores

Doubles = NDArray[np.float64]
seeds = st.integers(0, 10**6)


def drawn(seed: int, systems: int = 2, rows: int = 60, classes: int = 3) -> tuple[Doubles, NDArray[np.int64]]:
    """Scores (S, N, C), better from system to system, and the true columns."""
    rng = np.random.default_rng(seed)
    truth = np.arange(rows) % classes
    means = np.eye(classes)[truth] * np.arange(1, systems + 1)[:, None, None]
    return means + rng.normal(size=(systems, rows, classes)), truth


def fitted(scores: Doubles, truth: NDArray[np.int64], **more: object) -> Fusion:
    return Fusion.fit(scores, truth, np.arange(scores.shape[2]), **more)  # type: ignore[arg-type]


def loss(fused: Doubles, truth: NDArray[np.int64], priors: Doubles | None = None) -> float:
    """Cross-entropy in nats in which each class weighs as much as its prior."""
    shares = np.full(fused.shape[1], 1 / fused.shape[1]) if priors is None else priors
    bits = -special.log_softmax(fused + np.log(shares), axis=1)[np.arange(len(truth)), truth]
    return float(sum(share * bits[truth == column].mean() for column, share in enumerate(shares)))


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_optimum_of_another_optimiser(seed: int) -> None:
    scores, truth = drawn(seed, rows=240)  # so many that nothing separates them
    scores[:, truth == 0, 1] += 1.0
    priors = np.asarray([0.2, 0.5, 0.3])

    def objective(x: Doubles) -> float:
        return loss(np.einsum("s,snc->nc", x[:2], scores) + x[2:], truth, priors)

    other = optimize.minimize(objective, np.zeros(5), method="BFGS", options={"gtol": 1e-7})
    fusion = fitted(scores, truth, priors=priors, ridge=0.0)
    np.testing.assert_allclose(fusion.weights[:, 0], other.x[:2], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        fusion.offsets[:, 0] - fusion.offsets.mean(), other.x[2:] - other.x[2:].mean(), rtol=1e-3, atol=1e-3
    )
    assert loss(fusion.apply(scores), truth, priors) <= other.fun + 1e-10


def test_trials_as_scikit_learn() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(4)
    is_target = rng.random(400) < 0.2
    systems = rng.normal(size=(3, 400)) + is_target * [[2.0], [1.0], [0.0]]
    fusion = fitted(trial_scores(list(systems)), (~is_target).astype(np.int64), ridge=0.0)
    other = linear_model.LogisticRegression(C=np.inf, class_weight="balanced", tol=1e-10, max_iter=1000)
    other.fit(systems.T, is_target)
    np.testing.assert_allclose(fusion.weights[:, 0], other.coef_[0], atol=1e-5)
    fused = fusion.apply(trial_scores(list(systems)))
    np.testing.assert_allclose(fused[:, 0] - fused[:, 1], other.decision_function(systems.T), atol=1e-5)


@given(seeds, st.booleans())
@settings(max_examples=15, deadline=None)
def test_gradient(seed: int, two: bool) -> None:
    from knn_cli.recognition.fusion import _Problem

    rng = np.random.default_rng(seed)
    classes = 2 if two else 4
    scores, truth = drawn(seed, rows=12, classes=classes)
    design = np.concatenate([np.ones((12, 1)), rng.normal(size=(12, 2))], axis=1)
    problem = _Problem(scores, truth, rng.dirichlet(np.ones(12)), design, np.zeros(classes), 0.1, two)
    at = rng.normal(size=2 * 3 + classes * (3 if two else 1))
    numeric = optimize.approx_fprime(at, lambda x: problem.loss(x)[0], 1e-7)
    np.testing.assert_allclose(problem.loss(at)[1], numeric, atol=1e-5)


@given(seeds, st.floats(0.01, 100), st.floats(-50, 50))
@settings(max_examples=20, deadline=None)
def test_unit_zero_and_order_of_systems_do_not_matter(seed: int, unit: float, zero: float) -> None:
    scores, truth = drawn(seed, systems=3)
    rng = np.random.default_rng(seed)
    fused = fitted(scores, truth).apply(scores)
    others = scores.copy()
    others[1] = -unit * others[1] + rng.normal(size=(60, 1)) * 10 + np.asarray([zero, 0.0, -zero])
    np.testing.assert_allclose(fitted(others, truth).apply(others), fused, atol=1e-4)
    np.testing.assert_allclose(fitted(scores[::-1], truth).apply(scores[::-1]), fused, atol=1e-4)
    shifted = scores + rng.normal(size=(3, 60, 1)) * 10
    np.testing.assert_allclose(fitted(scores, truth).apply(shifted), fused, atol=1e-4)


@given(seeds, st.integers(2, 5))
@settings(max_examples=15, deadline=None)
def test_one_system_is_calibrated(seed: int, classes: int) -> None:
    scores, truth = drawn(seed, systems=1, rows=40 * classes, classes=classes)
    fusion = fitted(scores, truth, ridge=1e-9)
    calibration = Calibration.fit(scores[0], truth, np.arange(classes), ridge=1e-9)
    expected = calibration.apply(scores[0])
    np.testing.assert_allclose(fusion.apply(scores), expected - expected.mean(axis=1, keepdims=True), atol=1e-3)


@given(seeds, st.floats(0.3, 30))
@settings(max_examples=20, deadline=None)
def test_not_worse_than_the_best_system(seed: int, spread: float) -> None:
    scores, truth = drawn(seed, systems=3, rows=24)
    scores = scores * np.asarray([spread, 1.0, 1 / spread])[:, None, None]
    single = min(cllr(fitted(scores[s : s + 1], truth).apply(scores[s : s + 1]), truth) for s in range(3))
    ridge_of_the_best = RIDGE * 400 / 2  # of weights up to 20 for unit scores
    assert cllr(fitted(scores, truth).apply(scores), truth) <= single + ridge_of_the_best


@pytest.mark.parametrize("unit", [1e-200, 1e200])
def test_units_whose_squares_are_no_numbers(unit: float) -> None:
    scores, truth = drawn(0)
    others = scores * np.asarray([unit, 1.0])[:, None, None]
    fused = fitted(scores, truth).apply(scores)
    np.testing.assert_allclose(fitted(others, truth).apply(others), fused, atol=1e-4)


def test_separable_rows_and_absent_classes_stay_finite() -> None:
    truth = np.repeat([0, 2], 5)
    scores = np.stack([np.eye(4)[truth], np.zeros((10, 4))])
    fusion = fitted(scores, truth)
    assert 0 < fusion.weights[0, 0] < 50 and fusion.weights[1, 0] == 0
    assert fusion.offsets[1, 0] == fusion.offsets[3, 0] == 0
    assert cllr(fusion.apply(scores)[:, [0, 2]], truth // 2) < 0.01


def test_quality_says_how_much_a_score_is_worth() -> None:
    rng = np.random.default_rng(1)
    rows, seconds = 3000, rng.uniform(0, 2, 3000)
    truth = np.arange(rows) % 3
    scores = (np.eye(3)[truth] * seconds[:, None] * 2 + rng.normal(size=(rows, 3)))[None]  # LLRs grow with seconds
    plain, aware = fitted(scores, truth), fitted(scores, truth, quality=seconds[:, None])
    assert aware.weights[0, 1] == pytest.approx(2, abs=0.3)  # the likelihood is exp(2 seconds score)
    assert aware.weights[0, 0] == pytest.approx(2, abs=0.3)  # at the mean of the seconds, 1
    assert cllr(aware.apply(scores, seconds[:, None]), truth) < cllr(plain.apply(scores), truth) - 0.02
    unknown = np.full((rows, 1), np.nan)
    assert np.array_equal(aware.apply(scores, unknown), aware.apply(scores, np.full((rows, 1), aware.centre[0])))


@given(seeds, st.floats(0.01, 100), st.floats(-100, 100))
@settings(max_examples=10, deadline=None)
def test_unit_and_zero_of_a_quality_measure_do_not_matter(seed: int, unit: float, zero: float) -> None:
    scores, truth = drawn(seed, classes=2)
    quality = np.random.default_rng(seed).normal(size=(60, 2))
    quality[3, 1] = np.nan
    others = quality * [1.0, unit] + [0.0, zero]
    fused = fitted(scores, truth, quality=quality).apply(scores, quality)
    np.testing.assert_allclose(fitted(scores, truth, quality=others).apply(scores, others), fused, atol=1e-4)


def test_a_measure_that_never_varies_has_no_effect() -> None:
    scores, truth = drawn(0)
    fusion = fitted(scores, truth, quality=np.full((60, 1), 7.0))
    assert not fusion.weights[:, 1].any()
    np.testing.assert_allclose(
        fusion.apply(scores, np.full((60, 1), 9.0)), fitted(scores, truth).apply(scores), atol=1e-6
    )


def test_refusals() -> None:
    scores, truth = drawn(0)
    with pytest.raises(KnnError, match="at least two classes"):
        fitted(scores, np.zeros(60, dtype=np.int64))
    with pytest.raises(KnnError, match="none of the 3 classes"):
        fitted(scores, truth + 1)
    with pytest.raises(KnnError, match="NaN or infinite"):
        fitted(np.where(scores > 2, np.nan, scores), truth)
    with pytest.raises(KnnError, match="of 2 systems and 3 classes, the scores of 1 and 3"):
        fitted(scores, truth).apply(scores[:1])
    with pytest.raises(KnnError, match="0 quality measures, there are 1"):
        fitted(scores, truth).apply(scores, np.zeros((60, 1)))
