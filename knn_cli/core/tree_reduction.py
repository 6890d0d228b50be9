"""Sums of many parts in a tree whose shape depends on their number alone, so that rounding is the same everywhere.

Summing in a binary tree also rounds less than one after the other: the error grows with the logarithm of the number of
parts (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 4.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

__all__ = ["TreeReduction", "merged", "reduced_here"]

Unit = TypeVar("Unit")
Result = TypeVar("Result")


class TreeReduction(Protocol):
    """Does units of work and merges their results in the tree of `merged`, here or on a cluster."""

    def __call__(
        self, work: Callable[[Unit], Result], units: Iterable[Unit], merge: Callable[[Result, Result], Result], /
    ) -> Result: ...


def merged(parts: Iterable[Result], merge: Callable[[Result, Result], Result]) -> Result:
    """Merge parts, at least one, in a binary tree of neighbours; no more than log2 of their number are held at once.

    Examples
    --------
    >>> from knn_cli.core.tree_reduction import merged
    >>> merged("abcde", lambda left, right: f"({left}{right})")
    '(((ab)(cd))e)'
    """
    held: list[tuple[int, Result]] = []  # subtrees from left to right, with their heights
    for part in parts:
        height = 0
        while held and held[-1][0] == height:
            part = merge(held.pop()[1], part)
            height += 1
        held.append((height, part))
    _, total = held.pop()
    while held:
        total = merge(held.pop()[1], total)
    return total


def reduced_here(
    work: Callable[[Unit], Result], units: Iterable[Unit], merge: Callable[[Result, Result], Result], /
) -> Result:
    """The `TreeReduction` that does everything here, one unit after the other."""
    return merged(map(work, units), merge)
