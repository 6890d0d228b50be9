"""A split as a file: made once from the labels of a store, read back for every system that is to be compared.

A text file, UTF-8, tabs between columns, one line a recording (a recording with rows of several units or classes has
one for each):

    # knn split   1                                      schema
    # rule        {"kind": "held-out", "label": ...}     JSON: how it was drawn
    # seed        0
    recording  unit  class  side                         `fold` instead of `side` for the kinds that have folds

`side` is train or test; `fold` a number, or the unit that is left out. It is empty for recordings that no side has:
those without a label, or with an ignored one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from knn_cli.core.atomic import replacing_text
from knn_cli.core.errors import KnnError
from knn_cli.core.values import LABEL_LEVELS, EmbeddingSet, Texts
from knn_cli.recognition import splits
from knn_cli.recognition.splits import Mask

SCHEMA = 1
KINDS = ("held-out", "folds", "leave-one-out", "quartiles")
SIDES = ("train", "test")
_COLUMNS = ("recording", "unit", "class")


class SplitLine(NamedTuple):
    """One recording (of one unit and class): `part` is its side or fold, "" for none."""

    recording: str
    unit: str
    label: str
    part: str


@dataclass(frozen=True)
class Split:
    """Which recordings are kept apart.

    lines : sorted and distinct
    rule  : kind, label (level of the classes), units (level that is never cut), ignore, and what the kind asks for
    seed  : of the draw
    """

    lines: tuple[SplitLine, ...]
    rule: dict[str, Any]
    seed: int

    @property
    def kind(self) -> str:
        return str(self.rule["kind"])

    @property
    def label(self) -> str:
        """Level of the classes."""
        return str(self.rule["label"])

    @property
    def units(self) -> str:
        """Level that is never cut; `name`, recordings, is the finest."""
        return str(self.rule["units"])

    @property
    def folded(self) -> bool:
        """Whether every recording is tested once, rather than one side by the other."""
        return self.kind in {"folds", "leave-one-out"}

    @cached_property
    def sha256(self) -> str:
        """Digest of the file that `write` makes of it."""
        found = hashlib.sha256()
        for text in _texts(self):
            found.update(text.encode("utf-8", "surrogateescape"))
        return found.hexdigest()

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Sides, or folds in order."""
        if not self.folded:
            return SIDES
        found = {line.part for line in self.lines} - {""}
        return tuple(sorted(found, key=int if self.kind == "folds" else None))

    @cached_property
    def _recordings(self) -> dict[str, SplitLine]:
        found: dict[str, SplitLine] = {}
        for line in self.lines:  # a line with a part wins over the line of an ignored class
            if line.part or line.recording not in found:
                found[line.recording] = line
        return found

    @cached_property
    def _whole(self) -> dict[str, str]:
        """Recording -> its unit; units that share a recording are one."""
        names, units = (np.asarray([line[field] for line in self.lines], dtype=np.str_) for field in (0, 1))
        return dict(zip(names.tolist(), splits.joined(names, units).tolist(), strict=True))

    def part_of(self, names: Texts) -> Texts:
        """(N,) side or fold of rows of the recordings `names`, "" for none.

        Raises KnnError that names a recording which the split does not know.
        """
        return self._looked_up(names, {name: line.part for name, line in self._recordings.items()})

    def unit_of(self, names: Texts) -> Texts:
        """(N,) unit of rows of the recordings `names`; units that share a recording are one. Raises as `part_of`."""
        return self._looked_up(names, self._whole)

    def _looked_up(self, names: Texts, table: dict[str, str]) -> Texts:
        distinct, codes = np.unique(names, return_inverse=True)
        if strange := [name for name in distinct.tolist() if name not in table]:
            others = f" (nor {len(strange) - 1} others)" if len(strange) > 1 else ""
            raise KnnError(
                f"The split does not know the recording {strange[0]!r}{others}.",
                "Make the split of the store that is used now, or of one that holds all its recordings.",
            )
        return np.asarray(np.asarray([table[name] for name in distinct.tolist()], dtype=np.str_)[codes])

    def absent_from(self, names: Texts) -> tuple[str, ...]:
        """Recordings of a side or fold that no row in `names` is of, sorted."""
        present = set(np.unique(names).tolist())
        return tuple(name for name, line in self._recordings.items() if line.part and name not in present)

    def masks(self, names: Texts) -> list[tuple[str, Mask, Mask]]:
        """(name, train, test), (N,) masks: one ("test") of the kinds with sides, else one a fold."""
        part = self.part_of(names)
        if not self.folded:
            return [("test", part == "train", part == "test")]
        return [(fold, (part != fold) & (part != ""), part == fold) for fold in self.parts]


class Count(NamedTuple):
    """Rows of a class on a side or in a fold ("" for none). `seconds` is NaN where a row does not say its length."""

    label: str
    part: str
    rows: int
    recordings: int
    seconds: float


def make(
    rows: EmbeddingSet,
    *,
    label: str = "subgroup",
    units: str = "name",
    kind: str = "held-out",
    fraction: float = 0.2,
    count: int = 5,
    number: int | None = None,
    side: str = "train",
    seed: int = 0,
    ignore: Sequence[str] = (),
) -> Split:
    """Draw a split of the recordings of `rows` (labels are enough: `store.labels`).

    label    : level of the classes: group, subgroup, speaker or name
    units    : level that is never cut; rows without one count by their recording. `name` keeps recordings whole
    kind     : "held-out": `fraction` of each class's units is the test side; "folds": `count` folds;
               "leave-one-out": each value of `units` is a fold; "quartiles": `number` recordings a class between the
               quartiles of length on the side `side`, all others on the other
    ignore   : classes that are on no side

    Nothing depends on the order of the rows. Raises KnnError that names the class which would lack on a side; see
    `split.held_out`, `split.folds`, `split.leave_one_out` and `split.between_quartiles`.
    """
    splits.check_seed(seed)
    for level in (label, units):
        if level not in LABEL_LEVELS:
            raise KnnError(f"There is no label level {level!r}.", f"Known: {', '.join(LABEL_LEVELS)}.")
    if kind not in KINDS:
        raise KnnError(f"There is no kind of split {kind!r}.", f"Known: {', '.join(KINDS)}.")
    if label == "name":
        raise KnnError("A split that keeps recordings whole cannot have recordings as classes.", "Choose --label.")
    names, truth = rows.name, rows.label(label)
    unit = whole_units(rows.label(units), names, units)
    used = (truth != "") & ~np.isin(truth, list(ignore))
    if kind == "leave-one-out":
        used &= rows.label(units) != ""
    if not used.any():
        raise KnnError(f"No row has a {label} to split by.", "`knn info` shows what a store holds.")
    rule: dict[str, Any] = {"kind": kind, "label": label, "units": units, "ignore": sorted(set(ignore))}
    chosen = names[used], truth[used]
    inside = None if units == "name" else unit[used]
    part = np.full(int(used.sum()), "", dtype=object)
    if kind == "held-out":
        rule["fraction"] = fraction
        train, test = splits.held_out(*chosen, fraction=fraction, seed=seed, units=inside)
        part[train], part[test] = SIDES
    elif kind == "folds":
        rule["count"] = count
        for fold, (_, test) in enumerate(splits.folds(*chosen, count=count, seed=seed, units=inside)):
            part[test] = str(fold)
    elif kind == "leave-one-out":
        for value, _, test in splits.leave_one_out(*chosen, unit[used]):
            part[test] = value
    else:
        if units != "name":
            raise KnnError(f"The kind quartiles draws recordings; it cannot keep the level {units} apart.")
        if number is None:
            raise KnnError("The kind quartiles needs the number of recordings a class.", "Give --number.")
        if side not in SIDES:
            raise KnnError(f"There is no side {side!r}.", f"Known: {', '.join(SIDES)}.")
        rule |= {"number": number, "side": side}
        drawn = splits.between_quartiles(*chosen, (rows.end - rows.start)[used], number=number, seed=seed)
        part[drawn], part[~drawn] = side, SIDES[1 - SIDES.index(side)]
    parts = np.full(len(rows), "", dtype=object)
    parts[used] = part
    lines = {SplitLine(*line) for line in zip(names.tolist(), unit.tolist(), truth.tolist(), parts, strict=True)}
    return Split(tuple(sorted(lines)), rule, seed)


def whole_units(unit: Texts, names: Texts, level: str) -> Texts:
    """(N,) what a row may not be parted from: its value at the level (N,), its recording (N,) where it has none.

    Raises KnnError when no row has a value.
    """
    known = unit != ""
    if len(unit) and not known.any():
        raise KnnError(f"No row has a {level} to keep apart.", "`knn info` shows what a store holds.")
    return unit if known.all() else np.where(known, unit, names)


def counts(made: Split, rows: EmbeddingSet) -> tuple[Count, ...]:
    """How much of each class each side or fold has, classes in sorted order; rows on no side last, by class.

    Raises KnnError as `Split.part_of`.
    """
    truth, ignored = rows.label(made.label), [*made.rule["ignore"], ""]
    part = np.where(np.isin(truth, ignored), "", made.part_of(rows.name))
    names, name = np.unique(rows.name, return_inverse=True)
    labels, label = np.unique(truth, return_inverse=True)
    parts, which = np.unique(part, return_inverse=True)
    cell, size = which * len(labels) + label, len(parts) * len(labels)
    sums = np.bincount(cell, minlength=size)
    seconds = np.bincount(cell, weights=rows.end - rows.start, minlength=size)
    recordings = np.bincount(np.unique(cell * len(names) + name) // max(1, len(names)), minlength=size)
    places = {str(one): place for place, one in enumerate(parts)}
    found = []
    for code, text in enumerate(labels.tolist()):
        for one in made.parts if text not in ignored else ():
            at = places[one] * len(labels) + code if one in places else -1
            found.append(
                Count(text, one, int(sums[at]), int(recordings[at]), float(seconds[at]))
                if at >= 0
                else Count(text, one, 0, 0, 0.0)
            )
    for code, text in enumerate(labels.tolist()):
        if "" in places and sums[at := places[""] * len(labels) + code]:
            found.append(Count(text, "", int(sums[at]), int(recordings[at]), float(seconds[at])))
    return tuple(found)


def write(path: Path | str, made: Split) -> None:
    """Write a split file: the old file or the whole new one. Raises KnnError when it cannot be written."""
    for line in made.lines:
        if strange := [text for text in line if "\t" in text or "\n" in text]:
            raise KnnError(f"{strange[0]!r} holds a tab or a line break, which a split file cannot.", "Rename it.")
    with replacing_text(path) as file:
        file.writelines(_texts(made))


def _texts(made: Split) -> Iterator[str]:
    """The lines of the file."""
    yield f"# knn split\t{SCHEMA}\n# rule\t{json.dumps(made.rule, sort_keys=True)}\n# seed\t{made.seed}\n"
    for line in ((*_COLUMNS, _last_column(made.kind)), *made.lines):
        yield "\t".join(line) + "\n"


def read(path: Path | str) -> Split:
    """Read what `write` wrote. Raises KnnError that names the line for anything else."""
    try:
        with Path(path).open(encoding="utf-8", newline="\n") as file:
            texts = file.read().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise KnnError(f"The split {path} cannot be read: {reason}.", "Make one with `knn split`.") from error

    def refused(number: int, reason: str) -> KnnError:
        return KnnError(f"{path}, line {number}: {reason}.", "Make the split again with `knn split`.")

    head = [text.split("\t") for text in texts[:4]]
    if [one[0] for one in head[:3]] != ["# knn split", "# rule", "# seed"] or {len(one) for one in head[:3]} != {2}:
        raise refused(1, "no split file of knn")
    if head[0][1] != str(SCHEMA):
        raise KnnError(f"{path} has schema {head[0][1]}; this knn reads {SCHEMA}.", "Install a newer knn.")
    try:
        rule = json.loads(head[1][1])
    except ValueError as error:
        raise refused(2, "the rule is no JSON") from error
    if not _is_rule(rule):
        raise refused(2, "the rule lacks kind, label, units or ignore, or has others than knn knows")
    if not head[2][1].isdecimal():
        raise refused(3, "the seed is no number")
    if head[3:] != [[*_COLUMNS, _last_column(rule["kind"])]]:
        raise refused(4, f"the columns are not {', '.join((*_COLUMNS, _last_column(rule['kind'])))}")
    if texts[-1] or len(texts) < 6:
        raise refused(len(texts), "the file is cut off")
    lines: list[SplitLine] = []
    part_of: dict[str, str] = {}
    for number, text in enumerate(texts[4:-1], start=5):
        cells = text.split("\t")
        if len(cells) != 4:
            raise refused(number, f"{len(cells)} columns, not 4")
        line = SplitLine(*cells)
        if line.part and not _is_part(line.part, rule["kind"]):
            raise refused(number, f"{line.part!r} is no side or fold")
        if lines and not lines[-1] < line:
            raise refused(number, "the lines are not sorted and distinct")
        if line.part and part_of.setdefault(line.recording, line.part) != line.part:
            raise refused(number, f"{line.recording!r} is on two sides")
        lines.append(line)
    return Split(tuple(lines), rule, int(head[2][1]))


def _is_rule(rule: object) -> bool:
    return (
        isinstance(rule, dict)
        and rule.get("kind") in KINDS
        and all(rule.get(key) in LABEL_LEVELS for key in ("label", "units"))
        and isinstance(rule.get("ignore"), list)
        and all(isinstance(one, str) for one in rule["ignore"])
    )


def _is_part(text: str, kind: str) -> bool:
    return text.isdecimal() if kind == "folds" else kind == "leave-one-out" or text in SIDES


def _last_column(kind: str) -> str:
    return "fold" if kind in {"folds", "leave-one-out"} else "side"
