"""Messages on stderr (notes, errors, progress bars), the log file, and exit codes."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer
from typer.core import TyperCommand, TyperGroup

from knn_cli.cli import stopping
from knn_cli.cli.help_pages import import_drawing
from knn_cli.cli.usage_errors import visible_usage_errors
from knn_cli.core.errors import Failure, KnnError
from knn_cli.core.visible_text import visible

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

# Messages of other packages refer to parameters. Most are set by an option of the same name ...
SAME_NAMES = frozenset(
    "as_norm backup batch_seconds calibration channel chunk cluster clusterer cohort config curve device draws "
    "folds force groups held_out ignore int8 keep keys kind labels languages level link_speakers margin max_gap "
    "max_silence max_speakers origin min_segment min_speakers min_turn model name num_speakers number out_of_set "
    "part per_channel precision preset priors rate recursive reference report seed segment segmentation speakers "
    "speech split step transforms uem units unwanted window".split()
)
# ... and some by an option of another name.
FLAGS = {
    **{name: "--" + name.replace("_", "-") for name in SAME_NAMES},
    "fraction": "--held-out",
    "label": "--level",
    "label_rule": "--labels",
}
# Settings that --set changes.
SETTINGS = frozenset(
    "balanced distance_threshold duration_aware false_reject identification_threshold linkage linking_threshold "
    "min_cluster_size out_of_set_class refit silence_threshold view".split()
)
# Values of parameters whose option is a switch.
SWITCHES = {
    ("channel", "1:mix"): "--track 1",
    ("channel", "2:mix"): "--track 2",
    ("use_vad", "False"): "--no-vad",
    ("open_set", "False"): "--no-unknown",
    ("vad", "silero"): "--segmentation silero",
}
_PARAMETER = re.compile(r"`(?P<name>[a-z_0-9]+)(?:=(?P<value>[^`]+))?`")


def with_flags(text: str, options: Collection[str] | None = None) -> str:
    """Return a message of another package with its parameters as options: "`force=True`" becomes "--force".

    Only text in backquotes is replaced: a message may quote file names, such as split=train/part=1.flac.

    Parameters
    ----------
    text : str
    options : collection of str, optional
        The flags that the command has. A parameter that is none of its options is named in words.
    """

    def shown(match: re.Match[str]) -> str:
        flag = _flag(match)
        known = flag is None or options is None or flag.split(" ")[0] in options
        return (match[0] if flag is None else flag) if known else match["name"].replace("_", " ")

    return _PARAMETER.sub(shown, text)


def hint_with_flags(hint: str, options: Collection[str] | None) -> str:
    """Return a hint with parameters as options, as `with_flags`, and without advice to use an option that is not there.

    Advice is parted by ", or "; what is left may be nothing.
    """

    def is_possible(advice: str) -> bool:
        flags = [flag for match in _PARAMETER.finditer(advice) if (flag := _flag(match)) is not None]
        return options is None or all(flag.split(" ")[0] in options for flag in flags)

    advice = hint.removesuffix(".").split(", or ")
    possible = [part for part in advice if is_possible(part)]
    if len(possible) == len(advice):
        return with_flags(hint)
    text = with_flags(", or ".join(possible))
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _flag(match: re.Match[str]) -> str | None:
    """The option of a parameter in backquotes, None where there is none of that name."""
    name, value = match["name"], match["value"] and match["value"].strip("\"'")
    if (name, value) in SWITCHES:
        return SWITCHES[name, value]
    if name in SETTINGS:
        return f"--set {name}" if value is None else f"--set {name}={value}"
    if name not in FLAGS:
        return None
    return FLAGS[name] if value in (None, "True") else f"{FLAGS[name]} {shlex.quote(value)}"


class Console:
    """Writes notes (unless quiet), details (if verbose) and errors to stderr, and a progress bar if it is a terminal.

    `options` are the flags of the command that runs, which errors may name.

    All messages, details included, are also appended with the time to the log file, if there is one.
    """

    def __init__(self) -> None:
        self.quiet = self.verbose = False
        self._log: TextIO | None = None
        self._shown_as: dict[str, str] = {}
        self.options: Collection[str] | None = None

    def reset(self) -> None:
        """Return to the initial state: neither quiet nor verbose, no log file."""
        self.quiet = self.verbose = False
        self._shown_as, self.options = {}, None
        if self._log is not None:
            self._log.close()
        self._log = None

    def log_to(self, path: Path, command: str) -> None:
        """Append the command, then all messages, to a file."""
        self._log = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
        self._record(visible(command))

    def _record(self, text: str) -> None:
        if self._log is not None:
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            self._log.write(f"{now} {text}\n")

    def show_as(self, text: str, shown: str) -> None:
        """Write `shown` in place of a text, such as the path of a temporary file, in all messages."""
        self._shown_as[text] = shown

    def note_of_recording(self, path: Path, clause: str, loss: bool) -> None:
        """Write what is said of a recording that is read all the same; even if quiet where sound is lost."""
        self._write(with_flags(f"{path} {clause}."), loss or not self.quiet)

    def show_log(self) -> None:
        """Show what the other packages say in Python's log, each sentence once: warnings even if quiet."""
        import logging

        shown: set[str] = set()

        def show(record: logging.LogRecord) -> bool:
            text = record.getMessage()
            if text not in shown:
                shown.add(text)
                (self.complain if record.levelno >= logging.WARNING else self.note)(with_flags(text))
            return False  # there is nothing else to be done with it

        handler = logging.Handler()
        handler.addFilter(show)
        logger = logging.getLogger("knn_cli")
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)

    def note(self, text: str) -> None:
        self._write(text, not self.quiet)

    def detail(self, text: str) -> None:
        self._write(text, self.verbose)

    def error(self, error: KnnError) -> None:
        """Write an error; KeyboardInterrupt where it is what became of a signal that came."""
        stopping.check()
        self.complain(f"knn: {with_flags(error.message, self.options)}")
        if hint := hint_with_flags(error.hint, self.options):
            self.complain(f"     {hint}")

    def complain(self, text: str) -> None:
        """Write an error message, even if quiet."""
        self._write(text, True)

    def _write(self, text: str, shown: bool) -> None:
        for hidden, instead in self._shown_as.items():
            text = text.replace(hidden, instead)
        text = visible(text)  # file names and labels are others'
        self._record(text)
        if shown:
            try:
                typer.echo(text, err=True)
            except OSError:  # nobody reads it, or its disk is full: no reason to stop the work
                sys.stderr = _nowhere()

    @contextmanager
    def progress(self, what: str, *, in_bytes: bool = False) -> Iterator[Callable[[int, int | None], None]]:
        """Yield a callback (done, total or None) that draws a progress bar if stderr is a terminal.

        Counts `in_bytes` are shown as megabytes, with the speed.
        """
        if not self.shows_progress:
            yield lambda done, total: None
            return
        with self.bar(*(_download_columns() if in_bytes else ())) as bar:
            task = bar.add_task(what, total=None)

            def update(done: int, total: int | None) -> None:
                bar.update(task, completed=done, total=total)
                if total is not None and done >= total:  # what follows is not counted: the bar moves, and is not full
                    bar.tasks[0].total = None

            yield update

    @property
    def shows_progress(self) -> bool:
        """Whether progress is drawn: not if quiet, nor where stderr is no terminal."""
        return not self.quiet and sys.stderr.isatty()

    def bar(self, *columns: ProgressColumn) -> Progress:
        """A progress bar on stderr that disappears at the end, with rich's own columns or others."""
        from rich.console import Console as Terminal
        from rich.progress import Progress

        terminal = Terminal(stderr=True)
        # rich would write the data of stdout to the terminal of the bar, even where stdout is a file.
        return Progress(*columns, console=terminal, transient=True, redirect_stdout=sys.stdout.isatty())


def _download_columns() -> list[ProgressColumn]:
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    description = TextColumn("{task.description}")
    return [description, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]


console = Console()


OUTPUTS = ("out", "report", "rttm", "save_embeddings", "keep")  # parameters of commands that name an output
ORDER = "knn.order"  # in the context's meta: names of the options as they were given, repeated ones each time


class Command(TyperCommand):
    """A command whose help does not list --help, which `knn --help` lists; it notes the order of its options.

    While it runs, no other process writes its outputs (see `core.locks`).
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            console.options = {flag for param in self.params for flag in param.opts}
            ctx.meta[ORDER] = [option.name for option in self.make_parser(ctx).parse_args(list(args))[2]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with ExitStack() as held:
            for name in OUTPUTS:
                if (value := ctx.params.get(name)) is not None and os.environ.get("RANK", "0") == "0":
                    _hold(held, name, Path(value))
            return super().invoke(ctx)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        import_drawing()
        super().format_help(ctx, formatter)

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.hidden = True
        return option


def _hold(held: ExitStack, name: str, path: Path) -> None:
    """Lock an output until `held` is closed; KnnError if another process writes it, or nobody may."""
    from knn_cli.core.locks import locked

    if name == "keep" and (path.suffix.lower() not in (".h5", ".hdf5") or path.is_dir()):
        return  # a folder that several commands may fill, whose files the command locks
    is_folder = name == "report" or not path.suffix
    if is_folder or path.parent.is_dir():  # else the command says so
        held.enter_context(locked(path, is_folder=is_folder))


def open_missing_streams() -> None:
    """Open what the caller has closed of stdin, stdout and stderr, so that no other file is taken for them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stderr is None:
        sys.stderr = _nowhere()


def flush_stdout(code: int) -> int:
    """Write out what is left of the data; return the exit code, which tells if that fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 141
        console.error(KnnError(f"The output cannot be written: {error.strerror}.", "Name a place with room for it."))
        return code or 1
    return code


def _nowhere() -> TextIO:
    return os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


class Commands(TyperGroup):
    """Turns each KnnError and each error of the system into a message and an exit code."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        import_drawing()
        super().format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        console.reset()
        console.show_log()
        with visible_usage_errors():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        if sys.stdout is None:  # closed by the caller
            sys.stdout = _nowhere()
        if isinstance(sys.stdout, TextIOWrapper):  # file names need not be text
            sys.stdout.reconfigure(errors="backslashreplace")
        from knn_cli.audio import reading_notes

        try:
            with reading_notes.listening(console.note_of_recording), visible_usage_errors():
                return super().invoke(ctx)
        except KnnError as error:
            console.error(error)
            raise typer.Exit(error.code) from None
        except BrokenPipeError:  # the reader of stdout has closed it; 141 is the shell's exit code for SIGPIPE
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141) from None
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            console.error(KnnError("There is not enough memory for this.", "Process less at once, or free memory."))
        except OSError as error:
            name = f"{error.filename}: " if error.filename else ""
            hint = "Check the path, its permissions and the free space on the disk."
            console.error(KnnError(f"{name}{error.strerror or error}.", hint))
        raise typer.Exit(1)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, or torch on some device, could not allocate memory."""
    is_torch = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or is_torch


def failed(name: str, error: KnnError) -> Failure:
    """Report why a file could not be processed, and return that failure for `leave`."""
    console.error(error)
    return Failure(name, error)


def leave(failures: list[Failure], *, report_errors: bool = False, done: int = 0) -> None:
    """Exit with code 1 if files failed, after listing them.

    Parameters
    ----------
    failures : list of Failure
    report_errors : bool
        Report the error of each first.
    done : int
        Number of the others, which are done.
    """
    if not failures:
        return
    for failure in failures if report_errors else ():
        console.error(failure.error)
    others = f"; the other{f' {done} are' if done > 1 else ' is'} done" if done else ""
    if len(failures) > 1 or done:
        count = "1 file" if len(failures) == 1 else f"{len(failures)} files"
        console.complain(f"knn: {count} failed{others}: {', '.join(failure.file for failure in failures)}")
    raise typer.Exit(1)


def end_at_once_among_several() -> None:
    """End a process of `torchrun` when its work is done; does nothing in a single process.

    While the interpreter shuts down, threads of Gloo and autograd may still ask for its lock. Once in many runs the
    process then aborts ("terminate called without an active exception"), and a finished training counts as failed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
