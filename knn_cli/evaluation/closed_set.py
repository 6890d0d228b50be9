"""The figures of rows whose labels a model knows, as functions of how much each recording weighs.

Weighed once each they are the figures themselves, weighed as often as drawn those of a bootstrap draw. `evaluation`
says what they mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special

from knn_cli.core.values import Doubles, Texts
from knn_cli.evaluation import metrics
from knn_cli.evaluation.bootstrap import Units
from knn_cli.evaluation.metrics import LRE_BETAS
from knn_cli.evaluation.thresholds import Sweep, equal_error, least_cost

Indices = NDArray[np.int64]

BINS = 15  # of posteriors, as in Guo et al. 2017
THRESHOLDS = 2000  # a curve in the draws; the values themselves take all


class ClosedSet:
    """N rows of P labels that occur, of C that the model knows.

    scores         : (N, C) log-posteriors up to a constant a row, whatever priors they hold
    log_likelihood : (N, C) the same for labels that are alike before
    index          : (N,) column of the true label
    name           : (N,) recording, the unit of the weights; None: the label is, for where all weigh alike
    rivals         : (C,) priors of the other labels in detection LLRs; None: alike

    present : (P,) columns that occur
    """

    def __init__(
        self,
        scores: Doubles,
        log_likelihood: Doubles,
        index: Indices,
        name: Texts | None,
        rivals: Sequence[float] | None = None,
    ) -> None:
        self.present, self.own = np.unique(index, return_inverse=True)
        self.count = len(self.present)
        self.units = Units.of_labels(self.own) if name is None else Units.of(name, self.own)
        self.predicted = scores.argmax(axis=1)
        self.right = self.predicted == index
        self.confidence = np.exp(scores.max(axis=1) - special.logsumexp(scores, axis=1))
        self._bits = metrics.surprise(log_likelihood, index)
        self._first = np.flatnonzero(np.diff(self.units.label, prepend=-1))  # unit of each label
        chosen = np.searchsorted(self.present, self.predicted)  # a prediction that does not occur is nobody's
        occurs = np.isin(self.predicted, self.present)
        self._chosen = self._by_unit(chosen[occurs], occurs, self.count)
        self.bin = np.clip(np.ceil(self.confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)  # holds its upper edge
        every = np.ones(len(index), dtype=bool)
        self._gap = self._by_unit(self.bin, every, BINS, self.confidence - self.right)
        if self.count > 1:
            self.llr = metrics.detection_llr(log_likelihood, rivals)[:, self.present]
            self.sweep = Sweep(self.llr, self.own, self.units, limit=None if name is None else THRESHOLDS)

    def figures(self, weights: Doubles) -> dict[str, Doubles]:
        """Each figure (B,) under (U, B) weights of the units."""
        units, shares = self.units, self.units.shares(weights)
        right = units.sums(self.right)[:, None]
        rows = units.size @ weights
        hits, support = self._by_label(right * weights), self._by_label(units.size[:, None] * weights)  # (P, B)
        found = {
            "accuracy": right[:, 0] @ weights / rows,
            "balanced_accuracy": (hits / support).mean(axis=0),
            "macro_f1": (2 * hits / (self._chosen @ weights + support)).mean(axis=0),
            **self._detection(shares),
            "cllr": units.sums(self._bits) @ shares / self.count,
            "ece": np.abs(self._gap @ weights).sum(axis=0) / rows,
        }
        return {name: np.asarray(value) for name, value in found.items()}

    def _detection(self, shares: Doubles) -> dict[str, Doubles]:
        names = ["cavg_{:g}", "min_cavg_{:g}"]
        costs = {name.format(beta): np.full(shares.shape[1], np.nan) for name in names for beta in LRE_BETAS}
        rest = ("cprimary", "min_cprimary", "min_cprimary_by_label", "act_minus_min", "eer")
        costs |= {name: np.full(shares.shape[1], np.nan) for name in rest}
        if self.count < 2:
            return costs
        rates = self.sweep.rates(None, shares)
        for beta in LRE_BETAS:
            miss, alarm = self.decisions(beta)
            cost = miss + beta / (self.count - 1) * alarm
            costs[f"cavg_{beta:g}"] = self.units.sums(cost) @ shares / self.count
            costs[f"min_cavg_{beta:g}"] = least_cost(*rates, beta)
        own = np.zeros((2, shares.shape[1]))  # sums over labels of EER and least Cprimary
        for label in range(self.count):
            rates = self.sweep.rates(label, shares)
            own[0] += equal_error(*rates)
            own[1] += np.mean([least_cost(*rates, beta) for beta in LRE_BETAS], axis=0)
        for kind in ("", "min_"):
            costs[f"{kind}cprimary"] = np.mean([costs[f"{kind}cavg_{beta:g}"] for beta in LRE_BETAS], axis=0)
        costs["min_cprimary_by_label"] = own[1] / self.count
        costs["act_minus_min"] = costs["cprimary"] - costs["min_cprimary"]
        costs["eer"] = own[0] / self.count
        return costs

    def decisions(self, beta: float) -> tuple[Doubles, Doubles]:
        """(N,) whether each row is missed at the threshold log(beta), and how many other labels accept it."""
        accepted = self.llr >= metrics.bayes_threshold(beta)
        hit = accepted[np.arange(len(self.own)), self.own].astype(np.float64)
        return 1 - hit, accepted.sum(axis=1, dtype=np.float64) - hit

    def costs(self, beta: float) -> Doubles:
        """(P,) detection cost of each label at the threshold log(beta), rows of a label alike."""
        miss, alarm = metrics.error_rates(self.llr, self.own, metrics.bayes_threshold(beta))
        return miss + beta * alarm

    def _by_label(self, values: Doubles) -> Doubles:
        """(P, B) sums of (U, B) values of units."""
        return np.add.reduceat(values, self._first, axis=0)

    def _by_unit(
        self, kind: Indices, rows: NDArray[np.bool_], kinds: int, values: Doubles | None = None
    ) -> sparse.csr_array:
        """(kinds, U) sums of values (1 each when None) of the chosen rows, which are of these kinds."""
        unit = self.units.row[rows]
        data = np.ones(len(unit)) if values is None else values
        return sparse.csr_array((data, (kind, unit)), shape=(kinds, len(self.units)))
