"""Splits of rows as masks: one held-out side, folds, one unit left out at a time, recordings of middling length.

Segments of one recording resemble each other in speaker, acoustics and channel; a split that cuts through recordings
measures that resemblance. So whole units (recordings, or speakers or sources by `units`) go to one side.
Nothing depends on the order of the rows: units and classes are sorted before anything is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, Texts

Mask = NDArray[np.bool_]


def check_seed(seed: int) -> None:
    """KnnError for a seed that nothing can be drawn with."""
    if seed < 0:
        raise KnnError(f"The seed {seed} is negative.", "Take 0 or more.")


class _Units(NamedTuple):
    """What is drawn from.

    unit    : (N,) unit of each row
    size    : number of units
    classes : for each class, rarest first, its name and its units in drawn order
    """

    unit: NDArray[np.int64]
    size: int
    classes: list[tuple[str, list[int]]]


def _shuffled_units(
    recordings: Sequence[str] | Texts, labels: Sequence[str] | Texts, units: Sequence[str] | Texts | None, seed: int
) -> _Units:
    """The units of each class in drawn order; KnnError for a class of one unit."""
    check_seed(seed)
    keys = np.asarray(recordings if units is None else units, dtype=np.str_)
    texts = np.asarray(labels, dtype=np.str_)
    if len(keys) != len(texts) or len(recordings) != len(texts):
        raise ValueError(f"{len(recordings)} recordings, {len(keys)} units, {len(texts)} labels")
    if not len(texts):
        raise KnnError("There are no rows to split.")
    if units is not None:
        keys = joined(np.asarray(recordings, dtype=np.str_), keys)
    names, unit = np.unique(keys, return_inverse=True)
    classes, label = np.unique(texts, return_inverse=True)
    rank = np.random.default_rng(seed).permutation(len(names))
    pairs = np.unique(np.stack([label, unit], axis=1), axis=0)  # (P, 2) class, unit; each pair once
    members = [
        sorted(pairs[pairs[:, 0] == code, 1].tolist(), key=lambda unit: rank[unit]) for code in range(len(classes))
    ]
    for name, own in zip(classes.tolist(), members, strict=True):
        if len(own) < 2:
            raise KnnError(
                f"The class {name!r} has a single recording or other unit, {str(names[own[0]])!r}, which cannot be "
                "on both sides of a split.",
                "Add recordings of it, leave the class out (`ignore`), or choose another label level.",
            )
    order = sorted(range(len(classes)), key=lambda code: (len(members[code]), code))
    return _Units(unit, len(names), [(str(classes[code]), members[code]) for code in order])


def joined(recordings: Texts, units: Texts) -> Texts:
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


def _not_on_both_sides(name: str) -> KnnError:
    return KnnError(
        f"The recordings of class {name!r} cannot be put on both sides: they hold other classes too.",
        "Try another seed, leave the class out (`ignore`), or choose another label level.",
    )


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
        Of the rows.
    fraction : float
        Of each class's units to hold out, rounded, at least one and never all.
    seed : int
        Of the draw.
    units : (N,) sequence of str, optional
        What must not be cut instead of recordings, such as speakers or sources; units that share a recording stay
        together.

    Returns
    -------
    train, test : (N,) bool arrays
        They cover all rows and share no recording.

    Raises
    ------
    KnnError
        A class has a single unit, or (units that hold several classes) cannot be put on both sides.
    """
    if not 0 < fraction < 1:
        raise KnnError(f"The held-out fraction {fraction} is not between 0 and 1.")
    drawn = _shuffled_units(recordings, labels, units, seed)
    side: dict[int, bool] = {}  # unit -> held out
    for name, own in drawn.classes:
        wanted = min(max(1, round(fraction * len(own))), len(own) - 1)
        free = [unit for unit in own if unit not in side]
        missing = max(0, wanted - sum(side.get(unit, False) for unit in own))
        if len(free) <= missing and all(side.get(unit, True) for unit in own):
            missing = len(free) - 1  # one is left to train on
        side.update({unit: place < missing for place, unit in enumerate(free)})
        if len({side[unit] for unit in own}) < 2:
            raise _not_on_both_sides(name)
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
    """Deal each class's units out to folds for a cross-validation.

    Parameters
    ----------
    recordings, labels, seed, units
        As for `held_out`.
    count : int
        Folds at most, two or more; there are fewer when no class has as many units.

    Returns
    -------
    list of (train, test) pairs of (N,) bool arrays
        Every row is tested once, by rows of other recordings only. A class's units are dealt out evenly, so every
        class is in every train mask.

    Raises
    ------
    KnnError
        As `held_out`.
    """
    if count < 2:
        raise KnnError(f"Cross-validation needs at least 2 folds, not {count}.")
    drawn = _shuffled_units(recordings, labels, units, seed)
    fold: dict[int, int] = {}
    sizes = [0] * count
    for name, own in drawn.classes:
        here = [sum(fold.get(unit) == number for unit in own) for number in range(count)]
        for unit in own:
            if unit not in fold:
                number = min(range(count), key=lambda number: (here[number], sizes[number], number))
                fold[unit] = number
                here[number] += 1
                sizes[number] += 1
        if sum(size > 0 for size in here) < 2:
            raise _not_on_both_sides(name)
    numbers = np.asarray([fold[unit] for unit in range(drawn.size)])[drawn.unit]
    return [(numbers != number, numbers == number) for number in range(count) if (numbers == number).any()]


def leave_one_out(
    recordings: Sequence[str] | Texts, labels: Sequence[str] | Texts, units: Sequence[str] | Texts
) -> list[tuple[str, Mask, Mask]]:
    """Leave each unit out in turn.

    Parameters
    ----------
    recordings, labels : (N,) sequences of str
        Of the rows.
    units : (N,) sequence of str
        The value that is left out, such as the corpus, language family or speaker of each row.

    Returns
    -------
    list of (unit, train, test)
        For every unit, in sorted order, (N,) bool arrays of the rows of all others and of its own. A test side may
        lack classes, a train side may not.

    Raises
    ------
    KnnError
        There is a single unit, a recording of two units, or a class that occurs in one unit alone.
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
    owner: dict[str, str] = {}
    for recording, unit in zip(names.tolist(), keys.tolist(), strict=True):
        if owner.setdefault(recording, unit) != unit:
            raise KnnError(
                f"The recording {recording!r} belongs to {owner[recording]!r} and to {unit!r}; leaving either out "
                "would cut it.",
                "Choose another level of units.",
            )
    for label in np.unique(texts):
        if len(own := np.unique(keys[texts == label])) < 2:
            raise KnnError(
                f"The class {str(label)!r} occurs in {str(own[0])!r} alone, so nothing would be left to train it.",
                "Leave the class out (`ignore`), or choose another level of units.",
            )
    return [(str(value), keys != value, keys == value) for value in values]


def between_quartiles(
    recordings: Sequence[str] | Texts,
    labels: Sequence[str] | Texts,
    seconds: Sequence[float] | Doubles,
    *,
    number: int,
    seed: int = 0,
) -> Mask:
    """Draw `number` recordings of each class whose length lies between the class's quartiles, both included.

    So every class weighs alike, and neither scraps nor recordings of an hour are drawn.

    Parameters
    ----------
    recordings, labels : (N,) sequences of str
        Of the rows.
    seconds : (N,) array
        Length of each row; a recording is as long as its rows together. Quartiles are those of linear interpolation
        over the class's recordings.
    number : int
        Recordings to draw per class.
    seed : int
        Of the draw.

    Returns
    -------
    (N,) bool array
        The rows of the recordings drawn.

    Raises
    ------
    KnnError
        A class has fewer such recordings, or none besides those drawn; a recording has two classes; a row has no
        length.
    """
    names, codes = np.unique(np.asarray(recordings, dtype=np.str_), return_inverse=True)
    texts, lengths = np.asarray(labels, dtype=np.str_), np.asarray(seconds, dtype=np.float64)
    if not len(codes) == len(texts) == len(lengths):
        raise ValueError(f"{len(codes)} recordings, {len(texts)} labels, {len(lengths)} lengths")
    check_seed(seed)
    if number < 1:
        raise KnnError(f"{number} recordings of each class cannot be drawn.", "Ask for 1 or more.")
    if np.isnan(lengths).any():
        where = str(names[codes[np.isnan(lengths)][0]])
        raise KnnError(f"The rows of {where!r} have no start and end, so its length is unknown.")
    classes = np.unique(texts)
    class_of = _class_of_recording(names, codes, texts, classes)
    total = _total_by_code(lengths, codes, len(names))
    rank = np.random.default_rng(seed).permutation(len(names))
    drawn = np.zeros(len(names), dtype=np.bool_)
    for code, label in enumerate(classes.tolist()):
        middle = _middle_recordings(np.flatnonzero(class_of == code), total, label, number)
        drawn[middle[np.argsort(rank[middle])[:number]]] = True
    return np.asarray(drawn[codes])


def _class_of_recording(names: Texts, codes: NDArray[np.int64], texts: Texts, classes: Texts) -> NDArray[np.int64]:
    """(R,) index of the class of each recording; KnnError for a recording of two."""
    class_of = np.full(len(names), -1)
    for code, label in enumerate(classes.tolist()):
        own = np.unique(codes[texts == label])
        if (taken := own[class_of[own] >= 0]).size:
            other = str(classes[class_of[taken[0]]])
            raise KnnError(
                f"The recording {str(names[taken[0]])!r} holds the classes {other!r} and {label!r}.",
                "Choose another label level, or another kind of split.",
            )
        class_of[own] = code
    return class_of


def _total_by_code(values: Doubles, codes: NDArray[np.int64], size: int) -> Doubles:
    """(size,) sums that do not depend on the order of the rows: exact, rounded once."""
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(size + 1))
    return np.asarray([math.fsum(values[order[a:b]].tolist()) for a, b in pairwise(bounds.tolist())])


def _middle_recordings(own: NDArray[np.intp], total: Doubles, label: str, number: int) -> NDArray[np.intp]:
    """The recordings of a class between its quartiles of length; KnnError where they do not suffice."""
    first, third = np.quantile(total[own], [0.25, 0.75])
    middle: NDArray[np.intp] = own[(total[own] >= first) & (total[own] <= third)]
    if len(middle) < number:
        raise KnnError(
            f"The class {label!r} has {len(middle)} recordings between the quartiles of length "
            f"({first:.4g} s to {third:.4g} s), {number} were asked for.",
            "Ask for fewer, or leave the class out (`ignore`).",
        )
    if len(own) == number:
        raise KnnError(
            f"All {number} recordings of the class {label!r} would be on one side.",
            "Ask for fewer, or leave the class out (`ignore`).",
        )
    return middle
