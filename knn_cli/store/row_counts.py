"""What rows a store has: how long they are, and how many recordings each label has."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.encoded_texts import EncodedTexts
from knn_cli.core.values import Doubles

__all__ = ["DURATION_EDGES", "duration_counts", "recordings_by_label", "rows_by_label"]

DURATION_EDGES = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)  # seconds


def duration_counts(seconds: Doubles) -> dict[str, int]:
    """Return how many of the lengths (N,) are in each span of seconds, from the first to the last that has any.

    Lengths that are not known (NaN), or cannot be (below 0), are left out.

    Examples
    --------
    >>> import numpy as np
    >>> duration_counts(np.array([4.0, 4.0, 12.0, 4000.0, np.nan]))["2-5 s"]
    2
    """
    known = seconds[np.isfinite(seconds) & (seconds >= 0)]
    if not len(known):
        return {}
    edges = [*DURATION_EDGES, np.inf]
    counts = np.histogram(known, edges)[0].tolist()
    names = [
        f"{low:g}-{high:g} s" if np.isfinite(high) else f"over {low:g} s" for low, high in itertools.pairwise(edges)
    ]
    filled = np.flatnonzero(counts)
    return {names[place]: counts[place] for place in range(filled[0], filled[-1] + 1)}


def rows_by_label(labels: EncodedTexts) -> dict[str, int]:
    """Return how many rows have each label, sorted by label; rows without one are left out."""
    counts = np.bincount(labels.codes, minlength=len(labels.values)).tolist()
    return {label: count for label, count in sorted(zip(labels.values.tolist(), counts, strict=True)) if label}


def recordings_by_label(names: NDArray[np.int32], labels: EncodedTexts) -> dict[str, int]:
    """Return how many recordings have rows of each label, sorted by label; rows without one are left out.

    Parameters
    ----------
    names : (N,) int array
        The recording of each row, as a code.
    labels : EncodedTexts
        The label of each row.

    Examples
    --------
    >>> import numpy as np
    >>> recordings_by_label(np.array([0, 0, 1, 2]), EncodedTexts.from_blocks([["cs", "cs", "cs", ""]]))
    {'cs': 2}
    """
    pairs = np.unique(names.astype(np.int64) * len(labels.values) + labels.codes)
    first = np.unique(pairs % max(1, len(labels.values)), return_inverse=True)
    return rows_by_label(EncodedTexts(first[1].astype(np.int32), labels.values[first[0]]))
