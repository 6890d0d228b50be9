"""Two-covariance PLDA: whether two sets of embeddings are of the same speaker.

A speaker is y ~ N(mean, between), and each of the speaker's embeddings is x ~ N(y, within). In the coordinates where
`within` is the identity and `between` is diagonal (simultaneous diagonalisation, Ioffe 2006), dimensions are
independent, so that fitting and scoring are matrix products.

References
----------
N. Brümmer and E. de Villiers, "The speaker partitioning problem", Odyssey 2010, section 3.
A. Sizov, K. A. Lee, T. Kinnunen, "Unifying probabilistic linear discriminant analysis variants in biometric
authentication", S+SSPR 2014, sections 2.3 and 3 (EM).
S. Ioffe, "Probabilistic Linear Discriminant Analysis", ECCV 2006.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy
from numpy.typing import ArrayLike

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles
from knn_cli.recognition.covariance import LOG_2PI, cholesky
from knn_cli.recognition.gaussian_statistics import GaussianStatistics
from knn_cli.recognition.row_checks import float64_rows

MAX_EM_ITERATIONS = 100
MIN_GAIN_NATS_PER_ROW = 1e-6  # of an iteration, for another one to follow
MIN_INITIAL_RATIO = 1e-3  # of between- to within-class variance at the start: EM never leaves 0


@dataclass(frozen=True, eq=False)
class PLDA:
    """p(y) = N(mean, between), p(x | y) = N(y, within).

    Attributes
    ----------
    mean : (D,) float64
    between : (D, D) float64
        Covariance between speakers, positive semi-definite.
    within : (D, D) float64
        Covariance within a speaker, positive definite.
    """

    mean: Doubles
    between: Doubles
    within: Doubles

    def __post_init__(self) -> None:
        square = (len(self.mean), len(self.mean))
        if self.mean.ndim != 1 or self.between.shape != square or self.within.shape != square:
            raise ValueError("the shapes of a PLDA's arrays do not match")
        if not all(np.isfinite(array).all() for array in (self.mean, self.between, self.within)):
            raise ValueError("a PLDA holds NaN or infinite values")
        if not all(
            np.allclose(matrix, matrix.T, atol=1e-9 * np.trace(matrix)) for matrix in (self.between, self.within)
        ):
            raise ValueError("a PLDA's covariances are not symmetric")
        if cholesky(self.within) is None or scipy.linalg.eigvalsh(self.between)[0] < -1e-9 * np.trace(self.between):
            raise ValueError("a PLDA's matrices are not covariances")

    @classmethod
    def fit(cls, X: ArrayLike, speakers: ArrayLike, *, iterations: int = MAX_EM_ITERATIONS) -> PLDA:
        """Fit by maximum likelihood.

        Parameters
        ----------
        X : (N, D) array_like
        speakers : (N,) array_like
            Labels; speakers may have different numbers of rows.
        iterations : int
            Of EM, at most.

        Returns
        -------
        PLDA

        Raises
        ------
        KnnError
            For fewer than two speakers, or if the rows less one per speaker are fewer than the dimensions.
        """
        return cls.fit_statistics(GaussianStatistics.from_rows(X, speakers), iterations=iterations)

    @classmethod
    def fit_statistics(cls, statistics: GaussianStatistics, *, iterations: int = MAX_EM_ITERATIONS) -> PLDA:
        """`fit` from pooled statistics, which may come from several passes, blocks or processes."""
        model = cls._start(statistics)
        likelihood = model.log_likelihood(statistics)
        for _ in range(iterations):
            following = model.step(statistics)
            reached = following.log_likelihood(statistics)
            if not reached > likelihood:
                break  # what is left is rounding
            gain, model, likelihood = reached - likelihood, following, reached
            if gain < MIN_GAIN_NATS_PER_ROW * statistics.rows:
                break
        return model

    @classmethod
    def _start(cls, statistics: GaussianStatistics) -> PLDA:
        """Moment estimates: for equal counts the maximum itself, if all between-class variances are positive."""
        counts, speakers, rows = statistics.counts, len(statistics.counts), statistics.rows
        if speakers < 2 or not counts.all():
            raise KnnError("PLDA needs rows of at least two speakers.", "Choose another label level.")
        if (statistics.weights != 1).any():
            raise ValueError("PLDA takes pooled statistics")
        within = statistics.scatter / max(rows - speakers, 1)
        if rows - speakers < statistics.dimension or cholesky(within) is None:
            raise KnnError(
                f"{rows} rows of {speakers} speakers are too few for PLDA in {statistics.dimension} dimensions.",
                "Give more rows per speaker, or reduce the dimensions before (lda:K).",
            )
        mean = counts @ statistics.means / rows
        centred = np.sqrt(counts)[:, None] * (statistics.means - mean)
        size = (rows - counts @ counts / rows) * speakers / (speakers - 1)  # N where all counts are alike
        moments = (centred.T @ centred - speakers * within) / size
        ratios, vectors = scipy.linalg.eigh(moments, within)
        inverse = within @ vectors  # (D, D) the inverse of vectors'
        return cls(mean, _symmetric((inverse * np.maximum(ratios, MIN_INITIAL_RATIO)) @ inverse.T), _symmetric(within))

    @cached_property
    def _diagonal(self) -> tuple[Doubles, Doubles]:
        """V (D, D) and ratios (D,): V' within V = 1, V' between V = diag(ratios)."""
        ratios, vectors = scipy.linalg.eigh(self.between, self.within)
        return vectors, np.maximum(ratios, 0.0)

    def step(self, statistics: GaussianStatistics) -> PLDA:
        """One iteration of EM: the parameters that maximise the expected log-likelihood of rows and speakers."""
        counts, rows = statistics.counts[:, None], statistics.rows
        vectors, ratios = self._diagonal
        means = (statistics.means - self.mean) @ vectors  # (S, D)
        spread = ratios / (1 + counts * ratios)  # (S, D) posterior variances
        speakers = counts * spread * means  # (S, D) posterior means
        centre = speakers.mean(axis=0)
        between = (speakers - centre).T @ (speakers - centre) + np.diag(spread.sum(axis=0))
        residual = np.sqrt(counts) * (means - speakers)
        within = residual.T @ residual + np.diag((counts * spread).sum(axis=0))
        back = self.within @ vectors  # (D, D) from the diagonalising coordinates to those of the rows
        return PLDA(
            self.mean + back @ centre,
            _symmetric(back @ (between / len(counts)) @ back.T),
            _symmetric((statistics.scatter + back @ within @ back.T) / rows),
        )

    def log_likelihood(self, statistics: GaussianStatistics) -> float:
        """Log-likelihood in nats of the rows of pooled statistics, given which are of one speaker."""
        counts, rows = statistics.counts[:, None], statistics.rows
        vectors, ratios = self._diagonal
        means = (statistics.means - self.mean) @ vectors  # (S, D)
        variances = ratios + 1 / counts  # (S, D) of a speaker's mean
        volume = -float(np.linalg.slogdet(vectors)[1])  # log |within| / 2
        quadratic = float(np.sum(means**2 / variances)) + float(np.sum((statistics.scatter @ vectors) * vectors))
        constants = rows * (statistics.dimension * LOG_2PI + 2 * volume)
        return -0.5 * (quadratic + constants + float(np.sum(np.log(variances * counts))))

    def llr(self, enroll: ArrayLike, test: ArrayLike, counts: ArrayLike | None = None) -> Doubles:
        """Log p(enroll, test | one speaker) / p(enroll) p(test), natural logarithm; symmetric for one embedding each.

        Parameters
        ----------
        enroll : (N, D) array_like
            The mean of the embeddings of each enrollment.
        test : (M, D) array_like
            One embedding each.
        counts : (N,) array_like, optional
            How many embeddings each enrollment has; None: one.

        Returns
        -------
        (N, M) float64

        Raises
        ------
        KnnError
            For another D, NaN or infinite values, or counts that do not fit.
        """
        vectors, ratios = self._diagonal
        enrolled, tested = ((float64_rows(rows, len(self.mean)) - self.mean) @ vectors for rows in (enroll, test))
        sizes = np.ones(len(enrolled)) if counts is None else np.asarray(counts, dtype=np.float64)
        if sizes.shape != enrolled.shape[:1] or not (np.isfinite(sizes) & (sizes >= 1)).all():
            raise KnnError(
                f"There are {len(enrolled)} enrolments, which need as many counts of embeddings, each 1 or more."
            )
        distinct, which = np.unique(sizes, return_inverse=True)
        size = distinct[:, None]  # (U, 1)
        # Variances of the mean of one, of `size` and of both embeddings, times their number, in units of `within`.
        of_one, of_size, of_both = 1 + ratios, 1 + size * ratios, 1 + (size + 1) * ratios
        cross = size * ratios / of_both
        enroll_weight = -0.5 * size * cross * ratios / of_size
        test_weight = -0.5 * cross * ratios / of_one
        constant = 0.5 * (np.log(of_one) + np.log(of_size) - np.log(of_both)).sum(axis=1)  # (U,)
        scores: Doubles = (enrolled * cross[which]) @ tested.T  # (N, M)
        scores += (tested**2 @ test_weight.T).T[which]
        scores += (np.einsum("nd,nd->n", enrolled**2, enroll_weight[which]) + constant[which])[:, None]
        return scores

    def to_arrays(self) -> dict[str, Doubles]:
        """Named arrays to be stored in a file."""
        return {"mean": self.mean, "between": self.between, "within": self.within}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike]) -> PLDA:
        """The PLDA with the arrays of `to_arrays`; ValueError if they do not make one."""
        if set(arrays) != {"mean", "between", "within"}:
            raise ValueError(f"the arrays {', '.join(sorted(arrays))} do not make a PLDA")
        return cls(**{name: np.asarray(values, dtype=np.float64) for name, values in arrays.items()})


def _symmetric(matrix: Doubles) -> Doubles:
    result: Doubles = (matrix + matrix.T) / 2
    return result
