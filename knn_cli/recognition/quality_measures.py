"""Measures of the quality of rows or trials, such as duration and signal-to-noise ratio, as side information of fusion.

Seconds count by their logarithm, all else as it is. A trial has the mean of its two sides, and a side of several
recordings the mean of these. Rows are found by their names, or by those that stores give the recordings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np

from knn_cli.core.errors import KnnError
from knn_cli.core.texts import read_table
from knn_cli.core.values import Doubles
from knn_cli.recognition.score_tables import NAMES
from knn_cli.recognition.system_scores import SystemScores, table_rows
from knn_cli.recognition.trials import Trials
from knn_cli.store.labels import recording_name

__all__ = ["quality_of"]

SECONDS = "seconds"
LEAST_SECONDS = 0.01  # of speech, where none was measured
_WHAT = "a table of quality measures"
_HINT = "It has a column name, and a column of numbers for each measure; start and end where rows are parts."

Measures = dict[tuple[str, float, float], float]  # by name, start and end, of which NaN is -1


def quality_of(systems: SystemScores, names: Sequence[str], path: Path | None = None) -> Doubles:
    """The quality measures of all rows.

    Parameters
    ----------
    systems : SystemScores
    names : sequence of Q str
        Columns of the table at `path`; `seconds` is otherwise the length of a row in the scores.
    path : Path, optional
        A table with the columns name, start and end where rows are parts of recordings, and the measures.

    Returns
    -------
    (N, Q) float64
        NaN where not known.

    Raises
    ------
    KnnError
        For a measure that is nowhere, or known of no row; and for a table that cannot be read.
    """
    columns = {} if path is None else _read(path)
    result = np.full((len(systems), len(names)), np.nan)
    for place, name in enumerate(names):
        if name in columns:
            result[:, place] = _looked_up(systems, columns[name])
        elif name == SECONDS and not isinstance(systems.rows, Trials):
            result[:, place] = systems.rows.seconds
        else:
            known = ", ".join([*columns, *([] if systems.are_trials or SECONDS in columns else [SECONDS])])
            raise KnnError(f"The quality measure {name} is not known.", f"Known: {known or 'none; give a table'}.")
        if name == SECONDS or name.endswith("_seconds"):
            with np.errstate(invalid="ignore"):
                result[:, place] = np.log(np.maximum(result[:, place], LEAST_SECONDS))
        result[~np.isfinite(result[:, place]), place] = np.nan
        if np.isnan(result[:, place]).all():
            raise KnnError(f"The quality measure {name} is known of no row.", "Names, start and end must be the same.")
    return result


def _looked_up(systems: SystemScores, measures: Measures) -> list[float]:
    """The measure of each row, NaN where not known."""
    if isinstance(systems.rows, Trials):
        left, right = (
            np.asarray([_mean(measures, text) for text in texts]) for texts in (systems.rows.enroll, systems.rows.test)
        )
        pairs = systems.rows.pairs
        return [*((left[pairs[:, 0]] + right[pairs[:, 1]]) / 2)]
    return [measures.get(row, measures.get((row[0], -1.0, -1.0), math.nan)) for row in table_rows(systems.rows)]


def _mean(measures: Measures, text: str) -> float:
    """The measure of one side of a trial."""
    whole = measures.get((text, -1.0, -1.0))
    parts = [measures.get((name, -1.0, -1.0), math.nan) for name in text.split(",")] if whole is None else [whole]
    return sum(parts) / len(parts)


def _read(path: Path) -> Mapping[str, Measures]:
    """The columns of a table."""
    columns, lines = read_table(path, _WHAT)
    key = next((column for column in NAMES if column in columns), None)
    if key is None:
        raise KnnError(f"{path} is not {_WHAT}: it has no column name.", _HINT)
    times = [column for column in ("start", "end") if column in columns]
    measures: dict[str, Measures] = {column: {} for column in columns if column and column not in {key, *times}}
    for number, cells in lines:
        row = dict(zip(columns, cells, strict=True))
        start, end = (round(_number(path, number, time, row.get(time, "") or "-1"), 3) for time in ("start", "end"))
        place = (row[key], start, end)
        for column, values in measures.items():
            if place in values:
                raise KnnError(f"Line {number} of {path} repeats {row[key]!r}.", "Leave one of the lines out.")
            values[place] = _number(path, number, column, row[column] or "nan")
    for values in measures.values():
        for (name, start, end), value in list(values.items()):
            values.setdefault((recording_name(PurePath(name)), start, end), value)  # as stores name recordings
    return measures


def _number(path: Path, line: int, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise KnnError(f"Line {line} of {path}: {column} is {text!r}, which is no number.", _HINT) from error
