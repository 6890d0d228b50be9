"""Every metric: three labels by hand, and plain loops over random tables with ties and absent labels."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from knn_cli.core.errors import KnnError
from knn_cli.core.values import ScoreTable
from knn_cli.evaluation import metrics
from knn_cli.evaluation.closed_set import RELIABILITY_BINS, ClosedSetMetrics
from knn_cli.evaluation.evaluate import accuracy_with_interval, evaluate
from knn_cli.evaluation.groups import sum_by_group
from knn_cli.evaluation.results import Evaluation

NAN = float("nan")


def table(
    scores: Any,
    truth: list[str],
    labels: str = "abc",
    *,
    name: list[str] | None = None,
    threshold: float | None = None,
    groups: tuple[str, ...] = (),
    unknown: bool = False,
) -> ScoreTable:
    rows = len(truth)
    names = np.array([f"r{row}" for row in range(rows)] if name is None else name, dtype=np.str_)
    known = (*labels, "unknown") if unknown else tuple(labels)
    times = np.zeros(rows), np.ones(rows)
    return ScoreTable(
        known, np.asarray(scores, dtype=float), names, *times, np.array(truth, dtype=np.str_), threshold, groups
    )


# ---- by hand ----

# Likelihoods of four rows; in eighths they are the posteriors.
HAND = np.log([[6, 1, 1], [2, 4, 2], [1, 6, 1], [2, 2, 4]])
TRUTH = ["a", "a", "b", "c"]


def test_three_labels_by_hand() -> None:
    """Predicted: a, b, b, c. One against the mean of the two others: 6, 1/2 and 2 (4 / 2), 2/3 (2 / 3)."""
    result = evaluate(table(HAND, TRUTH), bootstrap=0)
    assert result.confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    a, b, c = result.classes
    assert [(one.label, one.support) for one in (a, b, c)] == [("a", 2), ("b", 1), ("c", 1)]
    assert (a.precision, a.recall, a.f1) == (1.0, 0.5, pytest.approx(2 / 3))
    assert (b.precision, b.recall, b.f1) == (0.5, 1.0, pytest.approx(2 / 3))
    assert (c.precision, c.recall, c.f1) == (1.0, 1.0, 1.0)
    # Ratios of a: targets 6, 2/3; others 2/7 and 2/3. At 1 one of two targets is missed, nothing is accepted.
    assert a.cdet == (pytest.approx(1 / 2), pytest.approx(1.0)) and a.min_cdet == (0.5, 0.5)
    # The tie of 2/3 moves together: from (fa 0, miss 1/2) to (1/2, 0); equal at 1/4.
    assert a.eer == pytest.approx(1 / 4)
    # b: target 6, others 2/7, 2 (one of a's two) and 2/3. At 1 half of a's is accepted: P_fa 1/4; at 9 all is lost.
    assert b.cdet == (pytest.approx(1 / 4), pytest.approx(1.0)) and b.min_cdet == (0.0, 0.0) and b.eer == 0
    # c: target 2, others 2/7, 2/3, 2/7.
    assert c.cdet == (pytest.approx(0.0), pytest.approx(1.0)) and c.min_cdet == (0.0, 0.0) and c.eer == 0
    value = {name: figure.value for name, figure in result.metrics.items()}
    assert list(value) == [
        *("accuracy", "balanced_accuracy", "macro_f1", "cavg_1", "cavg_9", "min_cavg_1", "min_cavg_9"),
        *("cprimary", "min_cprimary", "min_cprimary_by_label", "act_minus_min", "eer", "cllr", "ece"),
    ]
    assert value["accuracy"] == 3 / 4 and value["balanced_accuracy"] == pytest.approx(5 / 6)
    assert value["macro_f1"] == pytest.approx(7 / 9) and value["eer"] == pytest.approx(1 / 12)
    assert value["cavg_1"] == pytest.approx((1 / 2 + 1 / 4) / 3) and value["cavg_9"] == pytest.approx(1.0)
    # One threshold for all: at 2, a misses one of two and b's false alarm costs beta / 4; at 6, a and c are missed too.
    assert value["min_cavg_1"] == pytest.approx((1 / 2 + 1 / 4) / 3)
    assert value["min_cavg_9"] == pytest.approx((1 / 2 + 1) / 3)
    assert value["cprimary"] == pytest.approx(5 / 8) and value["min_cprimary"] == pytest.approx(3 / 8)
    assert value["act_minus_min"] == pytest.approx(1 / 4)
    assert value["min_cprimary_by_label"] == pytest.approx(1 / 6)
    # -log2: a 3/4 and 1/4, b 3/4, c 1/2.
    assert value["cllr"] == pytest.approx((math.log2(4 / 3) + 2) / 6 + math.log2(4 / 3) / 3 + 1 / 3)
    # Bins of 1/15: 1/2 is in (7/15, 8/15], half right; 3/4 in (11/15, 12/15], both right.
    assert value["ece"] == pytest.approx(1 / 2 * abs(0.5 - 0.5) + 1 / 2 * abs(0.75 - 1))
    assert result.reliability.count[[7, 11]].tolist() == [2, 2] and result.reliability.count.sum() == 4
    assert result.reliability.accuracy[[7, 11]].tolist() == [0.5, 1.0] and np.isnan(result.reliability.accuracy[0])
    assert result.reliability.confidence[11] == pytest.approx(0.75) and result.reliability.ece == pytest.approx(0.125)
    assert (result.absent, result.out_of_set, result.unlabelled, result.open_set, result.groups) == (
        (),
        {},
        0,
        None,
        None,
    )
    assert all(math.isnan(figure.low) for figure in result.metrics.values())


def test_curves_by_hand() -> None:
    every, a, b, _ = evaluate(table(HAND, TRUTH), bootstrap=0).det_curves
    assert (every.name, every.targets, every.nontargets) == ("all", 4, 8)
    assert (a.name, a.targets, a.nontargets, b.targets) == ("a", 2, 2, 1)
    # Accept all, at 2/3 (both targets and one of two others), above it, above 6.
    assert np.exp(a.threshold[1:-1]) == pytest.approx([2 / 3, 2 / 3, 6])
    assert a.miss.tolist() == [0, 0, 0.5, 1, 1] and a.false_alarm.tolist() == [1, 0.5, 0, 0, 0]
    for curve in (every, a, b):
        assert (curve.threshold[0], curve.threshold[-1]) == (-np.inf, np.inf)
        assert (curve.miss[0], curve.miss[-1], curve.false_alarm[-1]) == (0, pytest.approx(1), 0)
        assert curve.false_alarm[0] == pytest.approx(1)
        assert (np.diff(curve.threshold) > 0).all()
        assert (np.diff(curve.miss) >= 0).all() and (np.diff(curve.false_alarm) <= 0).all()


def test_unscored_rows_and_labels_are_listed() -> None:
    scores = np.vstack([HAND, HAND[:3]])
    result = evaluate(table(np.insert(scores, 1, 0.5, axis=1), [*TRUTH, "", "x", "x"], "aqbc"), bootstrap=0)
    assert (result.absent, result.out_of_set, result.unlabelled) == (("q",), {"x": 2}, 1)
    assert len(result.table) == 4 and result.index.tolist() == [0, 0, 2, 3]
    assert [one.label for one in result.classes] == ["a", "b", "c"] and result.confusion.shape == (4, 4)
    assert [one.name for one in result.det_curves] == ["all", "a", "b", "c"]


def test_one_label_alone_has_no_detection() -> None:
    result = evaluate(table(HAND, ["a", "a", "a", "a"]), bootstrap=50)
    assert result.metrics["accuracy"].value == 0.25 and result.det_curves == ()
    assert math.isnan(result.metrics["cprimary"].value) and math.isnan(result.metrics["eer"].value)
    assert math.isnan(result.classes[0].eer) and all(map(math.isnan, result.classes[0].cdet))
    assert result.metrics["accuracy"].low < 0.25 < result.metrics["accuracy"].high


def test_mistakes_are_named() -> None:
    with pytest.raises(KnnError, match="No row has a label"):
        evaluate(table(HAND, ["x", "", "x", "y"]))
    with pytest.raises(KnnError, match="NaN"):
        evaluate(table(np.where(HAND > 1.7, np.nan, HAND), TRUTH))
    with pytest.raises(KnnError, match="two labels"):
        evaluate(table(HAND[:, :1], TRUTH, "a"))


# ---- against loops ----


def loops(scores: np.ndarray, truth: list[int], labels: int, priors: list[float] | None = None) -> dict[str, Any]:
    """Every figure, row by row and threshold by threshold."""
    rows, present = range(len(truth)), sorted(set(truth))
    flat = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    weight = priors or [1.0] * labels
    chances = np.array([[weight[c] * math.exp(scores[r, c]) for c in range(labels)] for r in rows])
    chances = chances / chances.sum(axis=1, keepdims=True)
    predicted = [max(range(labels), key=lambda c: (scores[r, c] + math.log(weight[c]), -c)) for r in rows]
    llr = np.empty(scores.shape)
    for r in rows:
        for c in range(labels):
            others = [j for j in range(labels) if j != c]
            mean_of_others = sum(weight[j] * math.exp(scores[r, j]) for j in others) / sum(weight[j] for j in others)
            llr[r, c] = math.log(math.exp(scores[r, c]) / mean_of_others)
    llr = np.round(llr, 9)  # so that ties of equal scores are ties here
    expected: dict[str, Any] = {"recall": [], "precision": [], "f1": [], "eer": [], "cdet": [], "min_cdet": []}

    @cache
    def miss(c: int, threshold: float) -> float:
        rows_of_c = [r for r in rows if truth[r] == c]
        return sum(llr[r, c] < threshold for r in rows_of_c) / len(rows_of_c)

    @cache
    def alarm(c: int, threshold: float) -> float:
        row_shares = []
        for other in present:
            if other != c:
                theirs = [r for r in rows if truth[r] == other]
                row_shares.append(sum(llr[r, c] >= threshold for r in theirs) / len(theirs))
        return sum(row_shares) / len(row_shares)

    thresholds = [*sorted(set(llr.ravel().tolist())), math.inf]
    for c in present:
        hits = sum(truth[r] == c == predicted[r] for r in rows)
        support, claimed = truth.count(c), predicted.count(c)
        expected["recall"].append(hits / support)
        expected["precision"].append(hits / claimed if claimed else NAN)
        expected["f1"].append(2 * hits / (support + claimed))
        expected["cdet"].append([miss(c, math.log(b) - 1e-9) + b * alarm(c, math.log(b) - 1e-9) for b in (1, 9)])
        expected["min_cdet"].append([min(miss(c, t) + b * alarm(c, t) for t in thresholds) for b in (1, 9)])
        points = [(alarm(c, t), miss(c, t)) for t in thresholds]
        for (x, y), (u, v) in pairwise(points):
            if v >= u:
                share = (x - y) / ((x - y) + (v - u))
                expected["eer"].append(y + share * (v - y))
                break
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    expected["cavg"] = [mean([one[k] for one in expected["cdet"]]) for k in (0, 1)]
    expected["min_cavg"] = [
        min(mean([miss(c, t) + b * alarm(c, t) for c in present]) for t in thresholds) for b in (1, 9)
    ]
    expected["cllr"] = mean([mean([-math.log2(flat[r, c]) for r in rows if truth[r] == c]) for c in present])
    ece = 0.0
    for k in range(RELIABILITY_BINS):
        inside = [r for r in rows if k / RELIABILITY_BINS < max(chances[r]) <= (k + 1) / RELIABILITY_BINS]
        ece += abs(sum(max(chances[r]) - (predicted[r] == truth[r]) for r in inside)) / len(truth)
    expected["ece"] = ece
    return expected


def draw(seed: int, labels: int, ties: bool) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    present = rng.permutation(labels)[: max(2, labels - int(rng.integers(0, 3)))]
    truth = [*present.tolist(), *rng.choice(present, int(rng.integers(0, 12))).tolist()]
    scores = rng.normal(size=(len(truth), labels)) * 2
    scores[np.arange(len(truth)), truth] += 1
    return (np.round(scores) if ties else scores), truth


def same(result: Evaluation, wanted: dict[str, Any]) -> None:
    for key in ("recall", "precision", "f1", "eer"):
        assert [getattr(one, key) for one in result.classes] == pytest.approx(wanted[key], nan_ok=True), key
    for key in ("cdet", "min_cdet"):
        assert np.array([getattr(one, key) for one in result.classes]) == pytest.approx(np.array(wanted[key])), key
    value = {name: figure.value for name, figure in result.metrics.items()}
    assert [value["cavg_1"], value["cavg_9"]] == pytest.approx(wanted["cavg"])
    assert [value["min_cavg_1"], value["min_cavg_9"]] == pytest.approx(wanted["min_cavg"])
    assert value["cprimary"] == pytest.approx(np.mean(wanted["cavg"]))
    assert value["min_cprimary"] == pytest.approx(np.mean(wanted["min_cavg"]))
    assert value["min_cprimary_by_label"] == pytest.approx(np.mean(wanted["min_cdet"]))
    assert value["act_minus_min"] == pytest.approx(value["cprimary"] - value["min_cprimary"])
    for name, key in (("balanced_accuracy", "recall"), ("macro_f1", "f1"), ("eer", "eer")):
        assert value[name] == pytest.approx(np.mean(wanted[key]))
    assert (value["cllr"], value["ece"]) == (pytest.approx(wanted["cllr"]), pytest.approx(wanted["ece"]))


@given(st.integers(0, 10**6), st.integers(2, 5), st.booleans())
@settings(max_examples=40, deadline=None)
def test_equals_loops(seed: int, labels: int, ties: bool) -> None:
    scores, truth = draw(seed, labels, ties)
    letters = "abcde"[:labels]
    result = evaluate(table(scores, [letters[one] for one in truth], letters), bootstrap=0)
    same(result, loops(scores, truth, labels))
    index = np.array(truth)
    assert result.metrics["cprimary"].value == pytest.approx(metrics.cprimary(result.llr, index))
    assert result.metrics["min_cprimary"].value == pytest.approx(metrics.min_cprimary(result.llr, index))
    assert result.metrics["cllr"].value == pytest.approx(metrics.cllr(scores, index))


@given(st.integers(0, 10**6), st.integers(2, 5), st.booleans())
@settings(max_examples=30, deadline=None)
def test_priors_equal_loops(seed: int, labels: int, ties: bool) -> None:
    """They are in predictions, posteriors and ECE, and weigh the other labels in detection scores."""
    scores, truth = draw(seed, labels, ties)
    letters = "abcde"[:labels]
    weight = np.random.default_rng(seed).uniform(0.1, 5, labels)
    weight[-1] = 1.0  # not named below
    priors = dict(zip(letters[:-1], weight[:-1].tolist(), strict=True))
    rows = table(scores, [letters[one] for one in truth], letters)
    result = evaluate(rows, bootstrap=0, priors=priors)
    wanted = loops(scores, truth, labels, weight.tolist())
    same(result, wanted)
    assert result.posteriors == pytest.approx(special.softmax(scores + np.log(weight), axis=1))
    assert result.log_likelihood == pytest.approx(scores)
    assert accuracy_with_interval(rows, bootstrap=0, priors=priors).value == result.metrics["accuracy"].value
    assert result.metrics["accuracy"].value == result.confusion.trace() / len(truth)


def test_priors_by_hand() -> None:
    """a four times as likely as b and c: 24, 1, 1; 8, 4, 2; 4, 6, 1; 8, 2, 4, so a, a, b, a are predicted."""
    result = evaluate(table(HAND, TRUTH), bootstrap=0, priors={"a": 4})
    assert result.confusion.tolist() == [[2, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert result.posteriors[1] == pytest.approx([8 / 14, 4 / 14, 2 / 14])
    # b against a and c: 4 / ((4 * 2 + 2) / 5) = 2 in row 1; a against b and c has weights that are alike.
    assert np.exp(result.llr[1]) == pytest.approx([2 / 3, 4 / 2, 2 / (12 / 5)])
    flat = evaluate(table(HAND, TRUTH), bootstrap=50, priors=dict.fromkeys("abc", 7.0))
    for name, figure in evaluate(table(HAND, TRUTH), bootstrap=50).metrics.items():
        assert (flat.metrics[name].value, flat.metrics[name].low) == pytest.approx((figure.value, figure.low)), name


def test_wrong_priors() -> None:
    for priors, words in (({"x": 1.0}, "'x' has a prior"), ({"a": 0.0}, "positive"), ({"a": NAN}, "positive")):
        with pytest.raises(KnnError, match=words):
            evaluate(table(HAND, TRUTH), priors=priors)


def test_the_open_set_and_cllr_take_equal_priors() -> None:
    rows = table(np.vstack([HAND, HAND[:2]]), [*TRUTH, "x", "x"], threshold=math.log(3))
    plain, weighted = evaluate(rows, bootstrap=9), evaluate(rows, bootstrap=9, priors={"a": 9})
    assert plain.open_set == weighted.open_set is not None
    assert plain.metrics["cllr"].value == pytest.approx(weighted.metrics["cllr"].value)
    assert plain.metrics["accuracy"] != weighted.metrics["accuracy"]


@given(st.integers(0, 10**6), st.integers(2, 4), st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_bootstrap_sample_is_the_table_with_its_recordings_repeated(seed: int, labels: int, ties: bool) -> None:
    """Whole recordings weighed 0, 1, 2 ... give what a table gives that holds them so often."""
    scores, truth = draw(seed, labels, ties)
    rng = np.random.default_rng(seed)
    scores, index = np.repeat(scores, 2, axis=0), np.repeat(truth, 2)
    scores = scores + (rng.integers(0, 3, scores.shape) if ties else rng.normal(size=scores.shape))
    name = np.array([f"r{row}" for row in rng.integers(0, 6, len(index))])
    rows = ClosedSetMetrics(scores, scores, index, name)
    (weights,) = rows.units.resample(3, seed)
    result = rows.values(weights)
    for column in range(3):
        times = weights[rows.units.row, column].astype(int)
        assert [times[index == one].sum() > 0 for one in set(index.tolist())] == [True] * len(set(truth))
        repeated, repeated_index = np.repeat(scores, times, axis=0), np.repeat(index, times)
        letters = "abcd"[:labels]
        wanted = evaluate(table(repeated, [letters[one] for one in repeated_index], letters), bootstrap=0)
        for key, values in result.items():
            assert values[column] == pytest.approx(wanted.metrics[key].value), key


# ---- intervals ----


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Recordings of four rows that are right or wrong together: rows alone would promise half the width."""
    rng = np.random.default_rng(0)
    inside, widths = 0, []
    for seed in range(60):
        right = np.repeat(rng.random(80) < 0.7, 4)
        truth = np.repeat(["a", "b"], 160)
        predicted = np.where(right, truth, np.where(truth == "a", "b", "a"))
        scores = np.stack([predicted == "a", predicted == "b"], axis=1) * 2.0
        names = [f"r{row // 4}" for row in range(320)]
        figure = accuracy_with_interval(table(scores, truth.tolist(), "ab", name=names), bootstrap=300, seed=seed)
        inside += figure.low <= 0.7 <= figure.high
        widths.append(figure.high - figure.low)
    assert inside >= 52  # 57 of 60 expected
    assert np.mean(widths) == pytest.approx(2 * 1.96 * math.sqrt(0.7 * 0.3 / 80), rel=0.08)


def test_intervals_are_seeded_and_list_labels_of_one_recording() -> None:
    rng = np.random.default_rng(2)
    truth = list("abc") * 20
    scores = rng.normal(size=(60, 3)) + 2 * np.eye(3)[[0, 1, 2] * 20]
    names = ["only" if label == "c" else f"r{row // 6}" for row, label in enumerate(truth)]
    rows = table(scores, truth, name=names)
    first, again, other = (evaluate(rows, bootstrap=200, seed=seed) for seed in (0, 0, 1))
    assert first.single_recording == ("c",)
    assert first.metrics == again.metrics != other.metrics
    assert first.metrics["accuracy"] == accuracy_with_interval(rows, bootstrap=200)
    shuffled = rng.permutation(60)
    same_rows = evaluate(rows.take(shuffled), bootstrap=200).metrics
    for name, figure in first.metrics.items():
        assert figure.low <= figure.high, name
        moved = same_rows[name]
        assert (moved.value, moved.low, moved.high) == pytest.approx((figure.value, figure.low, figure.high)), name
    lonely = evaluate(table(scores, truth, name=truth))
    assert lonely.single_recording == ("a", "b", "c") and math.isnan(lonely.metrics["accuracy"].low)


# ---- groups ----


def test_posteriors_are_summed_over_blocks_of_4_4_3_2() -> None:
    """Thirteen labels: the best label is in one group, the sum is largest in another, the mean in a third."""
    groups = ("north",) * 4 + ("south",) * 4 + ("east",) * 3 + ("west",) * 2
    chances = np.array([[1, 1, 1, 1, 5, 5, 5, 6, 17, 1, 1, 11, 8], [9, 9, 9, 9, 1, 1, 1, 1, 2, 2, 2, 8, 10]]) / 64
    chances = chances / chances.sum(axis=1, keepdims=True)
    rows = table(np.log(chances) + np.array([[3.0], [-800.0]]), ["i", "m"], "abcdefghijklm", groups=groups)
    grouped, priors = sum_by_group(rows)
    assert grouped.labels == ("north", "south", "east", "west") and grouped.truth.tolist() == ["east", "west"]
    whole = np.array([[4, 21, 19, 19], [36, 4, 6, 18]])
    assert np.exp(grouped.log_likelihood) == pytest.approx(whole / whole.sum(axis=1, keepdims=True))
    assert priors == pytest.approx((4 / 13, 4 / 13, 3 / 13, 2 / 13))
    result = evaluate(rows, bootstrap=0).groups
    assert result is not None
    assert result.confusion.tolist() == [[0] * 4, [0] * 4, [0, 1, 0, 0], [1, 0, 0, 0]]
    assert result.posteriors == pytest.approx(whole / whole.sum(axis=1, keepdims=True))
    # Groups alike before: 19 of 2 labels against 4 of 4, 21 of 4 and 19 of 3.
    assert result.llr[0, 3] == pytest.approx(math.log(19 / 2 / ((4 / 4 + 21 / 4 + 19 / 3) / 3)))
    assert result.metrics["cavg_1"].value == pytest.approx(metrics.cavg(result.llr, result.index, 1.0))
    assert result.absent == ("north", "south")


def test_labels_without_a_group_are_groups() -> None:
    rows = table(HAND, ["a", "b", "c", "x"], groups=("", "g", "g"))
    grouped, priors = sum_by_group(rows)
    assert grouped.labels == ("a", "g") and grouped.truth.tolist() == ["a", "g", "g", "x"]
    assert np.exp(grouped.log_likelihood[:2]) == pytest.approx(np.array([[6, 2], [2, 6]]) / 8)
    assert priors == pytest.approx((1 / 3, 2 / 3))
    assert evaluate(table(HAND, TRUTH, groups=("g", "g", "g")), bootstrap=0).groups is None


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=30, deadline=None)
def test_groups_equal_loops(seed: int, ties: bool) -> None:
    scores, truth = draw(seed, 5, ties)
    result = evaluate(table(scores, ["abcde"[one] for one in truth], "abcde", groups=tuple("zzyyz")), bootstrap=0)
    assert result.groups is not None
    if len({"zzyyz"[one] for one in truth}) == 2:
        mean = np.log(np.stack([np.exp(scores[:, [0, 1, 4]]).mean(axis=1), np.exp(scores[:, [2, 3]]).mean(axis=1)], 1))
        wanted = loops(mean, [0 if one in (0, 1, 4) else 1 for one in truth], 2)
        value = {name: figure.value for name, figure in result.groups.metrics.items()}
        assert [value["cavg_1"], value["cavg_9"]] == pytest.approx(wanted["cavg"])
        assert [value["min_cavg_1"], value["min_cavg_9"]] == pytest.approx(wanted["min_cavg"])
        assert (value["cllr"], value["eer"]) == (pytest.approx(wanted["cllr"]), pytest.approx(np.mean(wanted["eer"])))


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_groups_are_as_likely_as_their_labels(seed: int) -> None:
    scores, truth = draw(seed, 5, False)
    weight = np.random.default_rng(seed).uniform(0.1, 5, 5)
    weight = weight / weight.sum()
    rows = table(scores, ["abcde"[one] for one in truth], "abcde", groups=tuple("zzyyx"))
    result = evaluate(rows, bootstrap=0, priors=dict(zip("abcde", weight.tolist(), strict=True))).groups
    assert result is not None
    members = ([0, 1], [2, 3], [4])
    group_weights = [weight[columns].sum() for columns in members]
    mean = [
        np.log((np.exp(scores[:, columns]) * weight[columns]).sum(axis=1) / group_weight)
        for columns, group_weight in zip(members, group_weights, strict=True)
    ]
    group_index = [0 if one < 2 else 1 if one < 4 else 2 for one in truth]
    if len(set(group_index)) > 1:
        same(result, loops(np.stack(mean, axis=1), group_index, 3, group_weights))


# ---- open set ----


def test_open_set_by_hand() -> None:
    # Best detection ratios: 6, 2, 6, 2 of known rows; 6 and 2 of out-of-set x, 2 of y.
    scores = np.vstack([HAND, HAND[:2], HAND[3:]])
    rows = table(scores, [*TRUTH, "x", "x", "y"], threshold=math.log(3))
    result = evaluate(rows, bootstrap=0).open_set
    assert result is not None
    assert (result.known, result.unknown, result.threshold) == (4, 3, math.log(3))
    assert result.false_reject.value == 0.5 and result.false_accept.value == pytest.approx(1 / 3)
    assert result.by_label == {"x": (2, 0.5), "y": (1, 0.0)}
    # From (fa 1, miss 0), both at 2, to (1/3, 1/2): equal where 1 - 2/3 s = s / 2.
    assert result.eer == pytest.approx(3 / 7)
    none = evaluate(table(scores, [*TRUTH, "x", "x", "y"]), bootstrap=0).open_set
    assert none is not None and math.isnan(none.threshold)
    assert (none.false_accept.value, none.false_reject.value, none.eer) == (1.0, 0.0, result.eer)
    alone = evaluate(table(HAND, TRUTH, threshold=0.0), bootstrap=0).open_set
    assert alone is not None and math.isnan(alone.false_accept.value) and math.isnan(alone.eer)


def test_a_label_called_unknown() -> None:
    """It rejects the rows of which it is most likely, and out-of-set rows count as rows of that label."""
    scores = [[5, 0, 0, 1], [0, 5, 0, 6], [0, 0, 1, 9], [9, 0, 0, 1], [0, 1, 0, 2]]
    rows = table(scores, ["a", "b", "unknown", "x", "x"], unknown=True)
    result = evaluate(rows, bootstrap=0)
    assert result.open_set is not None
    assert (result.open_set.known, result.open_set.unknown) == (2, 3)
    assert result.open_set.false_reject.value == 0.5 and result.open_set.false_accept.value == pytest.approx(1 / 3)
    assert result.open_set.by_label == {"unknown": (1, 0.0), "x": (2, 0.5)}
    assert [one.label for one in result.classes] == ["a", "b", "unknown"] and result.out_of_set == {"x": 2}


def test_a_label_called_unknown_has_its_prior() -> None:
    scores = [[5, 0, 0, 1], [0, 5, 0, 6], [0, 0, 1, 9], [9, 0, 0, 1], [0, 1, 0, 2]]
    rows = table(scores, ["a", "b", "unknown", "x", "x"], unknown=True)
    result = evaluate(rows, bootstrap=0, priors={"unknown": 0.1}).open_set  # b by 5 to 6 - 2.3, the last x by 1 to 2
    assert result is not None
    assert result.false_reject.value == 0.0 and result.false_accept.value == pytest.approx(2 / 3)
    assert result.eer == evaluate(rows, bootstrap=0).open_set.eer  # type: ignore[union-attr]


def test_open_set_has_intervals() -> None:
    rng = np.random.default_rng(0)
    truth = ["a"] * 40 + ["b"] * 40 + ["x"] * 40
    scores = rng.normal(size=(120, 3))
    result = evaluate(table(scores, truth, threshold=0.5), bootstrap=200).open_set
    assert result is not None
    for figure in (result.false_accept, result.false_reject):
        assert 0 < figure.low < figure.value < figure.high < 1
