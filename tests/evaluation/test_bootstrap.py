"""Bootstrap units and intervals by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from knn_cli.evaluation.bootstrap import BootstrapUnits, percentile_interval


def test_units_by_hand() -> None:
    """Recording x has two rows of label 0 and one of label 1; y and z have one row each, of labels 0 and 1."""
    units = BootstrapUnits.from_recordings(np.array(["x", "x", "y", "x", "z"]), np.array([0, 0, 0, 1, 1]))
    assert units.row.tolist() == [0, 0, 1, 2, 3]
    assert units.label.tolist() == [0, 0, 1, 1] and units.size.tolist() == [2, 1, 1, 1]
    assert units.sums(np.array([1.0, 2, 4, 8, 16])).tolist() == [3, 4, 8, 16]
    assert units.row_shares(np.array([[1.0], [2], [0], [1]]))[:, 0].tolist() == [1 / 4, 2 / 4, 0, 1]
    assert len(units.single_unit_labels) == 0
    assert BootstrapUnits.from_labels(np.array([0, 1, 0])).size.tolist() == [2, 1]


def test_samples_draw_as_many_units_as_each_label_has() -> None:
    label = np.repeat([0, 1, 2], [5, 1, 3])
    units = BootstrapUnits.from_recordings(np.array([f"r{row}" for row in range(9)]), label)
    weights = np.concatenate(list(units.resample(300, seed=1)), axis=1)
    assert weights.shape == (9, 300) and units.single_unit_labels.tolist() == [1]
    assert (np.add.reduceat(weights, [0, 5, 6], axis=0) == [[5], [1], [3]]).all()
    assert weights.mean(axis=1) == pytest.approx(np.ones(9), abs=0.2)
    np.testing.assert_array_equal(weights, np.concatenate(list(units.resample(300, seed=1)), axis=1))


def test_interval_by_hand() -> None:
    assert percentile_interval(np.arange(41.0)) == pytest.approx((1, 39))
    assert all(map(math.isnan, percentile_interval(np.zeros(0))))
    assert all(map(math.isnan, percentile_interval(np.array([1.0, np.nan]))))
