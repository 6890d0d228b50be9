"""`knn models`: public checkpoints that `knn convert` reads, with licences, figures and the command for each."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from knn_cli.cli.options import JsonOption, QuietOption, VerboseOption, epilog

if TYPE_CHECKING:
    from knn_cli.networks.public_checkpoints import PublicCheckpoint

EPILOG = epilog("knn models languages czech", "knn models speakers cc-by-4.0", "knn models whisper --json")
COLUMNS = "name task languages parameters megabytes licence importer encoder figure source command".split()


def models(
    text: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="Words of a name, task, licence or importer, or languages."),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """List public checkpoints that knn can convert, with the command that brings each.

    All words must fit: parts of names, licences and importers, tasks (languages, speakers, segmentation, pre-trained),
    and codes or names of languages. Sizes are in millions of parameters and in MB; what is empty is not known. Nothing
    is fetched. `knn info` lists the models on this machine.
    """
    from knn_cli.networks.public_checkpoints import find_checkpoints

    found = find_checkpoints(" ".join(text or []))
    if as_json:
        from knn_cli.cli import output

        for row in found:
            output.json_line(sys.stdout, {column: getattr(row, column) for column in COLUMNS})
    elif sys.stdout.isatty():
        _show(found)
    else:
        from knn_cli.core.tables import Table

        rows = tuple(tuple(_cell(row, column) for column in COLUMNS) for row in found)
        Table("models", tuple(COLUMNS), rows).write_tsv(sys.stdout)


def _cell(row: PublicCheckpoint, column: str) -> str | float | None:
    value: str | float | None = row.spoken() if column == "languages" else getattr(row, column)
    return value


def _show(found: list[PublicCheckpoint]) -> None:
    """Write a table of what is most asked for; the command of each stands below its facts."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(title="Public checkpoints", show_lines=True)
    for column in ("name", "task", "languages", "size", "licence", "figure and command"):
        shown.add_column(column, overflow="fold")
    for row in found:
        sizes = [
            f"{size:g} {unit}" for size, unit in ((row.parameters, "M"), (row.megabytes, "MB")) if size is not None
        ]
        last = "\n".join(filter(None, [row.figure, row.source, row.command]))
        cells = [row.name, row.task, row.spoken(), ", ".join(sizes), row.licence or "not stated", last]
        shown.add_row(*map(Text, cells))
    Console().print(shown)
