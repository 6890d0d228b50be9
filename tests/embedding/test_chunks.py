"""Chunks of bounded length hold every sample of a row."""

from __future__ import annotations

import numpy as np
import pytest

from knn_cli.core.values import Segment
from knn_cli.embedding import chunks


def test_chunks_keep_every_sample() -> None:
    sound = np.arange(1000, dtype=np.float32)
    found = list(chunks.rechunk([(0, sound[:333]), (0, sound[333:]), (1, sound[:50])], 16000, 0.01))  # 160 samples
    assert np.array_equal(np.concatenate([chunk for row, chunk in found if row == 0]), sound)
    lengths = [len(chunk) for row, chunk in found if row == 0]
    assert max(lengths) <= 160 and min(lengths) > 80  # no stub
    assert [len(chunk) for row, chunk in found if row == 1] == [50]


def test_spans_are_cut_into_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "READ_SECONDS", 2.0)
    assert chunks.cut_span(Segment(1, 6)) == [Segment(1, 3), Segment(3, 5), Segment(5, 6)]
    assert chunks.cut_span(Segment(1, 3)) == [Segment(1, 3)]
