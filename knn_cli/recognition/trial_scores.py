"""Scores of speaker trials as text: tables and JSON lines of `knn verify`, and lists `enrolment test score`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from knn_cli.core.errors import KnnError
from knn_cli.core.texts import read_lines, read_table, split_fields, tidy
from knn_cli.core.values import Doubles
from knn_cli.recognition.trials import Trials, read_trials

__all__ = ["is_trial_scores", "read_trial_scores", "with_keys"]

_WHAT = "a list of scored trials"
_HINT = "It has the columns enrol, test and score, and target (1 or 0) where it is known."
_COLUMNS = ("enrol", "test", "score")
_KEYS = {"1": True, "0": False, "true": True, "false": False, "target": True, "nontarget": False}

Row = tuple[str, str, str, str]  # enrolment, test, score, key


def is_trial_scores(path: Path | str) -> bool:
    """Whether a text holds scored trials rather than a table with a column of scores for each label."""
    first = next((line for line in read_lines(path, _WHAT) if line.strip()), "")
    fields = split_fields(tidy(first))
    if fields and fields[0].startswith("{"):
        return '"enrol"' in first
    return set(_COLUMNS) <= {field.lower() for field in fields} or (len(fields) == 3 and _is_number(fields[2]))


def read_trial_scores(path: Path | str) -> tuple[Trials, Doubles]:
    """Read scored trials.

    Parameters
    ----------
    path : Path or str
        A table or JSON lines of `knn verify`, or lines of an enrolment, a test and a score.

    Returns
    -------
    trials : Trials
        With keys where all lines have one.
    scores : (T,) float64

    Raises
    ------
    KnnError
        For a file that cannot be read or holds no trials; with its number, for a line that is none, and for a trial
        that is listed twice.
    """
    enroll: dict[str, int] = {}
    test: dict[str, int] = {}
    pairs: dict[tuple[int, int], int] = {}
    scores: list[float] = []
    keys: list[bool | None] = []
    for number, (left, right, score, key) in _rows(Path(path)):
        if not left or not right or not _is_number(score) or key.lower() not in {"", *_KEYS}:
            raise KnnError(f"Line {number} of {path} is no scored trial.", _HINT)
        pair = (enroll.setdefault(left, len(enroll)), test.setdefault(right, len(test)))
        if pairs.setdefault(pair, number) != number:
            raise KnnError(f"Line {number} of {path} repeats the trial of line {pairs[pair]}: {left}, {right}.")
        scores.append(float(score))
        keys.append(_KEYS.get(key.lower()))
    if not scores:
        raise KnnError(f"{path} holds no scored trials.", _HINT)
    if None in keys and any(key is not None for key in keys):
        raise KnnError(f"{path} says of some trials only whether they are target trials.", _HINT)
    is_target = None if None in keys else np.asarray(keys, dtype=np.bool_)
    return Trials(tuple(enroll), tuple(test), np.asarray([*pairs], dtype=np.int64), is_target), np.asarray(scores)


def with_keys(trials: Trials, path: Path | str) -> Trials:
    """The same trials with the keys of a list of trials.

    Raises
    ------
    KnnError
        As `read_trials`; the list has no keys, or lacks a trial.
    """
    listed = read_trials(path)
    if listed.is_target is None:
        raise KnnError(f"{path} does not say which trials are target trials.", "Give a list with target and nontarget.")
    keys = dict(zip(_names(listed), listed.is_target.tolist(), strict=True))
    names = _names(trials)
    if missing := [pair for pair in names if pair not in keys]:
        raise KnnError(f"{path} lacks {len(missing)} of the trials, first {' '.join(missing[0])}.")
    return replace(trials, is_target=np.asarray([keys[pair] for pair in names], dtype=np.bool_))


def _names(trials: Trials) -> list[tuple[str, str]]:
    return [(trials.enroll[left], trials.test[right]) for left, right in trials.pairs.tolist()]


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Number and cells of each line that is not blank."""
    lines = read_lines(path, _WHAT)
    first = next((line for line in lines if line.strip()), "")
    if first.lstrip().startswith("{"):
        yield from ((number, _json_row(path, number, line)) for number, line in enumerate(lines, 1) if line.strip())
    elif set(_COLUMNS) <= set(split_fields(first.lower())):
        columns, cells = read_table(path, _WHAT)
        places = [columns.index(name) for name in _COLUMNS]
        key = columns.index("target") if "target" in columns else None
        for number, row in cells:
            left, right, score = (row[place] for place in places)
            yield number, (left, right, score, "" if key is None else row[key])
    else:
        for number, line in enumerate(lines, start=1):
            if fields := split_fields(tidy(line)):
                left, right, score = fields if len(fields) == 3 else ("", "", "")
                yield number, (left, right, score, "")


def _json_row(path: Path, number: int, line: str) -> Row:
    try:
        row = json.loads(line)
        left, right, score = (row[name] for name in _COLUMNS)
    except (ValueError, KeyError, TypeError) as error:
        raise KnnError(f"Line {number} of {path} is no scored trial.", "Write it with `knn verify`.") from error
    key = row.get("target")
    return tidy(str(left)), tidy(str(right)), str(score), "" if key is None else str(key)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
