"""Sufficient statistics: by hand, streamed and merged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knn_cli.recognition import gaussian_statistics
from knn_cli.recognition.gaussian_statistics import GaussianStatistics
from knn_cli.recognition.glc import GaussianLinearClassifier
from tests.helpers.gaussian_classes import overlapping


def test_statistics_by_hand() -> None:
    X, y = [[0.0, 1], [2, 1], [5, 5]], ["a", "a", "b"]
    pooled, balanced = (GaussianStatistics.from_rows(X, y, balanced=balanced) for balanced in (False, True))
    assert pooled.classes.tolist() == ["a", "b"] and pooled.counts.tolist() == [2, 1]
    np.testing.assert_allclose(pooled.means, [[1, 1], [5, 5]])
    np.testing.assert_allclose(pooled.scatter, [[2, 0], [0, 0]], atol=1e-12)
    np.testing.assert_allclose(balanced.weights, [3 / 4, 3 / 2])
    np.testing.assert_allclose(balanced.scatter, [[1.5, 0], [0, 0]], atol=1e-12)
    assert (pooled.rows, pooled.dimension) == (3, 2)


@pytest.mark.parametrize("balanced", [False, True])
def test_merge_and_stream_equal_the_whole(balanced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = overlapping()
    whole = GaussianStatistics.from_rows(X, y, balanced=balanced)
    empty = GaussianStatistics.empty(y, X.shape[1], balanced=balanced)
    order = np.argsort(y, kind="stable")  # the first half lacks whole classes
    halves = empty.add(X[order[:450]], y[order[:450]]) + empty.add(X[order[450:]], y[order[450:]])
    for name in ("counts", "means", "scatter"):
        np.testing.assert_allclose(getattr(halves, name), getattr(whole, name), rtol=1e-11, atol=1e-10)
    monkeypatch.setattr(gaussian_statistics, "BLOCK_ROWS", 128)
    streamed = empty
    for first in range(0, len(X), 128):
        streamed = streamed.add(X[first : first + 128], y[first : first + 128])
    memory = GaussianStatistics.from_rows(X, y, balanced=balanced)
    assert all(np.array_equal(getattr(streamed, name), getattr(memory, name)) for name in ("means", "scatter"))
    np.testing.assert_allclose(streamed.scatter, whole.scatter, rtol=1e-11, atol=1e-10)
    fitted = GaussianLinearClassifier(balanced=balanced).fit_statistics(streamed)
    np.testing.assert_allclose(
        fitted.log_likelihood(X), GaussianLinearClassifier(balanced=balanced).fit(X, y).log_likelihood(X)
    )


@given(st.integers(0, 10**6), st.integers(1, 59), st.booleans())
@settings(max_examples=25, deadline=None)
def test_any_cut_merges_to_the_whole(seed: int, cut: int, balanced: bool) -> None:
    X, y = overlapping(rows=60, dimension=3, classes=4, seed=seed)
    empty = GaussianStatistics.empty(y, 3, balanced=balanced)
    one, two = empty.add(X[:cut], y[:cut]), empty.add(X[cut:], y[cut:])
    for merged in (one + two, two + one):
        np.testing.assert_allclose(
            merged.scatter, GaussianStatistics.from_rows(X, y, balanced=balanced).scatter, rtol=1e-9, atol=1e-9
        )
