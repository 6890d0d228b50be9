"""How good diarization is: its error rate (NIST RT-09 evaluation plan)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pyannote.core import Annotation, Timeline
from scipy.optimize import linear_sum_assignment

from knn_cli.types import Doubles


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
    if collar < 0:
        raise ValueError("the collar cannot be negative")
    turns_ref, turns_hyp = _spans(reference), _spans(hypothesis)
    borders_ref = np.concatenate([np.zeros(0), *(spans.ravel() for spans in turns_ref)])
    collars = np.stack([borders_ref - collar, borders_ref + collar], axis=1)  # (2 turns, 2)
    scored = np.zeros((0, 2)) if uem is None else np.array([(s.start, s.end) for s in uem]).reshape(-1, 2)
    edges = np.unique(np.concatenate([np.zeros(0), *(x.ravel() for x in (*turns_ref, *turns_hyp, collars, scored))]))
    if len(edges) < 2:
        return DiarizationError(0.0, 0.0, 0.0, 0.0)
    # Between two neighbouring edges nothing changes, so the whole score is sums over these cells.
    seconds = np.diff(edges)  # (cells,)
    in_ref = np.stack([np.zeros(len(seconds), dtype=bool), *(_inside(s, edges) for s in turns_ref)])[1:]
    in_hyp = np.stack([np.zeros(len(seconds), dtype=bool), *(_inside(s, edges) for s in turns_hyp)])[1:]
    count_ref, count_hyp = in_ref.sum(axis=0), in_hyp.sum(axis=0)  # speakers talking in each cell
    if uem is not None:
        seconds = seconds * _inside(scored, edges)
    if collar > 0:
        seconds = seconds * ~_inside(collars, edges)
    if skip_overlap:
        seconds = seconds * (count_ref < 2)
    shared = (in_ref * seconds) @ in_hyp.T.astype(np.float64)  # (reference speakers, hypothesis speakers)
    correct = shared[linear_sum_assignment(shared, maximize=True)].sum()
    both = np.minimum(count_ref, count_hyp) @ seconds
    return DiarizationError(
        total=float(count_ref @ seconds),
        missed=float(np.maximum(count_ref - count_hyp, 0) @ seconds),
        false_alarm=float(np.maximum(count_hyp - count_ref, 0) @ seconds),
        confusion=max(0.0, float(both - correct)),
    )


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
