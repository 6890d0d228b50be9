"""Multiclass logistic calibration of log-likelihoods: affine, or by a temperature only.

l'_c = a l_c + b_c, trained by cross-entropy in which every class weighs alike, as in the FoCal Multi-class toolkit
(Brümmer & van Leeuwen); a alone is a temperature, 1 / a (Guo et al.). The same scores mean more or less with the
duration of a row, so a may also vary with a power of the duration (a quality measure function, as of Mandasari et al.).

Few recordings that all come out right say nothing about how rare errors are, but logistic regression then takes ever
larger scales. Therefore `smoothing`: posteriors are mixed with so much of an even answer that no likelihood ratio
exceeds what a set of so many recordings can support. The idea, and the one misleading unit of each class that is added
to those there are, is that of the empirical bounds of Vergeer et al.; the closed form is ours, and near theirs for
classes that separate. A tenth of that goes into the rows from which scale and offsets are learnt, so that separable
rows have a finite scale: it shrinks likelihood ratios towards one, the aim of the procedures of Morrison & Poh.

References
----------
N. Brümmer and D. van Leeuwen, "On calibration of language recognition scores", Odyssey 2006.
C. Guo et al., "On calibration of modern neural networks", ICML 2017.
M. Mandasari et al., "Quality measure functions for calibration of speaker recognition systems in various duration
conditions", IEEE TASLP 2013.
G. S. Morrison and N. Poh, "Avoiding overstating the strength of forensic evidence: shrunk likelihood ratios/Bayes
factors", Science & Justice 58, 2018.
J. Platt, "Probabilistic outputs for support vector machines and comparisons to regularized likelihood methods", in
Advances in Large Margin Classifiers, 1999, pp. 61-74.
P. Vergeer, A. van Es, A. de Jongh, I. Alberink and R. Stoel, "Numerical likelihood ratios outputted by LR systems are
often based on extrapolation: when to stop extrapolating?", Science & Justice 56, 2016, pp. 482-491.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles

RIDGE = 1e-4  # weight of the regularisation
PSEUDO_DATA = 0.1  # of the smoothing
KINDS = ("affine", "temperature")


def smoothing_of(units: ArrayLike) -> float:
    """Share of an even answer that so many independent units, such as recordings, of each of C classes leave.

    Each class of n units gets C / (C - 1) more whose label may be any, one of which is then misleading: their share is
    C / ((C - 1) n + C), here averaged over classes. Detection likelihood ratios are then from 1 / (n + 1) to
    (C - 1) n + 1, for the n units of the class and the (C - 1) n units of others. For two classes the posteriors are
    from 1 / (n + 2) to (n + 1) / (n + 2), the targets to which Platt fits his sigmoid.

    Parameters
    ----------
    units : (C,) array_like of int

    Returns
    -------
    float
        From 0 to 1, which only no units at all give.

    Examples
    --------
    >>> smoothing_of([8, 8]), smoothing_of([9, 9, 9])
    (0.2, 0.14285714285714285)
    """
    counts = np.asarray(units, dtype=np.float64)
    return float(np.mean(len(counts) / ((len(counts) - 1) * counts + len(counts))))


@dataclass(frozen=True)
class Calibration:
    """l'_c = scale * (seconds / reference) ** exponent * l_c + offsets_c, then smoothed (`bounded`).

    Attributes
    ----------
    scale : float
        a > 0, below 1 where the classifier is overconfident.
    offsets : (C,) float64
        0 for classes without held-out rows, and all 0 for a temperature only.
    exponent : float
        0 where the duration of a row does not matter.
    reference : float
        Seconds: the duration at which `scale` holds, and that assumed for rows of unknown duration.
    smoothing : float
        From 0, for none, to below 1; see `smoothing_of`.
    """

    scale: float
    offsets: Doubles
    exponent: float = 0.0
    reference: float = 1.0
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"the scale of a calibration is positive, not {self.scale}")
        if not np.isfinite(self.exponent) or not 0 < self.reference < np.inf:
            raise ValueError(f"no calibration has exponent {self.exponent} and reference {self.reference}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"the smoothing of a calibration is from 0 to below 1, not {self.smoothing}")

    @classmethod
    def identity(cls, classes: int, smoothing: float = 0.0) -> Calibration:
        """The calibration that changes nothing but what smoothing does."""
        return cls(1.0, np.zeros(classes), smoothing=smoothing)

    @property
    def llr_bounds(self) -> tuple[float, float]:
        """The smallest and the largest detection log-likelihood ratio (nats) there can be; infinite without smoothing.

        They are those of the posteriors d / C and 1 - d + d / C.

        Examples
        --------
        >>> low, high = Calibration.identity(2, smoothing_of([8, 8])).llr_bounds
        >>> round(math.exp(low), 6), round(math.exp(high), 6)
        (0.111111, 9.0)
        """
        if not self.smoothing:
            return -math.inf, math.inf
        classes = len(self.offsets)
        least, others = self.smoothing / classes, math.log(classes - 1)
        most = 1 - self.smoothing + least
        return math.log(least / (1 - least)) + others, math.log(most / (1 - most)) + others

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
        smoothing: float = 0.0,
    ) -> Calibration:
        """Learn scale and offsets from rows that the classifier was not trained on.

        Only the classes that occur in `labels` compete: against a class without rows every offset would grow without
        bound. Offsets are determined up to a constant, which the ridge sets to mean 0 over the classes that occur.

        Parameters
        ----------
        log_likelihood : (N, C) array_like
            Natural logarithm, up to a constant per row.
        labels : (N,) array_like
            True labels.
        classes : (C,) array_like
            Labels of the columns.
        kind : "affine" or "temperature"
            Affine learns scale and offsets, temperature the scale only.
        seconds : (N,) array_like, optional
            Durations of the rows, NaN where unknown, to learn an exponent too. The reference is their geometric mean,
            and rows of unknown duration count as that long.
        ridge : float
            Weight of (log(a)^2 + exponent^2 + mean(b^2)) / 2, which keeps them finite for separable rows. It is 0 at
            the identity, so the training loss never exceeds the identity's.
        smoothing : float
            See `smoothing_of`; the result keeps it, and `PSEUDO_DATA` of it is the share of pseudo-data in the fit.

        Returns
        -------
        Calibration

        Raises
        ------
        KnnError
            For fewer than two classes in `labels`, an unknown label or kind, values that are not finite, or durations
            that are not N.
        """
        scores, truth = _checked(kind, log_likelihood, labels, classes)
        durations = None if seconds is None else _durations(seconds, len(scores))
        present, codes = np.unique(truth, return_inverse=True)
        log_ratios, reference = None, 1.0
        if durations is not None and (known := ~np.isnan(durations)).any():
            reference = float(np.exp(np.log(durations[known]).mean()))
            log_ratios = np.where(known, np.log(durations / reference), 0.0)
        share = PSEUDO_DATA * smoothing
        parameters = _minimise(scores[:, present], codes, kind == "affine", ridge, log_ratios, share)
        offsets = np.zeros(np.shape(classes))
        if kind == "affine":
            offsets[present] = parameters[1 + (log_ratios is not None) :]
        exponent = 0.0 if log_ratios is None else float(parameters[1])
        return cls(float(np.exp(parameters[0])), offsets, exponent, reference, smoothing)

    def apply(self, log_likelihood: ArrayLike, seconds: ArrayLike | None = None) -> Doubles:
        """Calibrate scores, without smoothing; a constant of a row is scaled with it.

        Parameters
        ----------
        log_likelihood : (N, C) array_like
        seconds : (N,) array_like, optional
            Durations of the rows; NaN, or None for all of them, counts as `reference`.

        Returns
        -------
        (N, C) float64
        """
        scores = np.asarray(log_likelihood, dtype=np.float64)
        if scores.shape[-1] != len(self.offsets):
            raise KnnError(f"The calibration is for {len(self.offsets)} classes, the scores have {scores.shape[-1]}.")
        scale: float | Doubles = self.scale
        if seconds is not None and self.exponent:
            ratio = _durations(seconds, len(scores)) / self.reference
            scale = (self.scale * np.where(np.isnan(ratio), 1.0, ratio) ** self.exponent)[:, None]
        return scale * scores + self.offsets

    def bounded(self, log_likelihood: ArrayLike) -> Doubles:
        """Smooth the posteriors of calibrated scores, which keeps the order of labels and the likelihood of the row.

        With smoothing d, the posterior p_c under equal priors becomes (1 - d) p_c + d / C, and detection log-likelihood
        ratios stay within `llr_bounds`.

        Parameters
        ----------
        log_likelihood : (N, C) array_like
            Of `apply`; C may be fewer than the calibration's classes.

        Returns
        -------
        (N, C) float64

        Examples
        --------
        >>> scores = Calibration.identity(2, smoothing_of([8, 8])).bounded([[0.0, -470.0]])
        >>> np.exp(scores).round(3).tolist()
        [[0.9, 0.1]]
        """
        calibrated = np.asarray(log_likelihood, dtype=np.float64)
        if not self.smoothing:
            return calibrated
        levels = scipy.special.logsumexp(calibrated, axis=-1, keepdims=True)
        even = math.log(self.smoothing / calibrated.shape[-1])
        return np.asarray(levels + np.logaddexp(calibrated - levels + math.log1p(-self.smoothing), even))


def _minimise(
    scores: Doubles,
    codes: NDArray[np.int64],
    affine: bool,
    ridge: float,
    log_durations: Doubles | None,
    smoothing: float,
) -> Doubles:
    """The parameters that minimise `objective`."""
    shared = 1 + (log_durations is not None)  # parameters before the offsets
    offset_count = scores.shape[1] if affine else 0
    optimum = scipy.optimize.minimize(
        objective,
        np.zeros(shared + offset_count),
        args=(scores - scores.max(axis=1, keepdims=True), codes, ridge, log_durations, smoothing),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-12.0, 12.0), (-3.0, 3.0)][:shared] + [(None, None)] * offset_count,
        options={"maxiter": 1000, "ftol": 1e-13, "gtol": 1e-9},
    )
    return np.asarray(optimum.x)


def objective(
    parameters: Doubles,
    scores: Doubles,
    codes: NDArray[np.int64],
    ridge: float,
    log_durations: Doubles | None = None,
    smoothing: float = 0.0,
) -> tuple[float, Doubles]:
    """Class-balanced cross-entropy in nats plus ridge, and its gradient.

    Parameters
    ----------
    parameters : float64 array
        log a, which keeps the scale positive without a constraint; then the exponent if there are durations; then b
        (C,), or nothing for a temperature only.
    scores : (N, C) float64
        Every column with at least one row.
    codes : (N,) int64
        Column of the true class.
    ridge : float
        See `Calibration.fit`.
    log_durations : (N,) float64, optional
        log(seconds / reference).
    smoothing : float
        Share of each row's weight that is given evenly to all labels in place of its own.
    """
    rows, classes = scores.shape
    shared = 1 if log_durations is None else 2
    offsets = parameters[shared:]
    powers = parameters[:1] if log_durations is None else parameters[0] + parameters[1] * log_durations  # (1,) or (N,)
    scaled = np.exp(powers)[:, None] * scores
    logs = scipy.special.log_softmax(scaled + offsets if len(offsets) else scaled, axis=1)
    weights = 1 / (classes * np.bincount(codes, minlength=classes)[codes])  # (N,) sum to 1
    penalty = float(parameters[:shared] @ parameters[:shared])
    loss = -float(weights @ ((1 - smoothing) * logs[np.arange(rows), codes] + smoothing * logs.mean(axis=1)))
    slope = np.exp(logs) - smoothing / classes
    slope[np.arange(rows), codes] -= 1 - smoothing
    slope *= weights[:, None]  # (N, C) d loss / d (scaled + offsets)
    along = (slope * scaled).sum(axis=1)  # (N,) d loss / d log of the row's scale
    gradient = [np.array([along.sum()]) + ridge * parameters[:1]]
    if log_durations is not None:
        gradient.append(np.array([along @ log_durations]) + ridge * parameters[1:2])
    if len(offsets):
        penalty += float(np.mean(offsets**2))
        gradient.append(slope.sum(axis=0) + ridge * offsets / classes)
    return loss + ridge * penalty / 2, np.concatenate(gradient)


def _durations(seconds: ArrayLike, rows: int) -> Doubles:
    """(rows,) seconds, NaN for anything that is not a duration."""
    values = np.asarray(seconds, dtype=np.float64)
    if values.shape != (rows,):
        raise KnnError(f"There are {rows} rows of scores and durations of shape {values.shape}.")
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def _checked(
    kind: str, log_likelihood: ArrayLike, labels: ArrayLike, classes: ArrayLike
) -> tuple[Doubles, NDArray[np.int64]]:
    """Scores (N, C) in float64, and the column of each label."""
    if kind not in KINDS:
        raise KnnError(f"There is no calibration {kind!r}.", f"Known: {', '.join(KINDS)}.")
    scores = np.asarray(log_likelihood, dtype=np.float64)
    names, texts = np.asarray(classes).astype(np.str_), np.asarray(labels).astype(np.str_)
    if scores.shape != (len(texts), len(names)):
        raise KnnError(f"Scores of shape {scores.shape} do not fit {len(texts)} labels and {len(names)} classes.")
    if not np.isfinite(scores).all():
        raise KnnError("The held-out log-likelihoods hold NaN or infinite values.")
    columns = {name: column for column, name in enumerate(names.tolist())}
    if unknown := sorted(set(texts.tolist()) - set(columns)):
        raise KnnError(f"The held-out label {unknown[0]!r} is none of the {len(names)} classes.")
    if len(set(texts.tolist())) < 2:
        raise KnnError("Calibration needs held-out rows of at least two classes.", "Hold out more recordings.")
    return scores, np.asarray([columns[text] for text in texts.tolist()], dtype=np.int64)
