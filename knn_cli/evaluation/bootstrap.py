"""Bootstrap over recordings: segments of one recording are alike, so that recordings are what is drawn again.

Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile intervals); Bisani & Ney,
"Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004 (whole speakers are drawn).
Drawn with replacement within each true label, as many recordings as it has, so that no label vanishes from a draw.
A label of one recording stays as it is: what another recording would change cannot be seen from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.values import Doubles, Texts

Indices = NDArray[np.int64]

_BLOCK = 128  # draws at once
_CELLS = 4_000_000  # numbers at once
LEVEL = 0.95


@dataclass(frozen=True)
class Units:
    """What is drawn: the rows of one recording that have one label.

    row   : (N,) unit of each row
    label : (U,) number of each unit's label, ascending
    size  : (U,) rows of each unit
    """

    row: Indices
    label: Indices
    size: Doubles

    @classmethod
    def of(cls, name: Texts, label: Indices) -> Units:
        """Units of (N,) recordings and (N,) numbers of true labels."""
        _, recording = np.unique(name, return_inverse=True)
        count = int(recording.max(initial=0)) + 1
        pairs, row, size = np.unique(label * count + recording, return_inverse=True, return_counts=True)
        return cls(row.astype(np.int64), pairs // count, size.astype(np.float64))

    @classmethod
    def of_labels(cls, label: Indices) -> Units:
        """One unit a label: enough where nothing is drawn."""
        return cls.of(np.zeros(len(label), dtype=np.str_), label)

    def __len__(self) -> int:
        return len(self.label)

    @property
    def lone(self) -> Indices:
        """Labels of one unit."""
        labels, counts = np.unique(self.label, return_counts=True)
        return np.asarray(labels[counts == 1])

    def sums(self, values: NDArray[np.generic]) -> Doubles:
        """(U,) sums of (N,) numbers of the rows."""
        return np.asarray(np.bincount(self.row, weights=values, minlength=len(self)), dtype=np.float64)

    def shares(self, weights: Doubles) -> Doubles:
        """(U, B) what a row of each unit is of its label, under (U, B) weights of the units."""
        first = np.flatnonzero(np.diff(self.label, prepend=-1))
        totals = np.add.reduceat(weights * self.size[:, None], first, axis=0)  # (labels, B)
        return np.asarray(weights / np.repeat(totals, np.diff(first, append=len(self)), axis=0))

    def draws(self, count: int, seed: int) -> Iterator[Doubles]:
        """(U, b) how often each unit was drawn, in blocks of draws, `count` together."""
        generator = np.random.default_rng(seed)
        edges = np.append(np.flatnonzero(np.diff(self.label, prepend=-1)), len(self))
        block = max(1, min(_BLOCK, _CELLS // max(1, len(self))))
        for done in range(0, count, block):
            draws = min(block, count - done)
            weights = np.empty((len(self), draws))
            for first, last in pairwise(edges.tolist()):
                units = last - first
                drawn = generator.integers(units, size=(units, draws)) * draws + np.arange(draws)
                weights[first:last] = np.bincount(drawn.ravel(), minlength=units * draws).reshape(units, draws)
            yield weights


def interval(values: Doubles) -> tuple[float, float]:
    """The middle 95 % of (B,) values of draws; NaN for none, or where one of them is NaN."""
    if not len(values) or np.isnan(values).any():
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
