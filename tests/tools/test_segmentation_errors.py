"""Errors of segmentation networks inside their windows, against answers counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pyannote.core import Annotation, Segment

pytest.importorskip("scipy")

from knn_cli.networks.segmenters.pyannet import PyanNet
from tools.shipped_models.segmentation_errors import (
    active_speakers,
    blend,
    describe,
    recording_errors,
    window_errors,
    windows,
)


def small(seed: int) -> PyanNet:
    torch.manual_seed(seed)
    return PyanNet(filters=8, widths=(6, 6), hidden=4, depth=1, linear=(8,), duration=2.0).eval()


def test_errors_are_those_of_the_best_match() -> None:
    reference = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0], [0, 1, 0]], dtype=bool)
    found = np.array([[0, 1], [1, 1], [1, 1], [1, 0], [0, 1]], dtype=bool)
    # Columns 1 and 0 of `found` are speakers 0 and 1: one missed in row 2, one false in row 3, row 4 confused.
    np.testing.assert_array_equal(window_errors(reference, found), [1, 1, 1, 7])
    np.testing.assert_array_equal(window_errors(reference[:, :0], found), [0, 7, 0, 0])


def test_frames_are_compared_with_who_speaks_in_their_middle() -> None:
    network = small(0)
    truth = Annotation()
    truth[Segment(1.0, 1.5), 0], truth[Segment(1.2, 3.0), 1] = "a", "b"
    table = active_speakers(network, truth, 0.5, network.frames(32000))
    times = 0.5 + network.first_seconds + np.arange(len(table)) * network.step_seconds
    np.testing.assert_array_equal(table[:, 0], (times >= 1.0) & (times < 1.5))
    np.testing.assert_array_equal(table[:, 1], times >= 1.2)


def test_recordings_are_cut_into_whole_windows() -> None:
    network = small(0)
    assert windows(network, np.ones(5 * 16000, np.float32)).shape == (7, 32000)
    assert windows(network, np.ones(16000, np.float32)).sum() == 16000
    silent = recording_errors(network, np.zeros(16000, np.float32), Annotation())
    assert silent[0] == silent[2] == silent[3] == 0
    assert describe([np.array([10, 5, 5, 100]), np.array([0, 0, 0, 300])]) == "10.0 (5.0, 2.5, 2.5), pooled 5.0"


def test_blends_are_between_two_networks() -> None:
    first, second = small(0), small(1)
    middle = blend(first, second, 0.25).state_dict()
    for key, value in first.state_dict().items():
        torch.testing.assert_close(middle[key], 0.75 * value + 0.25 * second.state_dict()[key])
    torch.testing.assert_close(blend(first, second, 0.0).linears[0].weight, first.linears[0].weight, rtol=0, atol=0)
