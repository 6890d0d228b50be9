"""Logistic fusion: the scores of several systems as one calibrated score.

A fused score of class c is f_c = sum_s (a_s + A_s q) l_sc + b_c + B_c q, with the scores l_s of system s and measures q
of the quality of a row, less their means (none: q is empty). It is trained by multinomial logistic regression in which
each class weighs as much as its prior says, as the toolkits FoCal Multi-class and BOSARIS do, where two classes are
those of speaker trials. All is linear in a, A, b, B, so the loss is convex and its minimum exact; a useless system gets
a weight near 0 and one that is wrong a negative weight, other than in `calibration`, whose only scale stays positive.

References
----------
N. Brümmer and D. van Leeuwen, "On calibration of language recognition scores", Odyssey 2006.
N. Brümmer and E. de Villiers, "The BOSARIS Toolkit: theory, algorithms and code for surviving the new DCF",
arXiv:1304.2865, 2013.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles
from knn_cli.recognition.calibration import RIDGE
from knn_cli.recognition.row_checks import class_codes

__all__ = ["Fusion", "trial_scores"]


@dataclass(frozen=True, eq=False)
class Fusion:
    """f_c = sum_s (weights[s] @ [1, q]) l_sc + offsets[c] @ [1, q], less its mean over the classes.

    q are quality measures less `centre`.

    Attributes
    ----------
    weights : (S, 1 + Q) float64
        Of each system; then what a quality measure adds to its weight per unit.
    offsets : (C, 1 + Q) float64
        Of each class, 0 for those without rows of training; then what a quality measure adds.
    centre : (Q,) float64
        The quality of a row whose quality is not known.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> truth = rng.integers(3, size=600)
    >>> systems = np.eye(3)[truth] * [[[2.0]], [[1.0]]] + rng.normal(size=(2, 600, 3))
    >>> fusion = Fusion.fit(systems, truth, np.arange(3))
    >>> np.round(fusion.weights[:, 0], 1).tolist()
    [2.0, 1.2]
    >>> fusion.apply(systems).shape
    (600, 3)
    """

    weights: Doubles
    offsets: Doubles
    centre: Doubles = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        arrays, columns = (self.weights, self.offsets), 1 + len(self.centre)
        if any(array.ndim != 2 or not len(array) or array.shape[1] != columns for array in arrays):
            shapes = f"weights {self.weights.shape}, offsets {self.offsets.shape}, {len(self.centre)} measures"
            raise ValueError(f"the arrays of a fusion do not go together: {shapes}")
        if not all(np.isfinite(array).all() for array in (*arrays, self.centre)):
            raise ValueError("a fusion holds NaN or infinite values")

    @classmethod
    def fit(
        cls,
        scores: ArrayLike,
        labels: ArrayLike,
        classes: ArrayLike,
        *,
        quality: ArrayLike | None = None,
        priors: ArrayLike | None = None,
        ridge: float = RIDGE,
    ) -> Fusion:
        """Learn weights and offsets from rows that none of the systems was trained on.

        Only the classes that occur in `labels` compete. Nothing depends on the unit or the zero of a system's scores
        or of a quality measure: the ridge is on parameters for scores of mean 0 and mean square 1.

        Parameters
        ----------
        scores : (S, N, C) array_like
            Of S systems: natural logarithms of likelihoods, up to a constant per row, or any scores (see
            `trial_scores`).
        labels : (N,) array_like
            True labels.
        classes : (C,) array_like
            Labels of the columns.
        quality : (N, Q) array_like, optional
            Measures of the quality of rows. NaN, where it is not known, counts as the mean. Two classes get offsets
            that depend on them as well (B); with more, only weights do (A), since they are many.
        priors : (C,) array_like, optional
            Weights of the classes for which the fusion is to be best, equal by default.
        ridge : float
            Weight of (|a|^2 + |A|^2 + mean(b^2) + mean(B^2)) / 2, which keeps them finite for separable rows.

        Returns
        -------
        Fusion

        Raises
        ------
        KnnError
            For fewer than two classes in `labels`, an unknown label, values that are not finite, or shapes that do not
            go together.
        """
        systems, names = _checked(scores), np.asarray(classes).astype(np.str_)
        if systems.shape[1:] != (np.size(labels), len(names)):
            raise KnnError(
                f"Scores of shape {systems.shape} do not fit {np.size(labels)} labels, {len(names)} classes."
            )
        present, codes = np.unique(class_codes(labels, names), return_inverse=True)
        if len(present) < 2:
            raise KnnError("Fusion needs rows of at least two classes.", "Give scores of more recordings.")
        measures = _measures(quality, systems.shape[1])
        shares = None if priors is None else np.asarray(priors, dtype=np.float64)[present]
        weights, offsets, centre = _fitted(_centred(systems[:, :, present]), codes, measures, shares, ridge)
        everywhere = np.zeros((len(names), offsets.shape[1]))
        everywhere[present] = offsets
        return cls(weights, everywhere, centre)

    def apply(self, scores: ArrayLike, quality: ArrayLike | None = None) -> Doubles:
        """Fuse scores.

        Parameters
        ----------
        scores : (S, N, C) array_like
        quality : (N, Q) array_like, optional
            As for `fit`.

        Returns
        -------
        (N, C) float64
            Log-likelihoods up to a constant per row, which is chosen so that their mean is 0.

        Raises
        ------
        KnnError
            For other numbers of systems, classes or quality measures, and values that are not finite.
        """
        systems = _checked(scores)
        expected = (len(self.weights), systems.shape[1], len(self.offsets))
        if systems.shape != expected:
            raise KnnError(
                f"The fusion is of {expected[0]} systems and {expected[2]} classes, the scores of {systems.shape[0]} "
                f"and {systems.shape[2]}."
            )
        measures = _measures(quality, systems.shape[1])
        if measures.shape[1] != self.weights.shape[1] - 1:
            raise KnnError(
                f"The fusion takes {self.weights.shape[1] - 1} quality measures, there are {measures.shape[1]}."
            )
        known = np.where(np.isfinite(measures), measures - self.centre, 0.0)
        design = np.concatenate([np.ones((len(measures), 1)), known], axis=1)
        fused = np.einsum("nq,sq,snc->nc", design, self.weights, _centred(systems)) + design @ self.offsets.T
        return np.asarray(fused - fused.mean(axis=1, keepdims=True))


def trial_scores(scores: Sequence[ArrayLike]) -> Doubles:
    """Scores (S, T, 2) of the classes "one speaker" and "two speakers" from scores (T,) of S systems.

    The difference of the two is the score, so the difference of the fused two is a log-likelihood ratio.

    Examples
    --------
    >>> trial_scores([[1.0, -3.0]]).tolist()
    [[[0.5, -0.5], [-1.5, 1.5]]]
    """
    halves = np.asarray(scores, dtype=np.float64) / 2
    return np.stack([halves, -halves], axis=2)


def _fitted(
    scores: Doubles, codes: NDArray[np.int64], measures: Doubles, priors: Doubles | None, ridge: float
) -> tuple[Doubles, Doubles, Doubles]:
    """Weights (S, 1 + Q), offsets (C, 1 + Q) and the centre (Q,) of centred scores, all of whose classes have rows."""
    classes = scores.shape[2]
    rows = _row_weights(codes, priors)
    peaks = np.abs(scores).max(axis=(1, 2))
    peaks = np.where(peaks > 0, peaks, 1.0)  # (S,)
    scores = scores / peaks[:, None, None]  # whose squares are numbers
    means = np.einsum("n,snc->sc", rows, scores)
    spread = np.sqrt(np.einsum("n,snc->s", rows, (scores - means[:, None]) ** 2) / classes)
    spread = np.where(spread > 0, spread, 1.0)  # (S,) a system that says the same of all rows has no effect
    standard, centre, width = _standardised(measures, rows)
    design = np.concatenate([np.ones((len(standard), 1)), standard], axis=1)  # (N, 1 + Q)
    log_priors = np.zeros(classes) if priors is None else np.log(priors)
    unit_scores = (scores - means[:, None]) / spread[:, None, None]
    weights, offsets = _Problem(unit_scores, codes, rows, design, log_priors, ridge, classes == 2).minimise()
    weights = weights / spread[:, None]
    offsets = offsets - np.einsum("sq,sc->cq", weights, means)
    units = np.concatenate([[1.0], width])
    return weights / peaks[:, None] / units, offsets / units, centre


@dataclass(frozen=True, eq=False)
class _Problem:
    """The loss of standardised scores.

    scores     : (S, N, C)
    codes      : (N,) column of the true class
    rows       : (N,) weights, which sum to 1
    design     : (N, 1 + Q) ones, and the quality measures
    log_priors : (C,)
    ridge      : weight of the squares
    offset_terms : whether offsets depend on quality measures
    """

    scores: Doubles
    codes: NDArray[np.int64]
    rows: Doubles
    design: Doubles
    log_priors: Doubles
    ridge: float
    offset_terms: bool

    def minimise(self) -> tuple[Doubles, Doubles]:
        """Weights (S, 1 + Q) and offsets (C, 1 + Q)."""
        systems, _, classes = self.scores.shape
        columns = self.design.shape[1] if self.offset_terms else 1
        optimum = scipy.optimize.minimize(
            self.loss,
            np.zeros(systems * self.design.shape[1] + classes * columns),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 5000, "maxfun": 20000, "maxcor": 20, "ftol": 1e-15, "gtol": 1e-10},
        )
        weights, offsets = self._split(optimum.x)
        return weights, np.pad(offsets, ((0, 0), (0, self.design.shape[1] - columns)))

    def loss(self, parameters: Doubles) -> tuple[float, Doubles]:
        """Cross-entropy in nats plus ridge, and its gradient."""
        weights, offsets = self._split(parameters)
        design = self.design[:, : offsets.shape[1]]
        of_rows = self.design @ weights.T  # (N, S)
        fused = np.einsum("ns,snc->nc", of_rows, self.scores) + design @ offsets.T
        logs = scipy.special.log_softmax(fused + self.log_priors, axis=1)
        index = np.arange(len(self.codes))
        slope = np.exp(logs)
        slope[index, self.codes] -= 1
        slope *= self.rows[:, None]  # (N, C) d loss / d fused
        along = np.einsum("nc,snc->sn", slope, self.scores)
        gradient = along @ self.design + self.ridge * weights
        offset_gradient = slope.T @ design + self.ridge * offsets / len(offsets)
        penalty = float(np.sum(weights**2) + np.sum(offsets**2) / len(offsets))
        value = -float(self.rows @ logs[index, self.codes]) + self.ridge * penalty / 2
        return value, np.concatenate([gradient.ravel(), offset_gradient.ravel()])

    def _split(self, parameters: Doubles) -> tuple[Doubles, Doubles]:
        systems, _, classes = self.scores.shape
        size = systems * self.design.shape[1]
        return parameters[:size].reshape(systems, -1), parameters[size:].reshape(classes, -1)


def _row_weights(codes: NDArray[np.int64], priors: Doubles | None) -> Doubles:
    """(N,) weights of the rows, which sum to 1 and of each class to its prior."""
    counts = np.bincount(codes)
    shares = np.full(len(counts), 1 / len(counts)) if priors is None else priors / priors.sum()
    return np.asarray((shares / counts)[codes])


def _centred(systems: Doubles) -> Doubles:
    """Scores without what is the same for all classes of a row, which says nothing."""
    return np.asarray(systems - systems.mean(axis=2, keepdims=True))


def _standardised(measures: Doubles, rows: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Measures of mean 0 and variance 1 (0 where not known), their means (Q,) and deviations (Q,)."""
    known = np.isfinite(measures)
    shares = known * rows[:, None]
    total = np.maximum(shares.sum(axis=0), np.finfo(float).tiny)
    filled = np.where(known, measures, 0.0)
    centre = np.asarray((shares * filled).sum(axis=0) / total)
    width = np.sqrt((shares * (filled - centre) ** 2).sum(axis=0) / total)
    width = np.where(width > 1e-9 * np.maximum(1.0, abs(centre)), width, np.inf)  # one that never varies has no effect
    return np.where(known, (filled - centre) / width, 0.0), centre, width


def _checked(scores: ArrayLike) -> Doubles:
    systems = np.asarray(scores, dtype=np.float64)
    if systems.ndim != 3 or not systems.shape[0]:
        raise KnnError(f"Scores of shape {systems.shape} are not those of systems, rows and classes.")
    if not np.isfinite(systems).all():
        raise KnnError("The scores hold NaN or infinite values.", "Leave these rows out.")
    return systems


def _measures(quality: ArrayLike | None, rows: int) -> Doubles:
    measures = np.zeros((rows, 0)) if quality is None else np.asarray(quality, dtype=np.float64)
    if measures.ndim != 2 or len(measures) != rows:
        raise KnnError(f"Quality measures of shape {measures.shape} do not fit {rows} rows.")
    return measures
