"""The command line: each command parses, calls functions of the packages below, and prints what they return.

stdout is data, stderr is messages. Exit 0: all done; 1: something failed, named on stderr, the rest is done; 2: usage.
Nothing heavy is imported before a command runs, so that `knn --help` answers at once.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from knn_cli import __version__
from knn_cli.cli import classify, convert, diarize, embed, evaluate, info, split, timeline, train, verify
from knn_cli.cli.console import Command, Commands, console
from knn_cli.cli.options import QUIET_HELP, VERBOSE_HELP, louder, quieter, switch, valued

app = typer.Typer(
    name="knn",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Spoken language and dialect identification, and speaker diarization. Offline; a CPU is enough.",
    epilog="knn COMMAND --help shows the options of a command. -q and -v may also follow the command.",
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"knn {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    quiet: Annotated[bool, switch("-q", "--quiet", callback=quieter, help=QUIET_HELP)] = False,
    verbose: Annotated[bool, switch("-v", "--verbose", callback=louder, help=VERBOSE_HELP)] = False,
    log_file: Annotated[
        Path | None,
        valued("--log-file", metavar="FILE", help="Append what stderr says, with times and details, to this file."),
    ] = None,
    version: Annotated[
        bool, switch("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if log_file is not None:
        console.log_to(log_file, shlex.join(["knn", *sys.argv[1:]]))


RECORDINGS, RECOGNITION, DIARIZATION = "Recordings and embeddings", "Languages, dialects, speakers", "Who spoke when"
COMMANDS = (  # in the order of the work
    (RECORDINGS, convert.convert, convert.EPILOG),
    (RECORDINGS, embed.embed, embed.EPILOG),
    (RECORDINGS, info.info, info.EPILOG),
    (RECOGNITION, split.split, split.EPILOG),
    (RECOGNITION, train.train, train.EPILOG),
    (RECOGNITION, evaluate.evaluate, evaluate.EPILOG),
    (RECOGNITION, classify.classify, classify.EPILOG),
    (RECOGNITION, timeline.timeline, timeline.EPILOG),
    (RECOGNITION, verify.verify, verify.EPILOG),
    (DIARIZATION, diarize.diarize, diarize.EPILOG),
)


def _one_line_each(text: str) -> str:
    """A docstring with each paragraph on one line, for the terminal to wrap."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


for _panel, _command, _epilog in COMMANDS:
    app.command(cls=Command, rich_help_panel=_panel, help=_one_line_each(str(_command.__doc__)), epilog=_epilog)(
        _command
    )


def main() -> NoReturn:
    """The `knn` command."""
    # For pictures in notebooks pyannote.core imports pyplot, most of a second; without that part it does all the rest.
    sys.modules.setdefault("pyannote.core.notebook", None)  # type: ignore[arg-type]
    app()
    raise SystemExit(0)
