"""Shrinkage and Cholesky factors of covariances."""

from __future__ import annotations

import numpy as np
import pytest

from knn_cli.recognition.covariance import cholesky, oas_shrinkage


def test_oas_formula() -> None:
    S = np.diag([4.0, 1.0, 1.0])  # tr(S S) = 18, tr(S)^2 = 36, D = 3
    assert oas_shrinkage(S, 10) == pytest.approx((18 / 3 + 36) / ((10 + 1 / 3) * (18 - 12)))
    assert oas_shrinkage(np.eye(3), 10) == 1
    weights = [oas_shrinkage(S, rows) for rows in (5, 50, 500, 5000)]
    assert weights == sorted(weights, reverse=True) and weights[-1] < 0.002


def test_cholesky_by_hand() -> None:
    factor = cholesky(np.array([[4.0, 2], [2, 5]]))
    assert factor is not None
    np.testing.assert_allclose(factor, [[2, 0], [1, 2]])
    assert cholesky(np.array([[1.0, 1], [1, 1]])) is None
    assert cholesky(np.array([[1.0, 2], [2, 1]])) is None
