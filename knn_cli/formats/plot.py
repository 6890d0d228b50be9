"""A picture of who speaks when: a lane a speaker, time in the unit that suits the recording's length."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from knn_cli.core.tables import Table
from knn_cli.formats.drawing import GREY, PALE, Plot, add_title, new_figure, render, style
from knn_cli.formats.turns import spoken, turns_of

if TYPE_CHECKING:
    from knn_cli.core.values import Diarization

# Okabe and Ito's colours first, then darker ones told apart from them; on white and on black all are seen.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"),
    *("#8C6BB1", "#A65628", "#66A61E", "#C2385B", "#1B9E9E", "#7F7F7F"),
)
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)  # seconds between ticks
_NAME = 28  # letters of a name


def timeline(diarization: Diarization) -> Plot:
    """The picture, with its turns as a table. A turn is the paler, the less sure it is."""
    turns = turns_of(diarization)
    total = spoken(turns)
    seconds = max(diarization.seconds, *(turn.end / 1000 for turn in turns), 0.001)
    lanes = {speaker: lane for lane, speaker in enumerate(total)}
    colour = {speaker: COLOURS[lane % len(COLOURS)] for speaker, lane in lanes.items()}
    name = " ".join(str(diarization.turns.uri or "").split())
    counts = f"{len(lanes)} speaker{'' if len(lanes) == 1 else 's'}, {_length(seconds)}"
    title = f"{_short(name)}: {counts}" if name else counts
    rows = max(1, len(lanes))
    with style():
        figure, (axes,) = new_figure(10.0, 1.25 + 0.34 * rows)
        for speaker, lane in lanes.items():
            own = [turn for turn in turns if turn.speaker == speaker]
            spans = [(turn.start / 1000, (turn.end - turn.start) / 1000) for turn in own]
            sure = np.array([0.9 if turn.confidence is None else 0.25 + 0.75 * turn.confidence for turn in own])
            # An edge of the same colour keeps a turn of a second in ten hours seen.
            bars = axes.broken_barh(spans, (lane - 0.34, 0.68), color=colour[speaker], linewidth=0.4)
            bars.set_alpha(np.clip(sure, 0.0, 1.0).tolist())
        all_spoken = sum(total.values()) or 1.0
        axes.set_yticks(range(len(lanes)), [_short(speaker) for speaker in lanes])
        shares = [f"{_length(total[one])}  {100 * total[one] / all_spoken:.0f} %" for one in lanes]
        right = axes.secondary_yaxis("right")
        right.set_yticks(range(len(lanes)), shares)
        right.tick_params(length=0, colors=GREY)
        right.spines["right"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(rows - 0.45, -0.55)
        axes.set_xlim(0, seconds)
        step = next((one for one in STEPS if seconds / one <= 12), STEPS[-1])
        ticks = np.arange(0, seconds + step * 1e-6, step)
        axes.set_xticks(ticks, [_tick(float(tick), seconds, step) for tick in ticks])
        axes.set_xlabel("Time / s" if seconds < 60 else "Time / min:s" if seconds < 3600 else "Time / h:min:s")
        axes.grid(axis="x", color=PALE, linewidth=0.6)
        if not turns:
            axes.text(0.5, 0.5, "No speech was found", transform=axes.transAxes, ha="center", va="center", color=GREY)
        add_title(figure, title)
    words = ", ".join(f"{_short(speaker)} {seconds_:.1f} s" for speaker, seconds_ in total.items())
    cells = tuple((turn.start / 1000, turn.end / 1000, turn.speaker, turn.confidence) for turn in turns)
    table = Table(title, ("start", "end", "speaker", "confidence"), cells)
    return Plot("timeline", f"Who speaks when. {words or 'No speech'}.", figure, table)


def png(diarization: Diarization) -> bytes:
    """The picture as a PNG file: the same bytes for the same turns."""
    return render(timeline(diarization), "png")


def _tick(seconds: float, longest: float, step: float) -> str:
    """A time as it is written on an axis that goes to `longest` seconds: s, min:s or h:min:s."""
    if longest < 60:
        return f"{seconds:.{1 if step < 1 else 0}f}"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{minutes}:{rest:02d}" if longest < 3600 else f"{hours}:{minutes:02d}:{rest:02d}"


def _length(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else _tick(seconds, seconds, 1.0)


def _short(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 1] + "…"
