"""Tables of scores: what systems say of every label for every row, read and written as text.

A table has a header, a line for each row, and a column for each label, named by it, whose cells are natural logarithms
of likelihoods, up to a number for each row. Posteriors (from 0 to 1, with a sum of 1 in each row) and, of three or more
labels, detection log-likelihood ratios under equal priors (which say such posteriors) are recognised, and become
log-posteriors. Further columns say what the row is:

    name      the recording (also file, recording, utterance, segmentid, segment, path)
    start     and end, in seconds, where rows are parts of recordings
    label     the true label (also truth, true_label, language, group, subgroup, dialect), "" where unknown

JSON of `knn classify`, as a list or as lines, is read as well: detection log-likelihood ratios of all labels say what
their posteriors under equal priors are.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import scipy

from knn_cli.core.errors import KnnError
from knn_cli.core.folders import is_regular
from knn_cli.core.tables import tsv_field
from knn_cli.core.texts import read_lines, read_table, tidy
from knn_cli.core.values import Doubles, ScoreTable, Texts
from knn_cli.store import kaldi

__all__ = ["ScoreKind", "is_score_table", "read_keys", "read_score_table", "read_scores", "write_score_table"]

ScoreKind = Literal["log-likelihoods", "posteriors", "detection log-likelihood ratios"]

NAMES = ("name", "file", "recording", "utterance", "segmentid", "segment", "path")
TRUTHS = ("label", "truth", "true_label", "language", "language_code", "group", "subgroup", "dialect")
_TIMES = ("start", "end")
_WHAT = "a table of scores"
_HINT = "It has a header, a column name, and a column of numbers for each label."
_MAX_SUM_ERROR = 0.01  # of posteriors that are rounded, or restored from rounded LLRs
_LEAST_POSTERIOR = 1e-10


def is_score_table(path: Path) -> bool:
    """Whether a file is text that begins as a table of scores does: with a column name, or as JSON of objects."""
    if not is_regular(path):  # a pipe is read once
        return False
    try:
        with path.open("rb") as file:
            if b"\0" in file.read(1 << 12):
                return False
        first = next((line for line in read_lines(path, _WHAT) if line.strip()), "").lower()
    except (OSError, KnnError):
        return False
    fields = [field.strip('" ') for field in re.split("[\t,;]", tidy(first))]
    return first.lstrip().startswith(("{", "[")) or (len(fields) > 2 and any(name in fields for name in NAMES))


def read_score_table(path: Path | str) -> ScoreTable:
    """Read a table of scores, or JSON lines of `knn classify`.

    Parameters
    ----------
    path : Path or str

    Returns
    -------
    ScoreTable
        `start` and `end` are NaN where they are unknown, `truth` is empty where no row has a true label; rows that
        hold no speech, whose cells are all empty or whose LLRs are null, have NaN as scores.

    Raises
    ------
    KnnError
        For a file that cannot be read, has no rows, or no two columns of labels; with its line, for a cell that is no
        finite number.
    """
    return read_scores(path)[0]


def read_scores(path: Path | str) -> tuple[ScoreTable, ScoreKind]:
    """`read_score_table`, and what the scores were that the file has."""
    path = Path(path)
    first = next((line for line in read_lines(path, _WHAT) if line.strip()), "")
    return _from_json(path, first.lstrip()[0]) if first.lstrip()[:1] in ("{", "[") else _from_table(path)


def write_score_table(table: ScoreTable, file: TextIO) -> None:
    """Write a tab-separated table as `read_score_table` reads it, with the column label where there are true labels."""
    truth = table.truth.tolist() if len(table.truth) else None
    heads = ["name", *_TIMES, *([] if truth is None else ["label"]), *table.labels]
    file.write("\t".join(map(tsv_field, heads)) + "\n")
    for row, scores in enumerate(table.log_likelihood.tolist()):
        times = ["" if math.isnan(time) else f"{time:.10g}" for time in (table.start[row], table.end[row])]
        known = [] if truth is None else [truth[row]]
        cells = [tsv_field(str(table.name[row])), *times, *map(tsv_field, known)]
        file.write("\t".join([*cells, *("" if math.isnan(score) else f"{score:.6f}" for score in scores)]) + "\n")


def read_keys(path: Path | str) -> dict[str, str]:
    """Read the true labels of recordings: a table with the columns name and label, or segmentid and language_code.

    A file without separators in its first line is one of Kaldi, such as utt2lang: a name, a blank and the label.

    Raises
    ------
    KnnError
        For a table without these columns, or with two labels for one name.
    """
    columns, lines = read_table(path, "a table of true labels")
    if len(columns) == 1 and " " in columns[0]:
        return kaldi.read_table(Path(path))
    name = next((column for column in NAMES if column in columns), None)
    truth = next((column for column in TRUTHS if column in columns), None)
    if name is None or truth is None:
        raise KnnError(f"{path} is no table of true labels.", "It has the columns name and label.")
    keys: dict[str, str] = {}
    for number, cells in lines:
        row = dict(zip(columns, cells, strict=True))
        if keys.setdefault(row[name], row[truth]) != row[truth]:
            raise KnnError(f"Line {number} of {path} has another label for {row[name]!r} than a line before it.")
    return keys


def _from_table(path: Path) -> tuple[ScoreTable, ScoreKind]:
    columns, lines = read_table(path, _WHAT, keep_case=True)
    name, truth = _column(columns, NAMES), _column(columns, TRUTHS)
    times = [_column(columns, (time,)) for time in _TIMES]
    if name is None or not lines:
        raise KnnError(f"{path} is not {_WHAT}: it has no {'column name' if lines else 'rows'}.", _HINT)
    if "probability" in columns and "label_2" in columns:
        raise KnnError(
            f"{path} has the most probable labels alone, not the scores of all.",
            "Write JSON lines, which have the scores of all.",
        )
    used = {name, truth, *times}
    places = [place for place in range(len(columns)) if place not in used and columns[place]]
    labels = _checked_labels(path, [columns[place] for place in places])
    scores = np.empty((len(lines), len(labels)))
    spans = np.full((2, len(lines)), np.nan)
    for row, (number, cells) in enumerate(lines):
        if not any(cells[place] for place in places):  # no speech
            scores[row] = math.nan
        else:
            scores[row] = [_number(path, number, columns[place], cells[place]) for place in places]
        for span, place in zip(spans, times, strict=True):
            if place is not None and cells[place]:
                span[row] = _number(path, number, columns[place], cells[place])
    names = [cells[name] for _, cells in lines]
    truths = [] if truth is None else [cells[truth] for _, cells in lines]
    scored = ~np.isnan(scores).any(axis=1)
    if not scored.any():
        raise KnnError(f"{path} has no scores in any row.", _HINT)
    scores[scored], kind = _as_log_likelihoods(scores[scored])
    return _table(labels, scores, names, spans, truths), kind


def _as_log_likelihoods(scores: Doubles) -> tuple[Doubles, ScoreKind]:
    """Scores (N, C) as natural logarithms of likelihoods up to a number for each row, and what they were."""
    if (scores >= 0).all() and (abs(scores.sum(axis=1) - 1) <= _MAX_SUM_ERROR).all():
        least = min(_LEAST_POSTERIOR, float(scores[scores > 0].min()))  # of what was rounded to 0
        return np.log(np.where(scores > 0, scores, least)), "posteriors"
    logs = _log_posteriors(scores)
    if len(scores.T) > 2 and (abs(np.exp(logs).sum(axis=1) - 1) <= _MAX_SUM_ERROR).all():
        return logs, "detection log-likelihood ratios"
    return scores, "log-likelihoods"


def _json_values(path: Path, first: str) -> Iterator[tuple[str, Any]]:
    """Where each value of JSON lines, or of a list in JSON, is, and the value."""
    hint = "Write it with `knn classify`."
    if first == "[":
        try:
            values = json.loads("\n".join(read_lines(path, _WHAT)))
        except (ValueError, RecursionError) as error:
            raise KnnError(f"{path} is not JSON.", hint) from error
        yield from ((f"Entry {number}", value) for number, value in enumerate(values, start=1))
        return
    for number, line in enumerate(read_lines(path, _WHAT), start=1):
        if not line.strip():
            continue
        try:
            yield f"Line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:
            raise KnnError(f"Line {number} of {path} is not JSON.", hint) from error


def _from_json(path: Path, first: str) -> tuple[ScoreTable, ScoreKind]:
    rows: list[Mapping[str, Any]] = []
    for where, row in _json_values(path, first):
        if not isinstance(row, dict) or "file" not in row or not isinstance(row.get("llr", 0), dict | None):
            raise KnnError(f"{where} of {path} holds no scores.", "Write it with `knn classify`.")
        rows.append(row)
    labels = _checked_labels(path, next((list(row["llr"]) for row in rows if row["llr"]), []))
    llr = np.full((len(rows), len(labels)), np.nan)
    for number, row in enumerate(rows, start=1):
        if row["llr"] is not None and list(row["llr"]) != labels:
            raise KnnError(f"Row {number} of {path} has other labels than the rows before it.")
        if row["llr"] is not None:
            llr[number - 1] = [_number(path, number, label, value) for label, value in row["llr"].items()]
    spans = np.asarray([[_time(row.get(time)) for row in rows] for time in _TIMES])
    logs = _log_posteriors(llr)
    if np.nanmax(abs(np.exp(logs).sum(axis=1) - 1), initial=0) > _MAX_SUM_ERROR:
        raise KnnError(
            f"The log-likelihood ratios of {path} are under priors, so they do not say what the scores are.",
            "Classify without priors, and with all labels.",
        )
    names = [tidy(str(row["file"])) for row in rows]
    return _table(labels, logs, names, spans, []), "detection log-likelihood ratios"


def _log_posteriors(llr: Doubles) -> Doubles:
    """Log-posteriors under equal priors: the odds of a label are exp(LLR) / (C - 1)."""
    return np.asarray(scipy.special.log_expit(llr - math.log(llr.shape[1] - 1)))


def _table(
    labels: list[str], scores: Doubles, names: Sequence[str], spans: Doubles, truths: Sequence[str]
) -> ScoreTable:
    known: Texts = np.asarray(truths if any(truths) else [], dtype=np.str_)
    return ScoreTable(tuple(labels), scores, np.asarray(names, dtype=np.str_), spans[0], spans[1], known)


def _column(columns: Sequence[str], names: Sequence[str]) -> int | None:
    """The place of the first of some names among the columns."""
    small = [column.lower() for column in columns]
    return next((small.index(name) for name in names if name in small), None)


def _checked_labels(path: Path, labels: list[str]) -> list[str]:
    if len(labels) < 2:
        raise KnnError(f"{path} is not {_WHAT}: it has {len(labels)} columns of labels.", _HINT)
    return labels


def _number(path: Path, line: int, column: str, value: object) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise KnnError(f"Line {line} of {path}: {column} is {value!r}, which is no score.", _HINT)
    return number


def _time(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
