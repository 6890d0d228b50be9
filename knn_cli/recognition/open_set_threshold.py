"""The threshold of open-set recognition: chosen on held-out rows of known labels and on out-of-set rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from knn_cli.core.errors import KnnError


@dataclass(frozen=True)
class OpenSetThreshold:
    """An operating point and its error rates.

    The rates are of the rows that chose the threshold (`choose_threshold`) or, in a bundle, of held-out rows and
    out-of-set rows that did not choose it (`training_steps.held_out_scoring.operating_point`); `chosen` says which.

    Attributes
    ----------
    threshold : float
        A row whose largest detection LLR (natural logarithm) is below is `unknown`.
    false_accept : float
        Share of rows of labels that the model does not know that reach it; NaN if there were none.
    false_reject : float
        Share of rows of known labels that do not.
    known : int
        Rows of known labels.
    unknown : int
        Rows of other labels.
    chosen : str
        How it was chosen, and on what the rates are, in words.

    Raises
    ------
    ValueError
        The threshold is not finite, or a rate or number is out of range.
    """

    threshold: float
    false_accept: float
    false_reject: float
    known: int
    unknown: int
    chosen: str

    def __post_init__(self) -> None:
        rates = (self.false_accept, self.false_reject)
        if not math.isfinite(self.threshold) or any(rate < 0 or rate > 1 for rate in rates):
            raise ValueError("its open set makes no sense")
        if min(self.known, self.unknown) < 0:
            raise ValueError("its open set makes no sense")


def check_false_reject(false_reject: float | None) -> None:
    """KnnError for a share of rows to lose that `choose_threshold` would refuse."""
    if false_reject is not None and not 0 <= false_reject < 1:
        raise KnnError(f"A share of rows to lose lies in [0, 1), {false_reject:g} does not.", "Try 0.05.")


def choose_threshold(
    best_llr_known: ArrayLike, best_llr_unknown: ArrayLike, *, false_reject: float | None = None
) -> OpenSetThreshold:
    """Choose the threshold on rows that neither classifier nor calibration was trained on.

    Thresholds lie half-way between neighbouring scores.

    Parameters
    ----------
    best_llr_known : (K,) array_like
        `evaluation.open_set.best_llr` of rows of known labels, K > 0.
    best_llr_unknown : (U,) array_like
        The same of rows of labels that the model does not know; may be empty with `false_reject`.
    false_reject : float, optional
        Share in [0, 1) of the known rows that may be lost: the highest threshold that loses no more. None: where the
        larger of the two error rates is least (equal error, as near as the rows allow).

    Returns
    -------
    OpenSetThreshold

    Raises
    ------
    KnnError
        For no rows, scores that are not finite, or a share out of range.
    """
    known, unknown = (np.sort(np.asarray(llr, dtype=np.float64)) for llr in (best_llr_known, best_llr_unknown))
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
    check_false_reject(false_reject)
    scores = np.unique(np.concatenate([known, unknown]))
    rejected = np.searchsorted(known, scores) / len(known)  # with each score the lowest that is accepted
    accepted = 1 - np.searchsorted(unknown, scores) / max(1, len(unknown))
    if false_reject is None:
        place, chosen = int(np.argmin(np.maximum(rejected, accepted))), "equal error"
    else:
        # The tolerance makes one row in twenty 0.05 whatever the rounding of the division.
        place = int(np.flatnonzero(rejected <= false_reject + 1e-12)[-1])
        chosen = f"false reject at most {false_reject:.4g}"
    threshold = float(scores[place])
    if place and (middle := (float(scores[place - 1]) + threshold) / 2) > scores[place - 1]:
        threshold = middle
    return OpenSetThreshold(
        threshold=threshold,
        false_accept=float(accepted[place]) if len(unknown) else float("nan"),
        false_reject=float(rejected[place]),
        known=len(known),
        unknown=len(unknown),
        chosen=chosen,
    )
