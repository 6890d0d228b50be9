"""How good a classifier is on rows whose labels are known: every figure of a language recognition evaluation.

NIST 2022 Language Recognition Evaluation Plan, section 3 (Cavg, Cprimary); N. Brummer and D. van Leeuwen, "On
calibration of language recognition scores", Odyssey 2006 (detection log-likelihood ratios, Cllr); C. Guo et al., "On
calibration of modern neural networks", ICML 2017 (reliability, expected calibration error).

Every label that occurs in the test set weighs alike in all but accuracy, precision and calibration error. A figure is a
function of how much each recording weighs: once each for the value, as often as drawn for its interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import special

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, ScoreTable, Texts
from knn_cli.evaluation import metrics, open_set
from knn_cli.evaluation.bootstrap import Units, interval
from knn_cli.evaluation.closed_set import BINS, ClosedSet
from knn_cli.evaluation.metrics import LRE_BETAS
from knn_cli.evaluation.thresholds import equal_error, least_cost


@dataclass(frozen=True)
class Figure:
    """One number with its 95 % interval by bootstrap over recordings (see `resampling`).

    Both ends are NaN where none was made: no draws were asked for, or every label has one recording.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")


@dataclass(frozen=True)
class ClassFigures:
    """One label that occurs in the test set. Shares in [0, 1]; precision is NaN where nothing was predicted as it.

    False alarm rates are means over the other labels that occur, so that the EER is the one of the label's curve in
    `Evaluation.detections`. Costs and EER are NaN where no other label occurs.
    """

    label: str
    support: int
    precision: float
    recall: float
    f1: float
    eer: float
    cdet: tuple[float, ...]  # at beta = 1, 9, threshold log(beta): P_miss + beta * P_fa; Cavg is the mean over labels
    min_cdet: tuple[float, ...]  # the same at the label's own best threshold


@dataclass(frozen=True)
class Detection:
    """Miss and false alarm rates of a detection score by threshold (T,), from accept-all (-inf) to reject-all (inf).

    A score >= threshold accepts. Thresholds are the corners of the curve, at and just above the scores of targets:
    between them it is straight.
    """

    name: str  # a label, or "all" for trials of all labels pooled, every label weighing alike
    threshold: Doubles
    miss: Doubles
    false_alarm: Doubles
    targets: int
    nontargets: int


@dataclass(frozen=True)
class Reliability:
    """Posteriors of the best label in bins of equal width: how sure, how often right. NaN in empty bins."""

    edges: Doubles  # (B + 1,) from 0 to 1; a bin holds its upper edge
    count: NDArray[np.int64]  # (B,)
    confidence: Doubles  # (B,) mean posterior
    accuracy: Doubles  # (B,)
    ece: float  # sum over bins of count / N * |confidence - accuracy|


@dataclass(frozen=True)
class OpenSetFigures:
    """Rows of known labels that were called unknown, and rows of labels that the model does not know that were not.

    Rows whose truth is `unknown` are of the second kind, also where the model has a label of that name. A share of no
    rows is NaN.
    """

    threshold: (
        float  # on the largest detection LLR; NaN where there is none: only the label `unknown` rejects, or nothing
    )
    false_reject: Figure
    false_accept: Figure
    known: int
    unknown: int
    by_label: dict[str, tuple[int, float]]  # label outside the model -> rows, share that was accepted
    eer: float = float("nan")  # of known rows against the others by the largest detection LLR, whatever the threshold


@dataclass(frozen=True)
class CurvePoint:
    """Rows of `segments` consecutive segments averaged: how long they are and how good the scores."""

    segments: int
    seconds: float  # mean length of a row, NaN where the store does not say
    rows: int
    accuracy: Figure
    cprimary: float
    min_cprimary: float


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` finds.

    table      : the scores it is of, rows whose label the model knows; with `priors` they are log-posteriors
    index      : (N,) column of the true label of each row
    figures    : by name, in the order to be shown: accuracy, balanced_accuracy, macro_f1, cavg_1, cavg_9 (threshold
                 log(beta)), min_cavg_1, min_cavg_9, cprimary (mean of the two cavg), min_cprimary (one threshold for
                 all labels), min_cprimary_by_label (a threshold a label), act_minus_min (cprimary - min_cprimary),
                 eer (mean over labels), cllr (bits a row, multiclass: see `metrics.cllr`; log2(C) says nothing), ece.
                 Detection figures are NaN where one label alone occurs
    classes    : labels that occur in the test set
    absent     : labels of the model without a test row; they have no miss rate and are left out of every mean
    strangers  : labels in the test set that the model does not know -> rows, which only `open_set` counts
    unlabelled : rows without a label, left out
    confusion  : (C, C) counts, row = true label, column = predicted, both in the order of table.labels
    detections : "all", then one a class; () where one label alone occurs
    groups     : the same of summed posteriors (`grouped`) where the model declares two groups or more
    priors     : (C,) of the labels, held by the table's scores and so by what is said, posteriors and ECE; () is alike
    rivals     : (C,) how likely the other labels are before in detection LLRs, and so in costs and EER; () is alike.
                 Groups are alike where no priors were asked for, so that none is favoured by its many labels
    lone       : labels with one recording, which intervals cannot see vary
    """

    table: ScoreTable
    index: NDArray[np.int64]
    figures: dict[str, Figure]
    classes: tuple[ClassFigures, ...]
    absent: tuple[str, ...]
    strangers: dict[str, int]
    unlabelled: int
    confusion: NDArray[np.int64]
    detections: tuple[Detection, ...]
    reliability: Reliability
    open_set: OpenSetFigures | None = None
    groups: Evaluation | None = None
    priors: tuple[float, ...] = ()
    rivals: tuple[float, ...] = ()
    lone: tuple[str, ...] = ()

    @cached_property
    def log_likelihood(self) -> Doubles:
        """(N, C) the table's scores with the priors taken out."""
        return self.table.log_likelihood - np.log(self.priors) if self.priors else self.table.log_likelihood

    @cached_property
    def llr(self) -> Doubles:
        """(N, C) detection log-likelihood ratios, the other labels as likely before as `rivals` says."""
        return metrics.detection_llr(self.log_likelihood, self.rivals or None)

    @cached_property
    def posteriors(self) -> Doubles:
        """(N, C) probabilities; of groups the sums over their labels."""
        return np.asarray(special.softmax(self.table.log_likelihood, axis=1))


def evaluate(
    table: ScoreTable, *, bootstrap: int = 1000, seed: int = 0, priors: Mapping[str, float] | None = None
) -> Evaluation:
    """Every figure of the rows of a table that have a label.

    priors : how likely each label is beforehand, as `metrics.prior_weights` takes them; None: all alike. They are in
             the posteriors, so in what a row is called and all that counts right answers, in the calibration error, and
             as weights of the other labels in detection LLRs, so in costs, EER and curves; thresholds stay log(beta).
             A group is as likely as its labels together. Cllr is of labels alike by definition, and so are the scores
             that the threshold of the open set is on, as it was chosen on such; a label `unknown` has its prior

    Rows whose label the model does not know count in the open set alone, which is there where such rows, a threshold or
    a label `unknown` are; figures of the closed set take the most likely label (of equals the first) whatever the
    threshold. Intervals: `bootstrap` draws of recordings, the same for the same rows and seed; 0 makes none.
    Raises KnnError for fewer than two labels in the model, no row of a label that it knows, scores that are not
    finite, or priors that are not positive or of other labels.
    """
    if bootstrap < 0:
        raise ValueError("draws are counted from 0")
    weights = _weights(table, priors)
    if not np.isfinite(table.log_likelihood).all():
        raise KnnError("The scores hold NaN or infinite values.", "Leave out the segments that have them.")
    truth = table.truth if len(table.truth) else np.full(len(table), "", dtype=np.str_)
    known, unlabelled = np.isin(truth, table.labels), truth == ""
    if not known.any():
        labels = ", ".join(table.labels[:5]) + (", ..." if len(table.labels) > 5 else "")
        raise KnnError("No row has a label that the model knows.", f"It knows {labels}.")
    names, counts = np.unique(truth[~known & ~unlabelled], return_counts=True)
    found = _closed(metrics.weighted(table.take(known), priors), weights, weights, bootstrap, seed)
    parts = None
    if table.groups:
        whole, shares = grouped(found.table, weights)
        if len(whole.labels) > 1:
            parts = _closed(whole, shares, shares if weights else (), bootstrap, seed)
    return replace(
        found,
        strangers=dict(zip(names.tolist(), counts.tolist(), strict=True)),
        unlabelled=int(unlabelled.sum()),
        open_set=_open(table.take(~unlabelled), priors, bootstrap, seed),
        groups=parts,
    )


def grouped(table: ScoreTable, priors: tuple[float, ...] = ()) -> tuple[ScoreTable, tuple[float, ...]]:
    """Scores of the groups of a table's labels: log of the *summed* posteriors of each group's labels.

    priors : (C,) that the table's scores hold, summing to 1; () is alike, so that a group of n of C labels has n / C

    The groups' priors, which their posteriors hold, come second: the sums of their labels'. A label without a group
    (`""`) is a group of its own name. Groups are in the order of their first labels; rows of labels outside the model
    keep their truth.
    """
    group = [one or label for one, label in zip(table.groups or table.labels, table.labels, strict=True)]
    names = tuple(dict.fromkeys(group))
    column = np.array([names.index(one) for one in group])
    logs = table.log_likelihood - special.logsumexp(table.log_likelihood, axis=1, keepdims=True)
    summed = np.stack([special.logsumexp(logs[:, column == one], axis=1) for one in range(len(names))], axis=1)
    of = dict(zip(table.labels, group, strict=True))
    truth = np.array([of.get(one, one) for one in table.truth.tolist()], dtype=np.str_)
    shares = np.bincount(column, weights=priors) if priors else np.bincount(column) / len(column)
    made = replace(table, labels=names, log_likelihood=summed, truth=truth, threshold=None, groups=())
    return made, tuple(shares.tolist())


def accuracy(
    table: ScoreTable, *, bootstrap: int = 1000, seed: int = 0, priors: Mapping[str, float] | None = None
) -> Figure:
    """The share of rows whose label is right of those whose label the model knows, with its interval."""
    some = table.take(np.isin(table.truth, table.labels)) if len(table.truth) else table.take(slice(0))
    some = metrics.weighted(some, priors)
    right = np.asarray(table.labels)[some.log_likelihood.argmax(axis=1)] == some.truth
    return _share(right, some.name, some.truth, bootstrap, seed)


def _weights(table: ScoreTable, priors: Mapping[str, float] | None) -> tuple[float, ...]:
    """(C,) priors that sum to 1, () for none."""
    return () if priors is None else tuple(metrics.prior_weights(priors, table.labels).tolist())


def _closed(
    table: ScoreTable, priors: tuple[float, ...], rivals: tuple[float, ...], bootstrap: int, seed: int
) -> Evaluation:
    """Everything but the open set, of rows whose labels are all known; the scores hold the priors."""
    column = {label: number for number, label in enumerate(table.labels)}
    index = np.array([column[label] for label in table.truth.tolist()], dtype=np.int64)
    log_likelihood = table.log_likelihood - np.log(priors) if priors else table.log_likelihood
    rows = ClosedSet(table.log_likelihood, log_likelihood, index, None, rivals or None)
    values = rows.figures(np.ones((len(rows.units), 1)))
    figures = {name: Figure(float(value[0])) for name, value in values.items()}
    units = Units.of(table.name, rows.own)
    if bootstrap and len(units) > rows.count:
        drawn = ClosedSet(table.log_likelihood, log_likelihood, index, table.name, rivals or None)
        blocks = [drawn.figures(weights) for weights in units.draws(bootstrap, seed)]
        ends = {name: interval(np.concatenate([block[name] for block in blocks])) for name in figures}
        figures = {name: Figure(figure.value, *ends[name]) for name, figure in figures.items()}
    confusion = metrics.confusion(rows.predicted, index, len(table.labels))
    labels = [table.labels[number] for number in rows.present]
    classes, detections = _by_label(rows, labels, confusion)
    return Evaluation(
        table=table,
        index=index,
        figures=figures,
        classes=classes,
        absent=tuple(label for label in table.labels if label not in labels),
        strangers={},
        unlabelled=0,
        confusion=confusion,
        detections=detections,
        reliability=_reliability(rows),
        priors=priors,
        rivals=rivals,
        lone=tuple(labels[number] for number in units.lone),
    )


def _by_label(
    rows: ClosedSet, labels: list[str], confusion: NDArray[np.int64]
) -> tuple[tuple[ClassFigures, ...], tuple[Detection, ...]]:
    classes, detections = [], []
    shares = (1 / np.bincount(rows.own))[:, None]  # (P, 1)
    nothing = (float("nan"),) * len(LRE_BETAS)
    actual = [rows.costs(beta) for beta in LRE_BETAS] if rows.count > 1 else []
    if rows.count > 1:
        miss, alarm = rows.sweep.rates(None, shares)
        trials = len(rows.own) * rows.count
        thresholds = rows.sweep.thresholds(None)
        detections.append(_detection("all", thresholds, miss, alarm, len(rows.own), trials - len(rows.own)))
    for number, label in enumerate(labels):
        column = rows.present[number]
        hits, support = int(confusion[column, column]), int(confusion[column].sum())
        claimed = int(confusion[:, column].sum())
        equal, cost, least = float("nan"), nothing, nothing
        if rows.count > 1:
            miss, alarm = rows.sweep.rates(number, shares)
            equal = float(equal_error(miss, alarm)[0])
            cost = tuple(float(each[number]) for each in actual)
            least = tuple(float(least_cost(miss, alarm, beta)[0]) for beta in LRE_BETAS)
            thresholds = rows.sweep.thresholds(number)
            detections.append(_detection(label, thresholds, miss, alarm, support, len(rows.own) - support))
        precision = hits / claimed if claimed else float("nan")
        f1 = 2 * hits / (claimed + support)
        classes.append(ClassFigures(label, support, precision, hits / support, f1, equal, cost, least))
    return tuple(classes), tuple(detections)


def _detection(
    name: str, thresholds: Doubles, miss: Doubles, alarm: Doubles, targets: int, nontargets: int
) -> Detection:
    """The curve without points that repeat the one before."""
    rates = np.concatenate([miss, alarm], axis=1)  # (T, 2)
    kept = np.append(True, (rates[1:] != rates[:-1]).any(axis=1))
    kept[-1] = True  # inf
    return Detection(name, thresholds[kept], miss[kept, 0], alarm[kept, 0], targets, nontargets)


def _reliability(rows: ClosedSet) -> Reliability:
    count = np.bincount(rows.bin, minlength=BINS)
    sums = [np.bincount(rows.bin, weights=values, minlength=BINS) for values in (rows.confidence, rows.right)]
    sure, often = (np.divide(each, count, out=np.full(BINS, np.nan), where=count > 0) for each in sums)
    ece = float(np.abs(sums[0] - sums[1]).sum() / len(rows.bin))
    return Reliability(np.linspace(0, 1, BINS + 1), count.astype(np.int64), sure, often, ece)


def _open(table: ScoreTable, priors: Mapping[str, float] | None, bootstrap: int, seed: int) -> OpenSetFigures | None:
    """Figures of the open set of rows that all have a label."""
    named = [label for label in table.labels if label != open_set.UNKNOWN]
    known = np.isin(table.truth, named)
    if known.all() and table.threshold is None and open_set.UNKNOWN not in table.labels:
        return None
    rejected = open_set.is_unknown(replace(metrics.weighted(table, priors), threshold=None))
    best = open_set.best_llr(table)
    if table.threshold is not None:
        rejected |= best < table.threshold
    outside = table.truth[~known]
    by_label = {
        str(label): (int((outside == label).sum()), float((~rejected[~known])[outside == label].mean()))
        for label in np.unique(outside)
    }
    false_reject, false_accept = (
        _share(what[rows], table.name[rows], table.truth[rows], bootstrap, seed)
        for what, rows in ((rejected, known), (~rejected, ~known))
    )
    equal = metrics.eer(best[known], best[~known]) if known.any() and not known.all() else float("nan")
    threshold = float("nan") if table.threshold is None else table.threshold
    return OpenSetFigures(threshold, false_reject, false_accept, int(known.sum()), len(outside), by_label, equal)


def _share(what: NDArray[np.bool_], name: Texts, truth: Texts, bootstrap: int, seed: int) -> Figure:
    """The share of rows of which something is true; NaN of none."""
    if not len(what):
        return Figure(float("nan"))
    labels, own = np.unique(truth, return_inverse=True)
    units = Units.of(name, own)
    ends = (float("nan"), float("nan"))
    if bootstrap and len(units) > len(labels):
        sums = units.sums(what)
        blocks = [sums @ weights / (units.size @ weights) for weights in units.draws(bootstrap, seed)]
        ends = interval(np.concatenate(blocks))
    return Figure(float(what.mean()), *ends)
