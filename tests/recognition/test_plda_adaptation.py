"""Unsupervised adaptation of a PLDA: steps of Kaldi and formula of CORAL+ in numpy, and verification after a shift."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import linalg

from knn_cli.core.errors import KnnError
from knn_cli.evaluation.verification_metrics import verification_metrics
from knn_cli.recognition.plda import PLDA
from knn_cli.recognition.plda_adaptation import adapt_coral_plus, adapt_kaldi, moments

Doubles = NDArray[np.float64]
seeds = st.integers(0, 10**6)


def random_covariance(rng: np.random.Generator, dimension: int, rank: int | None = None) -> Doubles:
    root = rng.normal(size=(dimension, rank or 2 * dimension))
    return np.asarray(root @ root.T / root.shape[1])


def drawn(seed: int, dimension: int = 4) -> tuple[PLDA, Doubles, Doubles]:
    """A PLDA, and mean and covariance of another domain."""
    rng = np.random.default_rng(seed)
    between, within = (random_covariance(rng, dimension) for _ in range(2))
    return (
        PLDA(rng.normal(size=dimension), between, within),
        rng.normal(size=dimension),
        random_covariance(rng, dimension),
    )


def kaldi_by_steps(plda: PLDA, mean: Doubles, covariance: Doubles) -> tuple[Doubles, Doubles]:
    """Between and within as `PldaUnsupervisedAdaptor::UpdatePlda` finds them, in its own coordinates."""
    psi, vectors = linalg.eigh(plda.between, plda.within)
    transform = vectors.T  # within is 1, between diag(psi)
    difference = mean - plda.mean
    variance = covariance + np.outer(difference, difference)
    total_one = transform / np.sqrt(1 + psi)[:, None]
    excess, rotation = np.linalg.eigh(total_one @ variance @ total_one.T)
    within = rotation.T @ np.diag(1 / (1 + psi)) @ rotation
    between = rotation.T @ np.diag(psi / (1 + psi)) @ rotation
    for place, value in enumerate(excess):
        if value > 1:
            within[place, place] += 0.3 * (value - 1)
            between[place, place] += 0.7 * (value - 1)
    back = np.linalg.inv(rotation.T @ total_one)
    return back @ between @ back.T, back @ within @ back.T


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_kaldi(seed: int) -> None:
    plda, mean, covariance = drawn(seed)
    adapted = adapt_kaldi(plda, mean, covariance)
    between, within = kaldi_by_steps(plda, mean, covariance)
    np.testing.assert_allclose(adapted.between, between, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(adapted.within, within, rtol=1e-7, atol=1e-8)
    np.testing.assert_array_equal(adapted.mean, mean)


def test_kaldi_by_hand() -> None:
    """Total variances 4 and 2; those of the domain are 7 + 1 and 1: the first has an excess of 4, the second none."""
    plda = PLDA(np.zeros(2), np.diag([3.0, 0.5]), np.diag([1.0, 1.5]))
    adapted = adapt_kaldi(plda, np.asarray([1.0, 0.0]), np.diag([7.0, 1.0]))
    np.testing.assert_allclose(adapted.between, np.diag([3.0 + 0.7 * 4, 0.5]), atol=1e-12)
    np.testing.assert_allclose(adapted.within, np.diag([1.0 + 0.3 * 4, 1.5]), atol=1e-12)


@given(seeds)
@settings(max_examples=25, deadline=None)
def test_coral_plus(seed: int) -> None:
    plda, mean, covariance = drawn(seed)
    adapted = adapt_coral_plus(plda, mean, covariance, within_scale=0.5)
    total = plda.between + plda.within
    aligned = linalg.sqrtm(covariance).real @ np.linalg.inv(linalg.sqrtm(total).real)
    for matrix, scale, found in ((plda.between, 0.8, adapted.between), (plda.within, 0.5, adapted.within)):
        ratios, basis = linalg.eigh(aligned @ matrix @ aligned.T, matrix)  # basis' matrix basis = 1
        inverse = np.linalg.inv(basis)
        expected = matrix + scale * inverse.T @ np.diag(np.maximum(ratios - 1, 0)) @ inverse
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@given(seeds, st.sampled_from([adapt_kaldi, adapt_coral_plus]))
@settings(max_examples=25, deadline=None)
def test_covariances_only_grow_and_do_not_where_nothing_differs(seed: int, adapt: object) -> None:
    plda, mean, covariance = drawn(seed)
    adapted = adapt(plda, mean, covariance)  # type: ignore[operator]
    for new, old in ((adapted.between, plda.between), (adapted.within, plda.within)):
        assert np.linalg.eigvalsh(new - old)[0] > -1e-8
    same = adapt(plda, plda.mean, plda.between + plda.within)  # type: ignore[operator]
    np.testing.assert_allclose(same.between, plda.between, atol=1e-7)
    np.testing.assert_allclose(same.within, plda.within, atol=1e-7)


def test_covariance_between_speakers_of_low_rank() -> None:
    rng = np.random.default_rng(0)
    plda = PLDA(np.zeros(4), random_covariance(rng, 4, rank=2), np.eye(4))
    adapted = adapt_coral_plus(plda, np.zeros(4), 5 * np.eye(4))
    assert np.isfinite(adapted.between).all() and np.linalg.eigvalsh(adapted.between - plda.between)[0] > -1e-6


def test_moments_of_blocks() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 3)) + 1e6
    mean, covariance = moments([rows[:7], rows[:0], rows[7:]], 3)
    np.testing.assert_allclose(mean, rows.mean(axis=0))
    np.testing.assert_allclose(covariance, np.cov(rows.T, bias=True), atol=1e-9)
    with pytest.raises(KnnError, match="not adapted to 1 embeddings"):
        moments([rows[:1]], 3)


@pytest.mark.parametrize("adapt", [adapt_kaldi, adapt_coral_plus])
def test_verification_in_another_domain(adapt: object) -> None:
    """Where a domain has more variance of speakers in half of the dimensions, and another mean, Cllr and EER fall."""
    rng = np.random.default_rng(3)
    dimension, speakers, rows = 12, 150, 4
    plda = PLDA(np.zeros(dimension), np.diag([2.0] * 6 + [0.2] * 6), np.eye(dimension))
    spread = np.sqrt([2.0] * 6 + [3.0] * 6)

    def domain(count: int) -> Doubles:
        centres = 3 + spread * rng.normal(size=(count, dimension))
        noise = np.sqrt([1.0] * 6 + [1.5] * 6) * rng.normal(size=(count * rows, dimension))
        return np.repeat(centres, rows, axis=0) + noise

    adapted = adapt(plda, *moments([domain(speakers)], dimension))  # type: ignore[operator]
    test, who = domain(60), np.repeat(np.arange(60), rows)  # other speakers
    left, right = np.triu_indices(len(test), 1)
    before, after = (
        verification_metrics(model.llr(test, test)[left, right], who[left] == who[right], llr=True)
        for model in (plda, adapted)
    )
    assert after.eer < before.eer and after.cllr is not None and before.cllr is not None
    assert after.cllr < before.cllr
