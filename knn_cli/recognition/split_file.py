"""A split as a file: made once (`make_split`) from the labels of a store, read for every system that is compared.

A text file in UTF-8 with tabs between columns and a line per recording (a recording with rows of several units or
classes has a line for each):

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
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from knn_cli.core.atomic import replacing_text
from knn_cli.core.errors import KnnError
from knn_cli.core.texts import read_text
from knn_cli.core.values import LABEL_LEVELS, Texts
from knn_cli.recognition import splitters
from knn_cli.recognition.splitters import Mask

SCHEMA = 1
KINDS = ("held-out", "folds", "leave-one-out", "quartiles")
SIDES = ("train", "test")
_COLUMNS = ("recording", "unit", "class")


class SplitLine(NamedTuple):
    """A recording (of one unit and class): `part` is its side or fold, "" for none."""

    recording: str
    unit: str
    label: str
    part: str


@dataclass(frozen=True)
class Split:
    """Which recordings are on which side, or in which fold.

    Attributes
    ----------
    lines : tuple of SplitLine
        Sorted and distinct.
    rule : dict
        How it was drawn: kind, label (level of the classes), units (level that is never cut), ignore, and the options
        of the kind.
    seed : int
        Of the draw.
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
    def has_folds(self) -> bool:
        """Whether it has folds, each of which is tested once, rather than the sides train and test."""
        return self.kind in {"folds", "leave-one-out"}

    @cached_property
    def sha256(self) -> str:
        """Digest of the file that `write_split` makes of it."""
        digest = hashlib.sha256()
        for text in _file_lines(self):
            digest.update(text.encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Sides, or folds in order."""
        if not self.has_folds:
            return SIDES
        folds = {line.part for line in self.lines} - {""}
        return tuple(sorted(folds, key=int if self.kind == "folds" else None))

    @cached_property
    def _part_of_recording(self) -> dict[str, str]:
        parts: dict[str, str] = {}
        for line in self.lines:  # a line with a part wins over the line of an ignored class
            if line.part or line.recording not in parts:
                parts[line.recording] = line.part
        return parts

    @cached_property
    def _unit_of_recording(self) -> dict[str, str]:
        """Recording -> its unit; units that share a recording are one."""
        names, units = (np.asarray([line[field] for line in self.lines], dtype=np.str_) for field in (0, 1))
        return dict(zip(names.tolist(), splitters.merge_units(names, units).tolist(), strict=True))

    def part_of(self, names: Texts) -> Texts:
        """(N,) side or fold of rows of the recordings `names` (N,), "" for none.

        Raises
        ------
        KnnError
            The split does not know one of the recordings.
        """
        return self._look_up(names, self._part_of_recording)

    def unit_of(self, names: Texts) -> Texts:
        """(N,) unit of rows of the recordings `names`; units that share a recording are one. Raises as `part_of`."""
        return self._look_up(names, self._unit_of_recording)

    def _look_up(self, names: Texts, table: dict[str, str]) -> Texts:
        distinct, codes = np.unique(names, return_inverse=True)
        if unknown := [name for name in distinct.tolist() if name not in table]:
            others = f" (nor {len(unknown) - 1} others)" if len(unknown) > 1 else ""
            raise KnnError(
                f"The split does not know the recording {unknown[0]!r}{others}.",
                "Make the split of the store that is used now, or of one that holds all its recordings.",
            )
        return np.asarray(np.asarray([table[name] for name in distinct.tolist()], dtype=np.str_)[codes])

    def absent_from(self, names: Texts) -> tuple[str, ...]:
        """Recordings of a side or fold that no row in `names` is of, sorted."""
        present = set(np.unique(names).tolist())
        return tuple(name for name, part in self._part_of_recording.items() if part and name not in present)

    def masks(self, names: Texts) -> list[tuple[str, Mask, Mask]]:
        """What is trained on and tested: (name, train, test), of (N,) masks.

        One triple, named "test", for the kinds with sides, else one for each fold.
        """
        part = self.part_of(names)
        if not self.has_folds:
            return [("test", part == "train", part == "test")]
        return [(fold, (part != fold) & (part != ""), part == fold) for fold in self.parts]


def write_split(path: Path | str, split: Split) -> None:
    """Write a split file, whole or not at all. Raises KnnError when it cannot be written."""
    for line in split.lines:
        if bad := [text for text in line if "\t" in text or "\n" in text]:
            raise KnnError(f"{bad[0]!r} holds a tab or a line break, which a split file cannot.", "Rename it.")
    with replacing_text(path) as file:
        file.writelines(_file_lines(split))


def _file_lines(split: Split) -> Iterator[str]:
    """The lines of the file."""
    yield f"# knn split\t{SCHEMA}\n# rule\t{json.dumps(split.rule, sort_keys=True)}\n# seed\t{split.seed}\n"
    for line in ((*_COLUMNS, _last_column(split.kind)), *split.lines):
        yield "\t".join(line) + "\n"


def read_split(path: Path | str) -> Split:
    """Read what `write_split` wrote. Raises KnnError that names the line for anything else."""
    texts = read_text(path, "a split of `knn split`").split("\n")
    rule, seed = _parse_head(path, texts)
    if texts[-1] or len(texts) < 6:
        raise _refused(path, len(texts), "the file is cut off")
    lines: list[SplitLine] = []
    part_of: dict[str, str] = {}
    for number, text in enumerate(texts[4:-1], start=5):
        cells = text.split("\t")
        if len(cells) != 4:
            raise _refused(path, number, f"{len(cells)} columns, not 4")
        line = SplitLine(*cells)
        if line.part and not _is_part(line.part, rule["kind"]):
            raise _refused(path, number, f"{line.part!r} is no side or fold")
        if lines and not lines[-1] < line:
            raise _refused(path, number, "the lines are not sorted and distinct")
        if line.part and part_of.setdefault(line.recording, line.part) != line.part:
            raise _refused(path, number, f"{line.recording!r} is on two sides")
        lines.append(line)
    return Split(tuple(lines), rule, seed)


def _refused(path: Path | str, number: int, reason: str) -> KnnError:
    return KnnError(f"{path}, line {number}: {reason}.", "Make the split again with `knn split`.")


def _parse_head(path: Path | str, texts: list[str]) -> tuple[dict[str, Any], int]:
    """The rule and the seed from the first four lines."""
    head = [text.split("\t") for text in texts[:4]]
    names, widths = [cells[0] for cells in head[:3]], {len(cells) for cells in head[:3]}
    if names != ["# knn split", "# rule", "# seed"] or widths != {2}:
        raise _refused(path, 1, "no split file of knn")
    if head[0][1] != str(SCHEMA):
        raise KnnError(f"{path} has schema {head[0][1]}; this knn reads {SCHEMA}.", "Install a newer knn.")
    try:
        rule = json.loads(head[1][1])
    except ValueError as error:
        raise _refused(path, 2, "the rule is no JSON") from error
    if not _is_rule(rule):
        raise _refused(path, 2, "the rule lacks kind, label, units or ignore, or has others than knn knows")
    if not head[2][1].isdecimal():
        raise _refused(path, 3, "the seed is no number")
    columns = [*_COLUMNS, _last_column(rule["kind"])]
    if head[3:] != [columns]:
        raise _refused(path, 4, f"the columns are not {', '.join(columns)}")
    return rule, int(head[2][1])


def _is_rule(rule: object) -> bool:
    return (
        isinstance(rule, dict)
        and rule.get("kind") in KINDS
        and all(rule.get(key) in LABEL_LEVELS for key in ("label", "units"))
        and isinstance(rule.get("ignore"), list)
        and all(isinstance(label, str) for label in rule["ignore"])
    )


def _is_part(text: str, kind: str) -> bool:
    return text.isdecimal() if kind == "folds" else kind == "leave-one-out" or text in SIDES


def _last_column(kind: str) -> str:
    return "fold" if kind in {"folds", "leave-one-out"} else "side"
