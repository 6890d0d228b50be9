"""Diarization error rate and Jaccard error rate of a hypothesis against reference turns.

References
----------
NIST, "The 2009 (RT-09) Rich Transcription Meeting Recognition Evaluation Plan" (diarization error rate).
N. Ryant et al., "Second DIHARD Challenge Evaluation Plan", version 1.1, 2019 (Jaccard error rate).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray
from pyannote.core import Annotation, Timeline

from knn_cli.core.values import MIN_SECONDS, Doubles

COLLAR_SECONDS = 0.25  # each side of a reference boundary, as in NIST RT


@dataclass(frozen=True)
class DiarizationError:
    """Seconds of speaker time in the reference and of the three kinds of errors; `a + b` pools files.

    Attributes
    ----------
    total : float
        Speaker time of the reference.
    missed, false_alarm, confusion : float
    """

    total: float
    missed: float
    false_alarm: float
    confusion: float

    @property
    def rate(self) -> float:
        """(missed + false alarm + confusion) / total; without reference speech 0 for an empty hypothesis, else 1."""
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
        """Makes `sum(errors)` work, which starts from 0."""
        return self if other == 0 else NotImplemented


def diarization_error(
    reference: Annotation,
    hypothesis: Annotation,
    *,
    collar: float = 0.0,
    skip_overlap: bool = False,
    uem: Timeline | None = None,
) -> DiarizationError:
    """Diarization error under the one-to-one speaker mapping with the most shared time, exact to rounding.

    Overlapping turns of one speaker are one turn, within which no collar lies. The mapping is chosen on what is scored.

    Parameters
    ----------
    reference, hypothesis : pyannote.core.Annotation
    collar : float
        Seconds on *each side* of every reference turn's start and end that are not scored, as in md-eval
        (pyannote.metrics' `collar` is both sides together: twice this).
    skip_overlap : bool
        Leave out where two or more reference speakers talk.
    uem : pyannote.core.Timeline, optional
        What is scored; None scores all of both, as dscore does.

    Returns
    -------
    DiarizationError

    Examples
    --------
    >>> from knn_cli import diarization_error, read_rttm
    >>> reference = read_rttm("meeting.rttm")["meeting"]
    >>> diarization_error(reference, reference).rate
    0.0
    >>> error = diarization_error(reference, reference.rename_labels({"otto": "ruth"}))
    >>> error.missed, error.false_alarm, error.confusion > 0
    (0.0, 0.0, True)
    """
    seconds, in_ref, in_hyp = _cells(reference, hypothesis, collar, skip_overlap, uem)
    count_ref, count_hyp = in_ref.sum(axis=0), in_hyp.sum(axis=0)  # speakers talking in each cell
    shared = (in_ref * seconds) @ in_hyp.T.astype(np.float64)  # (reference speakers, hypothesis speakers)
    correct = shared[scipy.optimize.linear_sum_assignment(shared, maximize=True)].sum()
    both = np.minimum(count_ref, count_hyp) @ seconds
    return DiarizationError(
        total=float(count_ref @ seconds),
        missed=float(np.maximum(count_ref - count_hyp, 0) @ seconds),
        false_alarm=float(np.maximum(count_hyp - count_ref, 0) @ seconds),
        confusion=max(0.0, float(both - correct)),
    )


def frame_error(reference: NDArray[np.bool_], found: NDArray[np.bool_], seconds: float) -> DiarizationError:
    """Diarization error of frames (T, speakers) against frames (T, speakers), `seconds` each, under the best mapping.

    Examples
    --------
    >>> import numpy as np
    >>> from knn_cli.evaluation.diarization_error import frame_error
    >>> reference = np.array([[True, False], [True, True], [False, True]])
    >>> frame_error(reference, reference[:, ::-1], 1.0).rate
    0.0
    """
    shared = reference.T.astype(np.float64) @ found.astype(np.float64)
    correct = shared[scipy.optimize.linear_sum_assignment(shared, maximize=True)].sum()
    count_ref, count_hyp = reference.sum(axis=1), found.sum(axis=1)
    missed, false_alarm = np.maximum(count_ref - count_hyp, 0).sum(), np.maximum(count_hyp - count_ref, 0).sum()
    confusion = np.minimum(count_ref, count_hyp).sum() - correct
    return DiarizationError(*(float(each * seconds) for each in (count_ref.sum(), missed, false_alarm, confusion)))


def jaccard_errors(reference: Annotation, hypothesis: Annotation, *, uem: Timeline | None = None) -> Doubles:
    """Jaccard error of each reference speaker, with collar 0 and overlap scored.

    It is 1 - intersection / union of the speaker's turns with those of the matched speaker of the hypothesis, and 1 for
    a speaker without match. The one-to-one mapping is the one with the least sum. The mean over speakers is the Jaccard
    error rate, in which all speakers weigh alike however little they say.

    Parameters
    ----------
    reference, hypothesis : pyannote.core.Annotation
    uem : pyannote.core.Timeline, optional
        What is scored; None scores all of both.

    Returns
    -------
    (speakers,) float64
        Of the reference speakers who talk in what is scored.
    """
    seconds, in_ref, in_hyp = _cells(reference, hypothesis, 0.0, False, uem)
    in_ref = in_ref[(in_ref @ seconds) > 0]
    shared = (in_ref * seconds) @ in_hyp.T.astype(np.float64)  # (reference speakers, hypothesis speakers)
    union = (in_ref @ seconds)[:, None] + (in_hyp @ seconds)[None] - shared
    jaccard = shared / union
    errors = np.ones(len(in_ref))
    pairs = scipy.optimize.linear_sum_assignment(jaccard, maximize=True)
    errors[pairs[0]] -= jaccard[pairs]
    return errors


@dataclass(frozen=True)
class DiarizationScore:
    """The scores of one file, or of several: `a + b` pools.

    Attributes
    ----------
    error : DiarizationError
        With collar 0 and overlap scored.
    error_with_collar : DiarizationError
        With COLLAR_SECONDS each side not scored, nor overlap.
    jaccard : (reference speakers,) float64
        See `jaccard_errors`.
    reference_speakers, hypothesis_speakers : int
        How many talk in the reference and in the hypothesis.
    speaker_count_error : int
        How far the number of speakers is off, summed over files.
    """

    error: DiarizationError
    error_with_collar: DiarizationError
    jaccard: Doubles
    reference_speakers: int
    hypothesis_speakers: int
    speaker_count_error: int

    @property
    def jer(self) -> float:
        """Mean Jaccard error over speakers; where the reference has none, 1 if any are found, as in dscore, else 0."""
        return float(self.jaccard.mean()) if len(self.jaccard) else float(self.hypothesis_speakers > 0)

    def __add__(self, other: DiarizationScore) -> DiarizationScore:
        return DiarizationScore(
            self.error + other.error,
            self.error_with_collar + other.error_with_collar,
            np.concatenate([self.jaccard, other.jaccard]),
            self.reference_speakers + other.reference_speakers,
            self.hypothesis_speakers + other.hypothesis_speakers,
            self.speaker_count_error + other.speaker_count_error,
        )


def score_diarization(
    reference: Annotation, hypothesis: Annotation, *, uem: Timeline | None = None
) -> DiarizationScore:
    """Every score of one file; `uem` is what is scored, None all of both."""
    jaccard = jaccard_errors(reference, hypothesis, uem=uem)
    scored_hypothesis = hypothesis if uem is None else hypothesis.crop(uem)
    hypothesis_speakers = len(scored_hypothesis.labels())
    return DiarizationScore(
        diarization_error(reference, hypothesis, uem=uem),
        diarization_error(reference, hypothesis, uem=uem, collar=COLLAR_SECONDS, skip_overlap=True),
        jaccard,
        len(jaccard),
        hypothesis_speakers,
        abs(hypothesis_speakers - len(jaccard)),
    )


def _cells(
    reference: Annotation, hypothesis: Annotation, collar: float, skip_overlap: bool, uem: Timeline | None
) -> tuple[Doubles, NDArray[np.bool_], NDArray[np.bool_]]:
    """Cells of time in which no speaker changes: (cells,) scored seconds, and who talks in each, (speakers, cells)."""
    if collar < 0:
        raise ValueError("the collar cannot be negative")
    turns_ref, turns_hyp = _spans(reference), _spans(hypothesis)
    boundaries_ref = np.concatenate([np.zeros(0), *(spans.ravel() for spans in turns_ref)])
    collars = np.stack([boundaries_ref - collar, boundaries_ref + collar], axis=1)  # (2 turns, 2)
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
    """One (turns, 2) array of starts and ends per speaker, whose overlapping turns are one."""
    speakers: dict[object, list[tuple[float, float]]] = {}
    for segment, _, label in annotation.itertracks(yield_label=True):  # by start
        spans = speakers.setdefault(label, [])
        if spans and segment.start < spans[-1][1] - MIN_SECONDS:
            spans[-1] = spans[-1][0], max(spans[-1][1], segment.end)
        else:
            spans.append((segment.start, segment.end))
    return [np.array(spans, dtype=np.float64) for spans in speakers.values()]


def _inside(spans: Doubles, edges: Doubles) -> NDArray[np.bool_]:
    """(m - 1,) which cells between `edges` (m,) lie in any of the spans (n, 2), whose ends are all among the edges."""
    change = np.zeros(len(edges), dtype=np.int64)
    np.add.at(change, np.searchsorted(edges, spans[:, 0]), 1)
    np.add.at(change, np.searchsorted(edges, spans[:, 1]), -1)
    return np.cumsum(change)[:-1] > 0
