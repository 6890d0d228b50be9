"""UEM: the parts of each recording that are scored."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from knn_cli.core.errors import KnnError

if TYPE_CHECKING:
    from pyannote.core import Timeline


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
        If a line has another format, or the file cannot be read.
    """
    from pyannote.core import Segment, Timeline

    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KnnError(f"{path} cannot be read.", "Give the path of a UEM file.") from error
    scored: dict[str, Timeline] = {}
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields or fields[0].startswith(";;"):
            continue
        try:
            uri, _, start, end = fields[0], fields[1], float(fields[2]), float(fields[3])
        except (IndexError, ValueError) as error:
            message = f"Line {number} of {path} is not a UEM line."
            raise KnnError(message, "Expected: <file> 1 <start> <end>.") from error
        if not 0 <= start < end < math.inf:
            raise KnnError(f"Line {number} of {path} goes from {start:g} to {end:g} seconds.", "Correct the line.")
        scored.setdefault(uri, Timeline()).add(Segment(start, end))
    return {uri: timeline.support() for uri, timeline in scored.items()}
