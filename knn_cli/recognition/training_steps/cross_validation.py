"""Train/test splits and calibration folds of a training.

Recordings are split, not rows, so that the arrays here grow with the number of recordings only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.encoded_texts import EncodedTexts
from knn_cli.core.errors import KnnError
from knn_cli.core.values import Texts
from knn_cli.recognition import splitters
from knn_cli.recognition.calibrated_classifier import CALIBRATION_FOLDS
from knn_cli.recognition.split_file import Split
from knn_cli.recognition.splitters import Mask

Indices = NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class RecordingKeys:
    """The distinct (recording, unit, class) triples of some rows, called keys below.

    Attributes
    ----------
    row : (N,) int32 array
        The key of each row, -1 for rows without a key.
    recording, label : (P,) str arrays
        The recording and the class of each key.
    unit : (P,) str array or None
        The unit of each key, which is never cut; None: units are recordings.
    """

    row: Indices
    recording: Texts
    label: Texts
    unit: Texts | None

    @classmethod
    def from_columns(cls, names: EncodedTexts, units: EncodedTexts | None, truth: EncodedTexts) -> RecordingKeys:
        """The keys of all rows, from the recording, unit and label of each row, whose values are sorted."""
        size, labels = 1 if units is None else max(1, len(units.values)), max(1, len(truth.values))
        code = names.codes.astype(np.int64) * size
        code += 0 if units is None else units.codes
        code *= labels
        code += truth.codes
        keys, inverse = np.unique(code, return_inverse=True)
        recording_and_unit, label = np.divmod(keys, labels)
        recording, unit = np.divmod(recording_and_unit, size)
        key_units = None if units is None else units.values[unit]
        return cls(inverse.astype(np.int32), names.values[recording], truth.values[label], key_units)

    @property
    def rows(self) -> Indices:
        """(P,) number of rows of each key."""
        return np.bincount(self.row[self.row >= 0], minlength=len(self.label))

    def classes_with_fewer(self, count: int) -> list[str]:
        """Classes that have fewer units, or recordings, than that."""
        everything = np.ones(len(self.label), dtype=np.bool_)
        return sorted(label for label, number in self.units_of_classes(everything).items() if number < count)

    def units_of_classes(self, wanted: Mask) -> dict[str, int]:
        """Class -> number of units, or recordings, among the keys of the mask `wanted` (P,)."""
        units = self.recording if self.unit is None else self.unit
        pairs = set(zip(self.label[wanted].tolist(), units[wanted].tolist(), strict=True))
        return dict(Counter(label for label, _ in sorted(pairs)))

    def select(self, wanted: Mask) -> RecordingKeys:
        """Keep the keys where the mask `wanted` (P,) is true; the rows of other keys have no key afterwards."""
        place = np.where(wanted, np.cumsum(wanted) - 1, -1).astype(np.int32)
        unit = None if self.unit is None else self.unit[wanted]
        return replace(
            self, row=self.spread(place), recording=self.recording[wanted], label=self.label[wanted], unit=unit
        )

    def spread(self, values: Indices) -> Indices:
        """Spread values of keys (P,) to their rows (N,), in the same dtype; -1 for rows without a key."""
        return np.append(values, values.dtype.type(-1))[self.row]  # rows without a key (-1) get the appended value


@dataclass(frozen=True, eq=False)
class TrainTestSplit:
    """Training recordings, test recordings, and calibration folds of the training recordings.

    Attributes
    ----------
    name : str
        "test", the name of a fold, or "" for the training on all recordings.
    trained, tested : (P,) bool arrays
        Masks of the keys to train on and to test on.
    fold : (P,) int array or None
        Calibration fold of each key, valid where `trained`; None: a class has too few recordings.
    """

    name: str
    trained: Mask
    tested: Mask
    fold: Indices | None

    @property
    def folds(self) -> list[int]:
        """Numbers of the calibration folds."""
        return [] if self.fold is None else np.unique(self.fold[self.trained]).tolist()


def train_test_splits(keys: RecordingKeys, split: Split | None, *, fraction: float, seed: int) -> list[TrainTestSplit]:
    """Split keys into training and test keys.

    Parameters
    ----------
    keys : RecordingKeys
        The keys of the rows that may be trained on.
    split : Split, optional
        The held-out recordings; None draws `fraction` of each class's units.
    fraction : float
        The fraction of units to hold out, between 0 and 1.
    seed : int
        Seed of the draw of held-out units and of calibration folds.

    Returns
    -------
    list of TrainTestSplit
        A split with the test side, or a split for each fold of `split`; the last split trains on all keys and tests
        none.

    Raises
    ------
    KnnError
        A side lacks a class.
    """
    everything = np.ones(len(keys.label), dtype=np.bool_)
    whole = TrainTestSplit("", everything, ~everything, calibration_folds(keys, everything, seed))
    if split is None:
        train, test = splitters.held_out(keys.recording, keys.label, fraction=fraction, seed=seed, units=keys.unit)
        return [TrainTestSplit("test", train, test, calibration_folds(keys, train, seed)), whole]
    measured = []
    for name, train, test in split.masks(keys.recording):
        side = f"when the fold {name!r} is held out" if split.has_folds else "on the side train"
        _check_complete(keys, train, side)
        if not split.has_folds:
            _check_complete(keys, test, "on the side test")
            measured.append(TrainTestSplit(name, train, test, calibration_folds(keys, train, seed)))
        elif test.any():  # a fold whose recordings are all missing from this store is not tested
            # The calibration folds of all keys are used here too, so that the folds of the split share their cells.
            fold = whole.fold if _leaves_every_class(keys, train, whole.fold) else None
            measured.append(TrainTestSplit(name, train, test, fold))
    return [*measured, whole]


def assign_cells(parts: Sequence[TrainTestSplit]) -> tuple[Indices, list[list[int]], list[list[int]]]:
    """Group keys into cells: keys of the same cell belong to the same training sets.

    Parameters
    ----------
    parts : sequence of TrainTestSplit
        Each needs a classifier of all its training keys, and a classifier without each of its calibration folds.

    Returns
    -------
    cell : (P,) int32 array
        The cell of each key.
    training_sets : list of lists
        The cells of every training set.
    places : list of lists
        For each part: the training set of all its training keys, then those without each fold.
    """
    columns = [np.where(part.trained, 0 if part.fold is None else part.fold, -1).astype(np.int16) for part in parts]
    table, cell = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)  # (cells, parts), (P,)
    training_sets: list[list[int]] = []
    places = []
    for column, part in zip(table.T, parts, strict=True):
        wanted = [column >= 0, *((column >= 0) & (column != fold) for fold in part.folds)]
        places.append(list(range(len(training_sets), len(training_sets) + len(wanted))))
        training_sets += [np.flatnonzero(mask).tolist() for mask in wanted]
    return cell.reshape(-1).astype(np.int32), training_sets, places


def halve_out_of_set(keys: RecordingKeys, seed: int) -> tuple[Mask, bool]:
    """Divide out-of-set rows into two halves: one half chooses a threshold, the error rate is measured on the other.

    The halves never share a recording or unit. If there are two or more labels that share no recordings or units, whole
    labels are assigned to a half, with about as many rows in each; labels that share recordings or units stay together.

    Parameters
    ----------
    keys : RecordingKeys
        The keys of the out-of-set rows.
    seed : int
        Seed of the random draw.

    Returns
    -------
    half : (P,) bool array
        Mask of the keys of the half that reports.
    by_label : bool
        Whether the halves share no label.

    Raises
    ------
    KnnError
        All rows are of a single label and of a single recording or unit.
    """
    joined = splitters.merge_units(keys.recording, keys.label)
    if keys.unit is not None:
        joined = splitters.merge_units(keys.unit, joined)
    labels, label = np.unique(joined, return_inverse=True)
    if len(labels) < 2:
        same = np.full(len(keys.label), "unknown")
        return splitters.held_out(keys.recording, same, fraction=0.5, seed=seed, units=keys.unit)[1], False
    rows = np.bincount(label, weights=keys.rows)
    random = np.random.default_rng(seed)
    rank, first = random.permutation(len(labels)), int(random.integers(2))
    filled = [0.0, 0.0]
    half = np.zeros(len(labels), dtype=np.int64)
    for code in np.lexsort((rank, -rows)).tolist():  # large labels first, each to the half that has fewer rows
        half[code] = first if filled[first] <= filled[1 - first] else 1 - first
        filled[half[code]] += rows[code]
    return np.asarray(half[label] == 1), True


def calibration_folds(keys: RecordingKeys, trained: Mask, seed: int) -> Indices | None:
    """(P,) calibration fold of each trained key, -1 else -1; None if a class cannot be on both sides of each fold."""
    unit = None if keys.unit is None else keys.unit[trained]
    recordings, labels = keys.recording[trained], keys.label[trained]
    try:
        masks = splitters.folds(recordings, labels, count=CALIBRATION_FOLDS, seed=seed, units=unit)
    except KnnError:
        return None
    fold = np.full(len(trained), -1)
    number_of = np.zeros(int(trained.sum()), dtype=np.int64)
    for number, (_, test) in enumerate(masks):
        number_of[test] = number
    fold[trained] = number_of
    return fold


def _leaves_every_class(keys: RecordingKeys, trained: Mask, fold: Indices | None) -> bool:
    """Whether every class remains when any single fold is removed from the trained keys."""
    if fold is None:
        return False
    classes = len(np.unique(keys.label))
    numbers = np.unique(fold[trained]).tolist()
    return len(numbers) > 1 and all(
        len(np.unique(keys.label[trained & (fold != number)])) == classes for number in numbers
    )


def _check_complete(keys: RecordingKeys, side: Mask, where: str) -> None:
    """Raise KnnError if a side lacks a class."""
    if lacking := sorted(set(keys.label.tolist()) - set(keys.label[side].tolist())):
        raise splitters.unfit_classes(lacking, f"no recording {where}", "make another split")
