"""Powerset classes: conversion between the set of active speakers in a frame and a single class.

Plaquet and Bredin, "Powerset multi-class cross entropy loss for neural speaker diarization", Interspeech 2023
(arXiv:2310.13025). Classes are the sets of at most `max_active` of `speakers`, smaller ones first, then in order: for
three speakers of whom two may speak at once (), (0), (1), (2), (0, 1), (0, 2), (1, 2).
"""

from __future__ import annotations

from functools import cache
from itertools import combinations, permutations

import torch
from torch import Tensor

from knn_cli.core.values import Floats

MAX_SPEAKERS = 12  # of a chunk, in all


@cache
def powerset(speakers: int, max_active: int) -> tuple[tuple[int, ...], ...]:
    """The classes in order, each a tuple of speakers."""
    if not 0 < max_active <= speakers:
        raise ValueError(f"{max_active} of {speakers} speakers at once make no classes")
    if speakers > MAX_SPEAKERS:
        raise ValueError(f"{speakers} speakers make too many classes; a chunk has up to {MAX_SPEAKERS}")
    return tuple(each for size in range(max_active + 1) for each in combinations(range(speakers), size))


def members(speakers: int, max_active: int) -> Tensor:
    """(C, K) float32: 1 where class c contains speaker k."""
    classes = powerset(speakers, max_active)
    return torch.tensor([[float(speaker in each) for speaker in range(speakers)] for each in classes])


def to_multilabel(log_probabilities: Tensor, speakers: int = 3, max_active: int = 2, *, hard: bool = False) -> Tensor:
    """(..., C) log-probabilities of classes -> (..., K) float32 probabilities that each speaker speaks.

    With `hard=True`, 0 or 1 according to the most probable class, instead of the sum over the classes that contain the
    speaker.

    Raises
    ------
    ValueError
        C is not the number of classes.
    """
    table = members(speakers, max_active).to(log_probabilities.device)
    if log_probabilities.shape[-1] != len(table):
        raise ValueError(f"{log_probabilities.shape[-1]} classes, not the {len(table)} of {speakers} speakers")
    if hard:
        return table[log_probabilities.argmax(-1)]
    return log_probabilities.float().exp() @ table


def to_powerset(active: Tensor, speakers: int = 3, max_active: int = 2) -> Tensor:
    """(..., K) bool, who speaks -> (...) int64, the class; of the active speakers only the first `max_active` are kept.

    Raises
    ------
    ValueError
        K is not the number of speakers.
    """
    if active.shape[-1] != speakers:
        raise ValueError(f"{active.shape[-1]} speakers, not {speakers}")
    active = active.bool()
    kept = active & (active.long().cumsum(-1) <= max_active)
    powers = 2 ** torch.arange(speakers, device=active.device)
    codes = torch.zeros(2**speakers, dtype=torch.int64, device=active.device)
    for number, members_of_class in enumerate(powerset(speakers, max_active)):
        codes[sum(2**speaker for speaker in members_of_class)] = number
    return codes[(kept * powers).sum(-1)]


def permuted_classes(order: tuple[int, ...], max_active: int = 2) -> tuple[int, ...]:
    """The permutation of classes that follows from a permutation of speakers.

    When new speaker k is old speaker `order[k]`, new class c is old class `result[c]`.
    """
    classes = powerset(len(order), max_active)
    numbers = {each: number for number, each in enumerate(classes)}
    return tuple(numbers[tuple(sorted(order[speaker] for speaker in each))] for each in classes)


def best_permutation(reference: Floats, other: Floats) -> tuple[int, ...]:
    """The order in which the speakers of `other` (T, K) are most like those of `reference` (T, K).

    `other[:, best_permutation(reference, other)]` has the smallest sum of squared differences to `reference`; of
    equally good orders it is the first. Every order is tried, which is feasible for the few speakers of a chunk.

    Raises
    ------
    ValueError
        The shapes differ.
    """
    if reference.shape != other.shape:
        raise ValueError(f"activities of {reference.shape} and of {other.shape} cannot be compared")
    # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b, of which only the products depend on the order.
    alike = (reference.astype("float64").T @ other.astype("float64")).tolist()  # (K, K)
    speakers = range(reference.shape[1])
    return max(permutations(speakers), key=lambda order: sum(alike[k][order[k]] for k in speakers))
