"""Rows that are drawn from a source."""

from __future__ import annotations

import numpy as np

from knn_cli.recognition.training_steps.embedding_source import draw_balanced


def test_few_rows_are_drawn_of_every_class_alike() -> None:
    codes = np.repeat([0, 1, 2], [50, 3, 20])
    drawn = draw_balanced(codes, 23, seed=0)
    assert np.bincount(codes[drawn]).tolist() == [10, 3, 10] and (np.diff(drawn) > 0).all()
    np.testing.assert_array_equal(drawn, draw_balanced(codes, 23, seed=0))
    assert (drawn != draw_balanced(codes, 23, seed=1)).any()
    np.testing.assert_array_equal(draw_balanced(codes, 73, seed=0), np.arange(73))
