"""Train/test splits of rows as masks: held-out rows, folds, leave-one-unit-out, and recordings of average length.

Segments of the same recording resemble each other in speaker, acoustics and channel, and a split that cuts through
recordings measures that resemblance. Whole units (recordings, or speakers or sources given by `units`) are therefore
assigned to the same side.
Nothing depends on the order of the rows: units and classes are sorted before anything is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, Texts

Mask = NDArray[np.bool_]


def check_seed(seed: int) -> None:
    """Raise KnnError for a negative seed."""
    if seed < 0:
        raise KnnError(f"The seed {seed} is negative.", "Take 0 or more.")


class _Units(NamedTuple):
    """The units of all rows, shuffled within each class.

    Attributes
    ----------
    unit : (N,) int64 array
        The unit of each row.
    size : int
        The number of units.
    classes : list of (str, list of int)
        The name of each class, rarest first, with its units in drawn order.
    """

    unit: NDArray[np.int64]
    size: int
    classes: list[tuple[str, list[int]]]


def _shuffled_units(
    recordings: Sequence[str] | Texts, labels: Sequence[str] | Texts, units: Sequence[str] | Texts | None, seed: int
) -> _Units:
    """Shuffle the units of each class; KnnError for classes that have a single unit."""
    check_seed(seed)
    keys = np.asarray(recordings if units is None else units, dtype=np.str_)
    texts = np.asarray(labels, dtype=np.str_)
    if len(keys) != len(texts) or len(recordings) != len(texts):
        raise ValueError(f"{len(recordings)} recordings, {len(keys)} units, {len(texts)} labels")
    if not len(texts):
        raise KnnError("There are no rows to split.")
    if units is not None:
        keys = merge_units(np.asarray(recordings, dtype=np.str_), keys)
    names, unit = np.unique(keys, return_inverse=True)
    classes, label = np.unique(texts, return_inverse=True)
    rank = np.random.default_rng(seed).permutation(len(names))
    pairs = np.unique(np.stack([label, unit], axis=1), axis=0)  # (P, 2) class, unit; each pair once
    members = [
        sorted(pairs[pairs[:, 0] == code, 1].tolist(), key=lambda unit: rank[unit]) for code in range(len(classes))
    ]
    if rare := {name: own[0] for name, own in zip(classes.tolist(), members, strict=True) if len(own) < 2}:
        units_of = f"{str(names[next(iter(rare.values()))])!r}, " if len(rare) == 1 else ""
        raise unfit_classes(
            [*rare],
            f"a single recording or other unit, {units_of}which cannot be on both sides of a split",
            "add recordings",
            "choose another label level",
            every=len(rare) == len(classes),
        )
    order = sorted(range(len(classes)), key=lambda code: (len(members[code]), code))
    return _Units(unit, len(names), [(str(classes[code]), members[code]) for code in order])


def merge_units(recordings: Texts, units: Texts) -> Texts:
    """Merge units that share a recording, so that no recording is ever cut.

    Parameters
    ----------
    recordings, units : (N,) str arrays
        The recording and the unit of each row.

    Returns
    -------
    (N,) str array
        The merged unit of each row, named after the first of the units that it consists of.
    """
    parent = {name: name for name in np.unique(units).tolist()}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    first_unit: dict[str, str] = {}  # of each recording
    for recording, unit in zip(recordings.tolist(), units.tolist(), strict=True):
        low, high = sorted((root(unit), root(first_unit.setdefault(recording, unit))))
        parent[high] = low
    return np.asarray([root(unit) for unit in units.tolist()], dtype=np.str_)


def unfit_classes(classes: Sequence[str], fault: str, *remedies: str, every: bool = False) -> KnnError:
    """The error of all classes at once that cannot be split, with what leaves them out.

    Parameters
    ----------
    classes : sequence of str
    fault : str
        What the class, or each of them, has.
    *remedies : str
        What else helps.
    every : bool
        Whether these are all classes that there are, so that it does not help to leave them out.
    """
    subject = f"The class {classes[0]!r} has" if len(classes) == 1 else f"Each of the {len(classes)} classes has"
    others = f": {', '.join(map(repr, classes))}" if len(classes) > 1 else ""
    way = f"Leave {'it' if len(classes) == 1 else 'them'} out with `ignore={','.join(classes)}`"
    hint = f"{', or '.join(remedies if every else [way, *remedies])}."
    return KnnError(f"{subject} {fault}{others}.", hint[0].upper() + hint[1:])


def _not_on_both_sides(names: Sequence[str]) -> KnnError:
    fault = "recordings that cannot be put on both sides, since they hold other classes too"
    return unfit_classes(names, fault, "try another seed", "choose another label level")


def held_out(
    recordings: Sequence[str] | Texts,
    labels: Sequence[str] | Texts,
    *,
    fraction: float = 0.2,
    seed: int = 0,
    units: Sequence[str] | Texts | None = None,
) -> tuple[Mask, Mask]:
    """Hold out a fraction of each class's units.

    Parameters
    ----------
    recordings, labels : (N,) sequences of str
        The recording and the label of each row.
    fraction : float
        The fraction of each class's units to hold out, rounded; at least one unit and never all.
    seed : int
        Seed of the random draw.
    units : (N,) sequence of str, optional
        The units that must not be cut, such as speakers or sources, instead of recordings; units that share a
        recording stay together.

    Returns
    -------
    train, test : (N,) bool arrays
        Masks that cover all rows and share no recording.

    Raises
    ------
    KnnError
        A class has a single unit, or it cannot be put on both sides because its units hold other classes too.
    """
    if not 0 < fraction < 1:
        raise KnnError(f"The held-out fraction {fraction} is not between 0 and 1.")
    drawn = _shuffled_units(recordings, labels, units, seed)
    side: dict[int, bool] = {}  # unit -> held out
    unfit: list[str] = []
    for name, class_units in drawn.classes:
        wanted = min(max(1, round(fraction * len(class_units))), len(class_units) - 1)
        free = [unit for unit in class_units if unit not in side]
        missing = max(0, wanted - sum(side.get(unit, False) for unit in class_units))
        if len(free) <= missing and all(side.get(unit, True) for unit in class_units):
            missing = len(free) - 1  # leave a unit to train on
        side.update({unit: place < missing for place, unit in enumerate(free)})
        if len({side[unit] for unit in class_units}) < 2:
            unfit.append(name)
    if unfit:
        raise _not_on_both_sides(unfit)
    test = np.asarray([side[unit] for unit in range(drawn.size)])[drawn.unit]
    return ~test, test


def folds(
    recordings: Sequence[str] | Texts,
    labels: Sequence[str] | Texts,
    *,
    count: int = 5,
    seed: int = 0,
    units: Sequence[str] | Texts | None = None,
) -> list[tuple[Mask, Mask]]:
    """Distribute each class's units over folds for a cross-validation.

    Parameters
    ----------
    recordings, labels, seed, units
        As for `held_out`.
    count : int
        The maximum number of folds, two or more; there are fewer when no class has as many units.

    Returns
    -------
    list of (train, test) pairs of (N,) bool arrays
        Every row is tested exactly once, against training rows of other recordings. A class's units are distributed
        evenly, so that every class occurs in every train mask.

    Raises
    ------
    KnnError
        For the reasons that `held_out` gives.
    """
    if count < 2:
        raise KnnError(f"Cross-validation needs at least 2 folds, not {count}.")
    drawn = _shuffled_units(recordings, labels, units, seed)
    fold: dict[int, int] = {}
    unfit: list[str] = []
    sizes = [0] * count
    for name, class_units in drawn.classes:
        class_sizes = [sum(fold.get(unit) == number for unit in class_units) for number in range(count)]
        for unit in class_units:
            if unit not in fold:
                number = min(range(count), key=lambda number: (class_sizes[number], sizes[number], number))
                fold[unit] = number
                class_sizes[number] += 1
                sizes[number] += 1
        if sum(size > 0 for size in class_sizes) < 2:
            unfit.append(name)
    if unfit:
        raise _not_on_both_sides(unfit)
    numbers = np.asarray([fold[unit] for unit in range(drawn.size)])[drawn.unit]
    return [(numbers != number, numbers == number) for number in range(count) if (numbers == number).any()]


def leave_one_out(
    recordings: Sequence[str] | Texts, labels: Sequence[str] | Texts, units: Sequence[str] | Texts
) -> list[tuple[str, Mask, Mask]]:
    """Leave each unit out in turn.

    Parameters
    ----------
    recordings, labels : (N,) sequences of str
        The recording and the label of each row.
    units : (N,) sequence of str
        The unit of each row, such as its corpus, language family or speaker.

    Returns
    -------
    list of (unit, train, test)
        For every unit, in sorted order, (N,) bool arrays: the rows of all other units and the rows of this unit. A
        test mask may lack classes, a train mask may not.

    Raises
    ------
    KnnError
        There is a single unit, a recording belongs to two units, or a class occurs in a single unit.
    """
    keys, names, texts = (np.asarray(column, dtype=np.str_) for column in (units, recordings, labels))
    if not len(keys) == len(names) == len(texts):
        raise ValueError(f"{len(names)} recordings, {len(keys)} units, {len(texts)} labels")
    values = np.unique(keys)
    if len(values) < 2:
        present = f"only {str(values[0])!r}" if len(values) else "none"
        raise KnnError(
            f"Leaving a unit out needs two or more units, there is {present}.", "Choose another level of units."
        )
    unit_of: dict[str, str] = {}
    for recording, unit in zip(names.tolist(), keys.tolist(), strict=True):
        if unit_of.setdefault(recording, unit) != unit:
            raise KnnError(
                f"The recording {recording!r} belongs to {unit_of[recording]!r} and to {unit!r}; leaving either out "
                "would cut it.",
                "Choose another level of units.",
            )
    units_of = {str(label): np.unique(keys[texts == label]).tolist() for label in np.unique(texts)}
    if alone := [label for label, own in units_of.items() if len(own) < 2]:
        unit = f"{units_of[alone[0]][0]!r} alone" if len(alone) == 1 else "one unit alone"
        fault = f"rows in {unit}, so that nothing would be left to train it on"
        raise unfit_classes(alone, fault, "choose another level of units", every=len(alone) == len(units_of))
    return [(str(value), keys != value, keys == value) for value in values]


def between_quartiles(
    recordings: Sequence[str] | Texts,
    labels: Sequence[str] | Texts,
    seconds: Sequence[float] | Doubles,
    *,
    number: int,
    seed: int = 0,
) -> Mask:
    """Draw `number` recordings of each class whose length lies between the class's quartiles (inclusive).

    Every class thus has the same weight, and neither very short nor very long recordings are drawn. Where the length of
    any row is unknown, a recording is as long as the number of its rows.

    Parameters
    ----------
    recordings, labels : (N,) sequences of str
        The recording and the label of each row.
    seconds : (N,) array
        The length of each row in seconds. The length of a recording is the sum over its rows; the quartiles of a
        class are linearly interpolated over its recordings. NaN where it is unknown.
    number : int
        Recordings to draw per class.
    seed : int
        Seed of the random draw.

    Returns
    -------
    (N,) bool array
        Mask of the rows of the recordings that were drawn.

    Raises
    ------
    KnnError
        A class has fewer such recordings, or no other recordings than those; or a recording has two classes.
    """
    names, codes = np.unique(np.asarray(recordings, dtype=np.str_), return_inverse=True)
    texts, lengths = np.asarray(labels, dtype=np.str_), np.asarray(seconds, dtype=np.float64)
    if not len(codes) == len(texts) == len(lengths):
        raise ValueError(f"{len(codes)} recordings, {len(texts)} labels, {len(lengths)} lengths")
    check_seed(seed)
    if number < 1:
        raise KnnError(f"{number} recordings of each class cannot be drawn.", "Ask for 1 or more.")
    if np.isnan(lengths).any():
        lengths = np.ones(len(codes))
    classes = np.unique(texts)
    class_of = _class_of_recording(names, codes, texts, classes)
    total = totals(lengths, codes, len(names))
    rank = np.random.default_rng(seed).permutation(len(names))
    drawn = np.zeros(len(names), dtype=np.bool_)
    unfit: dict[str, list[str]] = {}
    fewest = number
    for code, label in enumerate(classes.tolist()):
        middle, fault = _middle_recordings(np.flatnonzero(class_of == code), total, number)
        if fault:
            unfit.setdefault(fault, []).append(label)
            fewest = min(fewest, len(middle) - (len(middle) == number))
        drawn[middle[np.argsort(rank[middle])[:number]]] = True
    for fault, labels_of in unfit.items():
        raise unfit_classes(labels_of, fault, *(f"ask for {count}" for count in [fewest] if count), "add recordings")
    return np.asarray(drawn[codes])


def _class_of_recording(names: Texts, codes: NDArray[np.int64], texts: Texts, classes: Texts) -> NDArray[np.int64]:
    """(R,) index of the class of each recording; KnnError for a recording with two classes."""
    class_of = np.full(len(names), -1)
    for code, label in enumerate(classes.tolist()):
        recordings = np.unique(codes[texts == label])
        if (taken := recordings[class_of[recordings] >= 0]).size:
            other = str(classes[class_of[taken[0]]])
            raise KnnError(
                f"The recording {str(names[taken[0]])!r} holds the classes {other!r} and {label!r}.",
                "Choose another label level, or another kind of split.",
            )
        class_of[recordings] = code
    return class_of


def totals(values: Doubles, codes: NDArray[np.integer[Any]], size: int) -> Doubles:
    """(size,) sums of the values of each code, exact up to one rounding, so that the order of rows does not matter."""
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(size + 1))
    return np.asarray([math.fsum(values[order[a:b]].tolist()) for a, b in pairwise(bounds.tolist())])


def _middle_recordings(
    recordings: NDArray[np.intp], total: Doubles, number: int
) -> tuple[NDArray[np.intp], str | None]:
    """The recordings of a class between its length quartiles, and what is wrong with them for drawing `number`."""
    first, third = np.quantile(total[recordings], [0.25, 0.75])
    middle: NDArray[np.intp] = recordings[(total[recordings] >= first) & (total[recordings] <= third)]
    if len(middle) < number:
        return middle, f"fewer recordings between the quartiles of length than the {number} that were asked for"
    if len(recordings) == number:
        return middle, f"{number} recordings, which would all be on one side"
    return middle, None
