"""Bootstrap confidence intervals over recordings.

Segments of one recording are alike, so whole recordings are drawn: with replacement within each true label, as many as
the label has, so that no label is missing from a bootstrap sample. A label with a single recording stays as it is, and
the interval does not show how another recording would have changed the result.

References
----------
B. Efron and R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile intervals).
M. Bisani and H. Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004 (whole
speakers are drawn).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.values import Doubles, Texts

Indices = NDArray[np.int64]

CONFIDENCE_LEVEL = 0.95
_MAX_BLOCK_SAMPLES = 128  # bootstrap samples drawn at once
_MAX_BLOCK_CELLS = 4_000_000  # (unit, sample) weights held at once


@dataclass(frozen=True)
class BootstrapUnits:
    """The units of resampling: a unit is all rows of one recording that have one true label.

    Attributes
    ----------
    row : (N,) int64
        Unit of each row.
    label : (U,) int64
        Number of each unit's label, ascending.
    size : (U,) float64
        Rows of each unit.
    """

    row: Indices
    label: Indices
    size: Doubles

    @classmethod
    def from_recordings(cls, name: Texts, label: Indices) -> BootstrapUnits:
        """The units of (N,) recordings and (N,) numbers of true labels."""
        _, recording = np.unique(name, return_inverse=True)
        recordings = int(recording.max(initial=0)) + 1
        pairs, row, size = np.unique(label * recordings + recording, return_inverse=True, return_counts=True)
        return cls(row.astype(np.int64), pairs // recordings, size.astype(np.float64))

    @classmethod
    def from_labels(cls, label: Indices) -> BootstrapUnits:
        """One unit per label, which is enough where nothing is resampled."""
        return cls.from_recordings(np.zeros(len(label), dtype=np.str_), label)

    def __len__(self) -> int:
        return len(self.label)

    @property
    def single_unit_labels(self) -> Indices:
        """Labels that have only one unit."""
        labels, counts = np.unique(self.label, return_counts=True)
        return np.asarray(labels[counts == 1])

    def sums(self, values: NDArray[np.generic]) -> Doubles:
        """(U,) sums over each unit of (N,) values of the rows."""
        return np.asarray(np.bincount(self.row, weights=values, minlength=len(self)), dtype=np.float64)

    def row_shares(self, weights: Doubles) -> Doubles:
        """(U, B) the share that one row of each unit has in its label, under (U, B) weights of the units."""
        first = np.flatnonzero(np.diff(self.label, prepend=-1))
        totals = np.add.reduceat(weights * self.size[:, None], first, axis=0)  # (labels, B)
        return np.asarray(weights / np.repeat(totals, np.diff(first, append=len(self)), axis=0))

    def resample(self, samples: int, seed: int) -> Iterator[Doubles]:
        """(U, b) how often each unit occurs in each bootstrap sample, in blocks that hold `samples` together."""
        generator = np.random.default_rng(seed)
        edges = np.append(np.flatnonzero(np.diff(self.label, prepend=-1)), len(self))
        block = max(1, min(_MAX_BLOCK_SAMPLES, _MAX_BLOCK_CELLS // max(1, len(self))))
        for done in range(0, samples, block):
            width = min(block, samples - done)
            weights = np.empty((len(self), width))
            for first, last in pairwise(edges.tolist()):
                units = last - first
                drawn = generator.integers(units, size=(units, width)) * width + np.arange(width)
                weights[first:last] = np.bincount(drawn.ravel(), minlength=units * width).reshape(units, width)
            yield weights


def percentile_interval(values: Doubles) -> tuple[float, float]:
    """The middle 95 % of the (B,) values of bootstrap samples; NaN if there are none or any of them is NaN."""
    if not len(values) or np.isnan(values).any():
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return float(low), float(high)
