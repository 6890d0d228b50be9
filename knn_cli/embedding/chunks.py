"""Speech in chunks of bounded length, which go through the network one by one and whose embeddings are averaged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise
from operator import itemgetter

import numpy as np

from knn_cli.core.values import Doubles, Floats, Segment

__all__ = ["READ_SECONDS", "Averages", "cut_span", "rechunk"]

READ_SECONDS = 20.0  # the most speech that is read at once


def cut_span(span: Segment) -> list[Segment]:
    """A span in parts of up to `READ_SECONDS`, so that reading it needs no more memory than one of them."""
    edges = np.arange(span.start, span.end, READ_SECONDS).tolist()
    return [Segment(start, end) for start, end in pairwise([*edges, span.end])]


def rechunk(waveforms: Iterable[tuple[int, Floats]], rate: int, seconds: float) -> Iterator[tuple[int, Floats]]:
    """Join the waveforms of each row and cut them again, into chunks of up to `seconds`.

    Parameters
    ----------
    waveforms : iterable of (int, (S,) float32)
        Row number and samples; all waveforms of a row follow each other.
    rate : int
        Samples per second.
    seconds : float
        Length of the longest chunk, such as `Embedder.chunk_seconds`.

    Yields
    ------
    (int, (S,) float32)
        Row number and chunk; a row's last two chunks are evened out so that no stub is left.
    """
    size = round(seconds * rate)
    for row, pairs in groupby(waveforms, key=itemgetter(0)):
        pending = np.zeros(0, dtype=np.float32)
        for _, waveform in pairs:
            pending = np.concatenate([pending, waveform])
            while len(pending) >= 2 * size:
                yield row, pending[:size]
                pending = pending[size:]
        for chunk in np.array_split(pending, math.ceil(len(pending) / size)):
            yield row, chunk


class Averages:
    """Averages of the embeddings of each row's chunks, weighted by their lengths."""

    def __init__(self) -> None:
        self._sums: dict[int, Doubles] = {}
        self._weights: dict[int, int] = {}

    def add(self, row: int, samples: int, vector: Floats) -> None:
        """Count the (E,) embedding of a chunk of so many samples."""
        self._sums[row] = self._sums.get(row, 0.0) + samples * vector.astype(np.float64)
        self._weights[row] = self._weights.get(row, 0) + samples

    def of_rows(self) -> dict[int, Floats]:
        """(E,) float32 of each row."""
        return {row: (total / self._weights[row]).astype(np.float32) for row, total in self._sums.items()}
