"""Outputs of commands: whose they are, and which are finished, so that the same command goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from knn_cli import __version__
from knn_cli.cli import stopping
from knn_cli.cli.console import console
from knn_cli.cli.options import counted
from knn_cli.core.output_records import OutputRecords, OutputTask, check_replaceable, stamps

if TYPE_CHECKING:
    from knn_cli.networks.bundle import Bundle

# Parameters of commands on which the content of an output does not depend; sources are counted one by one.
_NO_CONTENT = frozenset(
    "force backup again quiet verbose out out_dir rttm keep save_embeddings sources device batch_seconds".split()
)


_BEGINS_ANEW = "Repeat the command; with a file for each recording, in --out-dir, it goes on where it was stopped."


def output_task(ctx: typer.Context, digest: str = "") -> OutputTask:
    """What makes the outputs of a command; see `core.output_records`."""
    return OutputTask(str(ctx.command.name), digest, backup=bool(ctx.params.get("backup")))


def check_own_outputs(ctx: typer.Context, *outputs: Path | None) -> OutputTask:
    """Raise KnnError for outputs that others wrote or changed, unless --force or --backup; return what makes them."""
    task = output_task(ctx)
    check_replaceable([out for out in outputs if out is not None], task, force=bool(ctx.params["force"]))
    return task


def task_digest(ctx: typer.Context, models: Iterable[Bundle], sources: Sequence[Path]) -> str:
    """A digest of all that an output follows from: options, the files that they name, models, version, sources."""
    options = {name: _content(value) for name, value in sorted(ctx.params.items()) if name not in _NO_CONTENT}
    facts = [
        __version__,
        str(ctx.command.name),
        options,
        [(model.fingerprint, stamps([model.folder])) for model in models],
        stamps(sources),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _content(value: Any) -> Any:
    """What an option contributes: the files that it names count by their stamps, wherever they lie."""
    if isinstance(value, (list, tuple)):
        return [_content(one) for one in value]
    if isinstance(value, Path):
        return stamps([value])
    return value.value if isinstance(value, Enum) else value


class Resumption:
    """Which sources of a command are finished, and what makes the outputs of the others.

    Files that the command did not write, or that were changed since, are refused unless --force or --backup; but of
    several sources, those whose outputs are finished and were changed since, as by a correction, stay as they are.

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
    whole : Path, optional
        The file that is written for all of them.
    together : bool
        Whether outputs follow from all sources, and none can be left out.

    Attributes
    ----------
    left : list of Path
        The sources whose outputs are to be made, in their order.
    whole : OutputTask
        What makes an output of all sources.

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
        whole: Path | None = None,
        together: bool = False,
    ) -> None:
        models, sources = list(models), list(outputs)
        self._records = OutputRecords()
        self.whole = output_task(ctx, task_digest(ctx, models, sources))
        self._tasks = {
            path: self.whole if together else output_task(ctx, task_digest(ctx, models, [path])) for path in sources
        }
        self.left = sources
        replaces = ctx.params["force"] or self.whole.backup
        changed: list[Path] = []
        if not ctx.params["again"] and not together:
            keeps_changed = len(sources) > 1 and not replaces
            all_files = {path: [*outputs[path], *([kept[path]] if kept else [])] for path in sources}
            done = [path for path in sources if self._are_finished(all_files[path], path, keeps_changed)]
            if whole is not None:
                is_finished = self._records.is_finished(whole, self.whole) and done == sources
                self.left = [] if is_finished else sources
            elif all(outputs.values()):
                changed = [path for path in done if not self._are_finished(all_files[path], path, False)]
                self.left = [path for path in sources if path not in set(done)]
        files = [file for path in self.left for file in outputs[path]]
        files += [whole] if whole is not None and self.left else []
        check_replaceable(files, self.whole, force=bool(ctx.params["force"]), records=self._records)
        self._note(len(sources), changed)
        goes_on = all(outputs.values()) and not together
        stopping.working(len(self.left), stopping.GOES_ON if goes_on else _BEGINS_ANEW)

    def task(self, source: Path) -> OutputTask:
        """What makes the outputs of a source."""
        return self._tasks[source]

    def is_finished(self, path: Path, source: Path) -> bool:
        """Whether this very task made a file for a source."""
        return self._records.is_finished(path, self._tasks[source])

    def _are_finished(self, files: Sequence[Path], source: Path, changed: bool) -> bool:
        return all(self._records.is_finished(file, self._tasks[source], changed=changed) for file in files)

    def _note(self, count: int, changed: Sequence[Path]) -> None:
        if finished := count - len(self.left):
            console.note(f"Finished before: {finished} of {counted(count, 'recording')}; --again does them anew.")
        for path in changed:
            console.note(f"The output of {path} was changed since, and stays as it is.")
