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
    files: Sequence[Path], turns: Mapping[Path, Sequence[Turn] | KnnError], *, channel: str = "mix"
) -> Iterator[tuple[Path, Diarization | KnnError]]:
    """Yield each recording with turns that somebody else has found; the error of one that has none, or is no audio.

    Turns, and parts of turns, behind the end of a recording are left out with a note.
    """
    for path in files:
        given = turns[path]
        if isinstance(given, KnnError):
            yield path, given
            continue
        try:
            seconds = reading.info(path, channel=channel).seconds
        except KnnError as error:
            yield path, error
            continue
        last = max((turn.end for turn in given), default=0.0)
        if last > seconds + BEYOND_SECONDS:
            reading_notes.note(path, f"ends at {seconds:.1f} s, its turns at {last:.1f} s; what is behind is left out")
        inside = sort_turns(replace(turn, end=min(turn.end, seconds)) for turn in given if turn.start < seconds)
        yield path, Diarization(inside, path.stem, seconds=seconds)
