"""Unsupervised adaptation of a PLDA to embeddings of another domain, whose speakers are not known.

Where these spread more than the PLDA expects, its covariances grow; where they spread less, nothing changes. Kaldi's
`ivector-adapt-plda` shares the excess of the total covariance out between the two; CORAL+ compares each with what
correlation alignment makes of it.

References
----------
D. Povey et al., Kaldi, ivector/plda.cc (`PldaUnsupervisedAdaptor`).
K. A. Lee, Q. Wang, T. Koshinaka, "The CORAL+ algorithm for unsupervised domain adaptation of PLDA", ICASSP 2019.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import scipy
from numpy.typing import ArrayLike

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles
from knn_cli.recognition.plda import PLDA
from knn_cli.recognition.row_checks import float64_rows

__all__ = ["METHODS", "adapt_coral_plus", "adapt_kaldi", "moments"]

MIN_RATIO = 1e-9  # of an eigenvalue to the largest, for a covariance to be divided by


def moments(blocks: Iterable[ArrayLike], dimension: int) -> tuple[Doubles, Doubles]:
    """Mean (D,) and covariance (D, D), with divisor N, of rows that come block by block.

    Raises
    ------
    KnnError
        For blocks of another dimension, values that are not finite, and fewer than two rows.
    """
    count, total, squares = 0, np.zeros(dimension), np.zeros((dimension, dimension))
    origin: Doubles | None = None
    for block in blocks:
        rows = float64_rows(block, dimension)
        if len(rows):
            origin = rows[0].copy() if origin is None else origin
            rows = rows - origin  # small numbers, whose squares lose less
            count, total, squares = count + len(rows), total + rows.sum(axis=0), squares + rows.T @ rows
    if origin is None or count < 2:
        raise KnnError(f"A PLDA is not adapted to {count} embeddings.", "Give a store of many recordings.")
    mean = total / count
    return origin + mean, squares / count - np.outer(mean, mean)


def adapt_kaldi(
    plda: PLDA,
    mean: Doubles,
    covariance: Doubles,
    *,
    within_scale: float = 0.3,
    between_scale: float = 0.7,
    mean_scale: float = 1.0,
) -> PLDA:
    """Adapt as Kaldi's `ivector-adapt-plda` does, with its defaults.

    In the coordinates where the total covariance of the PLDA is the identity and that of the new domain is diagonal,
    what is above 1 is added to the covariances within and between speakers by their scales.

    Parameters
    ----------
    plda : PLDA
    mean : (D,) float64
        Of the embeddings of the new domain, which becomes that of the PLDA.
    covariance : (D, D) float64
        Of these embeddings.
    within_scale, between_scale : float
        Shares of the excess.
    mean_scale : float
        How much of the square of the difference of the means counts as variance.

    Returns
    -------
    PLDA

    Examples
    --------
    >>> import numpy as np
    >>> plda = PLDA(np.zeros(1), np.array([[1.0]]), np.array([[1.0]]))
    >>> adapted = adapt_kaldi(plda, np.ones(1), np.array([[5.0]]))  # 5 + 1 instead of 1 + 1
    >>> adapted.mean.item(), round(adapted.between.item(), 9), round(adapted.within.item(), 9)
    (1.0, 3.8, 2.2)
    """
    difference = mean - plda.mean
    variance = covariance + mean_scale * np.outer(difference, difference)
    excess, vectors = scipy.linalg.eigh(variance, plda.between + plda.within)  # vectors' (between + within) vectors = 1
    back = (plda.between + plda.within) @ vectors  # the inverse of vectors'
    added = _symmetric((back * np.maximum(excess - 1, 0)) @ back.T)
    return PLDA(mean, plda.between + between_scale * added, plda.within + within_scale * added)


def adapt_coral_plus(
    plda: PLDA, mean: Doubles, covariance: Doubles, *, within_scale: float = 0.8, between_scale: float = 0.8
) -> PLDA:
    """Adapt by CORAL+, with the weights of the paper.

    Each covariance S of the PLDA becomes S + scale * B^-T max(E - 1, 0) B^-1, where B' S B = 1 and B' P B = E is
    diagonal, and P = A S A' with A = covariance^(1/2) (between + within)^(-1/2).

    Parameters
    ----------
    plda : PLDA
    mean : (D,) float64
        Of the embeddings of the new domain, which becomes that of the PLDA.
    covariance : (D, D) float64
        Of these embeddings.
    within_scale, between_scale : float
        Weights of the excess.

    Returns
    -------
    PLDA

    Examples
    --------
    >>> import numpy as np
    >>> plda = PLDA(np.zeros(1), np.array([[1.0]]), np.array([[1.0]]))
    >>> adapted = adapt_coral_plus(plda, np.ones(1), np.array([[6.0]]))  # three times the variance
    >>> round(adapted.between.item(), 9), round(adapted.within.item(), 9)
    (2.6, 2.6)
    """
    aligned = _power(covariance, 0.5) @ _power(plda.between + plda.within, -0.5)
    between, within = (
        _grown(matrix, aligned @ matrix @ aligned.T, scale)
        for matrix, scale in ((plda.between, between_scale), (plda.within, within_scale))
    )
    return PLDA(mean, between, within)


METHODS = {"kaldi": adapt_kaldi, "coral-plus": adapt_coral_plus}


def _grown(matrix: Doubles, pseudo: Doubles, scale: float) -> Doubles:
    root, inverse = _power(matrix, 0.5), _power(matrix, -0.5)
    ratios, vectors = scipy.linalg.eigh(_symmetric(inverse @ pseudo @ inverse))
    back = root @ vectors  # B^-T, for B = inverse @ vectors
    return np.asarray(matrix + scale * _symmetric((back * np.maximum(ratios - 1, 0)) @ back.T))


def _power(matrix: Doubles, exponent: float) -> Doubles:
    """A covariance to a power; eigenvalues near 0 count as `MIN_RATIO` of the largest."""
    values, vectors = scipy.linalg.eigh(_symmetric(matrix))
    powers = np.maximum(values, MIN_RATIO * max(values[-1], np.finfo(float).tiny)) ** exponent
    return _symmetric((vectors * powers) @ vectors.T)


def _symmetric(matrix: Doubles) -> Doubles:
    return np.asarray((matrix + matrix.T) / 2)
