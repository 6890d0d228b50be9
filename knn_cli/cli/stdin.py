"""`-` as the source of a command: sound from stdin, kept in a temporary file while the command runs; and URLs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from knn_cli.cli.console import console
from knn_cli.cli.options import INPUT, valued
from knn_cli.cli.skipped import refuse_missing
from knn_cli.core.errors import KnnError
from knn_cli.core.urls import UrlPath, as_source

if TYPE_CHECKING:
    from knn_cli.audio.spool import Spool

STDIN = Path("-")
TITLE = "stdin"
STORE_SUFFIXES = frozenset([".h5", ".hdf5"])  # those of `store.hdf5`, which imports h5py
HINT = "Pipe an audio file into it, such as: ffmpeg -v error -i talk.mp4 -f wav - | knn {command} -"

NameOption = Annotated[
    str | None, valued("--name", metavar="NAME", panel=INPUT, help="Call the recording from stdin (SOURCE -) so.")
]


@dataclass(frozen=True)
class ReceivedSources:
    """The sources of a command.

    Attributes
    ----------
    paths : list of Path
        A file to come in place of `-`.
    spool : Spool or None
        The copy of stdin, if it is a source.
    """

    paths: list[Path]
    spool: Spool | None = None

    @property
    def temporary(self) -> bool:
        """Whether the recording is gone when the command ends."""
        return self.spool is not None

    def receive(self) -> None:
        """Read stdin to its end, if it is a source: after all checks that need no sound.

        KnnError where no source is there.
        """
        if self.spool is None:
            refuse_missing(self.paths)
        else:
            with console.progress("Reading stdin") as progress:
                self.spool.fill(lambda copied: progress(copied, None))


def open_sources(ctx: typer.Context, sources: Sequence[Path], name: str | None = None) -> ReceivedSources:
    """Recognise URLs, and replace the source `-` by a temporary file, which is deleted however the command ends.

    Parameters
    ----------
    ctx : typer.Context
    sources : sequence of Path
    name : str, optional
        Name of the recording; `stdin` where None.

    Raises
    ------
    KnnError
        Where `-` is not the only source, or stdin is a terminal or closed; for a name without `-` or of several parts.
    AudioError
        Where stdin is empty or no audio.
    """
    if STDIN not in sources:
        if name is not None:
            raise KnnError("`name` requires the source -, which is stdin.", "Files have names of their own.")
        return ReceivedSources(known_urls(sources))
    if len(sources) > 1:
        raise KnnError("- is stdin and cannot be combined with other sources.", "Give it alone.")
    name = TITLE if name is None else name
    if not name.strip(".") or Path(name).name != name or not name.isprintable():
        raise KnnError(f"{name!r} is not a name for a recording.", "Give a file name without folders and suffix.")
    if sys.stdin is None or sys.stdin.closed:
        raise KnnError("stdin is closed, so there is no sound to read.", HINT.format(command=ctx.command.name))
    if sys.stdin.isatty():
        raise KnnError("stdin is a terminal, not a recording.", HINT.format(command=ctx.command.name))
    if ctx.params.get("cluster") is not None:
        raise KnnError("The workers of a cluster cannot read stdin.", "Leave `cluster` out, or name a file.")
    from knn_cli.audio.spool import spooled

    stream = cast(BufferedReader, sys.stdin.buffer)
    spool = ctx.with_resource(spooled(stream, name=name, title=TITLE))
    console.show_as(str(spool.path), TITLE)
    return ReceivedSources([spool.path], spool)


def known_urls(sources: Sequence[Path]) -> list[Path]:
    """The sources, of which those that are URLs are known as such. KnnError for stores at URLs."""
    found = [as_source(source) for source in sources]
    for source in found:
        if isinstance(source, UrlPath) and source.suffix.lower() in STORE_SUFFIXES:
            raise KnnError(f"{source} is a store at a URL; only sound is read there.", "Download it first.")
    return found
