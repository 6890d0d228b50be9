"""Commands that write a store, given again: what the store has is not done again, and how far they are, is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from knn_cli.cli import stopping
from knn_cli.cli.console import console
from knn_cli.cli.options import counted
from knn_cli.cli.own_outputs import output_task

if TYPE_CHECKING:
    from knn_cli.core.values import Progress
    from knn_cli.store.source_list import Repetition


def store_repetition(ctx: typer.Context) -> Repetition:
    """How a command that writes a store goes on with it; what earlier runs have finished is reported."""
    from knn_cli.store.source_list import Repetition

    def begun(finished: int, total: int | None) -> None:
        if finished and finished != total:
            what = counted(finished, "row") if total is None else f"{finished} of {counted(total, 'recording')}"
            console.note(f"Finished before: {what}; --again does them anew.")
        stopping.working(total or 0, before=finished, noun="rows" if total is None else "recordings")

    return Repetition(output_task(ctx), again=bool(ctx.params["again"]), begun=begun)


def noting(progress: Progress) -> Progress:
    """A progress that also notes how far the command is, for when it is stopped."""

    def note(done: int, total: int) -> None:
        stopping.advanced(done, total)
        progress(done, total)

    return note


def note_finished(out: Path) -> None:
    """Report that an output is what the command would make."""
    console.note(f"{out} was finished before; --again does it anew.")
