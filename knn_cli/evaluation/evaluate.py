"""Every metric of a language recognition evaluation, of scored rows whose labels are known.

Every label that occurs in the test set weighs alike in all metrics but accuracy, precision and calibration error. Each
metric is a function of the weights of the recordings: all 1 for its value, and the number of times that each recording
was drawn for its bootstrap interval.

References
----------
NIST 2022 Language Recognition Evaluation Plan, section 3 (Cavg, Cprimary).
N. Brummer and D. van Leeuwen, "On calibration of language recognition scores", Odyssey 2006 (detection log-likelihood
ratios, Cllr).
C. Guo et al., "On calibration of modern neural networks", ICML 2017 (reliability, expected calibration error).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, ScoreTable, Texts
from knn_cli.evaluation import metrics, open_set
from knn_cli.evaluation.bootstrap import BootstrapUnits, percentile_interval
from knn_cli.evaluation.closed_set import RELIABILITY_BINS, ClosedSetMetrics
from knn_cli.evaluation.detection_rates import equal_error_rate, min_cost
from knn_cli.evaluation.groups import sum_by_group
from knn_cli.evaluation.metrics import LRE_BETAS
from knn_cli.evaluation.results import ClassMetrics, DetCurve, Evaluation, MetricValue, OpenSetMetrics, Reliability


def evaluate(
    table: ScoreTable, *, bootstrap: int = 1000, seed: int = 0, priors: Mapping[str, float] | None = None
) -> Evaluation:
    """Every metric of the rows of a table that have a label.

    Parameters
    ----------
    table : ScoreTable
        Scores with the true labels. Rows whose label the model does not know count in the open set alone, which is
        evaluated if there are such rows, a threshold or a label `unknown`. Metrics of the closed set take the most
        likely label (the first of equals) whatever the threshold.
    bootstrap : int
        Bootstrap samples of recordings for the intervals; 0 computes no intervals.
    seed : int
        The same rows and seed give the same intervals.
    priors : mapping of str to float, optional
        How likely each label is beforehand, as in `metrics.prior_weights`; None: all alike. They enter the posteriors,
        so predictions and everything that counts right answers, the calibration error, and the weights of the competing
        labels in detection LLRs, so costs, EER and curves; thresholds stay log(beta). A group is as likely as its
        labels together. Cllr is defined for equal priors, and so are the scores to which the threshold of the open set
        applies, as it was chosen on such; a label `unknown` has its prior.

    Returns
    -------
    Evaluation

    Raises
    ------
    KnnError
        For fewer than two labels in the model, no row of a label that it knows, scores that are not finite, or priors
        that are not positive or of other labels.

    Examples
    --------
    >>> import numpy as np
    >>> from knn_cli import ScoreTable, evaluate
    >>> table = ScoreTable(
    ...     labels=("deu", "fra"),
    ...     log_likelihood=np.array([[0.0, -3.0], [0.0, -4.0], [-5.0, 0.0], [0.0, -1.0]]),
    ...     name=np.array(["a", "b", "c", "d"]),
    ...     start=np.zeros(4),
    ...     end=np.full(4, 3.0),
    ...     truth=np.array(["deu", "deu", "fra", "fra"]),
    ... )
    >>> result = evaluate(table, bootstrap=0)
    >>> result.metrics["accuracy"].value
    0.75
    """
    weights = () if priors is None else tuple(metrics.prior_weights(priors, table.labels).tolist())  # sum to 1
    truth, known = _checked_truth(table, bootstrap)
    result = _known_rows(table if known.all() else table.take(known), priors, weights, bootstrap, seed)
    unlabelled = truth == ""
    names, counts = np.unique(truth[~known & ~unlabelled], return_counts=True)
    return replace(
        result,
        out_of_set=dict(zip(names.tolist(), counts.tolist(), strict=True)),
        unlabelled=int(unlabelled.sum()),
        open_set=_open_set(table.take(~unlabelled), priors, bootstrap, seed),
        groups=_groups(result.table, weights, bootstrap, seed),
    )


def _known_rows(
    table: ScoreTable, priors: Mapping[str, float] | None, weights: tuple[float, ...], bootstrap: int, seed: int
) -> Evaluation:
    """The closed set of rows whose labels are all known; its table keeps the rivals, which mark a declared set."""
    answers = metrics.weighted(open_set.possible_answers(table), priors)
    result = _closed_set(answers, weights, weights, bootstrap, seed)
    return replace(result, table=replace(result.table, rivals=table.rivals))


def _checked_truth(table: ScoreTable, bootstrap: int) -> tuple[Texts, NDArray[np.bool_]]:
    """(N,) true labels, "" where unknown, and whether the model knows them."""
    if bootstrap < 0:
        raise ValueError("the number of bootstrap samples cannot be negative")
    if not np.isfinite(table.log_likelihood).all():
        raise KnnError("The scores hold NaN or infinite values.", "Leave out the segments that have them.")
    truth = table.truth if len(table.truth) else np.full(len(table), "", dtype=np.str_)
    known = np.isin(truth, table.labels)
    if not known.any():
        labels = ", ".join(table.labels[:5]) + (", ..." if len(table.labels) > 5 else "")
        raise KnnError("No row has a label that the model knows.", f"It knows {labels}.")
    return truth, known


def _groups(table: ScoreTable, weights: tuple[float, ...], bootstrap: int, seed: int) -> Evaluation | None:
    """The evaluation of groups of labels; None unless there are two or more."""
    if not table.groups:
        return None
    grouped, group_priors = sum_by_group(table, weights)
    if len(grouped.labels) < 2:
        return None
    return _closed_set(grouped, group_priors, group_priors if weights else (), bootstrap, seed)


def accuracy_with_interval(
    table: ScoreTable, *, bootstrap: int = 1000, seed: int = 0, priors: Mapping[str, float] | None = None
) -> MetricValue:
    """The share of right predictions among rows whose label the model knows; parameters as in `evaluate`."""
    known = table.take(np.isin(table.truth, table.labels)) if len(table.truth) else table.take(slice(0))
    known = metrics.weighted(open_set.possible_answers(known), priors)
    correct = np.asarray(table.labels)[known.log_likelihood.argmax(axis=1)] == known.truth
    return _share(correct, known.name, known.truth, bootstrap, seed)


def _closed_set(
    table: ScoreTable, priors: tuple[float, ...], detection_priors: tuple[float, ...], bootstrap: int, seed: int
) -> Evaluation:
    """Everything but the open set, of rows whose labels are all known; the scores include the priors."""
    column = {label: number for number, label in enumerate(table.labels)}
    index = np.array([column[label] for label in table.truth.tolist()], dtype=np.int64)
    log_likelihood = table.log_likelihood - np.log(priors) if priors else table.log_likelihood
    rows = ClosedSetMetrics(table.log_likelihood, log_likelihood, index, None, detection_priors or None)
    values = {name: MetricValue(float(value[0])) for name, value in rows.values(np.ones((len(rows.units), 1))).items()}
    units = BootstrapUnits.from_recordings(table.name, rows.target)
    if bootstrap and len(units) > rows.label_count:
        resampled = ClosedSetMetrics(table.log_likelihood, log_likelihood, index, table.name, detection_priors or None)
        blocks = [resampled.values(weights) for weights in units.resample(bootstrap, seed)]
        ends = {name: percentile_interval(np.concatenate([block[name] for block in blocks])) for name in values}
        values = {name: MetricValue(metric.value, *ends[name]) for name, metric in values.items()}
    confusion = metrics.confusion(rows.predicted, index, len(table.labels))
    labels = [table.labels[number] for number in rows.present]
    classes, det_curves = _by_label(rows, labels, confusion)
    return Evaluation(
        table=table,
        index=index,
        metrics=values,
        classes=classes,
        absent=tuple(label for label in table.labels if label not in labels),
        out_of_set={},
        unlabelled=0,
        confusion=confusion,
        det_curves=det_curves,
        reliability=_reliability(rows),
        priors=priors,
        detection_priors=detection_priors,
        single_recording=tuple(labels[number] for number in units.single_unit_labels),
    )


def _by_label(
    rows: ClosedSetMetrics, labels: list[str], confusion: NDArray[np.int64]
) -> tuple[tuple[ClassMetrics, ...], tuple[DetCurve, ...]]:
    """Metrics of each label that occurs, and the curves of all of them together and of each."""
    classes, curves = [], []
    row_shares = (1 / np.bincount(rows.target))[:, None]  # (P, 1)
    undefined = (float("nan"),) * len(LRE_BETAS)
    costs = [rows.detection_costs(beta) for beta in LRE_BETAS] if rows.label_count > 1 else []
    if rows.label_count > 1:
        miss, false_alarm = rows.error_rates.rates(None, row_shares)
        trials = len(rows.target) * rows.label_count
        thresholds = rows.error_rates.thresholds(None)
        nontargets = trials - len(rows.target)
        curves.append(_det_curve("all", thresholds, miss, false_alarm, len(rows.target), nontargets))
    for number, label in enumerate(labels):
        column = rows.present[number]
        hits, support = int(confusion[column, column]), int(confusion[column].sum())
        predicted = int(confusion[:, column].sum())
        eer, cdet, min_cdet = float("nan"), undefined, undefined
        if rows.label_count > 1:
            miss, false_alarm = rows.error_rates.rates(number, row_shares)
            eer = float(equal_error_rate(miss, false_alarm)[0])
            cdet = tuple(float(by_label[number]) for by_label in costs)
            min_cdet = tuple(float(min_cost(miss, false_alarm, beta)[0]) for beta in LRE_BETAS)
            thresholds = rows.error_rates.thresholds(number)
            nontargets = len(rows.target) - support
            curves.append(_det_curve(label, thresholds, miss, false_alarm, support, nontargets))
        precision = hits / predicted if predicted else float("nan")
        f1 = 2 * hits / (predicted + support)
        classes.append(ClassMetrics(label, support, precision, hits / support, f1, eer, cdet, min_cdet))
    return tuple(classes), tuple(curves)


def _det_curve(
    name: str, thresholds: Doubles, miss: Doubles, false_alarm: Doubles, targets: int, nontargets: int
) -> DetCurve:
    """The curve without points that repeat the one before."""
    rates = np.concatenate([miss, false_alarm], axis=1)  # (T, 2)
    kept = np.append(True, (rates[1:] != rates[:-1]).any(axis=1))
    kept[-1] = True  # inf
    return DetCurve(name, thresholds[kept], miss[kept, 0], false_alarm[kept, 0], targets, nontargets)


def _reliability(rows: ClosedSetMetrics) -> Reliability:
    """Mean confidence and accuracy by bin of confidence."""
    bins, bin_count = rows.reliability_bin, RELIABILITY_BINS
    count = np.bincount(bins, minlength=bin_count)
    sums = [np.bincount(bins, weights=values, minlength=bin_count) for values in (rows.confidence, rows.correct)]
    confidence, accuracy = (np.divide(s, count, out=np.full(bin_count, np.nan), where=count > 0) for s in sums)
    ece = float(np.abs(sums[0] - sums[1]).sum() / len(bins))
    return Reliability(np.linspace(0, 1, bin_count + 1), count.astype(np.int64), confidence, accuracy, ece)


def _open_set(
    table: ScoreTable, priors: Mapping[str, float] | None, bootstrap: int, seed: int
) -> OpenSetMetrics | None:
    """Metrics of the open set, of rows that all have a label; None where the set is closed."""
    named = [label for label in table.labels if label != open_set.UNKNOWN]
    known = np.isin(table.truth, named)
    if known.all() and table.threshold is None and open_set.UNKNOWN not in table.labels:
        return None
    answers = metrics.weighted(open_set.possible_answers(table), priors)
    rejected = open_set.is_unknown(replace(answers, threshold=None))
    best = open_set.best_llr(table)
    if table.threshold is not None:
        rejected |= best < table.threshold
    outside = table.truth[~known]
    by_label = {
        str(label): (int((outside == label).sum()), float((~rejected[~known])[outside == label].mean()))
        for label in np.unique(outside)
    }
    false_reject, false_accept = (
        _share(errors[rows], table.name[rows], table.truth[rows], bootstrap, seed)
        for errors, rows in ((rejected, known), (~rejected, ~known))
    )
    eer = metrics.eer(best[known], best[~known]) if known.any() and not known.all() else float("nan")
    threshold = float("nan") if table.threshold is None else table.threshold
    return OpenSetMetrics(threshold, false_reject, false_accept, int(known.sum()), len(outside), by_label, eer)


def _share(condition: NDArray[np.bool_], name: Texts, truth: Texts, bootstrap: int, seed: int) -> MetricValue:
    """The share of rows for which a condition holds; NaN of no rows."""
    if not len(condition):
        return MetricValue(float("nan"))
    labels, target = np.unique(truth, return_inverse=True)
    units = BootstrapUnits.from_recordings(name, target)
    ends = (float("nan"), float("nan"))
    if bootstrap and len(units) > len(labels):
        sums = units.sums(condition)
        blocks = [sums @ weights / (units.size @ weights) for weights in units.resample(bootstrap, seed)]
        ends = percentile_interval(np.concatenate(blocks))
    return MetricValue(float(condition.mean()), *ends)
