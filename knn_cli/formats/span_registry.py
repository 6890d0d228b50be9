"""The formats of span files by name and by suffix: writers are entered by `span_format`, and looked up here.

Speaker turns and languages over time share most formats; some are for one of them only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from knn_cli.core.errors import KnnError
from knn_cli.formats.spans import SpanDocument, SpanKind

SpanWriter = TypeVar("SpanWriter", bound=Callable[..., None])


@dataclass(frozen=True)
class SpanFormat:
    """A file format for spans.

    Attributes
    ----------
    name : str
    suffix : str
        Suffix of its files.
    write : callable
        Takes a SpanDocument and a file open for writing: a text file (UTF-8, no translation of line ends), or a binary
        file where `binary` is true.
    binary : bool
        Whether it is written to files only, never to a terminal or a pipe.
    multiple : bool
        Whether one file can hold several recordings, one written after the other.
    named_only : bool
        Whether only its name asks for it, because its suffix is that of another format too.
    words : bool
        Whether it says what the speakers say, where that is known.
    """

    name: str
    suffix: str
    write: Callable[[SpanDocument, IO[Any]], None]
    binary: bool = False
    multiple: bool = False
    named_only: bool = False
    words: bool = False


TURN_FORMATS: dict[str, SpanFormat] = {}
TIMELINE_FORMATS: dict[str, SpanFormat] = {}
_FORMATS: dict[SpanKind, dict[str, SpanFormat]] = {"turns": TURN_FORMATS, "timeline": TIMELINE_FORMATS}
_NOUNS: dict[SpanKind, str] = {"turns": "turns", "timeline": "a timeline"}


def span_format(
    name: str,
    suffix: str,
    *,
    kinds: Sequence[SpanKind] = ("turns", "timeline"),
    binary: bool = False,
    multiple: bool = False,
    named_only: bool = False,
    words: bool = False,
) -> Callable[[SpanWriter], SpanWriter]:
    """Register the decorated function as the writer of a format; for the parameters see `SpanFormat`."""

    def register(writer: SpanWriter) -> SpanWriter:
        for kind in kinds:
            if name in _FORMATS[kind]:
                raise ValueError(f"the format {name!r} of {_NOUNS[kind]} is registered already")
            _FORMATS[kind][name] = SpanFormat(name, suffix, writer, binary, multiple, named_only, words)
        return writer

    return register


def format_by_suffix(kind: SpanKind, path: str | Path) -> SpanFormat | None:
    """Return the format of a file's suffix, in upper or lower case; None if no format has it."""
    suffix = Path(path).suffix.lower()
    known = (known for known in _FORMATS[kind].values() if not known.named_only)
    return next((one for one in known if one.suffix.lower() == suffix), None)


def find_format(kind: SpanKind, name: str | None = None, path: str | Path | None = None) -> SpanFormat:
    """Return the format of a name or, if that is None, of a path's suffix.

    Raises
    ------
    KnnError
        If there is no such format for this kind of spans; the hint lists the known formats.
    """
    if name is None and path is not None:
        wanted, problem = format_by_suffix(kind, path), f"The suffix of {path} names no format"
    else:
        wanted, problem = _FORMATS[kind].get(name or ""), f"There is no format {name!r}"
    if wanted is None:
        names = ", ".join(f"{known.name} ({known.suffix})" for known in _FORMATS[kind].values())
        raise KnnError(f"{problem} of {_NOUNS[kind]}.", f"Known: {names}.")
    return wanted
