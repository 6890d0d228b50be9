"""Texts of rows as files of other programs have them: bytes, lists of bytes, numbers, padded with blanks or zeros."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import h5py
import numpy as np

from knn_cli.core.errors import StoreError
from knn_cli.core.texts import tidy


def holds_texts(dtype: np.dtype[Any]) -> bool:
    """Whether values of a type are texts to `row_texts`: texts, bytes, lists of bytes of any length, whole numbers."""
    if dtype.kind == "O":
        return h5py.check_string_dtype(dtype) is not None or h5py.check_vlen_dtype(dtype) == np.uint8
    return dtype.kind in "SUiu"


def row_texts(values: Iterable[Any], source: object, first_row: int = 0) -> list[str]:
    """Return the texts of rows, tidy (see `core.texts`).

    Parameters
    ----------
    values : iterable of str, bytes, (n,) uint8 arrays or int
        Bytes are UTF-8, and end at their first zero, as those of C do.
    source : object
        The file, and what of it, for messages.
    first_row : int
        The number of the first row, for messages.

    Raises
    ------
    StoreError
        For bytes that are not UTF-8, which other names could not be told from once their letters are replaced, and for
        a zero in a text.
    """
    known: dict[Any, str] = {}  # labels recur
    texts = []
    for row, value in enumerate(values, start=first_row):
        raw = value.tobytes() if isinstance(value, np.ndarray) else value
        text = known.get(raw)
        if text is None:
            try:
                text = known[raw] = _text(raw)
            except UnicodeDecodeError as error:
                message = f"{source}, row {row}, holds {raw[:40]!r}, which is not UTF-8."
                raise StoreError(message, "Write its texts again as UTF-8.") from error
            if "\0" in text:
                raise StoreError(f"{source}, row {row}, holds a zero byte in {text[:40]!r}.", "Leave it out.")
        texts.append(text)
    return texts


def _text(raw: Any) -> str:
    return tidy(raw.partition(b"\0")[0].decode("utf-8") if isinstance(raw, bytes) else str(raw))
