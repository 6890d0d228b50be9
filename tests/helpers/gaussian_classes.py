"""Rows of Gaussian classes for tests of classifiers and statistics."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def overlapping(
    rows: int = 900, dimension: int = 12, classes: int = 5, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """Overlapping classes of unequal size and unequal spread."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.choice(classes, rows - classes, p=_unequal(classes))])
    mix = rng.normal(size=(dimension, dimension)) + 2 * np.eye(dimension)
    X = (
        0.7 * rng.normal(size=(classes, dimension))[y] + (1 + y[:, None] / 4) * rng.normal(size=(rows, dimension))
    ) @ mix
    return X + 3, np.asarray([f"c{code}" for code in y])


def _unequal(classes: int) -> NDArray[np.float64]:
    weights = np.arange(1, classes + 1) ** 2.0
    return weights / weights.sum()
