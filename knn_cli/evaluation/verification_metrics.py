"""Metrics of speaker verification trials: equal error rate, detection costs, Cllr.

References
----------
NIST 2016 Speaker Recognition Evaluation Plan (normalised detection cost).
N. Brummer and J. du Preez, "Application-independent evaluation of speaker detection", Computer Speech and Language
2006 (Cllr).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles
from knn_cli.evaluation import metrics

TARGET_PRIORS = (0.01, 0.05)  # of the detection costs: VoxCeleb and NIST SRE use both


@dataclass(frozen=True)
class VerificationMetrics:
    """How well scores tell target from nontarget trials.

    Attributes
    ----------
    targets, nontargets : int
        Numbers of trials.
    eer : float
        Equal error rate, as in `metrics.eer`.
    min_dcf : dict of float to float
        By target prior P the minimum over thresholds of (P P_miss + (1 - P) P_fa) / min(P, 1 - P), with costs of 1: the
        normalised detection cost of NIST SRE 2016.
    dcf : dict of float to float
        The same at the threshold log((1 - P) / P), the optimal one for LLRs; empty for other scores.
    cllr : float, optional
        (mean log2(1 + e^-s) over targets + mean log2(1 + e^s) over nontargets) / 2, in bits; None if the scores are not
        LLRs.
    """

    targets: int
    nontargets: int
    eer: float
    min_dcf: dict[float, float]
    dcf: dict[float, float] = field(default_factory=dict)
    cllr: float | None = None


def verification_metrics(scores: Doubles, is_target: NDArray[np.bool_], *, llr: bool) -> VerificationMetrics:
    """Compute the metrics of labelled trials.

    Parameters
    ----------
    scores : (T,) float64
    is_target : (T,) bool
    llr : bool
        Whether the scores are log-likelihood ratios (of a PLDA, not normalised).

    Returns
    -------
    VerificationMetrics

    Raises
    ------
    KnnError
        Unless there are trials of both kinds.
    """
    targets, nontargets = np.sort(scores[is_target]), np.sort(scores[~is_target])
    if len(targets) == 0 or len(nontargets) == 0:
        raise KnnError(f"{len(targets)} target and {len(nontargets)} nontarget trials cannot be measured.")
    thresholds = np.append(np.unique(scores), np.inf)
    miss = np.searchsorted(targets, thresholds) / len(targets)
    false_alarm = 1 - np.searchsorted(nontargets, thresholds) / len(nontargets)
    min_dcf = {prior: float(_cost(miss, false_alarm, prior).min()) for prior in TARGET_PRIORS}
    eer = metrics.eer(targets, nontargets)
    if not llr:
        return VerificationMetrics(len(targets), len(nontargets), eer, min_dcf)
    dcf = {}
    for prior in TARGET_PRIORS:
        threshold = math.log((1 - prior) / prior)
        dcf[prior] = float(_cost(np.mean(targets < threshold), np.mean(nontargets >= threshold), prior))
    bits = np.mean(np.logaddexp(0, -targets)) + np.mean(np.logaddexp(0, nontargets))
    return VerificationMetrics(len(targets), len(nontargets), eer, min_dcf, dcf, float(bits / (2 * math.log(2))))


def _cost(miss: Any, false_alarm: Any, prior: float) -> Any:
    """The normalised detection cost, of numbers or arrays."""
    return (prior * miss + (1 - prior) * false_alarm) / min(prior, 1 - prior)
