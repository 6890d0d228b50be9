"""Figures of held-out rows, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from knn_cli.recognition.training_steps import held_out_scoring


def test_groups_by_hand() -> None:
    scores = np.log([[0.4, 0.3, 0.3], [0.1, 0.45, 0.45], [0.8, 0.1, 0.1]])
    assert held_out_scoring.group_accuracy(scores, np.array([1, 2, 2]), ["x", "y", "y"]) == pytest.approx(2 / 3)
