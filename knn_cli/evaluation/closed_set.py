"""Closed-set metrics, of rows whose labels the model knows, as functions of the weight of each recording.

With all weights 1 they are the metrics themselves; weighted as often as it was drawn, those of a bootstrap sample.
`evaluation.metrics` has the same metrics without weights, and says what each of them means.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy
from numpy.typing import NDArray

from knn_cli.core.values import Doubles, Texts
from knn_cli.evaluation import metrics
from knn_cli.evaluation.bootstrap import BootstrapUnits
from knn_cli.evaluation.detection_rates import DetectionErrorRates, equal_error_rate, min_cost
from knn_cli.evaluation.metrics import LRE_BETAS

Indices = NDArray[np.int64]

RELIABILITY_BINS = 15  # as in Guo et al. 2017
MAX_BOOTSTRAP_THRESHOLDS = 2000  # per curve of a bootstrap sample; the values themselves use all thresholds


class ClosedSetMetrics:
    """Metrics of N rows of P labels that occur, of C labels that the model knows.

    Parameters
    ----------
    scores : (N, C) float64
        Log-posteriors up to a constant per row, under whatever priors they include.
    log_likelihood : (N, C) float64
        The same under equal priors.
    index : (N,) int64
        Column of the true label.
    name : (N,) str, optional
        Recordings, which are what is weighted; None where all rows weigh alike.
    detection_priors : sequence of C floats, optional
        Priors of the competing labels in detection LLRs; None stands for equal ones.

    Attributes
    ----------
    present : (P,) int64
        Columns that occur.
    target : (N,) int64
        Place in `present` of each row's true label.
    predicted : (N,) int64
        Column of the largest score.
    correct : (N,) bool
    confidence : (N,) float64
        Posterior of the predicted label.
    reliability_bin : (N,) int64
    units : BootstrapUnits
    llr : (N, P) float64
        Detection log-likelihood ratios of the labels that occur; only for P > 1, as `error_rates`.
    error_rates : DetectionErrorRates
    """

    def __init__(
        self,
        scores: Doubles,
        log_likelihood: Doubles,
        index: Indices,
        name: Texts | None,
        detection_priors: Sequence[float] | None = None,
    ) -> None:
        self.present, self.target = np.unique(index, return_inverse=True)
        self.label_count = len(self.present)
        self.units = (
            BootstrapUnits.from_labels(self.target)
            if name is None
            else BootstrapUnits.from_recordings(name, self.target)
        )
        self.predicted = scores.argmax(axis=1)
        self.correct = self.predicted == index
        self.confidence = np.exp(scores.max(axis=1) - scipy.special.logsumexp(scores, axis=1))
        self._bits = metrics.surprisal(log_likelihood, index)
        self._first_unit = np.flatnonzero(np.diff(self.units.label, prepend=-1))  # of each label
        place = np.searchsorted(self.present, self.predicted)
        occurs = np.isin(self.predicted, self.present)  # predictions of absent labels count for no label
        self._predictions = self._by_unit(place[occurs], occurs, self.label_count)
        # A bin includes its upper edge.
        self.reliability_bin = np.clip(
            np.ceil(self.confidence * RELIABILITY_BINS).astype(np.int64) - 1, 0, RELIABILITY_BINS - 1
        )
        every = np.ones(len(index), dtype=bool)
        self._calibration_gap = self._by_unit(
            self.reliability_bin, every, RELIABILITY_BINS, self.confidence - self.correct
        )
        if self.label_count > 1:
            self.llr = metrics.detection_llr(log_likelihood, detection_priors)[:, self.present]
            limit = None if name is None else MAX_BOOTSTRAP_THRESHOLDS
            self.error_rates = DetectionErrorRates(self.llr, self.target, self.units, max_thresholds=limit)

    def values(self, weights: Doubles) -> dict[str, Doubles]:
        """Each metric, (B,), under (U, B) weights of the units; names as in `Evaluation.metrics`."""
        units, row_shares = self.units, self.units.row_shares(weights)
        correct = units.sums(self.correct)[:, None]
        rows = units.size @ weights
        hits, support = self._by_label(correct * weights), self._by_label(units.size[:, None] * weights)  # (P, B)
        values = {
            "accuracy": correct[:, 0] @ weights / rows,
            "balanced_accuracy": (hits / support).mean(axis=0),
            "macro_f1": (2 * hits / (self._predictions @ weights + support)).mean(axis=0),
            **self._detection_values(row_shares),
            "cllr": units.sums(self._bits) @ row_shares / self.label_count,
            "ece": np.abs(self._calibration_gap @ weights).sum(axis=0) / rows,
        }
        return {name: np.asarray(value) for name, value in values.items()}

    def _detection_values(self, row_shares: Doubles) -> dict[str, Doubles]:
        """The metrics of detection trials, NaN where only one label occurs."""
        names = [name.format(beta) for name in ("cavg_{:g}", "min_cavg_{:g}") for beta in LRE_BETAS]
        names += ["cprimary", "min_cprimary", "min_cprimary_by_label", "act_minus_min", "eer"]
        values = {name: np.full(row_shares.shape[1], np.nan) for name in names}
        if self.label_count < 2:
            return values
        rates = self.error_rates.rates(None, row_shares)
        for beta in LRE_BETAS:
            miss, false_alarms = self.row_errors(beta)
            cost = miss + beta / (self.label_count - 1) * false_alarms
            values[f"cavg_{beta:g}"] = self.units.sums(cost) @ row_shares / self.label_count
            values[f"min_cavg_{beta:g}"] = min_cost(*rates, beta)
        sums = np.zeros((2, row_shares.shape[1]))  # over labels, of the EER and of the least Cprimary
        for label in range(self.label_count):
            rates = self.error_rates.rates(label, row_shares)
            sums[0] += equal_error_rate(*rates)
            sums[1] += np.mean([min_cost(*rates, beta) for beta in LRE_BETAS], axis=0)
        for kind in ("", "min_"):
            values[f"{kind}cprimary"] = np.mean([values[f"{kind}cavg_{beta:g}"] for beta in LRE_BETAS], axis=0)
        values["min_cprimary_by_label"] = sums[1] / self.label_count
        values["act_minus_min"] = values["cprimary"] - values["min_cprimary"]
        values["eer"] = sums[0] / self.label_count
        return values

    def row_errors(self, beta: float) -> tuple[Doubles, Doubles]:
        """(N,) whether each row is missed at the threshold log(beta), and how many other labels accept it."""
        accepted = self.llr >= metrics.bayes_threshold(beta)
        hit = accepted[np.arange(len(self.target)), self.target].astype(np.float64)
        return 1 - hit, accepted.sum(axis=1, dtype=np.float64) - hit

    def detection_costs(self, beta: float) -> Doubles:
        """(P,) detection cost of each label at the threshold log(beta), all rows of a label weighing alike."""
        miss, false_alarm = metrics.error_rates(self.llr, self.target, metrics.bayes_threshold(beta))
        return miss + beta * false_alarm

    def _by_label(self, values: Doubles) -> Doubles:
        """(P, B) sums of (U, B) values of units."""
        return np.add.reduceat(values, self._first_unit, axis=0)

    def _by_unit(
        self, kind: Indices, rows: NDArray[np.bool_], kinds: int, values: Doubles | None = None
    ) -> scipy.sparse.csr_array:
        """(kinds, U) sums over the chosen rows of their values, or their number, by kind and unit."""
        unit = self.units.row[rows]
        data = np.ones(len(unit)) if values is None else values
        return scipy.sparse.csr_array((data, (kind, unit)), shape=(kinds, len(self.units)))
