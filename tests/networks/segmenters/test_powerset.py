"""Classes of who speaks at once: by hand, and there and back."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from knn_cli.networks.segmenters.powerset import (
    best_permutation,
    members,
    permuted_classes,
    powerset,
    to_multilabel,
    to_powerset,
)


def test_classes_are_those_of_pyannote() -> None:
    assert powerset(3, 2) == ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2))
    assert powerset(2, 1) == ((), (0,), (1,))
    assert members(3, 2).tolist()[4:] == [[1, 1, 0], [1, 0, 1], [0, 1, 1]]
    for speakers, most in ((3, 0), (2, 3)):
        with pytest.raises(ValueError, match="at once"):
            powerset(speakers, most)


def test_speakers_of_classes_by_hand() -> None:
    probabilities = torch.tensor([[0.1, 0.2, 0.05, 0.05, 0.3, 0.1, 0.2]])
    torch.testing.assert_close(to_multilabel(probabilities.log()), torch.tensor([[0.6, 0.55, 0.35]]))
    assert to_multilabel(probabilities.log(), hard=True).tolist() == [[1, 1, 0]]
    with pytest.raises(ValueError, match="6 classes, not the 7"):
        to_multilabel(torch.zeros(2, 6))


def test_more_at_once_than_there_is_a_class_for() -> None:
    active = torch.tensor([[True, True, True], [False, False, False], [False, True, True]])
    assert to_powerset(active).tolist() == [4, 0, 6]
    with pytest.raises(ValueError, match="2 speakers, not 3"):
        to_powerset(active[:, :2])


@given(st.integers(1, 4), st.integers(1, 4))
def test_there_and_back(speakers: int, most: int) -> None:
    if most <= speakers:
        classes = torch.arange(len(powerset(speakers, most)))
        certain = torch.nn.functional.one_hot(classes).float().clamp_min(1e-9).log()
        who = to_multilabel(certain, speakers, most, hard=True)
        torch.testing.assert_close(to_multilabel(certain, speakers, most), who, atol=1e-6, rtol=0)
        assert torch.equal(to_powerset(who, speakers, most), classes)


def test_reordered_classes_are_those_of_reordered_speakers() -> None:
    assert permuted_classes((1, 0, 2)) == (0, 2, 1, 3, 4, 6, 5)
    scores = torch.randn(20, 7, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    for order in permutations(range(3)):
        reordered = to_multilabel(scores[:, list(permuted_classes(order))])
        torch.testing.assert_close(reordered, to_multilabel(scores)[:, list(order)])


def test_best_permutation() -> None:
    rng = np.random.default_rng(0)
    reference = rng.random((50, 3)).astype(np.float32)
    for order in permutations(range(3)):
        shuffled = np.empty_like(reference)
        shuffled[:, list(order)] = reference
        assert best_permutation(reference, shuffled) == order
        other = rng.random((50, 3)).astype(np.float32)
        best = best_permutation(reference, other)
        errors = {each: ((reference - other[:, list(each)]) ** 2).sum() for each in permutations(range(3))}
        assert errors[best] == min(errors.values())
    assert best_permutation(np.zeros((4, 3), np.float32), reference[:4]) == (0, 1, 2)
    with pytest.raises(ValueError, match="cannot be compared"):
        best_permutation(reference, reference[:, :2])
