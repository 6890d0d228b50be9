"""How the command line talks: notes, errors and progress on stderr, one sentence a mistake, exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any

import typer
from typer.core import TyperGroup

from knn_cli.core.errors import Failure, KnnError


class Talk:
    """What goes to stderr: notes (unless quiet), details (when verbose), errors (always), progress on a terminal."""

    quiet = False
    verbose = False

    def note(self, text: str) -> None:
        if not self.quiet:
            typer.echo(text, err=True)

    def detail(self, text: str) -> None:
        if self.verbose:
            typer.echo(text, err=True)

    def error(self, error: KnnError) -> None:
        typer.echo(f"knn: {error.message}", err=True)
        if error.hint:
            typer.echo(f"     {error.hint}", err=True)

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """A callback (done, total) that draws a bar while stderr is a terminal."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda done, total: None
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


talk = Talk()


class Commands(TyperGroup):
    """Turns every mistake of the user, and every refusal of the system, into one sentence and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        talk.quiet = talk.verbose = False
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        if sys.stdout is None:  # closed by the caller
            sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
        if isinstance(sys.stdout, TextIOWrapper):  # file names need not be text
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except KnnError as error:
            talk.error(error)
            raise typer.Exit(error.code) from None
        except BrokenPipeError:  # whoever read our output has heard enough; the exit code is the shell's for SIGPIPE
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None
        except KeyboardInterrupt:
            hint = "Repeat the command: convert, and embed with -o, go on where they were."
            talk.error(KnnError("Stopped.", hint))
            raise typer.Exit(130) from None
        except OSError as error:
            name = f"{error.filename}: " if error.filename else ""
            talk.error(KnnError(f"{name}{error.strerror or error}.", "Check the path, its permissions and free space."))
        raise typer.Exit(1)


def failed(name: str, error: KnnError) -> Failure:
    talk.error(error)
    return Failure(name, error)


def leave(failures: list[Failure], *, unsaid: bool = False) -> None:
    """Exit 1 when files failed, with what was wrong with each, where that is `unsaid`, and their list."""
    if not failures:
        return
    for failure in failures if unsaid else ():
        talk.error(failure.error)
    if len(failures) > 1:
        typer.echo(f"knn: {len(failures)} files failed: {', '.join(failure.file for failure in failures)}", err=True)
    raise typer.Exit(1)


def end_at_once_among_several() -> None:
    """End one of `torchrun`'s processes here, when its work is done; nothing in a process that is alone.

    While the interpreter winds down, threads of Gloo and autograd may still ask for its lock: then, once in many runs,
    the process aborts ("terminate called without an active exception"), and a finished training counts as failed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
