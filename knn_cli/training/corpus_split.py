"""The classes of a corpus, and its split into training rows and held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from knn_cli.core.errors import KnnError
from knn_cli.core.values import LABEL_LEVELS, Texts
from knn_cli.recognition import splitters
from knn_cli.training.dataset import Corpus, Rows
from knn_cli.training.recipe import DataConfig


def usable_rows(corpus: Corpus, *, level: str, ignore: Sequence[str], minimum: float, maximum: float | None) -> Rows:
    """Select the rows that can be used for training.

    Parameters
    ----------
    corpus : Corpus
        The corpus.
    level : str
        The label level of the classes; rows without such a label are left out.
    ignore : sequence of str
        Labels to leave out.
    minimum, maximum : float
        Bounds of a row's length in seconds; no upper bound if `maximum` is None.

    Returns
    -------
    (M,) int64 array
        Indices of the rows.

    Raises
    ------
    KnnError
        Fewer than two labels are left.
    """
    texts: Texts = getattr(corpus.columns, level)
    seconds = corpus.columns.seconds
    kept = (texts != "") & ~np.isin(texts, list(ignore)) & (seconds >= minimum)
    if maximum is not None:
        kept &= seconds <= maximum
    rows = np.flatnonzero(kept)
    classes = sorted(set(texts[rows].tolist()))
    if len(classes) < 2:
        present = f"only {classes[0]!r}" if classes else "none"
        others = [
            other
            for other in LABEL_LEVELS[:-1]
            if other != level and len(set(getattr(corpus.columns, other)[kept | (texts == "")].tolist()) - {""}) > 1
        ]
        raise KnnError(
            f"Training needs two labels or more at the level {level}, there is {present} in rows that can be used.",
            f"Set data.label to {' or '.join(others)}, which rows have, or change data.ignore or data.minimum."
            if others
            else "`knn info` shows what a store holds; data.label, data.ignore and data.minimum choose from it.",
        )
    return rows


@dataclass(frozen=True)
class TrainingSplit:
    """The classes of a corpus, and its training rows and held-out rows.

    Attributes
    ----------
    corpus : Corpus
        The corpus.
    labels : tuple of str
        Sorted names of the classes.
    classes : (N,) int64 array
        The class of every row of the corpus, -1 for rows that are not used.
    train_rows, held_out_rows : (M,) int64 arrays
        Indices of the rows.
    """

    corpus: Corpus
    labels: tuple[str, ...]
    classes: Rows
    train_rows: Rows
    held_out_rows: Rows


def split_corpus(corpus: Corpus, data: DataConfig, seed: int) -> TrainingSplit:
    """Split a corpus as the recipe's table [data] asks; KnnError as in `usable_rows` and `splitters.held_out`."""
    longest = data.maximum if data.long == "leave-out" else None
    rows = usable_rows(corpus, level=data.label, ignore=data.ignore, minimum=data.minimum, maximum=longest)
    texts: Texts = getattr(corpus.columns, data.label)[rows]
    labels, codes = np.unique(texts, return_inverse=True)
    classes = np.full(len(corpus), -1, dtype=np.int64)
    classes[rows] = codes
    train_rows, held_out_rows = rows, rows[:0]
    if data.held_out:
        units = None if data.unit == "recording" else getattr(corpus.columns, data.unit)[rows]
        try:
            keep, test = splitters.held_out(
                corpus.columns.name[rows], texts, fraction=data.held_out, seed=seed, units=units
            )
        except KnnError as error:  # what is left out stands in the recipe
            raise KnnError(error.message, error.hint.replace("`ignore=", "`data.ignore=")) from error
        train_rows, held_out_rows = rows[keep], rows[test]
    return TrainingSplit(corpus, tuple(labels.tolist()), classes, train_rows, held_out_rows)
