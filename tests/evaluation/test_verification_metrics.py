"""Metrics of verification trials: by hand, and against every threshold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knn_cli.core.errors import KnnError
from knn_cli.evaluation.verification_metrics import verification_metrics


def test_metrics_by_hand() -> None:
    """Targets 5, 1; nontargets 2, -3, -4, -5. Between 1 and 2, and between 2 and 5, a half or a quarter is wrong."""
    scores = np.array([5.0, 1.0, 2.0, -3.0, -4.0, -5.0])
    target = np.array([True, True, False, False, False, False])
    result = verification_metrics(scores, target, llr=True)
    assert (result.targets, result.nontargets) == (2, 4)
    assert result.eer == pytest.approx(0.25)  # from (miss 0, alarm 1/4) to (1/2, 1/4)
    # At P = 0.01 an alarm costs 99: best is no alarm and half of the targets missed; at 0.05 it costs 19.
    assert result.min_dcf == pytest.approx({0.01: 0.5, 0.05: 0.5})
    # The LLR's thresholds are log 99 = 4.6 and log 19 = 2.94: as good as the best.
    assert result.dcf == pytest.approx({0.01: 0.5, 0.05: 0.5})
    bits = (math.log2(1 + math.exp(-5)) + math.log2(1 + math.exp(-1))) / 2
    bits += sum(math.log2(1 + math.exp(x)) for x in (2, -3, -4, -5)) / 4
    assert result.cllr == pytest.approx(bits / 2)
    shifted = verification_metrics(scores + 3, target, llr=True)  # 8, 4 / 5, 0, -1, -2
    assert shifted.min_dcf == pytest.approx(result.min_dcf)
    assert shifted.dcf == pytest.approx({0.01: 0.5 + 99 / 4, 0.05: 19 / 4})
    assert shifted.cllr is not None and result.cllr is not None and shifted.cllr > result.cllr
    plain = verification_metrics(scores, target, llr=False)
    assert (plain.eer, plain.dcf, plain.cllr) == (result.eer, {}, None)
    # Scores that say nothing: all alike, an LLR of 0.
    nothing = verification_metrics(np.zeros(6), target, llr=True)
    assert nothing.cllr == pytest.approx(1) and nothing.min_dcf[0.01] == pytest.approx(1)
    assert nothing.eer == pytest.approx(0.5)


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_min_dcf_against_every_threshold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, size=12).astype(float)  # with ties
    target = np.arange(12) < rng.integers(1, 12)
    for p, value in verification_metrics(scores, target, llr=False).min_dcf.items():
        costs = [
            np.mean(scores[target] < at) + (1 - p) / p * np.mean(scores[~target] >= at)
            for at in [*scores, scores.max() + 1]
        ]
        assert value == pytest.approx(min(costs))


def test_metrics_need_both_kinds() -> None:
    with pytest.raises(KnnError, match="0 nontarget"):
        verification_metrics(np.ones(3), np.ones(3, dtype=bool), llr=False)
