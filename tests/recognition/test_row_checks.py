"""Checks of rows and labels."""

from __future__ import annotations

import numpy as np
import pytest

from knn_cli.core.errors import KnnError
from knn_cli.recognition.row_checks import check_dimension, class_codes, float64_rows, refuse_nonfinite


def test_rows() -> None:
    rows = np.full((2, 3), 1e308)
    assert float64_rows(rows, 3) is rows  # large values whose sum is infinite are no mistake
    assert float64_rows(np.ones((2, 3), dtype=np.float32), 3).dtype == np.float64
    refuse_nonfinite(rows)
    for wrong in (np.ones(3), np.ones((2, 4))):
        with pytest.raises(KnnError, match="takes rows of 3 dimensions"):
            check_dimension(wrong, 3)
    with pytest.raises(KnnError, match="NaN or infinite values in 1 of 2"):
        float64_rows([[1.0, np.inf], [0, 0]], 2)


def test_codes() -> None:
    assert class_codes(["b", "a", "b"], np.array(["a", "b"])).tolist() == [1, 0, 1]
    with pytest.raises(KnnError, match="'c' is none of the 2 classes"):
        class_codes(["c"], np.array(["a", "b"]))
