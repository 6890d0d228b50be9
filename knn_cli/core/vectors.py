"""Vectors of unit length."""

from __future__ import annotations

import numpy as np

from knn_cli.core.values import Doubles

NORM_ROWS = 4096  # whose squares are in memory at once


def l2_normalize(rows: Doubles, *, min_norm: float | None = None, overwrite: bool = False) -> Doubles:
    """Scale rows to unit Euclidean length.

    Parameters
    ----------
    rows : (N, D) float64 array
    min_norm : float, optional
        Divide by at least this, as `torch.nn.functional.normalize` does with its `eps`. By default rows are divided by
        their exact length, and rows of zeros stay zero.
    overwrite : bool
        Scale the given array in place.

    Returns
    -------
    (N, D) float64 array
    """
    blocks = range(0, max(1, len(rows)), NORM_ROWS)
    norms = np.concatenate([np.linalg.norm(rows[at : at + NORM_ROWS], axis=1, keepdims=True) for at in blocks])
    divisors = np.where(norms > 0, norms, 1.0) if min_norm is None else np.maximum(norms, min_norm)
    normalized: Doubles = np.divide(rows, divisors, out=rows if overwrite else None)
    return normalized
