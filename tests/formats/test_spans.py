"""Spans: checked, rounded, summed."""

from __future__ import annotations

import math

import pytest
from pyannote.core import Annotation, Segment

from knn_cli.formats.spans import RoundedSpan, Span, SpanDocument, seconds_by_label, turn_document
from tests.helpers.turns import by_track, diarization


@pytest.mark.parametrize("args", [(2, 1, "a"), (-1, 1, "a"), (0, math.inf, "a"), (0, math.nan, "a")])
def test_spans_are_checked(args: tuple[float, float, str]) -> None:
    with pytest.raises(ValueError):
        Span(*args)


def test_labels_of_timelines_are_checked() -> None:
    with pytest.raises(ValueError):
        SpanDocument("timeline", "x", 1.0, [Span(0, 1, " ")])


def test_seconds_count_overlap_once_per_label() -> None:
    rows = [(0, 1000, "a"), (200, 600, "a"), (900, 1500, "a"), (1400, 1600, "b"), (3000, 3001, "a")]
    assert seconds_by_label([RoundedSpan(start, end, Span(0, 0, label)) for start, end, label in rows]) == {
        "a": 1.501,
        "b": 0.2,
    }
    assert seconds_by_label([]) == {}


def test_turns_are_rounded_by_themselves_and_keep_their_confidence() -> None:
    annotation = Annotation(uri="a talk")
    annotation[Segment(1.0, 2.5), 0] = "ann"
    annotation[Segment(0.25, 1.0004), 1] = "bob"
    annotation[Segment(3.0, 3.0002), 3] = "ann"  # no length at 1 ms
    document = turn_document(diarization(annotation, by_track(annotation, {0: 0.5}), seconds=4.0))
    assert (document.kind, document.name, document.seconds) == ("turns", "a talk", 4.0)
    found = [(turn.start_ms, turn.end_ms, turn.label, turn.span.probability) for turn in document.rounded()]
    assert found == [(250, 1000, "bob", None), (1000, 2500, "ann", 0.5)]
