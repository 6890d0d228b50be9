"""Rows of unit length."""

from __future__ import annotations

import numpy as np
import torch

from knn_cli.core.vectors import l2_normalize


def test_by_hand() -> None:
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]])
    np.testing.assert_array_equal(l2_normalize(rows), [[0.6, 0.8], [0.0, 0.0], [0.0, -1.0]])
    np.testing.assert_array_equal(l2_normalize(rows[:0]), rows[:0])


def test_minimum_norm_is_torchs_eps() -> None:
    rows = np.array([[3e-13, 4e-13], [3.0, 4.0], [0.0, 0.0]])
    expected = torch.nn.functional.normalize(torch.from_numpy(rows), dim=1, eps=1e-12).numpy()
    np.testing.assert_allclose(l2_normalize(rows, min_norm=1e-12), expected, rtol=1e-15)
