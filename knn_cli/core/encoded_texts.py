"""Texts of rows as codes: a number for each row, and each distinct text once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.values import Texts

__all__ = ["EncodedTexts"]

_ROWS_AT_ONCE = 1 << 16  # as Python strings


@dataclass(frozen=True, eq=False)
class EncodedTexts:
    """Categorical column: the texts of rows are `values[codes]`, which takes four bytes per row.

    Attributes
    ----------
    codes : (N,) int32 array
        The index into `values` of each row.
    values : (V,) str array
        The distinct texts; every one has a row.

    Examples
    --------
    >>> column = EncodedTexts.from_blocks([["cs", "sk"], ["cs", ""]])
    >>> column.codes.tolist(), column.values.tolist(), column.texts.tolist()
    ([0, 1, 0, 2], ['cs', 'sk', ''], ['cs', 'sk', 'cs', ''])
    """

    codes: NDArray[np.int32]
    values: Texts

    @classmethod
    def from_blocks(cls, blocks: Iterable[Sequence[str]]) -> EncodedTexts:
        """Encode texts that come in blocks; `values` are in the order of their first rows."""
        number_of: dict[str, int] = {}
        parts = [np.zeros(0, dtype=np.int32)]
        for block in blocks:
            numbers = (number_of.setdefault(text, len(number_of)) for text in block)
            parts.append(np.fromiter(numbers, np.int32, len(block)))
        return cls(np.concatenate(parts), np.asarray(list(number_of), dtype=np.str_))

    @classmethod
    def from_texts(cls, texts: Texts) -> EncodedTexts:
        """Encode an array of texts (N,), or of Python strings."""
        firsts = range(0, len(texts), _ROWS_AT_ONCE)
        return cls.from_blocks(texts[first : first + _ROWS_AT_ONCE].tolist() for first in firsts)

    @classmethod
    def concatenate(cls, columns: Sequence[EncodedTexts]) -> EncodedTexts:
        """Return the rows of several columns, in order."""
        offsets = np.cumsum([0, *(len(column.values) for column in columns)])
        pairs = zip(columns, offsets.tolist(), strict=False)
        codes = np.concatenate([np.zeros(0, np.int32), *(column.codes + np.int32(offset) for column, offset in pairs)])
        return cls(codes, np.zeros(0, np.str_)).with_values(
            [text for column in columns for text in column.values.tolist()]
        )

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def texts(self) -> Texts:
        """(N,) texts of all rows."""
        return self.values[self.codes] if len(self.codes) else np.zeros(0, np.str_)

    def with_values(self, values: Sequence[str]) -> EncodedTexts:
        """Return the column with other texts in the place of `values`; where they are alike, they become one."""
        distinct = EncodedTexts.from_blocks([values])
        return EncodedTexts(distinct.codes[self.codes], distinct.values)

    def sorted(self) -> EncodedTexts:
        """Return the column with its values in sorted order."""
        values, place = np.unique(self.values, return_inverse=True)
        return EncodedTexts(place.astype(np.int32)[self.codes], values)

    def first_rows(self) -> NDArray[np.int64]:
        """(V,) the first row of each value."""
        return np.unique(self.codes, return_index=True)[1]
