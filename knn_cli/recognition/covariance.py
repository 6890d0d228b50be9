"""Covariance matrices: Cholesky factors, and shrinkage where rows are few."""

from __future__ import annotations

import numpy as np
import scipy

from knn_cli.core.values import Doubles

LOG_2PI = float(np.log(2 * np.pi))


def cholesky(covariance: Doubles) -> Doubles | None:
    """The lower factor (D, D) of a covariance; None where it has no inverse in this precision."""
    try:
        factor: Doubles = scipy.linalg.cholesky(covariance, lower=True)
    except scipy.linalg.LinAlgError:
        return None
    # Squared pivots are residual variances: relative to the variance itself they do not depend on scale.
    min_pivots = 10 * len(covariance) * np.finfo(float).eps * np.diag(covariance)
    return None if (np.diag(factor) ** 2 <= min_pivots).any() else factor


def oas_shrinkage(covariance: Doubles, rows: float) -> float:
    """The weight of the scaled identity by the oracle approximating shrinkage estimator.

    Parameters
    ----------
    covariance : (D, D) float64
        With divisor N.
    rows : float
        Number of independent rows that it is of.

    Returns
    -------
    float
        In [0, 1].

    References
    ----------
    Y. Chen, A. Wiesel, Y. Eldar, A. Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", IEEE TSP 58(10), 2010,
    eq. 23.
    """
    dimension = len(covariance)
    trace_of_square, squared_trace = float(np.sum(covariance**2)), float(np.trace(covariance)) ** 2
    numerator = (1 - 2 / dimension) * trace_of_square + squared_trace
    denominator = (rows + 1 - 2 / dimension) * (trace_of_square - squared_trace / dimension)
    return min(1.0, max(0.0, numerator / denominator)) if denominator > 0 else 1.0
