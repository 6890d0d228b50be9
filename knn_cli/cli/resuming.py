"""Going on where a command stopped: what the same task has finished, and nobody changed since, is not done again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from knn_cli.cli import stopping
from knn_cli.cli.console import console, failed
from knn_cli.cli.options import counted
from knn_cli.cli.own_outputs import output_task, task_digest
from knn_cli.core.errors import Failure, KnnError
from knn_cli.core.output_records import OutputRecords, OutputTask, check_replaceable

if TYPE_CHECKING:
    from knn_cli.networks.bundle import Bundle

_BEGINS_ANEW = "Repeat the command; with a file for each recording, in --out-dir, it goes on where it was stopped."
_ONE = "Repeat the command; a recording is begun anew."


class Resumption:
    """Which sources of a command are finished, and what makes the outputs of the others.

    Files that the command did not write, or that were changed since, are refused unless --force or --backup; but of
    several sources, those whose outputs were changed since, as by a correction, stay as they are, and the others are
    done. That is a failure where something else was asked for than what was corrected. So it is with outputs of other
    recordings.

    Parameters
    ----------
    ctx : typer.Context
        Of a command with --force, --backup and --again.
    outputs : mapping of Path to sequence of Path
        Source -> the files that are written for it alone.
    models : iterable of Bundle
        The models that the outputs follow from.
    kept : mapping of Path to Path
        Source -> a file that is kept besides, which this class does not refuse to replace.
    whole : sequence of Path
        The files that are written for all of them.
    together : bool
        Whether outputs follow from all sources, and none can be left out.

    Attributes
    ----------
    left : list of Path
        The sources whose outputs are to be made, in their order.
    whole : OutputTask
        What makes an output of all sources.
    finished : int
        Number of sources that are finished.
    failures : list of Failure
        Sources that are not done because their outputs were changed.

    Raises
    ------
    KnnError
        As `output_records.check_replaceable`.
    """

    def __init__(
        self,
        ctx: typer.Context,
        outputs: Mapping[Path, Sequence[Path]],
        models: Iterable[Bundle],
        *,
        kept: Mapping[Path, Path] | None = None,
        whole: Sequence[Path] = (),
        together: bool = False,
    ) -> None:
        models, sources = list(models), list(outputs)
        self._records = OutputRecords()
        self.whole = output_task(ctx, task_digest(ctx, models, sources))
        self._tasks = {
            path: self.whole if together else output_task(ctx, task_digest(ctx, models, [path]), path)
            for path in sources
        }
        self.left, self.failures = sources, list[Failure]()
        self._files = {path: [*outputs[path], *([kept[path]] if kept else [])] for path in sources}
        replaces = ctx.params["force"] or self.whole.backup
        keeps_changed = len(sources) > 1 and not replaces and not together
        changed: list[Path] = []
        if not ctx.params["again"] and not together:
            done = [path for path in sources if self._are_finished(path, keeps_changed)]
            if whole:
                is_finished = done == sources and all(self._records.is_finished(file, self.whole) for file in whole)
                self.left = [] if is_finished else sources
            elif all(outputs.values()):
                changed = [path for path in done if not self._are_finished(path, False)]
                self.left = [path for path in sources if path not in set(done)]
        self.finished = len(sources) - len(self.left)
        self._note(len(sources), changed)
        if keeps_changed and not whole:
            self._leave_changed()
        tasks = {file: self._tasks[path] for path in self.left for file in outputs[path]}
        tasks |= dict.fromkeys(whole if self.left else [], self.whole)
        check_replaceable(tasks, force=bool(ctx.params["force"]), records=self._records)
        goes_on = all(outputs.values()) and not together
        hint = _ONE if len(sources) == 1 else stopping.GOES_ON if goes_on else _BEGINS_ANEW
        stopping.working(len(self.left), hint, before=self.finished)

    def task(self, source: Path) -> OutputTask:
        """What makes the outputs of a source."""
        return self._tasks[source]

    def is_finished(self, path: Path, source: Path) -> bool:
        """Whether this very task made a file for a source."""
        return self._records.is_finished(path, self._tasks[source])

    def _are_finished(self, source: Path, changed: bool) -> bool:
        return all(
            self._records.is_finished(file, self._tasks[source], changed=changed) for file in self._files[source]
        )

    def _note(self, count: int, changed: Sequence[Path]) -> None:
        if self.finished:
            console.note(f"Finished before: {self.finished} of {counted(count, 'recording')}; --again does them anew.")
        for path in changed:
            console.note(f"The output of {path} was changed since, and stays as it is.")

    def _leave_changed(self) -> None:
        """Pass over the sources whose outputs were corrected, or are of other recordings."""
        for path in self.left:
            states = {file: self._records.state(file, self._tasks[path]) for file in self._files[path]}
            for file, state in states.items():
                if state in ("changed", "another"):
                    why = f"was changed since `knn {self.whole.command}` wrote it"
                    why = why if state == "changed" else "is of another recording"
                    hint = "Replace it with `force=True`, or keep it under another name with `backup=True`."
                    message = f"{file} {why}, and stays; {path} is not done."
                    self.failures.append(failed(str(path), KnnError(message, hint)))
                    break
        self.left = [path for path in self.left if str(path) not in {failure.file for failure in self.failures}]
