"""Rows of none of the labels that a model knows: a threshold on the largest detection log-likelihood ratio.

NIST 2007 and 2009 Language Recognition Evaluation Plans ("open-set": trials of languages that are no target). Here a
row is accepted when its best label's detection LLR reaches the threshold, and is `unknown` otherwise. A model may have
a label of that name besides, learnt from such languages; the best label is then the best of the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, ScoreTable
from knn_cli.evaluation.metrics import detection_llr

UNKNOWN = "unknown"  # the label of rows of no known label, learnt or not


@dataclass(frozen=True)
class OpenSet:
    """An operating point and what it does: on the rows that chose it (`choose`), or, in a bundle, on held-out rows and
    on strangers that did not choose theirs (`measuring.operating_point`); `chosen` says which.

    threshold    : a row whose largest detection LLR (natural logarithm) is below is `unknown`
    false_accept : share of rows of labels that the model does not know that reach it; NaN where there were none
    false_reject : share of rows of known labels that do not
    known        : rows of known labels
    unknown      : rows of other labels
    chosen       : how, and on what the rates are, in words
    """

    threshold: float
    false_accept: float
    false_reject: float
    known: int
    unknown: int
    chosen: str


def best_llr(table: ScoreTable) -> Doubles:
    """(N,) the largest detection LLR of each row over its labels, `unknown` aside; KnnError for fewer than two."""
    llr = detection_llr(table.log_likelihood)
    named = np.array([label != UNKNOWN for label in table.labels])
    return np.asarray(llr[:, named].max(axis=1))


def is_unknown(table: ScoreTable) -> NDArray[np.bool_]:
    """(N,) whether each row is called unknown: below table.threshold, or most likely of the label `unknown`."""
    called = np.zeros(len(table), dtype=bool)
    if UNKNOWN in table.labels:
        called |= table.log_likelihood.argmax(axis=1) == table.labels.index(UNKNOWN)
    if table.threshold is not None:
        called |= best_llr(table) < table.threshold
    return called


def check_share(false_reject: float | None) -> None:
    """KnnError for a share of rows to lose that `choose` would refuse."""
    if false_reject is not None and not 0 <= false_reject < 1:
        raise KnnError(f"A share of rows to lose lies in [0, 1), {false_reject:g} does not.", "Try 0.05.")


def choose(best_llr_known: ArrayLike, best_llr_unknown: ArrayLike, *, false_reject: float | None = None) -> OpenSet:
    """The threshold that suits rows which neither classifier nor calibration has seen.

    best_llr_known   : (K,) `best_llr` of rows of known labels, K > 0
    best_llr_unknown : (U,) of rows of labels that the model does not know; may be empty with `false_reject`
    false_reject     : share in [0, 1) of the known rows that may be lost: the highest threshold that loses no more.
                       None: where the larger of the two rates is least (equal error, as near as the rows allow)

    Thresholds lie half-way between neighbouring scores. Raises KnnError for no rows, scores that are not finite, or a
    share out of range.
    """
    known, unknown = (np.sort(np.asarray(one, dtype=np.float64)) for one in (best_llr_known, best_llr_unknown))
    if not (np.isfinite(known).all() and np.isfinite(unknown).all()):
        raise KnnError("The detection scores hold NaN or infinite values.", "Leave out the rows that have them.")
    if not len(known) or (not len(unknown) and false_reject is None):
        which = "unknown" if len(known) else "known"
        raise KnnError(
            f"There are no rows of {which} labels to choose a threshold on.",
            "Give rows of labels that the model does not know, or the share of known rows that may be lost."
            if len(known)
            else "Give rows of labels that the model knows.",
        )
    check_share(false_reject)
    scores = np.unique(np.concatenate([known, unknown]))
    rejected = np.searchsorted(known, scores) / len(known)  # with each score the lowest that is accepted
    accepted = 1 - np.searchsorted(unknown, scores) / max(1, len(unknown))
    if false_reject is None:
        at, chosen = int(np.argmin(np.maximum(rejected, accepted))), "equal error"
    else:
        # One row in twenty of twenty is 0.05 whatever the last bit says.
        at = int(np.flatnonzero(rejected <= false_reject + 1e-12)[-1])
        chosen = f"false reject at most {false_reject:.4g}"
    threshold = float(scores[at])
    if at and (middle := (float(scores[at - 1]) + threshold) / 2) > scores[at - 1]:
        threshold = middle
    return OpenSet(
        threshold=threshold,
        false_accept=float(accepted[at]) if len(unknown) else float("nan"),
        false_reject=float(rejected[at]),
        known=len(known),
        unknown=len(unknown),
        chosen=chosen,
    )
