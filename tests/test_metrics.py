"""Metrics: answers by hand, published references, pyannote.metrics, and loops that follow the formulas."""

from __future__ import annotations

import math
import warnings
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.core import Annotation, Segment, Timeline

from knn_cli.errors import KnnError
from knn_cli.metrics import (
    DiarizationError,
    accuracy,
    balanced_accuracy,
    cavg,
    confusion,
    cprimary,
    detection_llr,
    diarization_error,
    eer,
    min_cavg,
    min_cprimary,
)
from knn_cli.report import read_rttm


def said(*turns: tuple[float, float, str]) -> Annotation:
    annotation = Annotation()
    for track, (start, end, label) in enumerate(turns):
        annotation[Segment(start, end), track] = label
    return annotation


# ---- diarization ----


def test_der_by_hand() -> None:
    reference = said((0, 10, "A"), (8, 14, "B"))  # 16 s, 8-10 both
    hypothesis = said((1, 9, "x"), (9, 16, "y"))
    got = diarization_error(reference, hypothesis)
    # missed: 0-1, and one of two in 8-10; false alarm: 14-16; A=x, B=y: in 8-10 the one heard is right.
    assert got == DiarizationError(16.0, 3.0, 2.0, 0.0)
    assert got.rate == 5 / 16
    # Not scored with the overlap gone: 8-10.
    assert diarization_error(reference, hypothesis, skip_overlap=True) == DiarizationError(12.0, 1.0, 2.0, 0.0)
    # Not scored half a second around 0, 8, 10 and 14.
    assert diarization_error(reference, hypothesis, collar=0.5) == DiarizationError(12.0, 1.5, 1.5, 0.0)
    inside = Timeline([Segment(9, 15), Segment(2, 3)])
    assert diarization_error(reference, hypothesis, uem=inside) == DiarizationError(7.0, 1.0, 1.0, 0.0)


def test_confusion_under_the_best_mapping() -> None:
    reference = said((0, 6, "A"), (6, 10, "B"))
    assert diarization_error(reference, said((0, 10, "x"))) == DiarizationError(10.0, 0.0, 0.0, 4.0)
    swapped = said((0, 3, "B"), (3, 6, "C"), (6, 10, "A"))
    assert diarization_error(reference, swapped) == DiarizationError(10.0, 0.0, 0.0, 3.0)


def test_der_of_nothing() -> None:
    nothing, something = Annotation(), said((0, 1, "A"))
    assert diarization_error(nothing, nothing).rate == 0.0
    assert diarization_error(something, nothing) == DiarizationError(1.0, 1.0, 0.0, 0.0)
    assert diarization_error(nothing, something).rate == 1.0
    assert diarization_error(something, something, uem=Timeline()).total == 0.0


def test_files_pool() -> None:
    one, two = DiarizationError(10, 1, 2, 3), DiarizationError(30, 0, 0, 2)
    assert one + two == sum([one, two]) == DiarizationError(40, 1, 2, 5)
    assert (one + two).rate == 0.2


def test_a_speaker_is_counted_once() -> None:
    twice = said((0, 5, "A"), (3, 8, "A"))
    assert diarization_error(twice, said((0, 8, "x"))) == DiarizationError(8.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("collar", "skip_overlap", "percent"),
    [(0.0, False, 26.39), (0.25, False, 24.01), (0.0, True, 23.36), (0.25, True, 21.53)],
)
def test_dscore(shared: Path, collar: float, skip_overlap: bool, percent: float) -> None:
    reference, system = (
        read_rttm(shared / "reference" / "dscore" / f"{name}.rttm")["FILE1"] for name in ("ref", "sys")
    )
    got = diarization_error(reference, system, collar=collar, skip_overlap=skip_overlap)
    assert 100 * got.rate == pytest.approx(percent, abs=0.01)
    assert pyannote_rate(reference, system, collar, skip_overlap) == pytest.approx(got.rate, abs=1e-9)


@pytest.mark.parametrize(("collar", "skip_overlap", "percent"), [(0.25, True, 7.06), (0.0, False, 26.28)])
def test_vbx(shared: Path, collar: float, skip_overlap: bool, percent: float) -> None:
    reference, system = (
        read_rttm(shared / "reference" / "vbx" / f"ES2005a.{name}.rttm")["ES2005a"] for name in ("ref", "vbx-output")
    )
    got = diarization_error(reference, system, collar=collar, skip_overlap=skip_overlap)
    assert 100 * got.rate == pytest.approx(percent, abs=0.01)


def pyannote_rate(
    reference: Annotation,
    hypothesis: Annotation,
    collar: float,
    skip_overlap: bool,
    uem: Timeline | None = None,
) -> float:
    from pyannote.metrics.diarization import DiarizationErrorRate

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it guesses the uem
        metric = DiarizationErrorRate(collar=2 * collar, skip_overlap=skip_overlap)
        return float(metric(reference, hypothesis, uem=uem))


def random_annotation(generator: np.random.Generator, speakers: int) -> Annotation:
    """Speakers overlap each other, not themselves (pyannote.metrics counts a speaker's own overlap twice)."""
    annotation = Annotation()
    for speaker in range(speakers):
        edges = np.sort(generator.choice(400, size=2 * generator.integers(1, 6), replace=False)) / 10
        for start, end in edges.reshape(-1, 2):
            annotation[Segment(start, end), speaker] = f"s{speaker}"
    return annotation


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 100_000),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.1, 0.25]),
    st.booleans(),
    st.booleans(),
)
def test_der_equals_pyannote(
    seed: int, talkers: int, found: int, collar: float, skip_overlap: bool, limited: bool
) -> None:
    generator = np.random.default_rng(seed)
    reference, hypothesis = random_annotation(generator, talkers), random_annotation(generator, found)
    uem = Timeline([Segment(3, 17), Segment(21.5, 33)]) if limited else None
    got = diarization_error(reference, hypothesis, collar=collar, skip_overlap=skip_overlap, uem=uem)
    expected = pyannote_rate(reference, hypothesis, collar, skip_overlap, uem)
    if got.total > 1e-6:
        assert got.rate == pytest.approx(expected, abs=1e-9)


def test_mapping_is_optimal() -> None:
    """Against every mapping, counted on 0.1 s cells."""
    generator = np.random.default_rng(7)
    for _ in range(8):
        reference, hypothesis = random_annotation(generator, 4), random_annotation(generator, 4)
        cells = [Segment(t / 10, (t + 1) / 10) for t in range(400)]
        grids = [
            np.array([[any(s.intersects(c) for s in a.label_timeline(n)) for c in cells] for n in a.labels()])
            for a in (reference, hypothesis)
        ]
        best = max(sum((grids[0][i] & grids[1][j]).sum() for i, j in enumerate(p)) for p in permutations(range(4)))
        both = np.minimum(grids[0].sum(axis=0), grids[1].sum(axis=0)).sum()
        assert diarization_error(reference, hypothesis).confusion == pytest.approx((both - best) / 10)


# ---- languages: three labels by hand ----

# Segments 0-1 are label 0, 2-3 label 1, 4 label 2.
TRUTH = [0, 0, 1, 1, 2]
LLR = np.array(
    [
        [3.0, -4.0, -4.0],
        [1.0, 0.5, -4.0],
        [-4.0, 3.0, -4.0],
        [3.0, -1.0, 0.0],
        [-4.0, 2.5, 1.0],
    ]
)


def test_cavg_by_hand() -> None:
    # Threshold 0 (beta 1): misses: label 1 half of its two. False alarms: for 0: half of 1's segments; for 1: half
    # of 0's and all of 2's; for 2: half of 1's (0.0 is accepted).
    # 1/3 [(0 + 1/2 (1/2 + 0)) + (1/2 + 1/2 (1/2 + 1)) + (0 + 1/2 (0 + 1/2))] = 1/3 [1/4 + 5/4 + 1/4]
    assert cavg(LLR, TRUTH, 1.0) == pytest.approx(7 / 12)
    # Threshold log 9 = 2.197 (beta 9): misses: 0 half, 1 half, 2 all. False alarms: 0 half of 1's; 1 all of 2's.
    # 1/3 [(1/2 + 9/2 * 1/2) + (1/2 + 9/2 * 1) + 1] = 1/3 [11/4 + 5 + 1]
    assert cavg(LLR, TRUTH, 9.0) == pytest.approx(35 / 12)
    assert cprimary(LLR, TRUTH) == pytest.approx((7 / 12 + 35 / 12) / 2)
    # Rejecting everything costs 1, whatever beta is; beta 9 does no better than that here: 3.0 ties with a false alarm.
    assert cavg(LLR, TRUTH, 9.0, threshold=99.0) == pytest.approx(1.0)
    assert min_cavg(LLR, TRUTH, 9.0) == pytest.approx(1.0)
    # beta 1, best between 0.5 and 1: misses half of 1; accepts half of 1's for 0 (1/4) and 2's for 1 (1/2).
    assert min_cavg(LLR, TRUTH, 1.0) == pytest.approx((1 / 4 + 1 / 2 + 1 / 2) / 3)
    assert min_cprimary(LLR, TRUTH) == pytest.approx((5 / 12 + 1) / 2)


def test_detection_llr_by_hand() -> None:
    likelihood = np.log(np.array([[6.0, 2.0, 1.0]]))
    np.testing.assert_allclose(detection_llr(likelihood), np.log([[6 / 1.5, 2 / 3.5, 1 / 4]]))
    weighted = detection_llr(likelihood, priors=[0.5, 0.25, 0.25])
    np.testing.assert_allclose(weighted, np.log([[6 / 1.5, 2 / (13 / 3), 1 / (14 / 3)]]))
    np.testing.assert_allclose(detection_llr(likelihood - 5000), np.log([[6 / 1.5, 2 / 3.5, 1 / 4]]))
    with pytest.raises(KnnError):
        detection_llr(np.zeros((2, 1)))
    with pytest.raises(ValueError):
        detection_llr(likelihood, priors=[1.0, 0.0, 1.0])


def test_counts_by_hand() -> None:
    predicted, truth = [0, 1, 1, 1, 0], [0, 0, 1, 1, 3]
    assert accuracy(predicted, truth) == 0.6
    assert balanced_accuracy(predicted, truth) == 0.5  # (1/2 + 1 + 0) / 3
    assert confusion(predicted, truth, 4).tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]
    with pytest.raises(KnnError):
        accuracy([], [])


def plain_cavg(llr: np.ndarray, truth: np.ndarray, beta: float, threshold: float) -> float:
    """NIST LRE 2022 section 3.1, word by word."""
    labels = sorted(set(truth.tolist()))
    total = 0.0
    for target in labels:
        own = [row[target] for row, t in zip(llr, truth, strict=True) if t == target]
        miss = sum(score < threshold for score in own) / len(own)
        alarms = 0.0
        for other in labels:
            if other != target:
                theirs = [row[target] for row, t in zip(llr, truth, strict=True) if t == other]
                alarms += sum(score >= threshold for score in theirs) / len(theirs)
        total += miss + beta / (len(labels) - 1) * alarms
    return total / len(labels)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 100_000), st.integers(2, 5), st.sampled_from([0.5, 1.0, 9.0]), st.booleans())
def test_cavg_equals_loops(seed: int, labels: int, beta: float, ties: bool) -> None:
    generator = np.random.default_rng(seed)
    truth = np.concatenate([[0, labels - 1], generator.integers(0, labels, 20)])
    llr = generator.normal(size=(len(truth), labels)) * 3
    if ties:
        llr = np.round(llr)
    assert cavg(llr, truth, beta) == pytest.approx(plain_cavg(llr, truth, beta, math.log(beta)))
    least = min(plain_cavg(llr, truth, beta, t) for t in [*np.unique(llr), np.inf])
    assert min_cavg(llr, truth, beta) == pytest.approx(least)
    assert min_cavg(llr, truth, beta) <= cavg(llr, truth, beta) + 1e-12


def test_labels_without_test_segments_are_left_out() -> None:
    wider = np.insert(LLR, 1, 50.0, axis=1)  # a label that accepts everything, never true
    moved = [0, 0, 2, 2, 3]
    assert cavg(wider, moved, 1.0) == cavg(LLR, TRUTH, 1.0)
    assert min_cavg(wider, moved, 9.0) == min_cavg(LLR, TRUTH, 9.0)
    with pytest.raises(KnnError):
        cavg(LLR, [1, 1, 1, 1, 1], 1.0)


def test_eer_by_hand() -> None:
    assert eer([2.0, 3.0], [0.0, 1.0]) == 0.0
    assert eer([0.0, 1.0], [2.0, 3.0]) == 1.0
    assert eer([1.0], [1.0]) == 0.5  # all equal: the line from (0, 1) to (1, 0)
    assert eer([1.0, 3.0, 4.0, 5.0], [0.0, 1.5, 2.0, -1.0]) == 0.25
    # Between (P_fa, P_miss) = (1/2, 1/3) and (0, 2/3) on the line: 1/2 - s/2 = 1/3 + s/3, s = 1/5.
    assert eer([1.0, 2.0, 4.0], [0.0, 2.0]) == pytest.approx(0.4)
    with pytest.raises(KnnError):
        eer([], [1.0])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-3, 5), min_size=1, max_size=15),
    st.lists(st.integers(-5, 3), min_size=1, max_size=15),
)
def test_eer_equals_bisection_on_the_roc(targets: list[int], nontargets: list[int]) -> None:
    from sklearn.metrics import roc_curve

    truth = [1] * len(targets) + [0] * len(nontargets)
    alarm, hit, _ = roc_curve(truth, targets + nontargets, drop_intermediate=False)
    low, high = 0.0, float(len(alarm) - 1)  # walk along the curve
    position = np.arange(len(alarm))
    for _ in range(60):
        middle = (low + high) / 2
        if 1 - np.interp(middle, position, hit) > np.interp(middle, position, alarm):
            low = middle
        else:
            high = middle
    expected = np.interp(low, position, alarm)
    assert eer(np.array(targets, float), np.array(nontargets, float)) == pytest.approx(expected, abs=1e-9)
