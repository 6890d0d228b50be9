"""Recordings whose turns somebody else has found: a person, or another program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from knn_cli.audio import reading, reading_notes
from knn_cli.audio.segments import BEYOND_SECONDS
from knn_cli.core.errors import KnnError
from knn_cli.core.values import Diarization, Turn, sort_turns


def with_given_turns(
    files: Sequence[Path], turns: Mapping[Path, Sequence[Turn]], *, channel: str = "mix"
) -> Iterator[tuple[Path, Diarization | KnnError]]:
    """Yield each recording with turns that somebody else has found; AudioError where it cannot be read.

    Turns, and parts of turns, behind the end of a recording are left out with a note.
    """
    for path in files:
        try:
            seconds = reading.info(path, channel=channel).seconds
        except KnnError as error:
            yield path, error
            continue
        last = max((turn.end for turn in turns[path]), default=0.0)
        if last > seconds + BEYOND_SECONDS:
            reading_notes.note(path, f"ends at {seconds:.1f} s, its turns at {last:.1f} s; what is behind is left out")
        inside = sort_turns(replace(turn, end=min(turn.end, seconds)) for turn in turns[path] if turn.start < seconds)
        yield path, Diarization(inside, path.stem, seconds=seconds)
