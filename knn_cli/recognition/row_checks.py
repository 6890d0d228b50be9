"""Checks of the rows and labels that estimators are given: shape, finite values, known labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, Texts


def check_dimension(X: ArrayLike, dimension: int) -> NDArray[Any]:
    """The rows X as an array, (n, D); KnnError for another D than `dimension`."""
    rows = np.asarray(X)
    if rows.ndim != 2 or rows.shape[1] != dimension:
        raise KnnError(
            f"The classifier takes rows of {dimension} dimensions, these have {rows.shape[-1] if rows.ndim else 0}.",
            "Use embeddings of the model that the classifier was trained with.",
        )
    return rows


def refuse_nonfinite(rows: NDArray[Any]) -> None:
    """KnnError if there are NaN or infinite values, but not for large values whose sum alone is infinite."""
    if bad := int(np.sum(~np.isfinite(rows).all(axis=1))):
        raise KnnError(
            f"NaN or infinite values in {bad} of {len(rows)} embeddings.",
            "Leave these rows out, or embed their recordings again.",
        )


def float64_rows(X: ArrayLike, dimension: int) -> Doubles:
    """Rows (n, D) in float64, not copied if they are float64 already; KnnError for another D, NaN or infinity."""
    rows: Doubles = check_dimension(X, dimension).astype(np.float64, copy=False)
    with np.errstate(invalid="ignore", over="ignore"):
        suspect = not np.isfinite(rows.sum())  # one pass without a copy; a closer look only where necessary
    if suspect:
        refuse_nonfinite(rows)
    return rows


def class_codes(labels: ArrayLike, classes: Texts) -> NDArray[np.int64]:
    """(N,) index of each label in `classes`; KnnError for a label that is not among them."""
    texts = np.asarray(labels).astype(np.str_, copy=False).tolist()
    columns = {label: column for column, label in enumerate(classes.tolist())}
    try:
        return np.fromiter(map(columns.__getitem__, texts), dtype=np.int64, count=len(texts))
    except KeyError as error:
        raise KnnError(f"The label {error.args[0]!r} is none of the {len(classes)} classes.") from error
