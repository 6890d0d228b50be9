"""UEM: the parts of each recording that are scored."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from knn_cli.core.errors import KnnError
from knn_cli.core.texts import read_lines, split_fields, tidy

if TYPE_CHECKING:
    from pyannote.core import Timeline

_EXPECTED = "Expected: <file> 1 <start> <end>, with no blanks in the name of the file."


def read_uem(path: str | Path) -> dict[str, Timeline]:
    """Read a UEM file: lines `file channel start end`, times in seconds; `;;` begins a comment.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict of str to pyannote.core.Timeline
        Scored regions of each recording; regions that touch are joined.

    Raises
    ------
    KnnError
        If a line has another format, or the file cannot be read or names nothing.
    """
    from pyannote.core import Segment, Timeline

    scored: dict[str, Timeline] = {}
    for number, line in enumerate(read_lines(path, "a UEM file"), start=1):
        fields = split_fields(line)
        if not fields or fields[0].startswith(";;"):
            continue
        if len(fields) != 4 or not tidy(fields[0]):
            message = f"Line {number} of {path} is not a UEM line: it has {len(fields)} fields, not 4."
            raise KnnError(message, _EXPECTED)
        try:
            start, end = map(float, fields[2:])
        except ValueError as error:
            raise KnnError(f"Line {number} of {path} is not a UEM line: it has no times.", _EXPECTED) from error
        if not 0 <= start < end < math.inf:
            raise KnnError(f"Line {number} of {path} goes from {start:g} to {end:g} seconds.", "Correct the line.")
        scored.setdefault(tidy(fields[0]), Timeline()).add(Segment(start, end))
    if not scored:
        raise KnnError(f"{path} names nothing that is scored.", _EXPECTED)
    return {uri: timeline.support() for uri, timeline in scored.items()}
