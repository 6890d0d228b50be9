"""What a training tests, and on what it calibrates: the parts of its rows, and the cells that they share.

Recordings are split, not rows, so that everything here is as small as the number of recordings.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Texts
from knn_cli.recognition import splits
from knn_cli.recognition.split_files import Split
from knn_cli.recognition.splits import Mask

FOLDS = 5

Indices = NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class Column:
    """The texts of rows as numbers, `values[codes]`: four bytes a row, however long the texts are.

    codes  : (N,) int32
    values : (V,) sorted and distinct
    """

    codes: NDArray[np.int32]
    values: Texts

    @classmethod
    def of(cls, blocks: Iterable[Texts]) -> Column:
        """Of texts that come a block at a time."""
        book: dict[str, int] = {}
        parts = [np.zeros(0, dtype=np.int32)]
        for block in blocks:
            found, inverse = np.unique(block, return_inverse=True)
            numbers = [book.setdefault(one, len(book)) for one in found.tolist()]
            parts.append(np.asarray(numbers, dtype=np.int32)[inverse])
        values, inverse = np.unique(np.asarray(list(book), dtype=np.str_), return_inverse=True)
        return cls(inverse.astype(np.int32)[np.concatenate(parts)], values)


@dataclass(frozen=True, eq=False)
class Keys:
    """The distinct (recording, unit, class) of some rows.

    row       : (N,) int32 key of each row, -1 for rows that are not among them
    recording, label : (P,)
    unit      : (P,) what is never cut, or None: recordings
    """

    row: Indices
    recording: Texts
    label: Texts
    unit: Texts | None

    @classmethod
    def of(cls, names: Column, units: Column | None, truth: Column) -> Keys:
        """The keys of all rows."""
        size, labels = 1 if units is None else max(1, len(units.values)), max(1, len(truth.values))
        code = names.codes.astype(np.int64) * size
        code += 0 if units is None else units.codes
        code *= labels
        code += truth.codes
        keys, inverse = np.unique(code, return_inverse=True)
        rest, label = np.divmod(keys, labels)
        recording, unit = np.divmod(rest, size)
        own = None if units is None else units.values[unit]
        return cls(inverse.astype(np.int32), names.values[recording], truth.values[label], own)

    @property
    def rows(self) -> Indices:
        """(P,) rows of each key."""
        return np.bincount(self.row[self.row >= 0], minlength=len(self.label))

    def only(self, wanted: Mask) -> Keys:
        """Those of the keys that are wanted (P,), for their rows."""
        place = np.where(wanted, np.cumsum(wanted) - 1, -1).astype(np.int32)
        unit = None if self.unit is None else self.unit[wanted]
        return replace(
            self, row=self.spread(place), recording=self.recording[wanted], label=self.label[wanted], unit=unit
        )

    def spread(self, values: Indices) -> Indices:
        """(N,) values of the keys (P,) for each row, -1 for rows that have none; of the values' type."""
        return np.append(values, values.dtype.type(-1))[self.row]  # the last of them is that of row -1


@dataclass(frozen=True, eq=False)
class Part:
    """Recordings to train on, others to test on, and the folds of a cross-validation among the first.

    trained, tested : (P,) masks over keys
    fold            : (P,) fold of each key, to be read where `trained`; None: a class has too few recordings
    """

    name: str
    trained: Mask
    tested: Mask
    fold: Indices | None

    @property
    def folds(self) -> list[int]:
        """Folds that there are."""
        return [] if self.fold is None else np.unique(self.fold[self.trained]).tolist()


def parts(keys: Keys, made: Split | None, *, fraction: float, seed: int) -> list[Part]:
    """What is measured, one part or one a fold of the split, and last the whole, which is not tested.

    Raises KnnError that names a class which a side lacks.
    """
    everything = np.ones(len(keys.label), dtype=np.bool_)
    whole = Part("", everything, ~everything, _folds(keys, everything, seed))
    if made is None:
        train, test = splits.held_out(keys.recording, keys.label, fraction=fraction, seed=seed, units=keys.unit)
        return [Part("test", train, test, _folds(keys, train, seed)), whole]
    measured = []
    for name, train, test in made.masks(keys.recording):
        side = f"when the fold {name!r} is held out" if made.folded else "on the side train"
        _complete(keys, train, side)
        if not made.folded:
            _complete(keys, test, "on the side test")
            measured.append(Part(name, train, test, _folds(keys, train, seed)))
        elif test.any():  # a fold of recordings that this store lacks tests nothing
            # Folds of the whole serve the parts too, so that each fold of the split shares its cells with the others.
            measured.append(Part(name, train, test, whole.fold if _serves(keys, train, whole.fold) else None))
    return [*measured, whole]


def cells(found: Sequence[Part]) -> tuple[Indices, list[list[int]], list[list[int]]]:
    """(cell of each key (P,), the cells of every training set, which set each part has for which fold).

    The last is, for each part, the set that it trains on, then one a fold, without that fold.
    """
    columns = [np.where(part.trained, 0 if part.fold is None else part.fold, -1).astype(np.int16) for part in found]
    table, cell = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)  # (cells, parts), (P,)
    sets: list[list[int]] = []
    places = []
    for column, part in zip(table.T, found, strict=True):
        wanted = [column >= 0, *((column >= 0) & (column != fold) for fold in part.folds)]
        places.append(list(range(len(sets), len(sets) + len(wanted))))
        sets += [np.flatnonzero(mask).tolist() for mask in wanted]
    return cell.reshape(-1).astype(np.int32), sets, places


def halves(keys: Keys, seed: int) -> tuple[Mask, bool]:
    """(P,) keys of one half, and whether the two halves share no label.

    They share no recording or unit ever. Labels go to one half whole, about as many rows to each, where there are two
    or more that do not share recordings or units; those that do count as one. Raises KnnError for a single recording,
    or unit, of a single label.
    """
    apart = splits.joined(keys.recording, keys.label)
    if keys.unit is not None:
        apart = splits.joined(keys.unit, apart)
    labels, label = np.unique(apart, return_inverse=True)
    if len(labels) < 2:
        same = np.full(len(keys.label), "unknown")
        return splits.held_out(keys.recording, same, fraction=0.5, seed=seed, units=keys.unit)[1], False
    rows = np.bincount(label, weights=keys.rows)
    random = np.random.default_rng(seed)
    rank, first = random.permutation(len(labels)), int(random.integers(2))
    filled = [0.0, 0.0]
    half = np.zeros(len(labels), dtype=np.int64)
    for one in np.lexsort((rank, -rows)).tolist():  # large ones first, each to the half that has less
        half[one] = first if filled[first] <= filled[1 - first] else 1 - first
        filled[half[one]] += rows[one]
    return np.asarray(half[label] == 1), True


def _folds(keys: Keys, trained: Mask, seed: int) -> Indices | None:
    """(P,) fold of the trained keys, -1 of the others; None when a class could not be on both sides of each."""
    unit = None if keys.unit is None else keys.unit[trained]
    try:
        masks = splits.folds(keys.recording[trained], keys.label[trained], count=FOLDS, seed=seed, units=unit)
    except KnnError:
        return None
    fold = np.full(len(trained), -1)
    own = np.zeros(int(trained.sum()), dtype=np.int64)
    for number, (_, test) in enumerate(masks):
        own[test] = number
    fold[trained] = own
    return fold


def _serves(keys: Keys, trained: Mask, fold: Indices | None) -> bool:
    """Whether every class is left when any one fold is taken from the trained keys."""
    if fold is None:
        return False
    classes = len(np.unique(keys.label))
    numbers = np.unique(fold[trained]).tolist()
    return len(numbers) > 1 and all(len(np.unique(keys.label[trained & (fold != one)])) == classes for one in numbers)


def _complete(keys: Keys, side: Mask, where: str) -> None:
    if lacking := sorted(set(keys.label.tolist()) - set(keys.label[side].tolist())):
        raise KnnError(
            f"The class {lacking[0]!r} has no recording {where}.",
            "Leave the class out (--ignore), or make another split.",
        )
