"""Error rates at every threshold: by hand, and with fewer thresholds."""

from __future__ import annotations

import numpy as np
import pytest

from knn_cli.evaluation import metrics
from knn_cli.evaluation.bootstrap import BootstrapUnits
from knn_cli.evaluation.detection_rates import DetectionErrorRates, equal_error_rate, min_cost


def test_thresholds_by_label_by_hand() -> None:
    """Segments 0-1 are label 0, 2-3 label 1, 4 label 2.

    beta 1. Label 0: at 1, half of 1's segments accepted: 1/4. Label 1: at 3, a miss of 1/2. Label 2: at 1, nothing.
    beta 9: label 0 rejects all, 1 (1/2 + 9/2 * 1/2 is more); label 1 at 3: 1/2; label 2: 0.
    """
    llr = np.array([[3, -4, -4], [1, 0.5, -4], [-4, 3, -4], [3, -1, 0], [-4, 2.5, 1]])
    index = np.array([0, 0, 1, 1, 2])
    sweep = DetectionErrorRates(llr, index, units := BootstrapUnits.from_labels(index))
    rates = [sweep.rates(label, units.row_shares(np.ones((3, 1)))) for label in range(3)]
    assert [min_cost(*one, 1.0)[0] for one in rates] == pytest.approx([1 / 4, 1 / 2, 0])
    assert [min_cost(*one, 9.0)[0] for one in rates] == pytest.approx([1, 1 / 2, 0])


def test_fewer_thresholds_hardly_matter() -> None:
    """Rates stay exact; minimum costs and equal error rates rise by no more than the ranks between thresholds."""
    rng = np.random.default_rng(3)
    index = rng.integers(0, 3, 3000)
    llr = metrics.detection_llr(rng.normal(size=(3000, 3)) + 1.5 * np.eye(3)[index])
    units = BootstrapUnits.from_labels(index)
    row_shares = units.row_shares(np.ones((3, 1)))
    every, some = DetectionErrorRates(llr, index, units), DetectionErrorRates(llr, index, units, max_thresholds=200)
    for label in (0, None):
        exact, coarse = every.rates(label, row_shares), some.rates(label, row_shares)
        assert len(some.thresholds(label)) == len(coarse[0]) == 402 < len(exact[0])
        at = np.searchsorted(every.thresholds(label), some.thresholds(label))
        np.testing.assert_allclose([one[at] for one in exact], coarse, atol=1e-12)
        for beta in (1.0, 9.0):
            assert 0 <= min_cost(*coarse, beta)[0] - min_cost(*exact, beta)[0] < 1 / 200
        assert abs(equal_error_rate(*coarse)[0] - equal_error_rate(*exact)[0]) < 1 / 200
