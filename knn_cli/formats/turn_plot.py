"""A plot of who speaks when: one row per speaker, the time axis in the unit that suits the recording's length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from knn_cli.core.tables import Table
from knn_cli.formats.drawing import GREY, PALE, Plot, add_title, new_figure, render, style
from knn_cli.formats.spans import RoundedSpan, SpanDocument, one_line, seconds_by_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The colours of Okabe and Ito first, then darker ones that differ from them; all are visible on white and on black.
SPEAKER_COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"),
    *("#8C6BB1", "#A65628", "#66A61E", "#C2385B", "#1B9E9E", "#7F7F7F"),
)
TICK_STEPS_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)
MAX_TICKS = 12
MAX_NAME_LENGTH = 28  # characters


def plot_turns(document: SpanDocument) -> Plot:
    """Draw the turns of a recording; the lower a turn's confidence, the paler it is.

    Parameters
    ----------
    document : SpanDocument

    Returns
    -------
    Plot
        Its table holds start and end in seconds, speaker and confidence of each turn.
    """
    turns = document.rounded()
    speaking_time = seconds_by_label(turns)
    seconds = max(document.seconds, *(turn.end_ms / 1000 for turn in turns), 0.001)
    name = one_line(document.name or "")
    counts = f"{len(speaking_time)} speaker{'' if len(speaking_time) == 1 else 's'}, {_duration(seconds)}"
    title = f"{_shortened(name)}: {counts}" if name else counts
    rows = max(1, len(speaking_time))
    with style():
        figure, (axes,) = new_figure(10.0, 1.25 + 0.34 * rows)
        _draw_bars(axes, turns, speaking_time)
        _label_rows(axes, speaking_time)
        axes.set_ylim(rows - 0.45, -0.55)
        _label_time(axes, seconds)
        if not turns:
            axes.text(0.5, 0.5, "No speech detected", transform=axes.transAxes, ha="center", va="center", color=GREY)
        add_title(figure, title)
    words = ", ".join(f"{_shortened(one_line(speaker))} {spoken:.1f} s" for speaker, spoken in speaking_time.items())
    cells = tuple((turn.start_ms / 1000, turn.end_ms / 1000, turn.label, turn.span.probability) for turn in turns)
    table = Table(title, ("start", "end", "speaker", "confidence"), cells)
    return Plot("timeline", f"Who speaks when. {words or 'No speech'}.", figure, table)


def png(document: SpanDocument) -> bytes:
    """Return the plot as a PNG file; equal turns give equal bytes."""
    return render(plot_turns(document), "png")


def _draw_bars(axes: Axes, turns: Sequence[RoundedSpan], speakers: Mapping[str, float]) -> None:
    for row, speaker in enumerate(speakers):
        speaker_turns = [turn for turn in turns if turn.label == speaker]
        extents = [(turn.start_ms / 1000, (turn.end_ms - turn.start_ms) / 1000) for turn in speaker_turns]
        confidence = [turn.span.probability for turn in speaker_turns]
        alpha = np.array([0.9 if value is None else 0.25 + 0.75 * value for value in confidence])
        colour = SPEAKER_COLOURS[row % len(SPEAKER_COLOURS)]
        # An edge of the same colour keeps a turn of one second visible in a plot of ten hours.
        bars = axes.broken_barh(extents, (row - 0.34, 0.68), color=colour, linewidth=0.4)
        bars.set_alpha(np.clip(alpha, 0.0, 1.0).tolist())


def _label_rows(axes: Axes, speaking_time: Mapping[str, float]) -> None:
    """Label rows with the speakers at the left, their speaking time and its share at the right."""
    axes.set_yticks(range(len(speaking_time)), [_shortened(one_line(speaker)) for speaker in speaking_time])
    total = sum(speaking_time.values()) or 1.0
    shares = [f"{_duration(spoken)}  {100 * spoken / total:.0f} %" for spoken in speaking_time.values()]
    right = axes.secondary_yaxis("right")
    right.set_yticks(range(len(speaking_time)), shares)
    right.tick_params(length=0, colors=GREY)
    right.spines["right"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _label_time(axes: Axes, seconds: float) -> None:
    axes.set_xlim(0, seconds)
    step = next((step for step in TICK_STEPS_SECONDS if seconds / step <= MAX_TICKS), TICK_STEPS_SECONDS[-1])
    ticks = np.arange(0, seconds + step * 1e-6, step)
    axes.set_xticks(ticks, [_tick(float(tick), seconds, step) for tick in ticks])
    axes.set_xlabel("Time / s" if seconds < 60 else "Time / min:s" if seconds < 3600 else "Time / h:min:s")
    axes.grid(axis="x", color=PALE, linewidth=0.6)


def _tick(seconds: float, axis_end: float, step: float) -> str:
    """A time as written on an axis that ends at `axis_end` seconds: s, min:s or h:min:s."""
    if axis_end < 60:
        return f"{seconds:.{1 if step < 1 else 0}f}"
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{minutes}:{remainder:02d}" if axis_end < 3600 else f"{hours}:{minutes:02d}:{remainder:02d}"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else _tick(seconds, seconds, 1.0)


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_NAME_LENGTH else name[: MAX_NAME_LENGTH - 1] + "…"
