"""Plain tables of numbers and text, written as tab-separated values or JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TextIO

from knn_cli.core.visible_text import cell, json_text, readable, visible

CellValue = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A table in memory; NaN, the infinities and None all mean "not known".

    Attributes
    ----------
    title : str
    columns : tuple of str
        Names of the columns.
    rows : tuple of tuples
        Each as long as `columns`.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[CellValue, ...], ...]

    def write_tsv(self, stream: TextIO) -> None:
        """Write a header and one line per row; floats have six significant digits, values not known are empty."""
        for row in (self.columns, *self.rows):
            stream.write("\t".join(map(tsv_text, row)) + "\n")

    def write_json(self, stream: TextIO) -> None:
        """Write an object with title, columns and rows, each row an object; values not known are null."""
        rows = [dict(zip(self.columns, map(finite_or_none, row), strict=True)) for row in self.rows]
        value = {"title": self.title, "columns": self.columns, "rows": rows}
        stream.write(json_text(value, indent=1) + "\n")


def finite_or_none(value: CellValue) -> CellValue:
    """NaN and the infinities as None, which JSON can express; anything else unchanged."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def tsv_field(text: str) -> str:
    """One field of a tab-separated line: no formula (`visible_text.cell`), with what would be hidden as escapes."""
    return visible(readable(cell(text)).replace("\\", "\\\\"))


def tsv_text(value: CellValue) -> str:
    """One value as a field: six significant digits of a float, nothing for values not known."""
    if (value := finite_or_none(value)) is None:
        return ""
    return tsv_field(f"{value:.6g}" if isinstance(value, float) else str(value))
