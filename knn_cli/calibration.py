"""Log-likelihoods that mean what they say: multiclass logistic calibration.

Brümmer & van Leeuwen, "On calibration of language recognition scores", Odyssey 2006: l'_c = a l_c + b_c, trained by
cross-entropy in which every class weighs alike (their FoCal Multi-class toolkit).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from knn_cli.errors import KnnError
from knn_cli.types import Doubles

RIDGE = 1e-4


@dataclass(frozen=True)
class Calibration:
    """l'_c = scale * l_c + offsets_c.

    scale   : a > 0, below 1 where the classifier is too sure of itself
    offsets : (C,) float64; 0 for classes of which the held-out rows had none
    """

    scale: float
    offsets: Doubles

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"the scale of a calibration is positive, not {self.scale}")

    @classmethod
    def identity(cls, classes: int) -> Calibration:
        """The calibration that changes nothing."""
        return cls(1.0, np.zeros(classes))

    @classmethod
    def fit(
        cls, log_likelihood: ArrayLike, labels: ArrayLike, classes: ArrayLike, *, ridge: float = RIDGE
    ) -> Calibration:
        """Learn scale and offsets from rows that the classifier has not seen.

        log_likelihood : (N, C) natural logarithm, any constant a row
        labels         : (N,) true labels
        classes        : (C,) labels of the columns
        ridge          : weight of log(a)^2 / 2 + mean(b^2) / 2, which keeps separable rows from sending a or b to
                         infinity; it is 0 at the identity, so the training loss never exceeds the identity's

        Only the classes that occur in `labels` compete: against a class without rows every offset would grow for ever.
        Offsets are fixed up to a common constant, which the ridge settles at mean 0 over the classes that occur.
        Raises KnnError for fewer than two classes in `labels`, an unknown label, or values that are not finite.
        """
        scores, truth = _checked(log_likelihood, labels, classes)
        present, codes = np.unique(truth, return_inverse=True)
        if len(present) < 2:
            raise KnnError("Calibration needs held-out rows of at least two classes.", "Hold out more recordings.")
        scores = scores[:, present]
        start = np.zeros(1 + len(present))
        bounds = [(-12.0, 12.0)] + [(None, None)] * len(present)
        found = optimize.minimize(
            objective,
            start,
            args=(scores - scores.max(axis=1, keepdims=True), codes, ridge),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": 1000, "ftol": 1e-13, "gtol": 1e-9},
        )
        offsets = np.zeros(np.shape(classes))
        offsets[present] = found.x[1:]
        return cls(float(np.exp(found.x[0])), offsets)

    def apply(self, log_likelihood: ArrayLike) -> Doubles:
        """(N, C) calibrated log-likelihoods; a constant of the row is scaled along."""
        scores = np.asarray(log_likelihood, dtype=np.float64)
        if scores.shape[-1] != len(self.offsets):
            raise KnnError(f"The calibration is for {len(self.offsets)} classes, the scores have {scores.shape[-1]}.")
        return self.scale * scores + self.offsets

    def posteriors(self, log_likelihood: ArrayLike, priors: ArrayLike | None = None) -> Doubles:
        """(N, C) calibrated probabilities; `priors` (C,) positive, all alike where left out. Rows sum to 1."""
        scores = self.apply(log_likelihood)
        if priors is not None:
            weights = np.asarray(priors, dtype=np.float64)
            if weights.shape != self.offsets.shape or not np.isfinite(weights).all() or (weights <= 0).any():
                raise KnnError(f"There are {len(self.offsets)} classes: the priors must be as many positive numbers.")
            scores = scores + np.log(weights)
        return np.asarray(special.softmax(scores, axis=-1))


def objective(parameters: Doubles, scores: Doubles, codes: NDArray[np.int64], ridge: float) -> tuple[float, Doubles]:
    """Class-balanced cross-entropy in nats plus ridge, and its gradient.

    parameters : (1 + C,) log a, then b; log a keeps the scale positive without a constraint
    scores     : (N, C), every column with at least one row
    codes      : (N,) column of the true class
    """
    rows, classes = scores.shape
    logit, offsets = parameters[0], parameters[1:]
    scaled = np.exp(logit) * scores
    logs = special.log_softmax(scaled + offsets, axis=1)
    weights = 1 / (classes * np.bincount(codes, minlength=classes)[codes])  # (N,) sum to 1
    loss = -float(weights @ logs[np.arange(rows), codes]) + ridge * float(logit**2 + np.mean(offsets**2)) / 2
    slope = np.exp(logs)
    slope[np.arange(rows), codes] -= 1
    slope *= weights[:, None]  # (N, C) d loss / d (scaled + offsets)
    gradient = np.concatenate(([np.sum(slope * scaled) + ridge * logit], slope.sum(0) + ridge * offsets / classes))
    return loss, gradient


def _checked(log_likelihood: ArrayLike, labels: ArrayLike, classes: ArrayLike) -> tuple[Doubles, NDArray[np.int64]]:
    scores = np.asarray(log_likelihood, dtype=np.float64)
    names, texts = np.asarray(classes).astype(np.str_), np.asarray(labels).astype(np.str_)
    if scores.shape != (len(texts), len(names)):
        raise KnnError(f"Scores of shape {scores.shape} do not fit {len(texts)} labels and {len(names)} classes.")
    if not np.isfinite(scores).all():
        raise KnnError("The held-out log-likelihoods hold NaN or infinite values.")
    columns = {name: column for column, name in enumerate(names.tolist())}
    if strange := sorted(set(texts.tolist()) - set(columns)):
        raise KnnError(f"The held-out label {strange[0]!r} is none of the {len(names)} classes.")
    return scores, np.asarray([columns[text] for text in texts.tolist()], dtype=np.int64)
