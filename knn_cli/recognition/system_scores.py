"""Scores of several systems for the same rows or trials, side by side: what `fusion` takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from knn_cli.audio.reading import SUFFIXES
from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, ScoreTable, Texts
from knn_cli.recognition.fusion import trial_scores
from knn_cli.recognition.score_tables import ScoreKind, read_keys, read_scores
from knn_cli.recognition.trial_scores import is_trial_scores, read_trial_scores, with_keys
from knn_cli.recognition.trials import Trials

__all__ = ["SystemScores", "read_systems", "table_rows"]

TRIAL_LABELS = ("target", "nontarget")

Row = tuple[str, float, float] | tuple[str, str]  # name, start and end, or the names of a trial


@dataclass(frozen=True, eq=False)
class SystemScores:
    """Scores of S systems of N rows.

    Attributes
    ----------
    systems : tuple of S str
        Names, all different.
    scores : (S, N, C) float64
        Of trials: the halves of `fusion.trial_scores`.
    labels : tuple of C str
        Of the columns; `TRIAL_LABELS` for trials.
    truth : (N,) str
        True labels, "" where unknown.
    rows : ScoreTable or Trials
        What the rows are, in the order of `scores`; of a table, those of the first system.
    left_out : int
        Rows for which a system has no scores, because they hold no speech.
    kinds : tuple of S str
        What the scores were that the tables have; () for trials.
    """

    systems: tuple[str, ...]
    scores: Doubles
    labels: tuple[str, ...]
    truth: Texts
    rows: ScoreTable | Trials
    left_out: int = 0
    kinds: tuple[ScoreKind, ...] = ()

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def are_trials(self) -> bool:
        """Whether the rows are speaker trials."""
        return isinstance(self.rows, Trials)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> SystemScores:
        """Those of some of the rows."""
        if isinstance(self.rows, Trials):
            keys = self.rows.is_target
            some: ScoreTable | Trials = replace(
                self.rows, pairs=self.rows.pairs[rows], is_target=None if keys is None else keys[rows]
            )
        else:
            some = self.rows.take(rows)
        return replace(self, scores=self.scores[:, rows], truth=self.truth[rows], rows=some)


def read_systems(paths: Sequence[Path], keys: Path | None = None) -> SystemScores:
    """Read the scores of several systems, whose rows may come in any order.

    Parameters
    ----------
    paths : sequence of Path
        Tables of scores (`score_tables`) or scored trials (`trial_scores`), one of each system.
    keys : Path, optional
        True labels of the recordings, or a list of trials with keys, instead of those in the first file that has some.

    Returns
    -------
    SystemScores

    Raises
    ------
    KnnError
        Files are of different kinds, labels or rows; and as the readers.
    """
    kinds = [is_trial_scores(path) for path in paths]
    if len(set(kinds)) > 1:
        trials, table = paths[kinds.index(True)], paths[kinds.index(False)]
        raise KnnError(
            f"{trials} has scores of speaker trials, and {table} scores of labels.", "Fuse scores of a kind."
        )
    names = _system_names(paths)
    return _read_trials(paths, names, keys) if kinds[0] else _read_tables(paths, names, keys)


def _read_tables(paths: Sequence[Path], names: tuple[str, ...], keys: Path | None) -> SystemScores:
    read = [read_scores(path) for path in paths]
    tables, kinds = [table for table, _ in read], tuple(kind for _, kind in read)
    first = tables[0]
    for path, table in zip(paths[1:], tables[1:], strict=True):
        if differing := sorted(set(table.labels) ^ set(first.labels)):
            where = path if differing[0] in table.labels else paths[0]
            raise KnnError(
                f"{paths[0]} and {path} have different labels: {_some(differing)}, the first only in {where}.",
                "Give scores of systems that know the same labels.",
            )
    order = _matched(paths, [[*table_rows(table)] for table in tables])
    tables = [
        table.take(rows).restrict(first.labels) for table, rows in zip(tables, order, strict=True)
    ]  # columns in the order of the first
    scores = np.stack([table.log_likelihood for table in tables])
    audible = np.asarray(np.isfinite(scores).all(axis=(0, 2)))
    truth = _truth(paths, tables)
    if keys is not None:
        known = read_keys(keys)
        truth = _keyed(first.name.tolist(), known)
        if not (truth != "").any():
            raise KnnError(
                f"{keys} has no label of {str(first.name[0])!r} or any other row.", "Names must be the same."
            )
    rows = replace(first, truth=truth, rivals=None)
    all_rows = SystemScores(names, scores, first.labels, truth, rows, int((~audible).sum()), kinds)
    return all_rows if audible.all() else all_rows.take(audible)


def _keyed(names: Sequence[str], known: Mapping[str, str]) -> Texts:
    """True labels of rows by name, "" where unknown.

    A file is also known by its name without folders and the suffix of sound, where that has a single label.
    """
    by_file: dict[str, set[str]] = {}
    for key, label in known.items():
        by_file.setdefault(_file_name(key), set()).add(label)
    unique = {key: min(labels) for key, labels in by_file.items() if len(labels) == 1}
    return np.asarray([known.get(name) or unique.get(_file_name(name), "") for name in names], dtype=np.str_)


def _file_name(name: str) -> str:
    """The last part of a path, without the suffix of a file with sound: `talk` of `a/talk.wav`, and `rec.1` as is."""
    path = PurePath(name)
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def _truth(paths: Sequence[Path], tables: Sequence[ScoreTable]) -> Texts:
    """True labels of the rows; KnnError if two systems' files say otherwise."""
    truth = np.full(len(tables[0]), "", dtype=np.str_)
    for path, table in zip(paths, tables, strict=True):
        given = table.truth if len(table.truth) else np.full(len(table), "", dtype=np.str_)
        both = (given != "") & (truth != "")
        if (wrong := both & (given != truth)).any():
            row = int(np.flatnonzero(wrong)[0])
            label, name, before = (str(column[row]) for column in (given, table.name, truth))
            raise KnnError(f"{path} has the true label {label!r} for {name!r}, others {before!r}.")
        truth = np.where(truth != "", truth, given)
    return truth


def _read_trials(paths: Sequence[Path], names: tuple[str, ...], keys: Path | None) -> SystemScores:
    lists = [read_trial_scores(path) for path in paths]
    order = _matched(paths, [_trial_rows(trials) for trials, _ in lists])
    scores = trial_scores([values[rows] for (_, values), rows in zip(lists, order, strict=True)])
    trials = lists[0][0]
    keyed = [
        other.is_target[rows] for (other, _), rows in zip(lists, order, strict=True) if other.is_target is not None
    ]
    if any((is_target != keyed[0]).any() for is_target in keyed[1:]):
        raise KnnError("The files do not agree on which trials are target trials.", "Give the scores of one list.")
    trials = with_keys(trials, keys) if keys is not None else replace(trials, is_target=keyed[0] if keyed else None)
    truth = np.full(len(trials), "", dtype="<U9")
    if trials.is_target is not None:
        truth = np.where(trials.is_target, *TRIAL_LABELS)
    return SystemScores(names, scores, TRIAL_LABELS, truth, trials)


def _system_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Stems of the files; whole paths where stems repeat."""
    stems = [path.stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise KnnError(f"{names[0] if names[0] in names[1:] else names[-1]} is given twice.", "Give each system once.")
    return tuple(names)


def _matched(paths: Sequence[Path], rows: Sequence[Sequence[Row]]) -> list[NDArray[np.int64]]:
    """Where each file has the rows of the first; KnnError for rows that are not in both."""
    first = rows[0]
    result = []
    for path, others in zip(paths, rows, strict=True):
        if others == first:  # also where names repeat, as those of segments without times do
            result.append(np.arange(len(first)))
            continue
        place = {row: number for number, row in enumerate(others)}
        if len(place) < len(others) or len(set(first)) < len(first):
            file, some = (path, others) if len(place) < len(others) else (paths[0], first)
            twice = next(row for row in some if some.count(row) > 1)
            raise KnnError(f"{file} has {_described(twice)} twice, and the files list their rows in another order.")
        _refuse_missing(path, paths[0], [row for row in first if row not in place], len(first))
        _refuse_missing(paths[0], path, sorted(set(others) - set(first)), len(others))
        result.append(np.asarray([place[row] for row in first], dtype=np.int64))
    return result


def _refuse_missing(file: Path, other: Path, missing: Sequence[Row], rows: int) -> None:
    if missing:
        raise KnnError(
            f"{file} lacks {len(missing)} of the {rows} rows of {other}: {_some([*map(_described, missing)])}.",
            "Give scores of the same recordings by all systems.",
        )


def table_rows(table: ScoreTable) -> list[tuple[str, float, float]]:
    """Name, start and end of each row, by which it is found: to a millisecond, -1 where unknown."""
    times = np.round(np.nan_to_num(np.stack([table.start, table.end]), nan=-1.0), 3).tolist()
    return list(zip(table.name.tolist(), *times, strict=True))


def _trial_rows(trials: Trials) -> list[Row]:
    return [(trials.enroll[left], trials.test[right]) for left, right in trials.pairs.tolist()]


def _described(row: Row) -> str:
    if len(row) == 2:
        return f"{row[0]} {row[1]}"
    name, start, end = row
    return repr(name) if start < 0 else f"{name!r} {start:g}-{end:g} s"


def _some(texts: Sequence[str]) -> str:
    """The first three of some texts."""
    return ", ".join(texts[:3]) + (", ..." if len(texts) > 3 else "")
