"""Outputs of a command: what makes them, and whether it may replace those that are there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from knn_cli import __version__
from knn_cli.core.output_records import OutputRecords, OutputTask, add_line, check_replaceable, keep_old, stamps

if TYPE_CHECKING:
    from knn_cli.networks.bundle import Bundle

# Parameters of commands on which the content of an output does not depend; sources are counted one by one.
_NO_CONTENT = frozenset(
    (
        "force backup again quiet verbose out out_dir rttm keep save_embeddings sources "
        "device batch_seconds jobs cluster"
    ).split()
)


def output_task(ctx: typer.Context, digest: str = "", source: Path | None = None) -> OutputTask:
    """What makes the outputs of a command; see `core.output_records`."""
    return OutputTask(str(ctx.command.name), digest, backup=bool(ctx.params.get("backup")), source=source)


def check_own_outputs(ctx: typer.Context, *outputs: Path | None) -> OutputTask:
    """Raise KnnError for outputs that others wrote or changed, unless --force or --backup; return what makes them."""
    task = output_task(ctx)
    check_replaceable({out: task for out in outputs if out is not None}, force=bool(ctx.params["force"]))
    return task


def is_finished(ctx: typer.Context, task: OutputTask, outputs: Sequence[Path]) -> bool:
    """Whether this very task wrote the outputs that are there, and --again does not ask for them anew."""
    records, there = OutputRecords(), [path for path in outputs if path.is_file()]
    return bool(there) and not ctx.params["again"] and all(records.is_finished(path, task) for path in there)


def may_replace(ctx: typer.Context, task: OutputTask, outputs: Sequence[Path]) -> bool:
    """Whether outputs that are there are replaced: by --force, or those of the command itself, or with --backup."""
    there = [path for path in outputs if path.is_file()]
    if ctx.params["force"] or not there:
        return bool(ctx.params["force"])
    check_replaceable(dict.fromkeys(there, task))
    for path in there:
        keep_old(path, task)
    return True


def note_outputs(task: OutputTask, outputs: Iterable[Path]) -> None:
    """Note complete outputs as those of a task."""
    for path in outputs:
        if path.is_file():
            add_line(path, path, task)


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
