"""The permutation-invariant loss: by hand, and as an independent search over orders of speakers."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import pytest
import torch

from knn_cli.networks.segmenters.permutation_loss import IGNORED, divergence, permutation_invariant_loss
from knn_cli.networks.segmenters.powerset import members, powerset, to_multilabel, to_powerset


def test_by_hand() -> None:
    # Classes (), (0), (1), (0, 1). Truth: first speaker, then the second; the network has them the other way round.
    chances = torch.tensor([[[0.1, 0.2, 0.6, 0.1], [0.1, 0.8, 0.05, 0.05]]], dtype=torch.float64)
    classes = torch.tensor([[1, 2]])
    swapped = -(math.log(0.6) + math.log(0.8)) / 2
    assert permutation_invariant_loss(chances.log(), classes, 2, 2).item() == pytest.approx(swapped)
    one = permutation_invariant_loss(chances.log(), torch.tensor([[1, IGNORED]]), 2, 2)
    assert one.item() == pytest.approx(-math.log(0.6))
    nothing = torch.full((1, 2), IGNORED)
    assert permutation_invariant_loss(chances.log(), nothing, 2, 2).item() == 0
    both = permutation_invariant_loss(chances.log().repeat(2, 1, 1), torch.cat([classes, nothing]), 2, 2)
    assert both.item() == pytest.approx(swapped)  # a window without classes counts as if it were not there


@pytest.mark.parametrize(("speakers", "most"), [(2, 1), (3, 2), (3, 3), (4, 2)])
def test_it_is_the_least_over_all_renamings_of_the_truth(speakers: int, most: int) -> None:
    random = np.random.default_rng(speakers)
    sets = [frozenset(each) for size in range(most + 1) for each in combinations(range(speakers), size)]
    logs = torch.log_softmax(torch.from_numpy(random.normal(size=(5, 9, len(sets)))), -1)
    classes = random.integers(-1, len(sets), (5, 9))
    wanted = []
    for window, truth in zip(logs.numpy(), classes, strict=True):
        frames = [(row, sets[number]) for row, number in zip(window, truth, strict=True) if number >= 0]
        wanted.append(
            min(
                -sum(row[sets.index(frozenset(order[one] for one in active))] for row, active in frames) / len(frames)
                for order in permutations(range(speakers))
            )
        )
    found = permutation_invariant_loss(logs, torch.from_numpy(classes), speakers, most)
    assert found.item() == pytest.approx(float(np.mean(wanted)), abs=1e-12)


def test_gradients_reach_what_is_counted_only() -> None:
    logits = torch.randn(1, 3, 7, requires_grad=True, generator=torch.Generator().manual_seed(0))
    permutation_invariant_loss(logits.log_softmax(-1), torch.tensor([[1, IGNORED, 4]]), 3, 2).backward()
    assert logits.grad is not None
    assert (logits.grad[0, 1] == 0).all() and (logits.grad[0, [0, 2]] != 0).all()


def test_the_divergence_is_zero_for_the_original_alone() -> None:
    logs = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    other = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(2)).log_softmax(-1)
    assert divergence(logs, logs).item() == pytest.approx(0, abs=1e-6)
    by_hand = (other.exp() * (other - logs)).sum(-1).mean()
    assert divergence(logs, other).item() == pytest.approx(by_hand.item(), abs=1e-6)


@pytest.mark.parametrize(("speakers", "most"), [(2, 1), (3, 2), (4, 3)])
def test_classes_and_speakers_are_the_same_thing(speakers: int, most: int) -> None:
    table = members(speakers, most)
    classes = to_powerset(table.bool(), speakers, most)
    assert classes.tolist() == list(range(len(powerset(speakers, most))))
    logs = torch.eye(len(table)).add(1e-9).log()
    assert torch.equal(to_multilabel(logs, speakers, most, hard=True), table)
