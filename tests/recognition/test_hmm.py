"""The hidden Markov model against enumeration of all sequences."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles
from knn_cli.recognition.hmm import forward_backward, switch_probabilities, viterbi


def enumerated(
    scores: Doubles, switch: Doubles, weights: Doubles | None = None
) -> tuple[Doubles, tuple[int, ...], Doubles]:
    """Log-probability of every sequence of labels, the best sequence, and the posterior of every label at every row."""
    rows, labels = scores.shape
    weights = np.full(labels, 1 / labels) if weights is None else weights
    drawn = switch * labels / (labels - 1)
    paths = list(itertools.product(range(labels), repeat=rows))
    logs = np.array(
        [
            sum(scores[row, label] for row, label in enumerate(path))
            + math.log(weights[path[0]])
            + sum(
                math.log((1 - p) * (a == b) + p * weights[b])
                for (a, b), p in zip(itertools.pairwise(path), drawn, strict=True)
            )
            for path in paths
        ]
    )
    odds = np.exp(logs - logs.max())
    at = np.array(paths)[:, :, None] == np.arange(labels)  # (paths, N, C)
    return logs, paths[int(logs.argmax())], np.einsum("p,pnc->nc", odds / odds.sum(), at)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_model_against_every_path(seed: int, rows: int, labels: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(rows, labels)) * rng.uniform(0.1, 5)
    switch = rng.uniform(0.001, (labels - 1) / labels, size=rows - 1)
    _, best, each = enumerated(scores, switch)
    assert tuple(viterbi(scores, switch)) == best
    np.testing.assert_allclose(forward_backward(scores, switch), each, atol=1e-12)
    np.testing.assert_allclose(forward_backward(scores + 1e4 * rng.normal(size=(rows, 1)), switch), each, atol=1e-9)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_labels_by_weight_against_every_path(seed: int, rows: int, labels: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(rows, labels)) * rng.uniform(0.1, 5)
    switch = rng.uniform(0.001, 0.9 * (labels - 1) / labels, size=rows - 1)
    weights = rng.dirichlet(np.ones(labels)).clip(1e-6)
    weights /= weights.sum()
    _, best, each = enumerated(scores, switch, weights)
    assert tuple(viterbi(scores, switch, weights)) == best
    np.testing.assert_allclose(forward_backward(scores, switch, weights), each, atol=1e-12)


def test_model_is_stable_on_long_and_extreme_scores() -> None:
    scores = np.zeros((5000, 3))
    scores[:2500, 1], scores[2500:, 2] = 900.0, 900.0
    switch = np.full(4999, 1e-9)
    assert (viterbi(scores, switch) == np.repeat([1, 2], 2500)).all()
    posteriors = forward_backward(scores, switch)
    np.testing.assert_allclose(posteriors.sum(axis=1), 1)
    assert posteriors[0, 1] > 0.999 and posteriors[-1, 2] > 0.999
    assert viterbi(np.zeros((4, 1)), np.zeros(3)).tolist() == [0] * 4
    assert forward_backward(np.zeros((4, 1)), np.zeros(3)).tolist() == [[1.0]] * 4
    assert viterbi(np.zeros((0, 3)), np.zeros(0)).shape == (0,) and forward_backward(
        np.zeros((0, 3)), np.zeros(0)
    ).shape == (
        0,
        3,
    )


def test_switches_do_not_depend_on_the_step() -> None:
    """By hand for two labels: p(2) = 2 p (1 - p); and two half steps are one for any number of labels."""
    assert switch_probabilities(0.1, np.array([0.0, 1.0, 2.0]), 2) == pytest.approx([0, 0.1, 0.18])
    for labels in (2, 3, 107):
        half, whole, limit = switch_probabilities(0.05, np.array([0.5, 1.0, 1e9]), labels)
        assert whole == pytest.approx(0.05)
        # stays twice, or leaves and comes back
        assert 1 - whole == pytest.approx((1 - half) ** 2 + half * half / (labels - 1))
        assert limit == pytest.approx((labels - 1) / labels)
    assert switch_probabilities(0.3, np.ones(2), 1).tolist() == [0, 0]
    for wrong in (0.0, -0.1, 0.5, 1.0, float("nan")):
        with pytest.raises(KnnError, match="lies between"):
            switch_probabilities(wrong, np.ones(1), 2)
