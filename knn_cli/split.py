"""Held-out rows that share no recording with the training rows, drawn with a seed.

Segments of one recording resemble each other in voice, room and channel; a split that cuts through recordings
measures that resemblance. So whole units (recordings, or speakers or sources by `units`) go to one side.
Nothing depends on the order of the rows: units and classes are sorted before anything is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from knn_cli.errors import KnnError
from knn_cli.types import Texts

Mask = NDArray[np.bool_]


class _Plan(NamedTuple):
    """unit: (N,) unit of each row; classes: for each class, rarest first, its name and its units in drawn order."""

    unit: NDArray[np.int64]
    units: int
    classes: list[tuple[str, list[int]]]


def _plan(
    recordings: Sequence[str] | Texts, labels: Sequence[str] | Texts, units: Sequence[str] | Texts | None, seed: int
) -> _Plan:
    keys = np.asarray(recordings if units is None else units, dtype=np.str_)
    texts = np.asarray(labels, dtype=np.str_)
    if len(keys) != len(texts) or len(recordings) != len(texts):
        raise ValueError(f"{len(recordings)} recordings, {len(keys)} units, {len(texts)} labels")
    if not len(texts):
        raise KnnError("There are no rows to split.")
    if units is not None:
        keys = _joined(np.asarray(recordings, dtype=np.str_), keys)
    names, unit = np.unique(keys, return_inverse=True)
    classes, label = np.unique(texts, return_inverse=True)
    rank = np.random.default_rng(seed).permutation(len(names))
    pairs = np.unique(np.stack([label, unit], axis=1), axis=0)  # (P, 2) class, unit; each pair once
    members = [
        sorted(pairs[pairs[:, 0] == code, 1].tolist(), key=lambda one: rank[one]) for code in range(len(classes))
    ]
    for name, own in zip(classes.tolist(), members, strict=True):
        if len(own) < 2:
            raise KnnError(
                f"The class {name!r} has a single recording or other unit, {str(names[own[0]])!r}, which cannot be "
                "on both sides of a split.",
                "Add recordings of it, leave the class out (--ignore), or choose another label level.",
            )
    order = sorted(range(len(classes)), key=lambda code: (len(members[code]), code))
    return _Plan(unit, len(names), [(str(classes[code]), members[code]) for code in order])


def _joined(recordings: Texts, units: Texts) -> Texts:
    """Units that share a recording become one, named by the first of them, so that no recording is ever cut."""
    above = {name: name for name in np.unique(units).tolist()}

    def root(name: str) -> str:
        while above[name] != name:
            above[name] = name = above[above[name]]
        return name

    first: dict[str, str] = {}
    for recording, unit in zip(recordings.tolist(), units.tolist(), strict=True):
        low, high = sorted((root(unit), root(first.setdefault(recording, unit))))
        above[high] = low
    return np.asarray([root(unit) for unit in units.tolist()], dtype=np.str_)


def _cannot(name: str) -> KnnError:
    return KnnError(
        f"The recordings of class {name!r} cannot be put on both sides: they hold other classes too.",
        "Try another seed, leave the class out (--ignore), or choose another label level.",
    )


def held_out(
    recordings: Sequence[str] | Texts,
    labels: Sequence[str] | Texts,
    *,
    fraction: float = 0.2,
    seed: int = 0,
    units: Sequence[str] | Texts | None = None,
) -> tuple[Mask, Mask]:
    """(train, test) masks, (N,) bool each, that cover all rows and share no recording.

    recordings, labels : (N,)
    fraction           : of each class's units to hold out, rounded, at least one and never all
    units              : (N,) what must not be cut instead of recordings, such as speakers or sources; units that share
                         a recording stay together

    Raises KnnError that names the class when one has a single unit, or (units that hold several classes) when a
    class could not be put on both sides.
    """
    if not 0 < fraction < 1:
        raise KnnError(f"The held-out fraction {fraction} is not between 0 and 1.")
    plan = _plan(recordings, labels, units, seed)
    side: dict[int, bool] = {}  # unit -> held out
    for name, own in plan.classes:
        wanted = min(max(1, round(fraction * len(own))), len(own) - 1)
        free = [unit for unit in own if unit not in side]
        missing = max(0, wanted - sum(side.get(unit, False) for unit in own))
        if len(free) <= missing and all(side.get(unit, True) for unit in own):
            missing = len(free) - 1  # one is left to train on
        side.update({unit: place < missing for place, unit in enumerate(free)})
        if len({side[unit] for unit in own}) < 2:
            raise _cannot(name)
    test = np.asarray([side[unit] for unit in range(plan.units)])[plan.unit]
    return ~test, test


def folds(
    recordings: Sequence[str] | Texts,
    labels: Sequence[str] | Texts,
    *,
    count: int = 5,
    seed: int = 0,
    units: Sequence[str] | Texts | None = None,
) -> list[tuple[Mask, Mask]]:
    """(train, test) masks of a cross-validation: every row is tested once, by rows of other recordings only.

    At most `count` folds; fewer when no class has as many units. A class's units are dealt out evenly, so every class
    is in every train mask. Arguments and errors as for `held_out`.
    """
    if count < 2:
        raise KnnError(f"Cross-validation needs at least 2 folds, not {count}.")
    plan = _plan(recordings, labels, units, seed)
    fold: dict[int, int] = {}
    sizes = [0] * count
    for name, own in plan.classes:
        here = [sum(fold.get(unit) == number for unit in own) for number in range(count)]
        for unit in own:
            if unit not in fold:
                number = min(range(count), key=lambda number: (here[number], sizes[number], number))
                fold[unit] = number
                here[number] += 1
                sizes[number] += 1
        if sum(size > 0 for size in here) < 2:
            raise _cannot(name)
    numbers = np.asarray([fold[unit] for unit in range(plan.units)])[plan.unit]
    return [(numbers != number, numbers == number) for number in range(count) if (numbers == number).any()]
