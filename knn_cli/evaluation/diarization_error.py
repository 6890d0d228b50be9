"""How good diarization is: its error rate (NIST RT-09 evaluation plan), and the Jaccard error rate (Ryant et al.,
"Second DIHARD Challenge Evaluation Plan", version 1.1, 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pyannote.core import Annotation, Timeline
from scipy.optimize import linear_sum_assignment

from knn_cli.core.values import Doubles

COLLAR = 0.25  # seconds each side, of the forgiving convention


@dataclass(frozen=True)
class DiarizationError:
    """Seconds of speaker time: `total` in the reference, and the three ways to lose it. `a + b` pools files."""

    total: float
    missed: float
    false_alarm: float
    confusion: float

    @property
    def rate(self) -> float:
        """(missed + false alarm + confusion) / total; without reference speech 0 if nothing was claimed, else 1."""
        errors = self.missed + self.false_alarm + self.confusion
        if self.total > 0:
            return errors / self.total
        return 1.0 if errors > 0 else 0.0

    def __add__(self, other: DiarizationError) -> DiarizationError:
        return DiarizationError(
            self.total + other.total,
            self.missed + other.missed,
            self.false_alarm + other.false_alarm,
            self.confusion + other.confusion,
        )

    def __radd__(self, other: int) -> DiarizationError:
        """Lets `sum(errors)` begin with its 0."""
        return self if other == 0 else NotImplemented


def diarization_error(
    reference: Annotation,
    hypothesis: Annotation,
    *,
    collar: float = 0.0,
    skip_overlap: bool = False,
    uem: Timeline | None = None,
) -> DiarizationError:
    """Diarization error under the one-to-one speaker mapping that shares most time, exact to rounding.

    collar       : seconds on *each side* of every reference turn's start and end that are not scored, as in md-eval
                   (pyannote.metrics' `collar` is both sides together: twice this)
    skip_overlap : leave out where two or more reference speakers talk
    uem          : what is scored; None is all of both, as dscore does

    Turns of one speaker that overlap count once. The mapping is chosen on what is scored.
    """
    seconds, in_ref, in_hyp = _cells(reference, hypothesis, collar, skip_overlap, uem)
    count_ref, count_hyp = in_ref.sum(axis=0), in_hyp.sum(axis=0)  # speakers talking in each cell
    shared = (in_ref * seconds) @ in_hyp.T.astype(np.float64)  # (reference speakers, hypothesis speakers)
    correct = shared[linear_sum_assignment(shared, maximize=True)].sum()
    both = np.minimum(count_ref, count_hyp) @ seconds
    return DiarizationError(
        total=float(count_ref @ seconds),
        missed=float(np.maximum(count_ref - count_hyp, 0) @ seconds),
        false_alarm=float(np.maximum(count_hyp - count_ref, 0) @ seconds),
        confusion=max(0.0, float(both - correct)),
    )


def jaccard_errors(reference: Annotation, hypothesis: Annotation, *, uem: Timeline | None = None) -> Doubles:
    """(speakers,) for each reference speaker who talks in what is scored, 1 - intersection / union with the turns of
    the speaker that the hypothesis has for them, 1 where it has none; collar 0, overlap scored.

    The one-to-one mapping is the one with the least sum. The mean over speakers is the Jaccard error rate, in which all
    speakers weigh alike however little they say.
    """
    seconds, in_ref, in_hyp = _cells(reference, hypothesis, 0.0, False, uem)
    in_ref = in_ref[(in_ref @ seconds) > 0]
    shared = (in_ref * seconds) @ in_hyp.T.astype(np.float64)  # (reference speakers, hypothesis speakers)
    union = (in_ref @ seconds)[:, None] + (in_hyp @ seconds)[None] - shared
    alike = shared / union
    errors = np.ones(len(in_ref))
    pairs = linear_sum_assignment(alike, maximize=True)
    errors[pairs[0]] -= alike[pairs]
    return errors


@dataclass(frozen=True)
class DiarizationScore:
    """One file's scores, or those of several: `a + b` pools.

    error     : collar 0, overlap scored
    forgiving : COLLAR seconds each side not scored, nor overlap
    jaccard   : (reference speakers,) `jaccard_errors`
    speakers, found : how many talk in the reference, and in the hypothesis
    miscounted : how far the number of speakers is off, summed over files
    """

    error: DiarizationError
    forgiving: DiarizationError
    jaccard: Doubles
    speakers: int
    found: int
    miscounted: int

    @property
    def jer(self) -> float:
        """Mean Jaccard error over speakers; without any 0."""
        return float(self.jaccard.mean()) if len(self.jaccard) else 0.0

    def __add__(self, other: DiarizationScore) -> DiarizationScore:
        return DiarizationScore(
            self.error + other.error,
            self.forgiving + other.forgiving,
            np.concatenate([self.jaccard, other.jaccard]),
            self.speakers + other.speakers,
            self.found + other.found,
            self.miscounted + other.miscounted,
        )


def score(reference: Annotation, hypothesis: Annotation, *, uem: Timeline | None = None) -> DiarizationScore:
    """Every figure of one file; `uem` is what is scored, None all of both."""
    jaccard = jaccard_errors(reference, hypothesis, uem=uem)
    heard = hypothesis if uem is None else hypothesis.crop(uem)
    found = len(heard.labels())
    return DiarizationScore(
        diarization_error(reference, hypothesis, uem=uem),
        diarization_error(reference, hypothesis, uem=uem, collar=COLLAR, skip_overlap=True),
        jaccard,
        len(jaccard),
        found,
        abs(found - len(jaccard)),
    )


def _cells(
    reference: Annotation, hypothesis: Annotation, collar: float, skip_overlap: bool, uem: Timeline | None
) -> tuple[Doubles, NDArray[np.bool_], NDArray[np.bool_]]:
    """Pieces of time in which nothing changes: (cells,) seconds scored, and who talks in each, (speakers, cells)."""
    if collar < 0:
        raise ValueError("the collar cannot be negative")
    turns_ref, turns_hyp = _spans(reference), _spans(hypothesis)
    borders_ref = np.concatenate([np.zeros(0), *(spans.ravel() for spans in turns_ref)])
    collars = np.stack([borders_ref - collar, borders_ref + collar], axis=1)  # (2 turns, 2)
    scored = np.zeros((0, 2)) if uem is None else np.array([(s.start, s.end) for s in uem]).reshape(-1, 2)
    edges = np.unique(np.concatenate([np.zeros(0), *(x.ravel() for x in (*turns_ref, *turns_hyp, collars, scored))]))
    seconds = np.diff(edges)  # (cells,)
    in_ref = np.stack([np.zeros(len(seconds), dtype=bool), *(_inside(s, edges) for s in turns_ref)])[1:]
    in_hyp = np.stack([np.zeros(len(seconds), dtype=bool), *(_inside(s, edges) for s in turns_hyp)])[1:]
    if uem is not None:
        seconds = seconds * _inside(scored, edges)
    if collar > 0:
        seconds = seconds * ~_inside(collars, edges)
    if skip_overlap:
        seconds = seconds * (in_ref.sum(axis=0) < 2)
    return seconds, in_ref, in_hyp


def _spans(annotation: Annotation) -> list[Doubles]:
    """One (turns, 2) array of start and end a speaker."""
    speakers: dict[object, list[tuple[float, float]]] = {}
    for segment, _, label in annotation.itertracks(yield_label=True):
        speakers.setdefault(label, []).append((segment.start, segment.end))
    return [np.array(spans, dtype=np.float64) for spans in speakers.values()]


def _inside(spans: Doubles, edges: Doubles) -> NDArray[np.bool_]:
    """For spans (n, 2) whose ends are all among `edges` (m,): which of the m - 1 cells lie in any of them."""
    change = np.zeros(len(edges), dtype=np.int64)
    np.add.at(change, np.searchsorted(edges, spans[:, 0]), 1)
    np.add.at(change, np.searchsorted(edges, spans[:, 1]), -1)
    return np.cumsum(change)[:-1] > 0
