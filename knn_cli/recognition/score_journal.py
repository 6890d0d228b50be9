"""Scores of the recordings that are finished, kept beside an output until it is whole.

A command that writes one file for many recordings has nothing to show if it is stopped. So each recording's scores go
to `.NAME.partial` beside the output as soon as they are there: a line of JSON each, behind one that says what task they
are of. The same task takes them from there, to the last bit; a line that was torn is computed again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from knn_cli.core.atomic import replacing_text
from knn_cli.core.errors import KnnError
from knn_cli.core.output_paths import is_stream, resolved
from knn_cli.core.values import ScoreTable
from knn_cli.embedding.options import RowsWithoutSpeech
from knn_cli.store import hdf5
from knn_cli.store.corpora.recordings import CorpusRecording, SoundSource

__all__ = ["ScoreJournal"]

Source = Path | CorpusRecording
Scored = tuple[Path | SoundSource, ScoreTable | RowsWithoutSpeech | KnnError]
_KIND = "scores of knn classify"


class ScoreJournal:
    """The scores of a task's recordings; a context manager, within which they are kept as they come.

    Parameters
    ----------
    out : Path or None
        The output that is to be written; None keeps nothing.
    digest : str
        Of the task: all that the scores follow from.
    again : bool
        Drop what an earlier run has kept.

    Attributes
    ----------
    finished : dict of str to ScoreTable
        Recording -> its scores, of an earlier run that was stopped.
    """

    def __init__(self, out: Path | None, digest: str, *, again: bool = False) -> None:
        is_file = out is not None and not is_stream(resolved(out))
        self._path = out.with_name(f".{out.name}.partial") if out is not None and is_file else None
        self._digest = digest
        self._file: TextIO | None = None
        found = [] if again or self._path is None else _read(self._path, digest)
        self.finished = dict(found)
        self._lines = len(self.finished)

    def __enter__(self) -> ScoreJournal:
        if self._path is not None and (not self._path.exists() or _is_ours(self._path)):
            with replacing_text(self._path) as file:  # without what is of another task, or torn
                file.write(json.dumps({"kind": _KIND, "task": self._digest}) + "\n")
                for name, table in self.finished.items():
                    file.write(_line(name, table))
            self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
            if not self._lines:
                self.remove()

    def remove(self) -> None:
        """Remove what is kept: the output is written."""
        if self._file is not None and self._path is not None:
            self._path.unlink(missing_ok=True)

    def resumed(
        self, sources: Sequence[Source], classify: Callable[[Sequence[Source]], Iterator[Scored]]
    ) -> Iterator[Scored]:
        """Yield the scores of all sources in their order: what is kept, and what `classify` finds of the others.

        Parameters
        ----------
        sources : sequence of Path or CorpusRecording
        classify : callable
            `classify_files` of some of them.

        Yields
        ------
        As `classify_files`.
        """
        for is_finished, group in groupby(sources, key=lambda source: _name(source) in self.finished):
            if is_finished:
                for source in group:
                    where = source.sound if isinstance(source, CorpusRecording) else source
                    yield where, self.finished[_name(source)]
                continue
            for where, result in classify(list(group)):
                if self._file is not None and isinstance(result, ScoreTable) and not _is_store(where):
                    self._file.write(_line(str(where), result))
                    self._file.flush()
                    self._lines += 1
                yield where, result


def _name(source: Source) -> str:
    return str(source.sound if isinstance(source, CorpusRecording) else source)


def _is_store(where: Path | SoundSource) -> bool:
    """Whether scores are of a part of a store, whose parts are not told apart here."""
    return isinstance(where, Path) and hdf5.is_store(where)


def _line(name: str, table: ScoreTable) -> str:
    arrays = {key: getattr(table, key) for key in ("log_likelihood", "name", "start", "end", "truth", "rivals")}
    facts: dict[str, Any] = {key: None if value is None else value.tolist() for key, value in arrays.items()}
    facts |= {"labels": table.labels, "groups": table.groups, "threshold": table.threshold}
    return json.dumps({"source": name, "scores": facts}) + "\n"


def _table(facts: dict[str, Any]) -> ScoreTable:
    labels, groups = tuple(map(str, facts["labels"])), tuple(map(str, facts["groups"]))
    scores, start, end = (np.asarray(facts[key], dtype=np.float64) for key in ("log_likelihood", "start", "end"))
    name, truth = (np.asarray(facts[key], dtype=np.str_) for key in ("name", "truth"))
    rivals = None if facts["rivals"] is None else np.asarray(facts["rivals"], dtype=np.float64)
    threshold = None if facts["threshold"] is None else float(facts["threshold"])
    return ScoreTable(labels, scores.reshape(-1, len(labels)), name, start, end, truth, threshold, groups, rivals)


def _is_ours(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return bool(json.loads(file.readline())["kind"] == _KIND)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _read(path: Path, digest: str) -> Iterator[tuple[str, ScoreTable]]:
    """The scores that a task has kept, up to the first line that is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            if json.loads(file.readline()) != {"kind": _KIND, "task": digest}:
                return
            for line in file:
                entry = json.loads(line)
                yield str(entry["source"]), _table(entry["scores"])
    except (OSError, ValueError, LookupError, TypeError):
        return
