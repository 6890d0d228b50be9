"""Analyses that `knn diarize` keeps: those of --keep, and those from which a run over many recordings goes on.

A run whose outputs follow from several recordings has nothing to show if it is stopped. So the analysis of each lies in
a folder `.NAME.analyses` beside the output (`.knn.analyses` in a folder of outputs) until all is written. Files there
are called by a digest of all that they follow from.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from knn_cli.cli import stopping
from knn_cli.cli.console import console
from knn_cli.cli.options import counted
from knn_cli.cli.own_outputs import output_task, task_digest
from knn_cli.core.errors import KnnError
from knn_cli.core.output_records import OutputRecords, OutputTask

if TYPE_CHECKING:
    from knn_cli.core.values import Diarization
    from knn_cli.diarization.kept_analysis import KeptAnalysis
    from knn_cli.networks.bundle import Bundle

_FILE = re.compile(r"[0-9a-f]{16}\.h5")


class AnalysisFiles:
    """Where the analyses of recordings are kept, and which are there.

    Parameters
    ----------
    ctx : typer.Context
        Of a command with --again and --force.
    models : sequence of Bundle
        The models that analyses follow from.
    names : mapping of Path to str
        The names of the recordings.
    keep : mapping of Path to Path
        Recording -> the file that the user has named for its analysis.
    beside : sequence of Path or None
        Without such files: outputs, beside the first of which analyses are kept until it is written.

    Raises
    ------
    KnnError
        For a file named by the user that is there and is not of this very task, unless --force.
    """

    def __init__(
        self,
        ctx: typer.Context,
        models: Sequence[Bundle],
        names: Mapping[Path, str],
        keep: Mapping[Path, Path],
        beside: Sequence[Path | None],
    ) -> None:
        from knn_cli.store.writer import check_free

        self._names, self._keep = names, keep
        output = next(filter(None, beside), None)
        self._folder = None if keep or output is None else output.with_name(f".{output.name}.analyses")
        self._files, self._found = dict(keep), dict[Path, Path]()
        if not keep and self._folder is None:
            return
        self._tasks = {path: output_task(ctx, task_digest(ctx, models, [path])) for path in names}
        if self._folder is not None:
            self._files = {path: self._folder / f"{_key(path, task)}.h5" for path, task in self._tasks.items()}
        records = OutputRecords()
        there = {path: file for path, file in self._files.items() if file.is_file()}
        self._found = {
            path: file for path, file in there.items() if not keep or records.is_finished(file, self._tasks[path])
        }
        for path, file in keep.items():
            if path not in self._found:
                check_free(file, bool(ctx.params["force"]))
        if ctx.params["again"]:
            self._found = {}
        if self._found:
            many = f"{len(self._found)} of {counted(len(names), 'recording')}"
            console.note(f"Analysed before: {many}; --again does them anew.")
        if self._folder is not None:
            stopping.working(len(names), before=len(self._found))

    def __bool__(self) -> bool:
        return bool(self._files)

    def save(self, path: Path, analysis: KeptAnalysis) -> None:
        """Keep the analysis of a recording, unless it is kept already."""
        from knn_cli.diarization import kept_analysis

        if path not in self._files or path in self._found:
            return
        analysis = replace(analysis, recording=self._names[path])
        if self._folder is None:
            kept_analysis.save(analysis, self._files[path], force=True, task=self._tasks[path])
            console.detail(f"{self._files[path]}: kept from {path}.")
            return
        with suppress(KnnError, OSError):  # a disk that is full costs nothing but that
            self._folder.mkdir(exist_ok=True)
            kept_analysis.save(analysis, self._files[path], force=True)

    def diarized(
        self, diarize: Callable[..., Iterator[tuple[Path, Diarization | KnnError]]], paths: Iterable[Path], **more: Any
    ) -> Iterator[tuple[Path, Diarization | KnnError]]:
        """Yield the diarizations of recordings: from what is kept, and of the others by `diarize`, in their order."""
        from knn_cli.diarization import recordings

        analysed = more["analysed"]
        for is_kept, group in groupby(paths, key=self._found.__contains__):
            if not is_kept:
                yield from diarize(list(group), **more)
                continue
            for path in group:
                used = None if analysed is None else (lambda _, analysis, path=path: analysed(path, analysis))
                _, result = next(recordings.diarize_kept([self._found[path]], **{**more, "analysed": used}))
                if isinstance(result, KnnError):  # damaged, or of too little sound
                    del self._found[path]
                    yield from diarize([path], **more)
                else:
                    yield path, result

    def remove(self) -> None:
        """Remove what was kept for going on only: the outputs are written."""
        if self._folder is None or self._folder.is_symlink() or not self._folder.is_dir():
            return
        with suppress(OSError):
            for file in self._folder.iterdir():
                if _FILE.fullmatch(file.name):
                    file.unlink()
            self._folder.rmdir()


def _key(path: Path, task: OutputTask) -> str:
    return hashlib.sha256(f"{path.resolve()} {task.digest}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
