"""Log-likelihoods that mean what they say: multiclass logistic calibration, affine or by temperature alone.

Brümmer & van Leeuwen, "On calibration of language recognition scores", Odyssey 2006: l'_c = a l_c + b_c, trained by
cross-entropy in which every class weighs alike (their FoCal Multi-class toolkit). Guo et al., "On calibration of
modern neural networks", ICML 2017: one temperature, 1 / a. Long rows say more than short ones of the same scores, so
that a may also grow or shrink with a power of the row's length (quality measure functions in the manner of Mandasari
et al., "Quality measure functions for calibration of speaker recognition systems in various duration conditions",
IEEE TASLP 2013).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles

RIDGE = 1e-4
KINDS = ("affine", "temperature")


@dataclass(frozen=True)
class Calibration:
    """l'_c = scale * (seconds / reference) ** exponent * l_c + offsets_c.

    scale     : a > 0, below 1 where the classifier is too sure of itself
    offsets   : (C,) float64; 0 for classes of which the held-out rows had none, and all 0 after a temperature alone
    exponent  : 0 where the length of a row does not matter
    reference : seconds, the length at which `scale` holds, and that of rows of unknown length
    """

    scale: float
    offsets: Doubles
    exponent: float = 0.0
    reference: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"the scale of a calibration is positive, not {self.scale}")
        if not np.isfinite(self.exponent) or not 0 < self.reference < np.inf:
            raise ValueError(f"no calibration has exponent {self.exponent} and reference {self.reference}")

    @classmethod
    def identity(cls, classes: int) -> Calibration:
        """The calibration that changes nothing."""
        return cls(1.0, np.zeros(classes))

    @classmethod
    def fit(
        cls,
        log_likelihood: ArrayLike,
        labels: ArrayLike,
        classes: ArrayLike,
        *,
        kind: Literal["affine", "temperature"] = "affine",
        seconds: ArrayLike | None = None,
        ridge: float = RIDGE,
    ) -> Calibration:
        """Learn scale and offsets from rows that the classifier has not seen.

        log_likelihood : (N, C) natural logarithm, any constant a row
        labels         : (N,) true labels
        classes        : (C,) labels of the columns
        kind           : "affine" learns scale and offsets, "temperature" the scale alone
        seconds        : (N,) lengths of the rows, NaN where unknown, to learn an exponent too; None learns none. The
                         reference is their geometric mean; rows of unknown length count as that long
        ridge          : weight of (log(a)^2 + exponent^2 + mean(b^2)) / 2, which keeps separable rows from sending
                         them to infinity; it is 0 at the identity, so the training loss never exceeds the identity's

        Only the classes that occur in `labels` compete: against a class without rows every offset would grow for ever.
        Offsets are fixed up to a common constant, which the ridge settles at mean 0 over the classes that occur.
        Raises KnnError for fewer than two classes in `labels`, an unknown label or kind, values that are not finite,
        or lengths of which there are not N.
        """
        if kind not in KINDS:
            raise KnnError(f"There is no calibration {kind!r}.", f"Known: {', '.join(KINDS)}.")
        scores, truth = _checked(log_likelihood, labels, classes)
        lengths = None if seconds is None else _lengths(seconds, len(scores))
        present, codes = np.unique(truth, return_inverse=True)
        if len(present) < 2:
            raise KnnError("Calibration needs held-out rows of at least two classes.", "Hold out more recordings.")
        scores = scores[:, present]
        logs, reference = None, 1.0
        if lengths is not None and (known := ~np.isnan(lengths)).any():
            reference = float(np.exp(np.log(lengths[known]).mean()))
            logs = np.where(known, np.log(lengths / reference), 0.0)
        shared = 1 + (logs is not None)  # parameters before the offsets
        offset_count = len(present) if kind == "affine" else 0
        bounds = [(-12.0, 12.0), (-3.0, 3.0)][:shared] + [(None, None)] * offset_count
        found = optimize.minimize(
            objective,
            np.zeros(shared + offset_count),
            args=(scores - scores.max(axis=1, keepdims=True), codes, ridge, logs),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": 1000, "ftol": 1e-13, "gtol": 1e-9},
        )
        offsets = np.zeros(np.shape(classes))
        if kind == "affine":
            offsets[present] = found.x[shared:]
        exponent = 0.0 if logs is None else float(found.x[1])
        return cls(float(np.exp(found.x[0])), offsets, exponent, reference)

    def apply(self, log_likelihood: ArrayLike, seconds: ArrayLike | None = None) -> Doubles:
        """(N, C) calibrated log-likelihoods; a constant of the row is scaled along.

        seconds : (N,) lengths of the rows; NaN, or None for all of them, counts as `reference`
        """
        scores = np.asarray(log_likelihood, dtype=np.float64)
        if scores.shape[-1] != len(self.offsets):
            raise KnnError(f"The calibration is for {len(self.offsets)} classes, the scores have {scores.shape[-1]}.")
        scale: float | Doubles = self.scale
        if seconds is not None and self.exponent:
            ratio = _lengths(seconds, len(scores)) / self.reference
            scale = (self.scale * np.where(np.isnan(ratio), 1.0, ratio) ** self.exponent)[:, None]
        return scale * scores + self.offsets


def objective(
    parameters: Doubles, scores: Doubles, codes: NDArray[np.int64], ridge: float, lengths: Doubles | None = None
) -> tuple[float, Doubles]:
    """Class-balanced cross-entropy in nats plus ridge, and its gradient.

    parameters : log a; then the exponent where there are lengths; then b (C,), or nothing for a temperature alone.
                 log a keeps the scale positive without a constraint
    scores     : (N, C), every column with at least one row
    codes      : (N,) column of the true class
    lengths    : (N,) log(seconds / reference)
    """
    rows, classes = scores.shape
    shared = 1 if lengths is None else 2
    offsets = parameters[shared:]
    powers = parameters[:1] if lengths is None else parameters[0] + parameters[1] * lengths  # (1,) or (N,)
    scaled = np.exp(powers)[:, None] * scores
    logs = special.log_softmax(scaled + offsets if len(offsets) else scaled, axis=1)
    weights = 1 / (classes * np.bincount(codes, minlength=classes)[codes])  # (N,) sum to 1
    penalty = float(parameters[:shared] @ parameters[:shared])
    loss = -float(weights @ logs[np.arange(rows), codes])
    slope = np.exp(logs)
    slope[np.arange(rows), codes] -= 1
    slope *= weights[:, None]  # (N, C) d loss / d (scaled + offsets)
    along = (slope * scaled).sum(axis=1)  # (N,) d loss / d log of the row's scale
    gradient = [np.array([along.sum()]) + ridge * parameters[:1]]
    if lengths is not None:
        gradient.append(np.array([along @ lengths]) + ridge * parameters[1:2])
    if len(offsets):
        penalty += float(np.mean(offsets**2))
        gradient.append(slope.sum(axis=0) + ridge * offsets / classes)
    return loss + ridge * penalty / 2, np.concatenate(gradient)


def _lengths(seconds: ArrayLike, rows: int) -> Doubles:
    """(rows,) seconds, NaN for what is no length."""
    values = np.asarray(seconds, dtype=np.float64)
    if values.shape != (rows,):
        raise KnnError(f"There are {rows} rows of scores and lengths of shape {values.shape}.")
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


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
