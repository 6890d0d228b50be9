"""How good: diarization error rate, and the language recognition measures of NIST.

References: NIST RT-09 evaluation plan (diarization error rate); NIST 2022 Language Recognition Evaluation Plan,
section 3 (Cavg, Cprimary); N. Brummer and D. van Leeuwen, "On calibration of language recognition scores",
Odyssey 2006 (detection log-likelihood ratios).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pyannote.core import Annotation, Timeline
from scipy.optimize import linear_sum_assignment

from knn_cli.errors import KnnError
from knn_cli.types import Doubles

Indices = NDArray[np.int64]

LRE_BETAS = (1.0, 9.0)  # NIST LRE 2022: target priors 0.5 and 0.1, unit costs


# ---- diarization ----


@dataclass(frozen=True)
class DiarizationError:
    """Seconds of speaker time: `total` in the reference, and the three ways to lose it. `a + b` pools files."""

    total: float
    missed: float
    false_alarm: float
    confusion: float

    @property
    def rate(self) -> float:
        """(missed + false alarm + confusion) / total; without reference speech 0 if nothing was claimed, else 1."""
        errors = self.missed + self.false_alarm + self.confusion
        if self.total > 0:
            return errors / self.total
        return 1.0 if errors > 0 else 0.0

    def __add__(self, other: DiarizationError) -> DiarizationError:
        return DiarizationError(
            self.total + other.total,
            self.missed + other.missed,
            self.false_alarm + other.false_alarm,
            self.confusion + other.confusion,
        )

    def __radd__(self, other: int) -> DiarizationError:
        """Lets `sum(errors)` begin with its 0."""
        return self if other == 0 else NotImplemented


def diarization_error(
    reference: Annotation,
    hypothesis: Annotation,
    *,
    collar: float = 0.0,
    skip_overlap: bool = False,
    uem: Timeline | None = None,
) -> DiarizationError:
    """Diarization error under the one-to-one speaker mapping that shares most time, exact to rounding.

    collar       : seconds on *each side* of every reference turn's start and end that are not scored, as in md-eval
                   (pyannote.metrics' `collar` is both sides together: twice this)
    skip_overlap : leave out where two or more reference speakers talk
    uem          : what is scored; None is all of both, as dscore does

    Turns of one speaker that overlap count once. The mapping is chosen on what is scored.
    """
    if collar < 0:
        raise ValueError("the collar cannot be negative")
    turns_ref, turns_hyp = _spans(reference), _spans(hypothesis)
    borders_ref = np.concatenate([np.zeros(0), *(spans.ravel() for spans in turns_ref)])
    collars = np.stack([borders_ref - collar, borders_ref + collar], axis=1)  # (2 turns, 2)
    scored = np.zeros((0, 2)) if uem is None else np.array([(s.start, s.end) for s in uem]).reshape(-1, 2)
    edges = np.unique(np.concatenate([np.zeros(0), *(x.ravel() for x in (*turns_ref, *turns_hyp, collars, scored))]))
    if len(edges) < 2:
        return DiarizationError(0.0, 0.0, 0.0, 0.0)
    # Between two neighbouring edges nothing changes, so the whole score is sums over these cells.
    seconds = np.diff(edges)  # (cells,)
    in_ref = np.stack([np.zeros(len(seconds), dtype=bool), *(_inside(s, edges) for s in turns_ref)])[1:]
    in_hyp = np.stack([np.zeros(len(seconds), dtype=bool), *(_inside(s, edges) for s in turns_hyp)])[1:]
    count_ref, count_hyp = in_ref.sum(axis=0), in_hyp.sum(axis=0)  # speakers talking in each cell
    if uem is not None:
        seconds = seconds * _inside(scored, edges)
    if collar > 0:
        seconds = seconds * ~_inside(collars, edges)
    if skip_overlap:
        seconds = seconds * (count_ref < 2)
    shared = (in_ref * seconds) @ in_hyp.T.astype(np.float64)  # (reference speakers, hypothesis speakers)
    correct = shared[linear_sum_assignment(shared, maximize=True)].sum()
    both = np.minimum(count_ref, count_hyp) @ seconds
    return DiarizationError(
        total=float(count_ref @ seconds),
        missed=float(np.maximum(count_ref - count_hyp, 0) @ seconds),
        false_alarm=float(np.maximum(count_hyp - count_ref, 0) @ seconds),
        confusion=max(0.0, float(both - correct)),
    )


def _spans(annotation: Annotation) -> list[Doubles]:
    """One (turns, 2) array of start and end a speaker."""
    speakers: dict[object, list[tuple[float, float]]] = {}
    for segment, _, label in annotation.itertracks(yield_label=True):
        speakers.setdefault(label, []).append((segment.start, segment.end))
    return [np.array(spans, dtype=np.float64) for spans in speakers.values()]


def _inside(spans: Doubles, edges: Doubles) -> NDArray[np.bool_]:
    """For spans (n, 2) whose ends are all among `edges` (m,): which of the m - 1 cells lie in any of them."""
    change = np.zeros(len(edges), dtype=np.int64)
    np.add.at(change, np.searchsorted(edges, spans[:, 0]), 1)
    np.add.at(change, np.searchsorted(edges, spans[:, 1]), -1)
    return np.cumsum(change)[:-1] > 0


# ---- languages ----


def accuracy(predicted: Sequence[int] | Indices, truth: Sequence[int] | Indices) -> float:
    """Share of segments whose label is right; both (N,) label indices, N > 0."""
    right = np.asarray(predicted) == np.asarray(truth)
    return float(_some(right).mean())


def balanced_accuracy(predicted: Sequence[int] | Indices, truth: Sequence[int] | Indices) -> float:
    """Accuracy of each label that occurs in the truth, averaged over those labels."""
    right, true = np.asarray(predicted) == np.asarray(truth), np.asarray(truth)
    return float(np.mean([right[true == label].mean() for label in np.unique(_some(true))]))


def confusion(predicted: Sequence[int] | Indices, truth: Sequence[int] | Indices, labels: int) -> Indices:
    """(labels, labels) counts: row = true label, column = predicted label."""
    table = np.zeros((labels, labels), dtype=np.int64)
    np.add.at(table, (np.asarray(truth, dtype=np.int64), np.asarray(predicted, dtype=np.int64)), 1)
    return table


def detection_llr(log_likelihood: Doubles, priors: Sequence[float] | Doubles | None = None) -> Doubles:
    """Log-likelihood ratio of each label against all the others together.

    llr[n, c] = l[n, c] - log(sum over j != c of p[j] exp(l[n, j]) / sum over j != c of p[j])

    log_likelihood : (N, C) natural logarithms, up to a constant a row, C >= 2
    priors         : (C,) weights of the labels, equal when None
    """
    count = log_likelihood.shape[1]
    if count < 2:
        raise KnnError("A detection score needs at least two labels.", "Use a model that knows two or more labels.")
    weights = np.ones(count) if priors is None else np.asarray(priors, dtype=np.float64)
    if weights.shape != (count,) or not (weights > 0).all():
        raise ValueError(f"priors are {count} numbers above 0")
    llr = np.empty(log_likelihood.shape, dtype=np.float64)
    for label in range(count):
        others = np.arange(count) != label
        rest = log_likelihood[:, others] + np.log(weights[others] / weights[others].sum())
        llr[:, label] = log_likelihood[:, label] - np.logaddexp.reduce(rest, axis=1)
    return llr


def cavg(llr: Doubles, truth: Sequence[int] | Indices, beta: float, threshold: float | None = None) -> float:
    """Average detection cost of NIST LRE 2022 at one threshold, log(beta) when None; a score >= threshold accepts.

    Cavg(beta) = 1/N sum_T [P_miss(T) + beta/(N-1) sum_{j != T} P_fa(T, j)]

    where P_miss(T) is the share of segments of T whose score for T is rejected, and P_fa(T, j) the share of segments
    of j whose score for T is accepted. T and j run over the N labels that occur in `truth`: a label of the model
    without test segments has no miss rate, so it is left out, as are the false alarms for it.

    llr   : (segments, C) detection log-likelihood ratios (`detection_llr`)
    truth : (segments,) column of the true label
    """
    scores, miss_cost, accept_cost = _trials(llr, truth, beta)
    accepted = scores >= (math.log(beta) if threshold is None else threshold)
    return float(miss_cost[~accepted].sum() + accept_cost[accepted].sum())


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


def _trials(llr: Doubles, truth: Sequence[int] | Indices, beta: float) -> tuple[Doubles, Doubles, Doubles]:
    """Each segment against each label that occurs, flat: score, cost when rejected, cost when accepted."""
    true = np.asarray(truth, dtype=np.int64)
    if beta <= 0 or len(true) != len(llr):
        raise ValueError("cavg needs beta > 0 and one true label a row")
    present, column, segments = np.unique(true, return_inverse=True, return_counts=True)
    count = len(present)
    if count < 2:
        raise KnnError(
            "Cavg needs test segments of at least two labels.", "Add segments of another label, or read the accuracy."
        )
    share = 1 / (count * segments[column])  # (segments,) weight of a segment: every label weighs 1/N
    is_target = column[:, None] == np.arange(count)  # (segments, N)
    miss_cost = np.where(is_target, share[:, None], 0.0)
    accept_cost = np.where(is_target, 0.0, share[:, None] * beta / (count - 1))
    return llr[:, present].ravel(), miss_cost.ravel(), accept_cost.ravel()


def eer(target_scores: Sequence[float] | Doubles, nontarget_scores: Sequence[float] | Doubles) -> float:
    """Equal error rate: where P_miss = P_fa on the ROC drawn as straight lines between its operating points.

    A threshold between two different scores is an operating point; equal scores move together. No convex hull is
    taken, so this can lie above the ROCCH-EER of the BOSARIS toolkit.
    """
    targets, nontargets = np.sort(_some(np.asarray(target_scores))), np.sort(_some(np.asarray(nontarget_scores)))
    thresholds = np.append(np.unique(np.concatenate([targets, nontargets])), np.inf)
    miss = np.searchsorted(targets, thresholds) / len(targets)  # share of targets below each threshold: 0 ... 1
    alarm = 1 - np.searchsorted(nontargets, thresholds) / len(nontargets)  # 1 ... 0
    after = int(np.argmax(miss >= alarm))  # never 0: there miss is 0 and alarm 1
    before = after - 1
    gap_before, gap_after = alarm[before] - miss[before], alarm[after] - miss[after]
    share = gap_before / (gap_before - gap_after)
    return float(miss[before] + share * (miss[after] - miss[before]))


def _some(values: NDArray[np.generic]) -> NDArray[np.generic]:
    if len(values) == 0:
        raise KnnError("There is nothing to score.", "Give at least one labelled segment.")
    return values
