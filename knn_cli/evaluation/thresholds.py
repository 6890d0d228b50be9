"""Detection scores against every threshold at once, for any number of weightings of the recordings.

Between two neighbouring scores of target trials a threshold only changes false alarms, in a straight line of the ROC,
so that the least costs and the equal error rate need nothing but the scores of target trials as thresholds. Trials are
counted once into the cells between them; each weighting is then a sparse product and a cumulative sum.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from knn_cli.core.values import Doubles
from knn_cli.evaluation.bootstrap import Units

Indices = NDArray[np.int64]


class Sweep:
    """Trials of each of N segments against each of P labels.

    llr   : (N, P) detection log-likelihood ratios
    index : (N,) column of the true label; every column is the true one of some row
    units : what is weighted
    limit : thresholds a curve at most, evenly spaced in rank; None is all. Fewer make rates exact still, and least
            costs and equal error rates a little too high

    A false alarm rate is the mean over the other labels of the share of their segments that are accepted, and the
    rates of all trials are the means over labels of theirs, as in Cavg: every label weighs alike.
    """

    def __init__(self, llr: Doubles, index: Indices, units: Units, *, limit: int | None = None) -> None:
        self.labels = llr.shape[1]
        self._llr, self._index, self._units, self._limit = llr, index, units, limit

    def thresholds(self, label: int | None) -> Doubles:
        """(2 T + 2,): accept all (-inf), at and just above each of T scores of target trials, accept none (inf)."""
        scores = self._scores(label)
        both = np.stack([scores, np.nextafter(scores, np.inf)], axis=1)  # (T, 2)
        return np.concatenate([[-np.inf], both.ravel(), [np.inf]])

    def rates(self, label: int | None, shares: Doubles) -> tuple[Doubles, Doubles]:
        """Miss and false alarm rates, (2 T + 2, B) each, at `thresholds(label)`; a score >= threshold accepts.

        label  : a column, or None for all trials
        shares : (U, B) what a row of each unit is of its label
        """
        targets, others = self._cells[self.labels if label is None else label]
        zero = np.zeros((1, shares.shape[1]))
        miss = np.concatenate([zero, np.cumsum(targets @ shares, axis=0)])
        alarm = np.concatenate([np.cumsum((others @ shares)[::-1], axis=0)[::-1], zero])
        return np.minimum(miss, 1.0), np.minimum(alarm, 1.0)

    def _scores(self, label: int | None) -> Doubles:
        own = self._llr[np.arange(len(self._index)), self._index]
        scores = np.unique(own if label is None else own[self._index == label])
        if self._limit is not None and len(scores) > self._limit:
            scores = scores[np.linspace(0, len(scores) - 1, self._limit).round().astype(np.int64)]
        return scores

    @cached_property
    def _cells(self) -> list[tuple[sparse.csr_array, sparse.csr_array]]:
        """Trials in each cell by unit, (2 T + 1, U), of targets and of the others: one pair a label, then all."""
        found = [self._counted(label, self._scores(label)) for label in range(self.labels)]
        scores = self._scores(None)
        whole = [self._counted(label, scores) for label in range(self.labels)]
        targets, others = (sum(pair[side] for pair in whole[1:]) + whole[0][side] for side in (0, 1))
        return [*found, (sparse.csr_array(targets / self.labels), sparse.csr_array(others / self.labels))]

    def _counted(self, label: int, scores: Doubles) -> tuple[sparse.csr_array, sparse.csr_array]:
        """Cell 2 i lies strictly between scores i - 1 and i, cell 2 i + 1 is score i."""
        trials = self._llr[:, label]
        place = np.searchsorted(scores, trials)
        at = scores[np.minimum(place, len(scores) - 1)] == trials
        cell, own = 2 * place + at, self._index == label
        shape = (2 * len(scores) + 1, len(self._units))
        targets, others = (
            sparse.csr_array((np.full(int(mask.sum()), weight), (cell[mask], self._units.row[mask])), shape=shape)
            for mask, weight in ((own, 1.0), (~own, 1 / (self.labels - 1)))
        )
        return targets, others


def equal_error(miss: Doubles, alarm: Doubles) -> Doubles:
    """(B,) where the rates (T, B) are equal, on straight lines between operating points (see `metrics.eer`)."""
    after = np.argmax(miss >= alarm, axis=0)  # never 0: there miss is 0 and alarm 1
    columns = np.arange(miss.shape[1])
    before = after - 1
    lower, upper = miss[before, columns], miss[after, columns]
    gap_before, gap_after = alarm[before, columns] - lower, alarm[after, columns] - upper
    return np.asarray(lower + gap_before / (gap_before - gap_after) * (upper - lower))


def least_cost(miss: Doubles, alarm: Doubles, beta: float) -> Doubles:
    """(B,) the least miss + beta * alarm over thresholds (T, B)."""
    return np.asarray((miss + beta * alarm).min(axis=0))
