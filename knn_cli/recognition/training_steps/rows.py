"""Selects the rows that a classifier is trained on, their classes, and the rows outside its set of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from knn_cli.core.encoded_texts import EncodedTexts
from knn_cli.core.errors import KnnError
from knn_cli.core.values import LABEL_LEVELS, Texts
from knn_cli.evaluation.open_set import UNKNOWN
from knn_cli.recognition.make_split import whole_units, without_level
from knn_cli.recognition.split_file import Split
from knn_cli.recognition.splitters import Mask
from knn_cli.recognition.training_steps.cross_validation import Indices, RecordingKeys, halve_out_of_set
from knn_cli.recognition.training_steps.embedding_source import EmbeddingSource


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """The rows (N,) of a training.

    Attributes
    ----------
    classes : (C,) str array
        The classes, sorted.
    truth : (N,) int array
        The class of each row, 0 for rows that are not trained on (those without a key).
    keys : RecordingKeys
        The keys of the rows that are trained on.
    half : (N,) int array
        0: out-of-set rows that choose the threshold, 1: out-of-set rows on which it is measured, -1: all other rows.
    fold : (N,) int array
        For out-of-set rows that a fold of a split holds out, the index of the fold in `folds`; -1: all other rows.
    folds : tuple of str
        Names of these folds.
    """

    classes: Texts
    truth: Indices
    keys: RecordingKeys
    half: Indices
    fold: Indices
    folds: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowOptions:
    """Options for the selection of training rows.

    Parameters
    ----------
    label : str
        Level of the classes.
    ignore : sequence of str
        Labels to leave out.
    out_of_set : sequence of str
        Labels outside the closed set.
    out_of_set_class : bool
        Train them as the class "unknown".
    units : str
        Level whose units are never cut, unless a split defines it.
    seed : int
        Seed of the draw of the two halves of out-of-set rows.
    """

    label: str
    ignore: Sequence[str] = ()
    out_of_set: Sequence[str] = ()
    out_of_set_class: bool = False
    units: str = "name"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class ChosenRows:
    """The result of `choose_rows`.

    Attributes
    ----------
    rows : TrainingRows
        The rows, their classes and their keys.
    left_out : int
        The number of rows that have no label, have an ignored label, or are on no side of the split.
    not_found : tuple of str
        Ignored and out-of-set labels that no row has.
    not_in_store : tuple of str
        Recordings of the split that have no rows.
    by_label : bool or None
        Whether the halves of the out-of-set rows share no label; None without such rows.
    choosing : str array
        Recordings whose rows choose the threshold.
    """

    rows: TrainingRows
    left_out: int
    not_found: tuple[str, ...]
    not_in_store: tuple[str, ...]
    by_label: bool | None
    choosing: Texts


@dataclass(eq=False)
class _Selection:
    """Masks (P,) over keys while rows are chosen, and the fold of each key."""

    keys: RecordingKeys
    used: Mask
    out_of_set: Mask
    left_out: Mask
    fold: Indices
    folds: tuple[str, ...] = ()


def choose_rows(source: EmbeddingSource, options: RowOptions, split: Split | None = None) -> ChosenRows:
    """Choose the rows to train on, by means of keys, of which there are fewer than rows.

    Parameters
    ----------
    source : EmbeddingSource
        All rows.
    options : RowOptions
        The level of the classes, and the labels to leave out.
    split : Split, optional
        Rows that it does not assign to a side are left out, and its units are never cut.

    Returns
    -------
    ChosenRows
        The rows, with facts about those that were left out.

    Raises
    ------
    KnnError
        There are fewer than two classes, none of the out-of-set labels has rows, or the split lacks a recording.
    """
    keys = _keys(source, options.label, split, options.units)
    truth = keys.label
    used = (truth != "") & ~np.isin(truth, list(options.ignore))  # (P,)
    out_of_set = used & np.isin(truth, list(options.out_of_set))
    if options.out_of_set and not out_of_set.any():
        listed = ", ".join(options.out_of_set)
        raise KnnError(f"No row has a label outside the closed set: {listed}.", "`knn info` shows what a store holds.")
    if options.out_of_set_class:
        keys = replace(keys, label=np.where(out_of_set, UNKNOWN, truth))
        out_of_set = np.zeros_like(out_of_set)
    used &= ~out_of_set
    no_fold = np.full(len(used), -1, dtype=np.int32)
    selection = _Selection(keys, used, out_of_set, ~used & ~out_of_set, no_fold)
    if split is not None:
        _apply_split(selection, split)
    keys, used = selection.keys, selection.used
    if options.out_of_set_class and UNKNOWN not in keys.label[used]:
        raise KnnError(
            "No row outside the closed set is on a side of the split.", "Make a split that does not ignore them."
        )
    _check_classes(keys.label[used], options.label, source)
    half, by_label = np.full(len(used), -1, dtype=np.int8), None
    if selection.out_of_set.any():
        half[selection.out_of_set], by_label = halve_out_of_set(keys.select(selection.out_of_set), options.seed)
    trained_keys = keys.select(used)
    classes, codes = np.unique(trained_keys.label, return_inverse=True)
    columns = np.maximum(trained_keys.spread(codes.astype(np.int32)), 0)
    present = set(truth.tolist())
    return ChosenRows(
        rows=TrainingRows(
            classes, columns, trained_keys, keys.spread(half), keys.spread(selection.fold), selection.folds
        ),
        left_out=int(keys.rows[selection.left_out].sum()),
        not_found=tuple(label for label in (*options.ignore, *options.out_of_set) if label not in present),
        not_in_store=() if split is None else split.absent_from(keys.recording),
        by_label=by_label,
        choosing=(truth if options.label == "name" else keys.recording)[half == 0],
    )


def _apply_split(selection: _Selection, split: Split) -> None:
    """Leave out keys on no side, note the folds of out-of-set keys, and take the units of the split."""
    keys, out_of_set = selection.keys, selection.out_of_set
    wanted = selection.used | out_of_set
    part = np.full(len(wanted), "", dtype=object)
    part[wanted] = split.part_of(keys.recording[wanted])
    selection.left_out |= selection.used & (part == "")
    selection.used &= part != ""
    if split.has_folds:
        selection.folds = split.parts
        selection.fold[out_of_set] = [split.parts.index(name) if name else -1 for name in part[out_of_set]]
    elif out_of_set.any():
        selection.out_of_set = out_of_set & (part != "test")  # reserved for testing, like all of the side test
        if not selection.out_of_set.any():
            raise KnnError(
                "All rows outside the closed set are on the side test of the split.",
                "Make a split with some of them on the side train, or one that ignores them.",
            )
    if split.units != "name":
        wanted = selection.used | selection.out_of_set
        unit = keys.recording.astype(object)
        unit[wanted] = split.unit_of(keys.recording[wanted])
        selection.keys = replace(keys, unit=unit.astype(np.str_))


def _keys(source: EmbeddingSource, label: str, split: Split | None, units: str) -> RecordingKeys:
    """The keys of all rows, with units of the level `units`, whatever the split's units are."""
    truth = source.column(label)
    if label == "name":
        if split is not None or units != "name":
            raise KnnError(
                "If recordings are the classes, they cannot be kept whole.", "Choose another level of labels."
            )
        # When every recording is a separate class, only segments can be divided between training and test.
        numbers = np.arange(len(source)).astype(f"<U{len(str(len(source)))}")
        order = np.argsort(numbers)
        codes = np.empty(len(numbers), dtype=np.int32)
        codes[order] = np.arange(len(numbers))
        return RecordingKeys.from_columns(EncodedTexts(codes, numbers[order]), None, truth)
    unit_column = None if units == "name" else source.column(units)
    keys = RecordingKeys.from_columns(source.column("name"), unit_column, truth)
    if keys.unit is None:
        return keys
    return replace(keys, unit=whole_units(keys.unit, keys.recording, units))


def _check_classes(truth: Texts, label: str, source: EmbeddingSource) -> None:
    """Raise KnnError for fewer than two classes."""
    classes = np.unique(truth).tolist()
    if len(classes) < 2:
        present = f"only {classes[0]!r}" if classes else "none"
        counts = {level: len({*source.column(level).values.tolist()} - {""}) for level in LABEL_LEVELS[:-1]}
        hint = without_level(label, [level for level, count in counts.items() if count > 1 and level != label])
        raise KnnError(f"Training needs two labels or more at the level {label}, there is {present}.", hint)
