"""The plot of turns: rows, units of time by length, shares, the same bytes each time."""

from __future__ import annotations

import pytest
from pyannote.core import Annotation, Segment

from knn_cli.formats import turn_plot
from knn_cli.formats.drawing import Plot
from knn_cli.formats.spans import SpanDocument, turn_document
from tests.helpers.turns import by_track, diarization


def document(seconds: float, speakers: int = 2, confidence: dict[int, float] | None = None) -> SpanDocument:
    annotation = Annotation(uri="a $talk$ <b>")
    for track in range(4 * speakers):
        start = seconds * track / (4 * speakers)
        annotation[Segment(start, start + seconds / (4 * speakers)), track] = f"speaker_{track % speakers} $x$"
    return turn_document(diarization(annotation, by_track(annotation, confidence), seconds=seconds))


def ticks(plot: Plot) -> list[str]:
    return [text.get_text() for text in plot.figure.axes[0].get_xticklabels()]


@pytest.mark.parametrize(
    ("seconds", "unit", "last"),
    [
        (1.0, "s", "1.0"),
        (12.0, "s", "12"),
        (59.0, "s", "55"),
        (61.8, "min:s", "1:00"),
        (1800.0, "min:s", "30:00"),
        (7200.0, "h:min:s", "2:00:00"),
        (36000.0, "h:min:s", "10:00:00"),
    ],
)
def test_time_is_written_in_the_unit_of_the_length(seconds: float, unit: str, last: str) -> None:
    plot = turn_plot.plot_turns(document(seconds))
    assert plot.figure.axes[0].get_xlabel() == f"Time / {unit}"
    found = ticks(plot)
    assert found[-1] == last and 3 <= len(found) <= 13 and len(set(found)) == len(found)


def test_rows_shares_and_table() -> None:
    plot = turn_plot.plot_turns(document(8.0, confidence={0: 0.0, 1: 1.0}))
    axes = plot.figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["speaker_0 $x$", "speaker_1 $x$"]
    assert [text.get_text() for text in axes.child_axes[0].get_yticklabels()] == ["4.0 s  50 %"] * 2
    assert [list(bars.get_alpha()) for bars in axes.collections] == [[0.25, 0.9, 0.9, 0.9], [1.0, 0.9, 0.9, 0.9]]
    assert plot.table.rows[0] == (0.0, 1.0, "speaker_0 $x$", 0.0) and len(plot.table.rows) == 8
    assert plot.title == "a $talk$ <b>: 2 speakers, 8.0 s"
    assert "speaker_1 $x$ 4.0 s" in plot.alt


def test_the_same_bytes_for_the_same_turns() -> None:
    one, two = (turn_plot.png(document(90.0, speakers=3)) for _ in range(2))
    assert one == two and one.startswith(b"\x89PNG")


def test_silence_and_a_turn_beyond_the_end() -> None:
    plot = turn_plot.plot_turns(turn_document(diarization(Annotation(uri="x"))))
    assert "No speech" in plot.alt and turn_plot.png(turn_document(diarization(Annotation()))).startswith(b"\x89PNG")
    late = Annotation()
    late[Segment(1, 9), 0] = "a"
    assert turn_plot.plot_turns(turn_document(diarization(late, seconds=5.0))).figure.axes[0].get_xlim() == (0, 9)
