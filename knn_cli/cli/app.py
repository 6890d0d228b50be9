"""The command line: each command parses its options, calls functions of the other packages, and prints the results.

Data is written to stdout, messages to stderr. Exit codes: 0, success; 1, something failed (named on stderr) and the
rest was done; 2, wrong usage. Nothing heavy is imported before a command runs, so that `knn --help` is fast.
"""

from __future__ import annotations

import shlex
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from knn_cli import __version__
from knn_cli.cli.console import Command, Commands, console, flush_stdout, open_missing_streams
from knn_cli.cli.options import QUIET_HELP, VERBOSE_HELP, louder, quieter, switch, valued

RECORDINGS, RECOGNITION, DIARIZATION = "Recordings and embeddings", "Languages, dialects, speakers", "Who spoke when"
# In the order of a workflow: name -> panel of the help, first sentence of the command's help. The module of a command
# has the same name, and is imported when the command runs or shows its help.
COMMANDS = {
    "convert": (RECORDINGS, "Convert recordings, embeddings, checkpoints, models and turns."),
    "embed": (RECORDINGS, "Compute embeddings of recordings."),
    "models": (RECORDINGS, "List public checkpoints that knn can convert, with the command that brings each."),
    "info": (RECORDINGS, "Describe stores, models and audio files; without arguments, all installed models."),
    "split": (RECOGNITION, "Choose at random which recordings are held out."),
    "train": (RECOGNITION, "Train a classifier of languages, dialects or speakers on a store."),
    "evaluate": (RECOGNITION, "Evaluate language or dialect recognition on labelled test sets."),
    "classify": (RECOGNITION, "Recognise the language or dialect of recordings, with calibrated probabilities."),
    "timeline": (RECOGNITION, "Follow the language or dialect through long recordings."),
    "fuse": (RECOGNITION, "Fuse scores of several systems of languages, dialects or speakers, and calibrate them."),
    "verify": (RECOGNITION, "Score speaker trials: is it the same speaker in both recordings?"),
    "diarize": (DIARIZATION, "Find out who spoke when: the turns of each speaker, on stdout or in files."),
    "tune": (DIARIZATION, "Choose settings of diarize on recordings with reference turns."),
}


def load(name: str) -> Any:
    """Return the command with a name, with its options."""
    module = import_module(f"knn_cli.cli.{name}")
    function = getattr(module, name)
    # Each paragraph of the docstring on one line, for the terminal to wrap.
    help = "\n\n".join(" ".join(paragraph.split()) for paragraph in str(function.__doc__).split("\n\n"))
    single = typer.Typer(add_completion=False, rich_markup_mode="rich")
    single.command(name, cls=Command, help=help, epilog=module.EPILOG)(function)
    return typer.main.get_command(single)


class LazyCommands(Commands):
    """Lists the commands without importing them."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        for name, (panel, help) in COMMANDS.items():
            self.commands[name] = Command(name, help=help, rich_help_panel=panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, None if name is None or command is None else load(name), rest


app = typer.Typer(
    name="knn",
    cls=LazyCommands,
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
        valued("--log-file", metavar="FILE", help="Append all messages, with times and details, to this file."),
    ] = None,
    version: Annotated[
        bool, switch("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if log_file is not None:
        console.log_to(log_file, shlex.join(["knn", *sys.argv[1:]]))


def run() -> int:
    """Run the command that the program was given; return its exit code."""
    open_missing_streams()
    try:
        app()
    except SystemExit as end:
        return flush_stdout(end.code if isinstance(end.code, int) else 0)
    return 0
