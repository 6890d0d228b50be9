"""Metrics of language recognition as functions of arrays: accuracy, detection LLRs, Cavg, Cprimary, Cllr, EER.

References
----------
NIST 2022 Language Recognition Evaluation Plan, section 3 (Cavg, Cprimary).
N. Brummer and D. van Leeuwen, "On calibration of language recognition scores", Odyssey 2006 (detection log-likelihood
ratios, Cllr).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, ScoreTable

Indices = NDArray[np.int64]

LRE_BETAS = (1.0, 9.0)  # NIST LRE 2022: target priors 0.5 and 0.1, unit costs
# Decimals of detection LLRs in nats: smaller differences come from rounding, and equal scores must compare equal.
LLR_DECIMALS = 10


def accuracy(predicted: Sequence[int] | Indices, truth: Sequence[int] | Indices) -> float:
    """Share of right predictions; both are (N,) label indices, N > 0."""
    right = np.asarray(predicted) == np.asarray(truth)
    return float(_nonempty(right).mean())


def balanced_accuracy(predicted: Sequence[int] | Indices, truth: Sequence[int] | Indices) -> float:
    """Accuracy of each label that occurs in the truth, averaged over those labels."""
    right, true = np.asarray(predicted) == np.asarray(truth), np.asarray(truth)
    return float(np.mean([right[true == label].mean() for label in np.unique(_nonempty(true))]))


def confusion(predicted: Sequence[int] | Indices, truth: Sequence[int] | Indices, labels: int) -> Indices:
    """(labels, labels) counts: row = true label, column = predicted label."""
    table = np.zeros((labels, labels), dtype=np.int64)
    np.add.at(table, (np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)), 1)
    return table


def detection_llr(log_likelihood: Doubles, priors: Sequence[float] | Doubles | None = None) -> Doubles:
    """Log-likelihood ratio of each label against all the others together, rounded to LLR_DECIMALS decimals.

    llr[n, c] = l[n, c] - log(sum over j != c of p[j] exp(l[n, j]) / sum over j != c of p[j])

    Parameters
    ----------
    log_likelihood : (N, C) float64
        Natural logarithms, up to a constant per row, C >= 2.
    priors : (C,) array_like, optional
        Weights of the labels, equal by default.

    Returns
    -------
    (N, C) float64
    """
    count = log_likelihood.shape[1]
    if count < 2:
        raise KnnError("A detection score needs at least two labels.", "Use a model that knows two or more labels.")
    weights = np.ones(count) if priors is None else np.asarray(priors, dtype=np.float64)
    if weights.shape != (count,) or not (weights > 0).all():
        raise ValueError(f"priors are {count} numbers above 0")
    weighted = log_likelihood + np.log(weights)
    rows, top = np.arange(len(weighted)), weighted.argmax(axis=1)
    # The sum of all less the label's own term is accurate but for the largest, whose others are summed anew.
    odds = np.exp(weighted - weighted[rows, top][:, None])
    rest = np.log(np.maximum(odds.sum(axis=1, keepdims=True) - odds, 1e-300)) + weighted[rows, top][:, None]
    others = weighted.copy()
    others[rows, top] = -np.inf
    rest[rows, top] = np.logaddexp.reduce(others, axis=1)
    llr: Doubles = log_likelihood - rest + np.log(weights.sum() - weights)
    return np.round(llr, LLR_DECIMALS)


def prior_weights(priors: Mapping[str, float], labels: Sequence[str]) -> Doubles:
    """(C,) priors of the labels, normalised to sum 1; labels without a prior count as 1 before that.

    Raises
    ------
    KnnError
        For a name that is not a label, and for priors that are not positive.
    """
    if unknown := sorted(set(priors) - set(labels)):
        raise KnnError(f"{unknown[0]!r} has a prior and is not a label of the model.", f"Labels: {', '.join(labels)}.")
    weights = np.asarray([priors.get(label, 1.0) for label in labels], dtype=np.float64)
    if not np.isfinite(weights).all() or (weights <= 0).any():
        raise KnnError("Priors are positive numbers.", "A label that cannot occur is left out of the training.")
    return np.asarray(weights / weights.sum())


def weighted(table: ScoreTable, priors: Mapping[str, float] | None) -> ScoreTable:
    """The table with `priors` in its scores: log-posteriors up to a constant per row. None leaves it as it is."""
    if priors is None:
        return table
    return replace(table, log_likelihood=table.log_likelihood + np.log(prior_weights(priors, table.labels)))


def bayes_threshold(beta: float) -> float:
    """log(beta), less what rounding in `detection_llr` may have taken off a score that is exactly that."""
    return math.log(beta) - 10.0**-LLR_DECIMALS


def cavg(llr: Doubles, truth: Sequence[int] | Indices, beta: float, threshold: float | None = None) -> float:
    """Average detection cost of NIST LRE 2022 at one threshold, log(beta) when None; a score >= threshold accepts.

    Cavg(beta) = 1/N sum_T [P_miss(T) + beta/(N-1) sum_{j != T} P_fa(T, j)]

    where P_miss(T) is the share of segments of T whose score for T is rejected, and P_fa(T, j) the share of segments
    of j whose score for T is accepted. T and j run over the N labels that occur in `truth`: a label of the model
    without test segments has no miss rate, so it is left out, as are the false alarms for it.

    Parameters
    ----------
    llr : (segments, C) float64
        Detection log-likelihood ratios (`detection_llr`).
    truth : (segments,) int array_like
        Column of the true label.
    beta : float
        C_fa (1 - P_target) / (C_miss P_target), > 0.
    threshold : float, optional
        log(beta) by default.

    Returns
    -------
    float
    """
    if beta <= 0:
        raise ValueError("cavg needs beta > 0")
    miss, false_alarm = error_rates(llr, truth, bayes_threshold(beta) if threshold is None else threshold)
    return float((miss + beta * false_alarm).mean())


def error_rates(llr: Doubles, truth: Sequence[int] | Indices, threshold: float) -> tuple[Doubles, Doubles]:
    """(N,) P_miss of each label that occurs, and the mean over the others of P_fa; arguments as in `cavg`."""
    true = np.asarray(truth, dtype=np.int64)
    present, target = _present(llr, true)
    accepted = llr[:, present] >= threshold
    rates = np.stack([accepted[target == label].mean(axis=0) for label in range(len(present))])  # (true, accepting)
    hit = np.diagonal(rates)
    return 1 - hit, (rates.sum(axis=0) - hit) / (len(present) - 1)


def min_cavg(llr: Doubles, truth: Sequence[int] | Indices, beta: float) -> float:
    """The least `cavg` that one threshold for all labels can give; `cavg` minus this is the calibration loss."""
    scores, miss_cost, accept_cost = _trials(llr, truth, beta)
    order = np.argsort(-scores, kind="stable")
    scores, step = scores[order], (accept_cost - miss_cost)[order]
    costs = miss_cost.sum() + np.cumsum(step)  # of accepting the k + 1 best trials
    # Equal scores fall on the same side of any threshold.
    last_of_ties = np.append(scores[1:] != scores[:-1], True)
    return float(max(0.0, min(miss_cost.sum(), costs[last_of_ties].min())))


def cprimary(llr: Doubles, truth: Sequence[int] | Indices) -> float:
    """Primary cost of NIST LRE 2022: the mean of `cavg` at beta = 1 and beta = 9, each at the threshold log(beta)."""
    return sum(cavg(llr, truth, beta) for beta in LRE_BETAS) / len(LRE_BETAS)


def min_cprimary(llr: Doubles, truth: Sequence[int] | Indices) -> float:
    """The mean of `min_cavg` at beta = 1 and beta = 9."""
    return sum(min_cavg(llr, truth, beta) for beta in LRE_BETAS) / len(LRE_BETAS)


def cllr(log_likelihood: Doubles, truth: Sequence[int] | Indices) -> float:
    """Multiclass Cllr in bits (Brummer & van Leeuwen 2006; Cmxe of the FoCal Multi-class toolkit).

    The mean over the labels that occur of the mean over their segments of -log2 P(true label | segment), with the same
    prior for all C labels. 0 is perfect; scores without information give log2(C).

    Parameters
    ----------
    log_likelihood : (N, C) float64
        Natural logarithms, up to a constant per row.
    truth : (N,) int array_like
        Column of the true label, N > 0.

    Returns
    -------
    float
    """
    true = np.asarray(truth, dtype=np.int64)
    _nonempty(true)
    bits = surprisal(log_likelihood, true)
    return float(np.mean([bits[true == label].mean() for label in np.unique(true)]))


def surprisal(log_likelihood: Doubles, truth: Indices) -> Doubles:
    """(N,) -log2 of the posterior of each segment's true label, with the same prior for all labels."""
    total = np.logaddexp.reduce(log_likelihood, axis=1)
    bits: Doubles = (total - log_likelihood[np.arange(len(truth)), truth]) / math.log(2)
    return bits


def _trials(llr: Doubles, truth: Sequence[int] | Indices, beta: float) -> tuple[Doubles, Doubles, Doubles]:
    """Each segment against each label that occurs, flat: score, cost when rejected, cost when accepted."""
    true = np.asarray(truth, dtype=np.int64)
    if beta <= 0:
        raise ValueError("cavg needs beta > 0")
    present, column = _present(llr, true)
    count = len(present)
    weight = 1 / (count * np.bincount(column)[column])  # (segments,) every label weighs 1/N
    is_target = column[:, None] == np.arange(count)  # (segments, N)
    miss_cost = np.where(is_target, weight[:, None], 0.0)
    accept_cost = np.where(is_target, 0.0, weight[:, None] * beta / (count - 1))
    return llr[:, present].ravel(), miss_cost.ravel(), accept_cost.ravel()


def _present(llr: Doubles, true: Indices) -> tuple[Indices, Indices]:
    """(N,) columns that occur, and (segments,) which of these is the true one."""
    if len(true) != len(llr):
        raise ValueError("cavg needs one true label per row")
    present, target = np.unique(true, return_inverse=True)
    if len(present) < 2:
        raise KnnError(
            "Cavg needs test segments of at least two labels.", "Add segments of another label, or read the accuracy."
        )
    return present, target


def eer(target_scores: Sequence[float] | Doubles, nontarget_scores: Sequence[float] | Doubles) -> float:
    """Equal error rate: where P_miss = P_fa on the ROC drawn as straight lines between its operating points.

    A threshold between two different scores is an operating point; equal scores move together. No convex hull is
    taken, so this can lie above the ROCCH-EER of the BOSARIS toolkit.
    """
    targets, nontargets = (np.sort(_nonempty(np.asarray(s))) for s in (target_scores, nontarget_scores))
    thresholds = np.append(np.unique(np.concatenate([targets, nontargets])), np.inf)
    miss = np.searchsorted(targets, thresholds) / len(targets)  # share of targets below each threshold: 0 ... 1
    false_alarm = 1 - np.searchsorted(nontargets, thresholds) / len(nontargets)  # 1 ... 0
    after = int(np.argmax(miss >= false_alarm))  # never 0: there miss is 0 and false alarm 1
    before = after - 1
    gap_before, gap_after = false_alarm[before] - miss[before], false_alarm[after] - miss[after]
    fraction = gap_before / (gap_before - gap_after)
    return float(miss[before] + fraction * (miss[after] - miss[before]))


def _nonempty(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """The values; KnnError if there are none."""
    if len(values) == 0:
        raise KnnError("There is nothing to score.", "Give at least one labelled segment.")
    return values
