"""Two-covariance PLDA against joint Gaussians written out, closed forms, and simulated speakers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from knn_cli.core.errors import KnnError
from knn_cli.recognition.gaussian_statistics import GaussianStatistics
from knn_cli.recognition.plda import PLDA


def model(dimension: int = 3, seed: int = 0) -> PLDA:
    rng = np.random.default_rng(seed)
    between, within = rng.normal(size=(2, dimension, dimension + 2))
    return PLDA(rng.normal(size=dimension), between @ between.T, 0.5 * within @ within.T)


def drawn(plda: PLDA, counts: NDArray[np.int64], seed: int = 1) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(len(counts)), counts)
    speakers = rng.multivariate_normal(plda.mean, plda.between, size=len(counts))
    X = speakers[who] + rng.multivariate_normal(np.zeros(len(plda.mean)), plda.within, size=len(who))
    return X, np.asarray([f"s{one:03d}" for one in who])


def joint(plda: PLDA, rows: NDArray[np.float64]) -> float:
    """log p of rows (n, D) of one speaker: one Gaussian over all n D values."""
    count = len(rows)
    covariance = np.kron(np.ones((count, count)), plda.between) + np.kron(np.eye(count), plda.within)
    return float(stats.multivariate_normal(np.tile(plda.mean, count), covariance).logpdf(rows.reshape(-1)))


def log_likelihood(plda: PLDA, X: NDArray[np.float64], speakers: NDArray[np.str_]) -> float:
    return sum(joint(plda, X[speakers == one]) for one in np.unique(speakers))


def test_one_dimension_by_hand() -> None:
    plda = PLDA(np.zeros(1), np.eye(1), np.eye(1))  # total variance 2, covariance of two of a speaker 1
    # log N((1, 1); 0, [[2, 1], [1, 2]]) - 2 log N(1; 0, 2): -log(3)/2 - 1/3 + log(2) + 1/2
    np.testing.assert_allclose(plda.llr([[1.0]], [[1.0]]), [[np.log(2) - np.log(3) / 2 + 1 / 6]])
    # (1, -1): the quadratic form is 2 instead of 2/3
    np.testing.assert_allclose(plda.llr([[1.0]], [[-1.0]]), [[np.log(2) - np.log(3) / 2 - 1 / 2]])


@given(st.integers(0, 10**6), st.integers(1, 4), st.lists(st.integers(1, 5), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_llr_is_the_ratio_of_joint_gaussians(seed: int, dimension: int, counts: list[int]) -> None:
    plda = model(dimension, seed)
    rng = np.random.default_rng(seed)
    enrolments = [rng.normal(size=(count, dimension)) * 2 for count in counts]
    tests = rng.normal(size=(3, dimension)) * 2
    expected = [
        [joint(plda, np.stack([*rows, one])) - joint(plda, rows) - joint(plda, one[None]) for one in tests]
        for rows in enrolments
    ]
    ours = plda.llr(np.stack([rows.mean(axis=0) for rows in enrolments]), tests, counts)
    np.testing.assert_allclose(ours, expected, rtol=1e-8, atol=1e-8)


def test_llr_is_symmetric_and_blind_to_linear_maps() -> None:
    plda = model(4)
    rng = np.random.default_rng(2)
    one, two, mix = rng.normal(size=(5, 4)), rng.normal(size=(7, 4)), rng.normal(size=(4, 4))
    np.testing.assert_allclose(plda.llr(one, two), plda.llr(two, one).T, rtol=1e-12, atol=1e-12)
    mapped = PLDA(plda.mean @ mix + 5, mix.T @ plda.between @ mix, mix.T @ plda.within @ mix)
    np.testing.assert_allclose(mapped.llr(one @ mix + 5, two @ mix + 5), plda.llr(one, two), atol=1e-9)


def test_more_enrolment_tells_more_of_the_speaker() -> None:
    plda = model(4)
    X, who = drawn(plda, np.full(60, 9))
    groups = X.reshape(60, 9, 4)
    same = np.eye(60, dtype=bool)
    losses = []
    for count in (1, 3, 8):
        llr = plda.llr(groups[:, :count].mean(axis=1), groups[:, 8], np.full(60, count))
        losses.append(np.logaddexp(0, -llr[same]).mean() + np.logaddexp(0, llr[~same]).mean())
    assert losses == sorted(losses, reverse=True) and losses[0] < 2 * np.log(2)
    assert who[0] == who[8]


@pytest.mark.parametrize("balanced", [True, False])
def test_em_never_falls_and_its_likelihood_is_that_of_joint_gaussians(balanced: bool) -> None:
    counts = np.full(20, 4) if balanced else np.random.default_rng(0).integers(1, 9, size=20)
    X, who = drawn(model(), counts)
    statistics = GaussianStatistics.from_rows(X, who)
    plda = model(seed=9)  # far from the truth
    reached = [plda.log_likelihood(statistics)]
    assert reached[0] == pytest.approx(log_likelihood(plda, X, who), rel=1e-12)
    for _ in range(30):
        plda = plda.step(statistics)
        reached.append(plda.log_likelihood(statistics))
    assert (np.diff(reached) > -1e-9).all() and reached[-1] - reached[0] > 10
    assert reached[-1] == pytest.approx(log_likelihood(plda, X, who), rel=1e-12)
    fitted = PLDA.fit(X, who)
    assert fitted.log_likelihood(statistics) >= reached[-1] - 0.01
    far = PLDA.fit(X + 1e4, who)
    np.testing.assert_allclose(far.llr(X + 1e4, X + 1e4), fitted.llr(X, X), atol=1e-3)


def test_equal_counts_have_a_closed_form() -> None:
    X, who = drawn(model(), np.full(200, 5))
    plda = PLDA.fit(X, who)
    groups = X.reshape(200, 5, 3)
    means = groups.mean(axis=1)
    within = np.einsum("sni,snj->ij", groups - means[:, None], groups - means[:, None]) / (200 * 4)
    np.testing.assert_allclose(plda.within, within, rtol=1e-9)
    np.testing.assert_allclose(plda.between, np.cov(means.T, bias=True) - within / 5, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(plda.mean, X.mean(axis=0), atol=1e-12)


def test_unequal_counts_give_the_parameters_back() -> None:
    truth = model(seed=4)
    X, who = drawn(truth, np.random.default_rng(3).integers(1, 12, size=4000))
    plda = PLDA.fit(X, who)
    for name in ("mean", "between", "within"):
        expected = getattr(truth, name)
        np.testing.assert_allclose(getattr(plda, name), expected, atol=0.08 * np.abs(expected).max())
    order = np.random.default_rng(5).permutation(len(X))
    again = PLDA.fit_statistics(GaussianStatistics.from_rows(X[order], who[order]))
    np.testing.assert_allclose(again.llr(X[:5], X[:5]), plda.llr(X[:5], X[:5]), atol=1e-8)


def test_speakers_that_are_all_alike_give_ratios_near_one() -> None:
    X = np.random.default_rng(0).normal(size=(600, 3))
    plda = PLDA.fit(X, np.arange(600) // 3)
    assert np.abs(plda.llr(X[:50], X[:50])).max() < 0.5


def test_mistakes_are_named() -> None:
    X, who = drawn(model(), np.full(5, 4))
    for rows, speakers, match in [
        (X, np.full(20, "a"), "at least two speakers"),
        (X[::4], who[::4], "5 rows of 5 speakers are too few for PLDA in 3 dimensions.*lda:K"),
        (np.concatenate([X, X[:, :1]], axis=1), who, "too few"),
        (X * np.nan, who, "NaN"),
    ]:
        with pytest.raises(KnnError, match=match):
            PLDA.fit(rows, speakers)
    with pytest.raises(ValueError, match="pooled"):
        PLDA.fit_statistics(GaussianStatistics.from_rows(X[1:], who[1:], balanced=True))
    plda = PLDA.fit(X, who)
    with pytest.raises(KnnError, match="3 dimensions, these have 2"):
        plda.llr(X[:, :2], X)
    for counts in ([1], [0] * 20, [np.nan] * 20):
        with pytest.raises(KnnError, match="20 enrolments"):
            plda.llr(X, X, counts)
    assert plda.llr(X[:0], X).shape == (0, 20)


def test_arrays_round_trip_and_are_strict() -> None:
    plda = model()
    arrays = plda.to_arrays()
    rows = np.random.default_rng(0).normal(size=(4, 3))
    np.testing.assert_array_equal(PLDA.from_arrays(arrays).llr(rows, rows), plda.llr(rows, rows))
    for broken in (
        {"mean": arrays["mean"]},
        {**arrays, "more": np.zeros(1)},
        {**arrays, "mean": np.zeros(2)},
        {**arrays, "within": np.zeros((3, 3))},
        {**arrays, "between": -np.eye(3)},
        {**arrays, "between": np.triu(np.ones((3, 3)))},
        {**arrays, "mean": np.full(3, np.nan)},
    ):
        with pytest.raises(ValueError):
            PLDA.from_arrays(broken)
