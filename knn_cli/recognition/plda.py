"""Two-covariance PLDA: whether two sets of embeddings are of the same speaker.

A speaker is y ~ N(mean, between), each of its embeddings x ~ N(y, within). Brümmer & de Villiers, "The speaker
partitioning problem", Odyssey 2010, section 3; Sizov, Lee & Kinnunen, "Unifying probabilistic linear discriminant
analysis variants in biometric authentication", S+SSPR 2014, sections 2.3 and 3 (EM). In the coordinates where
`within` is the identity and `between` is diagonal (simultaneous diagonalisation; Ioffe, "Probabilistic Linear
Discriminant Analysis", ECCV 2006) dimensions are independent, so that fitting and scoring are matrix products.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles
from knn_cli.recognition.covariance import LOG_2PI, cholesky
from knn_cli.recognition.gaussian_statistics import GaussianStatistics
from knn_cli.recognition.row_checks import float64_rows

ITERATIONS = 100
TOLERANCE = 1e-6  # nats a row that an iteration must gain to be followed by another
FLOOR = 1e-3  # of the between-class variance to begin with, relative to within: EM never leaves 0


@dataclass(frozen=True, eq=False)
class PLDA:
    """p(y) = N(mean, between), p(x | y) = N(y, within).

    mean    : (D,)
    between : (D, D) positive semi-definite
    within  : (D, D) positive definite
    """

    mean: Doubles
    between: Doubles
    within: Doubles

    def __post_init__(self) -> None:
        square = (len(self.mean), len(self.mean))
        if self.mean.ndim != 1 or self.between.shape != square or self.within.shape != square:
            raise ValueError("the sizes of a PLDA's arrays do not go together")
        if not all(np.isfinite(array).all() for array in (self.mean, self.between, self.within)):
            raise ValueError("a PLDA holds NaN or infinite values")
        if not all(np.allclose(one, one.T, atol=1e-9 * np.trace(one)) for one in (self.between, self.within)):
            raise ValueError("a PLDA's covariances are not symmetric")
        if cholesky(self.within) is None or linalg.eigvalsh(self.between)[0] < -1e-9 * np.trace(self.between):
            raise ValueError("a PLDA's covariances are none")

    @classmethod
    def fit(cls, X: ArrayLike, speakers: ArrayLike, *, iterations: int = ITERATIONS) -> PLDA:
        """Maximum likelihood from rows X: (N, D) of speakers: (N,), any number of rows each.

        Raises KnnError for fewer than two speakers, and for fewer rows beyond one a speaker than dimensions.
        """
        return cls.fit_statistics(GaussianStatistics.from_rows(X, speakers), iterations=iterations)

    @classmethod
    def fit_statistics(cls, statistics: GaussianStatistics, *, iterations: int = ITERATIONS) -> PLDA:
        """`fit` from pooled statistics, which may come from several passes, blocks or processes."""
        model = cls._start(statistics)
        likelihood = model.log_likelihood(statistics)
        for _ in range(iterations):
            following = model.step(statistics)
            reached = following.log_likelihood(statistics)
            if not reached > likelihood:
                break  # rounding is all that is left
            gain, model, likelihood = reached - likelihood, following, reached
            if gain < TOLERANCE * statistics.rows:
                break
        return model

    @classmethod
    def _start(cls, statistics: GaussianStatistics) -> PLDA:
        """Moments: for equal counts the maximum itself, as far as the between-class variances come out positive."""
        counts, speakers, rows = statistics.counts, len(statistics.counts), statistics.rows
        if speakers < 2 or not counts.all():
            raise KnnError("PLDA needs rows of at least two speakers.", "Choose another label level.")
        if (statistics.weights != 1).any():
            raise ValueError("PLDA takes pooled statistics")
        within = statistics.scatter / max(rows - speakers, 1)
        if rows - speakers < statistics.dimension or cholesky(within) is None:
            raise KnnError(
                f"{rows} rows of {speakers} speakers are too few for PLDA in {statistics.dimension} dimensions.",
                "Give more rows a speaker, or reduce the dimensions before (lda:K).",
            )
        mean = counts @ statistics.means / rows
        centred = np.sqrt(counts)[:, None] * (statistics.means - mean)
        size = (rows - counts @ counts / rows) * speakers / (speakers - 1)  # N where all counts are alike
        moments = (centred.T @ centred - speakers * within) / size
        ratios, vectors = linalg.eigh(moments, within)
        back = within @ vectors  # (D, D) the inverse of vectors'
        return cls(mean, _symmetric((back * np.maximum(ratios, FLOOR)) @ back.T), _symmetric(within))

    @cached_property
    def _diagonal(self) -> tuple[Doubles, Doubles]:
        """V (D, D) and ratios (D,): V' within V = 1, V' between V = diag(ratios)."""
        ratios, vectors = linalg.eigh(self.between, self.within)
        return vectors, np.maximum(ratios, 0.0)

    def step(self, statistics: GaussianStatistics) -> PLDA:
        """One iteration of EM: the parameters that explain the posteriors of the speakers best."""
        counts, rows = statistics.counts[:, None], statistics.rows
        vectors, ratios = self._diagonal
        means = (statistics.means - self.mean) @ vectors  # (S, D)
        spread = ratios / (1 + counts * ratios)  # (S, D) posterior variances
        speakers = counts * spread * means  # (S, D) posterior means
        centre = speakers.mean(axis=0)
        between = (speakers - centre).T @ (speakers - centre) + np.diag(spread.sum(axis=0))
        residual = np.sqrt(counts) * (means - speakers)
        within = residual.T @ residual + np.diag((counts * spread).sum(axis=0))
        back = self.within @ vectors  # (D, D) from these coordinates to those of the rows
        return PLDA(
            self.mean + back @ centre,
            _symmetric(back @ (between / len(counts)) @ back.T),
            _symmetric((statistics.scatter + back @ within @ back.T) / rows),
        )

    def log_likelihood(self, statistics: GaussianStatistics) -> float:
        """Log p of the rows behind pooled statistics given which are of one speaker, in nats."""
        counts, rows = statistics.counts[:, None], statistics.rows
        vectors, ratios = self._diagonal
        means = (statistics.means - self.mean) @ vectors  # (S, D)
        variances = ratios + 1 / counts  # (S, D) of a speaker's mean
        volume = -float(np.linalg.slogdet(vectors)[1])  # log |within| / 2
        quadratic = float(np.sum(means**2 / variances)) + float(np.sum((statistics.scatter @ vectors) * vectors))
        constants = rows * (statistics.dimension * LOG_2PI + 2 * volume)
        return -0.5 * (quadratic + constants + float(np.sum(np.log(variances * counts))))

    def llr(self, enrol: ArrayLike, test: ArrayLike, counts: ArrayLike | None = None) -> Doubles:
        """(N, M) log p(enrol, test | one speaker) / p(enrol) p(test), natural logarithm; of one row each, symmetric.

        enrol  : (N, D) the mean of each enrolment's embeddings
        test   : (M, D) one embedding each
        counts : (N,) how many embeddings each enrolment has; None: one
        Raises KnnError for another D, NaN or infinite values, or counts that do not fit.
        """
        vectors, ratios = self._diagonal
        known, asked = ((float64_rows(one, len(self.mean)) - self.mean) @ vectors for one in (enrol, test))
        sizes = np.ones(len(known)) if counts is None else np.asarray(counts, dtype=np.float64)
        if sizes.shape != known.shape[:1] or not (np.isfinite(sizes) & (sizes >= 1)).all():
            raise KnnError(f"There are {len(known)} enrolments: as many counts of embeddings, 1 or more, go with them.")
        distinct, which = np.unique(sizes, return_inverse=True)
        size = distinct[:, None]  # (U, 1)
        alone, seen, both = 1 + ratios, 1 + size * ratios, 1 + (size + 1) * ratios  # (D,), (U, D), (U, D)
        cross = size * ratios / both
        of_enrol = -0.5 * size * cross * ratios / seen
        of_test = -0.5 * cross * ratios / alone
        constant = 0.5 * (np.log(alone) + np.log(seen) - np.log(both)).sum(axis=1)  # (U,)
        scores: Doubles = (known * cross[which]) @ asked.T  # (N, M)
        scores += (asked**2 @ of_test.T).T[which]
        scores += (np.einsum("nd,nd->n", known**2, of_enrol[which]) + constant[which])[:, None]
        return scores

    def to_arrays(self) -> dict[str, Doubles]:
        """Named arrays that a file may hold."""
        return {"mean": self.mean, "between": self.between, "within": self.within}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike]) -> PLDA:
        """The PLDA of `to_arrays`. ValueError for what is none."""
        if set(arrays) != {"mean", "between", "within"}:
            raise ValueError(f"the arrays {', '.join(sorted(arrays))} are no PLDA")
        return cls(**{name: np.asarray(values, dtype=np.float64) for name, values in arrays.items()})


def _symmetric(matrix: Doubles) -> Doubles:
    result: Doubles = (matrix + matrix.T) / 2
    return result
