"""Diarization error: answers by hand, published references, pyannote.metrics."""

from __future__ import annotations

import warnings
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.core import Annotation, Segment, Timeline

from knn_cli.evaluation.diarization_error import DiarizationError, diarization_error, jaccard_errors, score_diarization
from knn_cli.formats.rttm import read_rttm

TURNS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(1, 5), st.sampled_from("abc")), min_size=1, max_size=5
)  # whole seconds: start, length, speaker


def annotated(*turns: tuple[float, float, str]) -> Annotation:
    annotation = Annotation()
    for track, (start, end, label) in enumerate(turns):
        annotation[Segment(start, end), track] = label
    return annotation


def test_der_by_hand() -> None:
    reference = annotated((0, 10, "A"), (8, 14, "B"))  # 16 s, 8-10 both
    hypothesis = annotated((1, 9, "x"), (9, 16, "y"))
    got = diarization_error(reference, hypothesis)
    # missed: 0-1, and one of two in 8-10; false alarm: 14-16; A=x, B=y: in 8-10 the one hypothesised is right.
    assert got == DiarizationError(16.0, 3.0, 2.0, 0.0)
    assert got.rate == 5 / 16
    # Not scored with the overlap gone: 8-10.
    assert diarization_error(reference, hypothesis, skip_overlap=True) == DiarizationError(12.0, 1.0, 2.0, 0.0)
    # Not scored half a second around 0, 8, 10 and 14.
    assert diarization_error(reference, hypothesis, collar=0.5) == DiarizationError(12.0, 1.5, 1.5, 0.0)
    inside = Timeline([Segment(9, 15), Segment(2, 3)])
    assert diarization_error(reference, hypothesis, uem=inside) == DiarizationError(7.0, 1.0, 1.0, 0.0)


def test_confusion_under_the_best_mapping() -> None:
    reference = annotated((0, 6, "A"), (6, 10, "B"))
    assert diarization_error(reference, annotated((0, 10, "x"))) == DiarizationError(10.0, 0.0, 0.0, 4.0)
    swapped = annotated((0, 3, "B"), (3, 6, "C"), (6, 10, "A"))
    assert diarization_error(reference, swapped) == DiarizationError(10.0, 0.0, 0.0, 3.0)


def test_der_of_nothing() -> None:
    nothing, something = Annotation(), annotated((0, 1, "A"))
    assert diarization_error(nothing, nothing).rate == 0.0
    assert diarization_error(something, nothing) == DiarizationError(1.0, 1.0, 0.0, 0.0)
    assert diarization_error(nothing, something).rate == 1.0
    assert diarization_error(something, something, uem=Timeline()).total == 0.0


def test_files_pool() -> None:
    one, two = DiarizationError(10, 1, 2, 3), DiarizationError(30, 0, 0, 2)
    assert one + two == sum([one, two]) == DiarizationError(40, 1, 2, 5)
    assert (one + two).rate == 0.2


def test_a_speaker_is_counted_once() -> None:
    twice = annotated((0, 5, "A"), (3, 8, "A"))
    assert diarization_error(twice, annotated((0, 8, "x"))) == DiarizationError(8.0, 0.0, 0.0, 0.0)


def test_no_collar_lies_inside_a_turn() -> None:
    once, found = annotated((0.5, 3, "A")), annotated((0, 2.2, "x"), (2.2, 3.5, "y"))
    for turns in [((0.5, 3), (1.2, 2)), ((0.5, 2), (1.2, 3)), ((0.5, 3), (0.5, 1), (0.6, 1.1), (1, 3))]:
        same = annotated(*((start, end, "A") for start, end in turns))
        assert diarization_error(same, found, collar=0.25) == diarization_error(once, found, collar=0.25)
    # Turns that only touch stay two, as in dscore and md-eval, with a collar between them.
    parted = annotated((0.5, 2, "A"), (2, 3, "A"))
    assert diarization_error(parted, found, collar=0.25).total == pytest.approx(1.5)


def test_a_reference_without_speech_as_in_dscore() -> None:
    silent, found = Annotation(), annotated((0, 1.5, "x"), (1, 2, "y"))
    score = score_diarization(silent, found)
    assert (score.error.rate, score.jer, score.error.false_alarm) == (1.0, 1.0, 2.5)
    assert score_diarization(silent, silent).jer == 0.0
    spoken = score_diarization(annotated((0, 5, "A")), annotated((0, 5, "x")))
    assert ((spoken + score).error.rate, (spoken + score).jer) == (
        0.5,
        0.0,
    )  # speakers are averaged, of whom it has none


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
    """Speakers overlap each other, not themselves (pyannote.metrics counts overlapping turns of one speaker twice)."""
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
    seed: int, talkers: int, hypothesised: int, collar: float, skip_overlap: bool, limited: bool
) -> None:
    generator = np.random.default_rng(seed)
    reference, hypothesis = random_annotation(generator, talkers), random_annotation(generator, hypothesised)
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


def test_jaccard_by_hand() -> None:
    reference = annotated((0, 10, "A"), (10, 14, "B"), (20, 21, "C"))
    hypothesis = annotated((0, 8, "x"), (8, 14, "y"))
    # A = x: 8 of 10 s; B = y: 4 of 6 s; no match for C
    assert jaccard_errors(reference, hypothesis) == pytest.approx([0.2, 1 / 3, 1.0])
    got = score_diarization(reference, hypothesis)
    assert (got.reference_speakers, got.hypothesis_speakers, got.speaker_count_error) == (
        3,
        2,
        1,
    ) and got.jer == pytest.approx((0.2 + 1 / 3 + 1) / 3)
    both = got + score_diarization(annotated((0, 4, "A")), annotated((0, 4, "x"), (4, 5, "y")))
    assert (both.reference_speakers, both.hypothesis_speakers, both.speaker_count_error) == (
        4,
        4,
        2,
    )  # one too few and one too many are two wrong
    assert both.jer == pytest.approx((0.2 + 1 / 3 + 1 + 0) / 4)
    inside = Timeline([Segment(0, 9)])
    assert score_diarization(reference, hypothesis, uem=inside).jaccard == pytest.approx([1 / 9])
    assert score_diarization(Annotation(), hypothesis).jer == 1


@settings(deadline=None, max_examples=60)
@given(TURNS, TURNS)
def test_jaccard_is_the_minimum_over_all_mappings(
    reference: list[tuple[int, int, str]], hypothesis: list[tuple[int, int, str]]
) -> None:
    """Against every mapping, on whole seconds."""
    seconds_ref, seconds_hyp = ({} for _ in range(2))  # type: dict[str, set[int]], dict[str, set[int]]
    for turns, table in ((reference, seconds_ref), (hypothesis, seconds_hyp)):
        for start, length, label in turns:
            table.setdefault(label, set()).update(range(start, start + length))
    minimum = float(len(seconds_ref))
    padded = [*seconds_hyp.values(), *(set[int]() for _ in seconds_ref)]
    for chosen in permutations(padded, len(seconds_ref)):
        minimum = min(
            minimum, sum(1 - len(a & b) / len(a | b) for a, b in zip(seconds_ref.values(), chosen, strict=True))
        )
    got = jaccard_errors(
        annotated(*((a, a + n, x) for a, n, x in reference)), annotated(*((a, a + n, x) for a, n, x in hypothesis))
    )
    assert got.sum() == pytest.approx(minimum)
