"""Remembered results: by what they are made of, and only where there is a memory."""

from __future__ import annotations

import numpy as np

from knn_cli.diarization.clustering.memory import Memory, remembered, remembering


def test_results_are_remembered_by_arrays_and_settings() -> None:
    calls: list[float] = []

    def total(array: np.ndarray, factor: float) -> float:
        def compute() -> tuple[np.ndarray]:
            calls.append(factor)
            return (array.sum(keepdims=True) * factor,)

        return float(remembered(compute, "total", array, settings=(factor,))[0].sum())

    points = np.arange(6.0).reshape(2, 3)
    memory: Memory = {}
    with remembering(memory):
        assert [total(points, 2.0), total(points.copy(), 2.0), total(points, 3.0)] == [30.0, 30.0, 45.0]
        assert [total(points.reshape(3, 2), 2.0), total(points.astype(np.float32), 2.0)] == [30.0, 30.0]
        assert total(points.T.copy().T, 2.0) == 30.0  # another layout of the same numbers
    assert calls == [2.0, 3.0, 2.0, 2.0] and len(memory) == 4
    assert total(points, 2.0) == 30.0 and len(calls) == 5 and len(memory) == 4
    with remembering(memory):
        assert total(points, 2.0) == 30.0 and len(calls) == 5
