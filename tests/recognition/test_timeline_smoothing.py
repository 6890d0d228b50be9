"""From windows to spans and switches, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from knn_cli.core.values import ScoreTable, Segment
from knn_cli.formats.spans import Span
from knn_cli.recognition.language_timeline import LanguageSwitch
from knn_cli.recognition.timeline_smoothing import SpeechTrack, language_switches, smooth_labels, speaker_language


def table(scores: list[list[float]], *, threshold: float | None = None, labels: str = "abc") -> ScoreTable:
    rows = len(scores)
    nan = np.full(rows, np.nan)
    names = tuple(labels[: len(scores[0])])
    return ScoreTable(names, np.array(scores, dtype=float), np.full(rows, "x"), nan, nan, threshold=threshold)


def track(regions: list[tuple[float, float]], windows: list[tuple[float, float]], tier: str = "") -> SpeechTrack:
    speech = [Segment(*times) for times in regions]
    return SpeechTrack(tier, speech, speech, [Segment(*times) for times in windows])


def test_spans_by_hand() -> None:
    """Windows of 2 s every second over 0-5; centres 1, 2, 3, 4, so cells 0-1.5-2.5-3.5-5."""
    speech = track([(0, 5)], [(0, 2), (1, 3), (2, 4), (3, 5)])
    a, b = [40.0, 0.0], [0.0, 40.0]
    first, second = smooth_labels(table([a, a, b, b]), speech, window=2.0, switch=0.1)
    assert (first.start, first.end, first.label) == (0, 2.5, "a")
    assert (second.start, second.end, second.label) == (2.5, 5, "b")
    assert first.probability == pytest.approx(1, abs=1e-6)
    assert first.alternatives[0][0] == "b" and len(first.alternatives) == 1
    assert language_switches([first, second]) == (LanguageSwitch(2.5, "a", "b"),)


def test_labels_that_the_recording_has_are_likelier() -> None:
    """One window among others of `a`, and again where `b` is in the recording: only then it is a switch and back."""
    a, b, once = [40.0, 0.0, 0.0], [0.0, 40.0, 0.0], [0.0, 11.25, 0.0]
    other = [(10 + k, 12 + k) for k in range(5)]
    windows = [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0), (3.0, 5.0), *other]
    speech = track([(0, 5), (10, 16)], windows)
    for rest, labels in ((a, ["a", "a"]), (b, ["a", "b", "a", "b"])):
        spans = smooth_labels(table([a, once, a, a, *[rest] * 5]), speech, window=2.0, switch=0.1)
        assert [span.label for span in spans] == labels


def test_evidence_is_counted_once() -> None:
    """A window alone has its own posterior; so do all windows of a region whose seconds they share."""
    score = [math.log(3), 0.0]
    (span,) = smooth_labels(table([score]), track([(0, 2)], [(0, 2)]), window=2.0, switch=0.1)
    assert span.probability == pytest.approx(0.75)
    # Nine windows over 4 s of speech weigh as two: with a switch that is all but impossible 9 : 1, times the weights of
    # the labels, which are 0.9 : 0.1 of one window (there are two, less one) and 5 : 5 of equal weights.
    many = track([(0, 4)], [(k / 4, k / 4 + 2) for k in range(9)])
    (span,) = smooth_labels(table([score] * 9), many, window=2.0, switch=1e-9)
    assert span.probability == pytest.approx(9 * 5.9 / (9 * 5.9 + 5.1), abs=1e-6)
    # In a declared set, without weights: 9 : 1.
    declared = replace(table([score] * 9), rivals=np.full((9, 1), -99.0))
    (span,) = smooth_labels(declared, many, window=2.0, switch=1e-9)
    assert span.probability == pytest.approx(0.9, abs=1e-6)
    # One second of speech is half a window's worth.
    (span,) = smooth_labels(table([score]), track([(0, 1)], [(0, 1)]), window=2.0, switch=0.1)
    assert span.probability == pytest.approx(math.sqrt(3) / (1 + math.sqrt(3)))


def test_pauses_split_spans_unless_short() -> None:
    speech = track([(0, 2), (2.4, 4), (9, 9.2)], [(0, 2), (2.4, 4)])
    scores = table([[5.0, 0.0], [5.0, 0.0]])
    result = smooth_labels(scores, speech, window=2.0, max_gap=0.5)
    assert [(span.start, span.end) for span in result] == [(0, 4), (9, 9.2)]  # the last by the window nearest to it
    assert len(smooth_labels(scores, speech, window=2.0, max_gap=0.0)) == 3


def test_unknown_where_the_threshold_says_so() -> None:
    """Alone, a row is unknown exactly when its largest detection LLR is below; llr of [x, 0, 0] for a is x."""
    speech = track([(0, 2)], [(0, 2)])
    for x, label in ((1.9, "unknown"), (2.1, "a")):
        (span,) = smooth_labels(table([[x, 0, 0]], threshold=2.0), speech, window=2.0, switch=0.01)
        assert span.label == label
    assert [span.label for span in smooth_labels(table([[1.9, 0, 0]]), speech, window=2.0)] == ["a"]
    named = ScoreTable(("a", "unknown"), np.zeros((1, 2)), np.array(["x"]), np.zeros(1), np.zeros(1), threshold=1.0)
    (span,) = smooth_labels(named, speech, window=2.0)
    assert (span.label, span.probability) == ("unknown", pytest.approx(math.e / (1 + math.e)))


def spoken(scores: list[list[float]], **more: float) -> list[Span]:
    """Spans of windows of 2 s, one after the other, with labels a, b and zxx."""
    rows = len(scores)
    nan = np.full(rows, np.nan)
    scored = ScoreTable(("a", "b", "zxx"), np.array(scores), np.full(rows, "x"), nan, nan)
    windows = [(2.0 * k, 2.0 * k + 2) for k in range(rows)]
    return smooth_labels(scored, track([(0, 2.0 * rows)], windows), window=2.0, **more)


def test_no_speech_is_no_language_to_switch_to() -> None:
    """A window without speech between windows of `a` says nothing of the language, however much it looks like `b`."""
    a, silent, weak_b = [9.0, 0.0, 0.0], [-20.0, 0.0, 20.0], [0.0, 1.0, 0.0]
    assert [span.label for span in spoken([a, a, silent, weak_b, a])] == ["a", "zxx", "a"]
    assert language_switches(spoken([a, a, silent, silent, weak_b, a])) == ()
    # A weak `zxx` does not interrupt speech, and many such windows do not either as long as a language is likelier.
    assert [span.label for span in spoken([a, [3.0, 0.0, 3.2], a])] == ["a"]
    assert [span.label for span in spoken([[3.0, 0.0, 2.5]] * 6)] == ["a"]


def test_probabilities_of_a_window_with_no_speech_as_a_label() -> None:
    """Alone, those of the scores; they sum to 1 in any case; labels that are no answers are speech too."""
    (span,) = spoken([[math.log(4), math.log(3), math.log(2)]])
    assert (span.label, [label for label, _ in span.alternatives]) == ("a", ["b", "zxx"])
    assert [span.probability, *(p for _, p in span.alternatives)] == pytest.approx([4 / 9, 3 / 9, 2 / 9])
    for span in spoken([[2.0, 0.0, 1.0], [0.0, 3.0, 2.0], [0.0, 0.0, 4.0]]):
        assert span.probability is not None
        assert span.probability + sum(p for _, p in span.alternatives) == pytest.approx(1)
    nan = np.full(1, np.nan)
    scored = ScoreTable(
        ("a", "zxx"), np.log([[1.0, 2.0]]), np.array(["x"]), nan, nan, rivals=np.log(np.array([[2.0, 1.0]]))
    )
    (span,) = smooth_labels(scored, track([(0, 2)], [(0, 2)]), window=2.0)
    assert span.label == "a" and span.probability == pytest.approx(4 / 6)


def test_a_speakers_language_is_that_of_the_windows_with_speech() -> None:
    windows = [(0.0, 3.0), (5.0, 8.0)]
    scored = ScoreTable(
        ("a", "b", "zxx"), np.array([[2.0, 0.0, -30.0], [0.0, 9.0, 60.0]]), np.full(2, "x"), np.zeros(2), np.zeros(2)
    )
    result = speaker_language(scored, track(windows, windows, "ann"))
    assert result.label == "a"
    assert result.probability == pytest.approx(math.e**2 / (1 + math.e**2), abs=1e-9)
    for silent, label in ((math.log(2), "a"), (math.log(4), "zxx")):  # 1 + 1 + 2 and 1 + 1 + 4
        unsure = replace(scored, log_likelihood=np.array([[0.0, 0.0, silent]] * 2))
        assert speaker_language(unsure, track(windows, windows)).label == label


def test_switches_pass_over_unknown_and_stay_with_their_speaker() -> None:
    spans = [Span(0, 1, "a"), Span(1, 2, "unknown"), Span(2, 3, "b"), Span(3, 4, "unknown"), Span(4, 5, "b")]
    assert language_switches(spans) == (LanguageSwitch(2, "a", "b"),)
    assert language_switches([Span(0, 1, "a"), Span(1, 2, "zxx"), Span(2, 3, "a")]) == ()
    assert language_switches([Span(0, 1, "a", "x"), Span(1, 2, "b", "y"), Span(2, 3, "c", "x")]) == (
        LanguageSwitch(2, "a", "c", "x"),
    )
    assert language_switches([]) == ()


def test_a_speakers_language_is_the_mean_of_its_seconds() -> None:
    """Three seconds at log-odds 2 and one at -2, whatever the windows' overlap: mean 1."""
    speech = track([(0, 3), (5, 6)], [(0, 3), (5, 6)], "ann")
    result = speaker_language(table([[2.0, 0.0], [-2.0, 0.0]]), speech)
    assert (result.speaker, result.label, result.seconds, result.scored_seconds) == ("ann", "a", 4, 4)
    assert result.probability == pytest.approx(math.e / (1 + math.e))
    assert result.alternatives == (("b", pytest.approx(1 / (1 + math.e))),)
    assert speaker_language(table([[2.0, 0.0], [-2.0, 0.0]], threshold=1.5), speech).label == "unknown"


def test_several_windows_of_less_than_one_windows_speech() -> None:
    """Two turns of 0.3 s: less than a window in all, so nothing is known of what the recording has."""
    speech = track([(0, 0.3), (1, 1.3)], [(0, 0.3), (1, 1.3)])
    spans = smooth_labels(table([[5.0, 0.0, 0.0]] * 2), speech, window=2.0, max_gap=0.5)
    assert [span.label for span in spans] == ["a", "a"] and all(0.3 < (span.probability or 0) < 1 for span in spans)
