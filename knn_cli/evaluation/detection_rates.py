"""Miss and false alarm rates at every threshold at once, for any number of weightings of the recordings.

Between two neighbouring scores of target trials a threshold changes only false alarms, along a straight line of the
ROC, so minimum costs and equal error rates need no other thresholds than the scores of target trials. Trials are
counted once into the cells between these scores; each weighting is then a sparse product and a cumulative sum.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import scipy
from numpy.typing import NDArray

from knn_cli.core.values import Doubles
from knn_cli.evaluation.bootstrap import BootstrapUnits

Indices = NDArray[np.int64]


class DetectionErrorRates:
    """Trials of each of N segments against each of P labels.

    A false alarm rate is the mean over the other labels of the share of their segments that are accepted, and the
    rates of all trials are the means over labels, as in Cavg: every label weighs alike.

    Parameters
    ----------
    llr : (N, P) float64
        Detection log-likelihood ratios.
    index : (N,) int64
        Column of the true label; every column is the true one of some row.
    units : BootstrapUnits
        What is weighted.
    max_thresholds : int, optional
        Thresholds per curve at most, evenly spaced in rank; None takes all. With fewer, the rates stay exact, and
        minimum costs and equal error rates come out a little too high.
    """

    def __init__(
        self, llr: Doubles, index: Indices, units: BootstrapUnits, *, max_thresholds: int | None = None
    ) -> None:
        self.labels = llr.shape[1]
        self._llr, self._index, self._units, self._max_thresholds = llr, index, units, max_thresholds

    def thresholds(self, label: int | None) -> Doubles:
        """(2 T + 2,): accept all (-inf), at and just above each of T scores of target trials, accept none (inf)."""
        scores = self._target_scores(label)
        both = np.stack([scores, np.nextafter(scores, np.inf)], axis=1)  # (T, 2)
        return np.concatenate([[-np.inf], both.ravel(), [np.inf]])

    def rates(self, label: int | None, row_shares: Doubles) -> tuple[Doubles, Doubles]:
        """Miss and false alarm rates at `thresholds(label)`; a score >= threshold accepts.

        Parameters
        ----------
        label : int or None
            A column, or None for the trials of all labels.
        row_shares : (U, B) float64
            See `BootstrapUnits.row_shares`.

        Returns
        -------
        miss, false_alarm : (2 T + 2, B) float64
        """
        targets, nontargets = self._cells[self.labels if label is None else label]
        zero = np.zeros((1, row_shares.shape[1]))
        miss = np.concatenate([zero, np.cumsum(targets @ row_shares, axis=0)])
        false_alarm = np.concatenate([np.cumsum((nontargets @ row_shares)[::-1], axis=0)[::-1], zero])
        return np.minimum(miss, 1.0), np.minimum(false_alarm, 1.0)

    def _target_scores(self, label: int | None) -> Doubles:
        targets = self._llr[np.arange(len(self._index)), self._index]
        scores = np.unique(targets if label is None else targets[self._index == label])
        if self._max_thresholds is not None and len(scores) > self._max_thresholds:
            scores = scores[np.linspace(0, len(scores) - 1, self._max_thresholds).round().astype(np.int64)]
        return scores

    @cached_property
    def _cells(self) -> list[tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]]:
        """(2 T + 1, U) target and nontarget trials by cell and unit: one pair per label, then that of all trials."""
        by_label = [self._counted(label, self._target_scores(label)) for label in range(self.labels)]
        scores = self._target_scores(None)
        first, *others = [*range(1, self.labels), 0]
        targets, nontargets = self._counted(first, scores)
        for label in others:  # one at a time, since each has a place for every score
            more = self._counted(label, scores)
            targets, nontargets = targets + more[0], nontargets + more[1]
        return [
            *by_label,
            (scipy.sparse.csr_array(targets / self.labels), scipy.sparse.csr_array(nontargets / self.labels)),
        ]

    def _counted(self, label: int, scores: Doubles) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array]:
        """Cell 2 i lies strictly between scores i - 1 and i, cell 2 i + 1 is score i."""
        trials = self._llr[:, label]
        place = np.searchsorted(scores, trials)
        at = scores[np.minimum(place, len(scores) - 1)] == trials
        cell, is_target = 2 * place + at, self._index == label
        shape = (2 * len(scores) + 1, len(self._units))
        targets, nontargets = (
            scipy.sparse.csr_array((np.full(int(mask.sum()), weight), (cell[mask], self._units.row[mask])), shape=shape)
            for mask, weight in ((is_target, 1.0), (~is_target, 1 / (self.labels - 1)))
        )
        return targets, nontargets


def equal_error_rate(miss: Doubles, false_alarm: Doubles) -> Doubles:
    """(B,) where the rates (T, B) are equal, on straight lines between operating points (see `metrics.eer`)."""
    after = np.argmax(miss >= false_alarm, axis=0)  # never 0: there miss is 0 and false alarm 1
    columns = np.arange(miss.shape[1])
    before = after - 1
    lower, upper = miss[before, columns], miss[after, columns]
    gap_before, gap_after = false_alarm[before, columns] - lower, false_alarm[after, columns] - upper
    return np.asarray(lower + gap_before / (gap_before - gap_after) * (upper - lower))


def min_cost(miss: Doubles, false_alarm: Doubles, beta: float) -> Doubles:
    """(B,) the least miss + beta * false_alarm over thresholds (T, B)."""
    return np.asarray((miss + beta * false_alarm).min(axis=0))
