"""Notes about turns and scored parts that reach beyond the end of their recording."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from knn_cli.audio.segments import BEYOND_SECONDS
from knn_cli.cli.console import console

if TYPE_CHECKING:
    from pyannote.core import Timeline


def note_beyond(path: Path, what: str, times: Timeline | None, seconds: float) -> None:
    """Note that turns or scored parts reach beyond the end of their recording, which they are then hardly of."""
    if times and times.extent().end > seconds + BEYOND_SECONDS:
        last = f"reaches {times.extent().end:.1f} s, and the recording ends at {seconds:.1f} s"
        console.note(f"{path}: the {what} {last}. Is it of this recording?")
