"""The results of `evaluate`: metrics with confidence intervals, detection error trade-off curves, reliability."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy
from numpy.typing import NDArray

from knn_cli.core.values import Doubles, ScoreTable
from knn_cli.evaluation import metrics


@dataclass(frozen=True)
class MetricValue:
    """One metric with its 95 % interval by bootstrap over recordings (see `evaluation.bootstrap`).

    Attributes
    ----------
    value : float
    low, high : float
        Ends of the interval; NaN where there is none, because no bootstrap samples were asked for or because every
        label has only one recording.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one label that occurs in the test set.

    Attributes
    ----------
    label : str
    support : int
        Rows with this true label.
    precision, recall, f1 : float
        In [0, 1]; the precision is NaN where nothing was predicted as this label.
    eer : float
        Equal error rate of the label's curve in `Evaluation.det_curves`: false alarm rates are means over the other
        labels that occur. NaN where no other label occurs, as the costs are.
    cdet : tuple of float
        Detection cost P_miss + beta * P_fa at the threshold log(beta), for beta = 1 and 9; Cavg is its mean over
        labels.
    min_cdet : tuple of float
        The same at the label's own best threshold.
    """

    label: str
    support: int
    precision: float
    recall: float
    f1: float
    eer: float
    cdet: tuple[float, ...]
    min_cdet: tuple[float, ...]


@dataclass(frozen=True)
class DetCurve:
    """A detection error trade-off curve: miss and false alarm rates by threshold, from accept-all to reject-all.

    A score >= threshold accepts. Only the corners of the curve are kept, at and just above the scores of target trials;
    between them it is straight.

    Attributes
    ----------
    name : str
        A label, or "all" for the trials of all labels pooled with every label weighing alike.
    threshold : (T,) float64
        From -inf to inf.
    miss, false_alarm : (T,) float64
    targets, nontargets : int
        Numbers of trials.
    """

    name: str
    threshold: Doubles
    miss: Doubles
    false_alarm: Doubles
    targets: int
    nontargets: int


@dataclass(frozen=True)
class Reliability:
    """Posteriors of the predicted label in B bins of equal width, against how often the prediction was right.

    Attributes
    ----------
    edges : (B + 1,) float64
        From 0 to 1; a bin includes its upper edge.
    count : (B,) int64
    confidence, accuracy : (B,) float64
        Mean posterior and share of right predictions; NaN in empty bins.
    ece : float
        Expected calibration error, the sum over bins of count / N * |confidence - accuracy|.
    """

    edges: Doubles
    count: NDArray[np.int64]
    confidence: Doubles
    accuracy: Doubles
    ece: float


@dataclass(frozen=True)
class OpenSetMetrics:
    """Rows of known labels that were called unknown, and out-of-set rows that were accepted as a known label.

    Rows whose true label is `unknown` are out of set, also where the model has a label of that name. A share of no rows
    is NaN.

    Attributes
    ----------
    threshold : float
        On the largest detection LLR; NaN where there is none, so that only the label `unknown` rejects, or nothing.
    false_reject, false_accept : MetricValue
        Shares of the known and of the out-of-set rows.
    known, unknown : int
        Numbers of known and of out-of-set rows.
    by_label : dict of str to (int, float)
        For each label outside the model its rows and the share of them that was accepted.
    eer : float
        Of known rows against out-of-set rows by the largest detection LLR, whatever the threshold.
    """

    threshold: float
    false_reject: MetricValue
    false_accept: MetricValue
    known: int
    unknown: int
    by_label: dict[str, tuple[int, float]]
    eer: float = float("nan")


@dataclass(frozen=True)
class DurationPoint:
    """One point of the duration curve: the scores of `segments` consecutive segments averaged into one embedding.

    Attributes
    ----------
    segments : int
    seconds : float
        Mean length of a row, NaN where the store does not give times.
    rows : int
    accuracy : MetricValue
    cprimary, min_cprimary : float
    """

    segments: int
    seconds: float
    rows: int
    accuracy: MetricValue
    cprimary: float
    min_cprimary: float


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`.

    Attributes
    ----------
    table : ScoreTable
        The scores evaluated: rows whose label the model knows. With `priors` they are log-posteriors.
    index : (N,) int64
        Column of the true label of each row.
    metrics : dict of str to MetricValue
        In the order in which they are shown: accuracy, balanced_accuracy, macro_f1, cavg_1, cavg_9 (threshold
        log(beta)), min_cavg_1, min_cavg_9, cprimary (mean of the two cavg), min_cprimary (one threshold for all
        labels), min_cprimary_by_label (one threshold per label), act_minus_min (cprimary - min_cprimary), eer (mean
        over labels), cllr (bits per row, multiclass, see `metrics.cllr`; scores without information give log2(C)), ece.
        Detection metrics are NaN where only one label occurs.
    classes : tuple of ClassMetrics
        One per label that occurs in the test set.
    absent : tuple of str
        Labels of the model without a test row. They have no miss rate and are left out of every mean.
    out_of_set : dict of str to int
        Rows of each label in the test set that the model does not know; only `open_set` counts them.
    unlabelled : int
        Rows without a label, left out.
    confusion : (C, C) int64
        Row = true label, column = predicted label, both in the order of `table.labels`.
    det_curves : tuple of DetCurve
        "all", then one per class; empty where only one label occurs.
    reliability : Reliability
    open_set : OpenSetMetrics, optional
    groups : Evaluation, optional
        The same of the posteriors summed by group (`grouped`), where the model declares two groups or more.
    priors : tuple of C floats
        Priors of the labels, which the table's scores include, and therefore also predictions, posteriors and ECE;
        () stands for equal priors.
    detection_priors : tuple of C floats
        Priors of the competing labels in detection LLRs, and so in costs and EER; () stands for equal priors. Groups
        have equal ones where no priors were asked for, so that no group is favoured for having many labels.
    single_recording : tuple of str
        Labels with one recording, whose variation the intervals cannot see.
    """

    table: ScoreTable
    index: NDArray[np.int64]
    metrics: dict[str, MetricValue]
    classes: tuple[ClassMetrics, ...]
    absent: tuple[str, ...]
    out_of_set: dict[str, int]
    unlabelled: int
    confusion: NDArray[np.int64]
    det_curves: tuple[DetCurve, ...]
    reliability: Reliability
    open_set: OpenSetMetrics | None = None
    groups: Evaluation | None = None
    priors: tuple[float, ...] = ()
    detection_priors: tuple[float, ...] = ()
    single_recording: tuple[str, ...] = ()

    @cached_property
    def log_likelihood(self) -> Doubles:
        """(N, C) the table's scores with the priors taken out."""
        return self.table.log_likelihood - np.log(self.priors) if self.priors else self.table.log_likelihood

    @cached_property
    def llr(self) -> Doubles:
        """(N, C) detection log-likelihood ratios against the other labels, weighted by `detection_priors`."""
        return metrics.detection_llr(self.log_likelihood, self.detection_priors or None)

    @cached_property
    def posteriors(self) -> Doubles:
        """(N, C) probabilities; those of groups are the sums over their labels."""
        return np.asarray(scipy.special.softmax(self.table.log_likelihood, axis=1))
