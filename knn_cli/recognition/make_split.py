"""Drawing a split from the labels of a store, and counting what is on each side or in each fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from knn_cli.core.encoded_texts import EncodedTexts
from knn_cli.core.errors import KnnError
from knn_cli.core.values import LABEL_LEVELS, Doubles, EmbeddingSet, Texts
from knn_cli.recognition import splitters
from knn_cli.recognition.split_file import KINDS, SIDES, Split, SplitLine
from knn_cli.recognition.splitters import Mask
from knn_cli.recognition.training_steps.cross_validation import RecordingKeys
from knn_cli.store.hdf5 import Store


@dataclass(frozen=True)
class SplitOptions:
    """How a split is drawn.

    Parameters
    ----------
    kind : {"held-out", "folds", "leave-one-out", "quartiles"}
        "held-out": `fraction` of each class's units is the test side; "folds": `count` folds; "leave-one-out": each
        value of `units` is a fold; "quartiles": `number` recordings of each class between the quartiles of length are
        on the side `side`, all others on the other.
    label : str
        Level of the classes: group, subgroup or speaker.
    units : str
        Level that is never cut; rows without a value count by their recording. "name" keeps recordings whole.
    fraction, count, number, side
        See `kind`.
    seed : int
        Of the draw.
    ignore : sequence of str
        Classes that are on no side.

    Raises
    ------
    KnnError
        An option is unknown, or one that the kind needs is missing.
    """

    kind: str = "held-out"
    label: str = "subgroup"
    units: str = "name"
    fraction: float = 0.2
    count: int = 5
    number: int | None = None
    side: str = "train"
    seed: int = 0
    ignore: Sequence[str] = ()

    def __post_init__(self) -> None:
        splitters.check_seed(self.seed)
        for level in (self.label, self.units):
            if level not in LABEL_LEVELS:
                raise KnnError(f"There is no label level {level!r}.", f"Known: {', '.join(LABEL_LEVELS)}.")
        if self.kind not in KINDS:
            raise KnnError(f"There is no kind of split {self.kind!r}.", f"Known: {', '.join(KINDS)}.")
        if self.label == "name":
            raise KnnError(
                "A split that keeps recordings whole cannot have recordings as classes.", "Choose another `label`."
            )
        if self.kind == "quartiles":
            if self.units != "name":
                raise KnnError(f"The kind quartiles draws recordings; it cannot keep the level {self.units} whole.")
            if self.number is None:
                raise KnnError("The kind quartiles needs the number of recordings of each class.", "Give `number`.")
            if self.side not in SIDES:
                raise KnnError(f"There is no side {self.side!r}.", f"Known: {', '.join(SIDES)}.")

    @property
    def rule(self) -> dict[str, Any]:
        """What the file keeps of them."""
        rule: dict[str, Any] = {
            "kind": self.kind,
            "label": self.label,
            "units": self.units,
            "ignore": sorted(set(self.ignore)),
        }
        of_kind = {"held-out": ("fraction",), "folds": ("count",), "quartiles": ("number", "side")}
        return rule | {name: getattr(self, name) for name in of_kind.get(self.kind, ())}


def make_split(rows: EmbeddingSet | Store, options: SplitOptions | None = None) -> Split:
    """Draw a split of recordings. Nothing depends on the order of the rows.

    Parameters
    ----------
    rows : EmbeddingSet or Store
        Labels and times are enough, and all that is read of a store.
    options : SplitOptions, optional
        How it is drawn.

    Raises
    ------
    KnnError
        A side would lack a class; see the functions of `splitters`.
    """
    options = options or SplitOptions()
    keys = RecordingKeys.from_columns(*(_column(rows, level) for level in ("name", options.units, options.label)))
    names, truth, units = keys.recording, keys.label, keys.unit
    assert units is not None
    unit = whole_units(units, names, options.units)
    used = (truth != "") & ~np.isin(truth, list(options.ignore))
    if options.kind == "leave-one-out":
        used &= units != ""
    if not used.any():
        known = [level for level in LABEL_LEVELS[:-1] if (_column(rows, level).values != "").any()]
        raise KnnError(f"No row has a {options.label} to split by.", without_level(options.label, known))
    lengths = _lengths(rows, keys, used) if options.kind == "quartiles" else np.zeros(len(names))
    parts = np.full(len(names), "", dtype=object)
    parts[used] = _draw(names[used], truth[used], unit[used], lengths[used], options)
    lines = {SplitLine(*line) for line in zip(names.tolist(), unit.tolist(), truth.tolist(), parts, strict=True)}
    return Split(tuple(sorted(lines)), options.rule, options.seed)


def _column(rows: EmbeddingSet | Store, level: str) -> EncodedTexts:
    """The labels (N,) of a level, with sorted values."""
    column = rows.encoded(level) if isinstance(rows, Store) else EncodedTexts.from_texts(rows.label(level))
    return column.sorted()


def _seconds(rows: EmbeddingSet | Store) -> Doubles:
    """(N,) lengths of rows, NaN where unknown."""
    return rows.seconds() if isinstance(rows, Store) else rows.end - rows.start


def _lengths(rows: EmbeddingSet | Store, keys: RecordingKeys, used: Mask) -> Doubles:
    """(P,) seconds of each key; the number of its rows, if the length of any row that is used is unknown."""
    seconds = splitters.totals(_seconds(rows), keys.row, len(used))
    return keys.rows.astype(np.float64) if np.isnan(seconds[used]).any() else seconds


def _draw(names: Texts, truth: Texts, unit: Texts, seconds: Any, options: SplitOptions) -> Any:
    """(N,) side or fold of each row."""
    part = np.full(len(names), "", dtype=object)
    units = None if options.units == "name" else unit
    if options.kind == "held-out":
        train, test = splitters.held_out(names, truth, fraction=options.fraction, seed=options.seed, units=units)
        part[train], part[test] = SIDES
    elif options.kind == "folds":
        masks = splitters.folds(names, truth, count=options.count, seed=options.seed, units=units)
        for fold, (_, test) in enumerate(masks):
            part[test] = str(fold)
    elif options.kind == "leave-one-out":
        for value, _, test in splitters.leave_one_out(names, truth, unit):
            part[test] = value
    else:
        assert options.number is not None
        drawn = splitters.between_quartiles(names, truth, seconds, number=options.number, seed=options.seed)
        part[drawn], part[~drawn] = options.side, SIDES[1 - SIDES.index(options.side)]
    return part


def whole_units(unit: Texts, names: Texts, level: str) -> Texts:
    """The units of rows: their value at a level, or their recording where they have none.

    Parameters
    ----------
    unit : (N,) str array
        Values at the level, "" where unknown.
    names : (N,) str array
        Recordings.
    level : str
        For the message.

    Raises
    ------
    KnnError
        No row has a value.
    """
    known = unit != ""
    if len(unit) and not known.any():
        raise KnnError(
            f"No row has a {level} to keep whole.", f"Keep recordings whole with `units=name`. {labels_that_say(level)}"
        )
    return unit if known.all() else np.where(known, unit, names)


def labels_that_say(level: str) -> str:
    """A sentence: which rules of labels give recordings a value at a level."""
    return (
        f"Or convert the recordings again with labels that name the {level}: a pattern such as {level}/file for "
        f"folders with its name, or a table with the columns file and {level}."
    )


def without_level(level: str, known: Sequence[str]) -> str:
    """What would work where no row has a value at a level.

    Parameters
    ----------
    level : str
        The level that was asked for.
    known : sequence of str
        Levels at which rows have values.
    """
    if not known:
        return labels_that_say(level).replace("Or convert", "Convert")
    return f"Rows have a {' and a '.join(known)}: take `label={known[0]}`. {labels_that_say(level)}"


class SplitCount(NamedTuple):
    """Rows of a class on a side or in a fold ("" for none). `seconds` is NaN where a row does not have a length."""

    label: str
    part: str
    rows: int
    recordings: int
    seconds: float


def count_split(split: Split, rows: EmbeddingSet | Store) -> tuple[SplitCount, ...]:
    """How much of each class is on each side or in each fold.

    Returns
    -------
    tuple of SplitCount
        Classes in sorted order; rows on no side last, by class.

    Raises
    ------
    KnnError
        As `Split.part_of`.
    """
    names, truth, ignored = _column(rows, "name"), _column(rows, split.label), [*split.rule["ignore"], ""]
    labels = truth.values
    parts, which = np.unique(np.append(split.part_of(names.values), ""), return_inverse=True)  # of names, and none
    cell = np.where(np.isin(labels, ignored)[truth.codes], which[-1], which[names.codes]) * len(labels) + truth.codes
    size = len(parts) * len(labels)
    sums = np.bincount(cell, minlength=size)
    seconds = np.bincount(cell, weights=_seconds(rows), minlength=size)
    cell *= len(names.values)
    cell += names.codes
    recordings = np.bincount(np.unique(cell) // max(1, len(names.values)), minlength=size)
    place_of = {str(name): place for place, name in enumerate(parts)}

    def count(code: int, text: str, side: str) -> SplitCount:
        if side not in place_of:
            return SplitCount(text, side, 0, 0, 0.0)
        at = place_of[side] * len(labels) + code
        return SplitCount(text, side, int(sums[at]), int(recordings[at]), float(seconds[at]))

    wanted = [(code, text) for code, text in enumerate(labels.tolist()) if text not in ignored]
    on_sides = [count(code, text, side) for code, text in wanted for side in split.parts]
    on_none = [count(code, text, "") for code, text in enumerate(labels.tolist())]
    return (*on_sides, *(line for line in on_none if line.rows))
