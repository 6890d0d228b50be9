"""Writing spans to files, in every format there is.

Each format is one function, decorated with `span_format`: tables are in `span_tables`, captions in `span_captions`,
TextGrids in `textgrid`.
Writers that need more than text - ELAN documents, the plot, the player - live in modules of their own, imported when
they are used.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, TextIO

from knn_cli.core.atomic import replacing, replacing_text
from knn_cli.core.errors import KnnError
from knn_cli.core.output_records import OutputTask
from knn_cli.formats import span_captions, span_tables, textgrid  # noqa: F401 - they enter their formats
from knn_cli.formats.span_registry import (
    TIMELINE_FORMATS,
    TURN_FORMATS,
    SpanFormat,
    find_format,
    format_by_suffix,
    span_format,
)
from knn_cli.formats.spans import SpanDocument

__all__ = [
    "TIMELINE_FORMATS",
    "TURN_FORMATS",
    "SpanFormat",
    "find_format",
    "format_by_suffix",
    "span_format",
    "write",
    "write_text",
]


def write(document: SpanDocument, path: str | Path, name: str | None = None, *, task: OutputTask | None = None) -> None:
    """Write spans to a file, which appears only once it is complete, and is their `location` if they have none.

    Parameters
    ----------
    document : SpanDocument
    path : path
    name : str, optional
        Name of the format; by default that of the suffix of `path`.
    task : OutputTask, optional
        See `atomic.replacing`.

    Raises
    ------
    KnnError
        If the format is unknown, if a player has no recording, or if the file cannot be written.
    AudioError
        If the player cannot read the recording.
    """
    known = find_format(document.kind, name, path)
    document = replace(document, location=document.location or Path(path))
    if known.binary:
        with replacing(path, task=task) as part, part.open("wb") as binary_file:
            known.write(document, binary_file)
    else:
        with replacing_text(path, task=task) as file:
            known.write(document, file)


def write_text(document: SpanDocument, file: TextIO, name: str) -> None:
    """Write spans into an open text file or stream; KnnError for a format that is not text."""
    known = find_format(document.kind, name)
    if known.binary:
        raise KnnError(f"A {name} file is not text.", "Name a file or a folder for it.")
    known.write(document, file)


@span_format("eaf", ".eaf", kinds=["turns"], words=True)
def write_elan(document: SpanDocument, file: TextIO) -> None:
    """Write an ELAN document with a tier per speaker."""
    from knn_cli.formats import elan

    elan.write_eaf(document, file)


@span_format("png", ".png", kinds=["turns"], binary=True)
def write_plot(document: SpanDocument, file: BinaryIO) -> None:
    """Write a plot of who speaks when."""
    from knn_cli.formats import turn_plot

    file.write(turn_plot.png(document))


@span_format("html", ".html", kinds=["turns"], binary=True)
def write_player(document: SpanDocument, file: BinaryIO) -> None:
    """Write a page that plays the recording and shows its turns."""
    from knn_cli.formats import player

    player.write_html(document, file)
