"""Languages over time: the hidden Markov model against enumeration, spans by hand, and files parsed back by others."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.core import Annotation, Segment, Timeline

from knn_cli.audio import reading
from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, EmbeddingSet, ScoreTable
from knn_cli.formats.rttm import read_rttm
from knn_cli.formats.span_formats import TIMELINE_FORMATS, write
from knn_cli.formats.spans import Span
from knn_cli.recognition import timeline as room
from knn_cli.recognition.classifier import Classifier
from knn_cli.recognition.hmm import chances, switch_probabilities, viterbi
from knn_cli.recognition.timeline import Switch, Voice, overall, smooth, switches, timeline

# ---- the hidden Markov model ----


def enumerated(scores: Doubles, switch: Doubles) -> tuple[Doubles, tuple[int, ...], Doubles]:
    """Log-probability of every sequence of labels, the best sequence, and the chance of every label at every row."""
    rows, labels = scores.shape
    paths = list(itertools.product(range(labels), repeat=rows))
    logs = np.array(
        [
            sum(scores[row, label] for row, label in enumerate(path))
            + sum(
                math.log(1 - p) if a == b else math.log(p / (labels - 1))
                for (a, b), p in zip(itertools.pairwise(path), switch, strict=True)
            )
            for path in paths
        ]
    )
    odds = np.exp(logs - logs.max())
    at = np.array(paths)[:, :, None] == np.arange(labels)  # (paths, N, C)
    return logs, paths[int(logs.argmax())], np.einsum("p,pnc->nc", odds / odds.sum(), at)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(2, 4))
@settings(max_examples=60, deadline=None)
def test_model_against_every_path(seed: int, rows: int, labels: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(rows, labels)) * rng.uniform(0.1, 5)
    switch = rng.uniform(0.001, (labels - 1) / labels, size=rows - 1)
    _, best, each = enumerated(scores, switch)
    assert tuple(viterbi(scores, switch)) == best
    np.testing.assert_allclose(chances(scores, switch), each, atol=1e-12)
    np.testing.assert_allclose(chances(scores + 1e4 * rng.normal(size=(rows, 1)), switch), each, atol=1e-9)


def test_model_keeps_its_head_on_long_and_extreme_scores() -> None:
    scores = np.zeros((5000, 3))
    scores[:2500, 1], scores[2500:, 2] = 900.0, 900.0
    switch = np.full(4999, 1e-9)
    assert (viterbi(scores, switch) == np.repeat([1, 2], 2500)).all()
    found = chances(scores, switch)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert found[0, 1] > 0.999 and found[-1, 2] > 0.999
    assert viterbi(np.zeros((4, 1)), np.zeros(3)).tolist() == [0] * 4
    assert chances(np.zeros((4, 1)), np.zeros(3)).tolist() == [[1.0]] * 4
    assert viterbi(np.zeros((0, 3)), np.zeros(0)).shape == (0,) and chances(np.zeros((0, 3)), np.zeros(0)).shape == (
        0,
        3,
    )


def test_switches_do_not_hang_on_the_step() -> None:
    """By hand for two labels: p(2) = 2 p (1 - p); and two half steps are one for any number of labels."""
    assert switch_probabilities(0.1, np.array([0.0, 1.0, 2.0]), 2) == pytest.approx([0, 0.1, 0.18])
    for labels in (2, 3, 107):
        half, whole, ever = switch_probabilities(0.05, np.array([0.5, 1.0, 1e9]), labels)
        assert whole == pytest.approx(0.05)
        # stays twice, or leaves and comes back
        assert 1 - whole == pytest.approx((1 - half) ** 2 + half * half / (labels - 1))
        assert ever == pytest.approx((labels - 1) / labels)
    assert switch_probabilities(0.3, np.ones(2), 1).tolist() == [0, 0]
    for wrong in (0.0, -0.1, 0.5, 1.0, float("nan")):
        with pytest.raises(KnnError, match="lies between"):
            switch_probabilities(wrong, np.ones(1), 2)


# ---- spans of one voice ----


def table(scores: list[list[float]], *, threshold: float | None = None, labels: str = "abc") -> ScoreTable:
    rows = len(scores)
    nan = np.full(rows, np.nan)
    names = tuple(labels[: len(scores[0])])
    return ScoreTable(names, np.array(scores, dtype=float), np.full(rows, "x"), nan, nan, threshold=threshold)


def voice(regions: list[tuple[float, float]], windows: list[tuple[float, float]], tier: str = "") -> Voice:
    speech = Timeline([Segment(*one) for one in regions])
    return Voice(tier, speech, speech, [Segment(*one) for one in windows])


def test_spans_by_hand() -> None:
    """Windows of 2 s every second over 0-5; centres 1, 2, 3, 4, so cells 0-1.5-2.5-3.5-5."""
    one = voice([(0, 5)], [(0, 2), (1, 3), (2, 4), (3, 5)])
    a, b = [40.0, 0.0], [0.0, 40.0]
    first, second = smooth(table([a, a, b, b]), one, window=2.0, switch=0.1)
    assert (first.start, first.end, first.label) == (0, 2.5, "a")
    assert (second.start, second.end, second.label) == (2.5, 5, "b")
    assert first.probability == pytest.approx(1, abs=1e-6)
    assert first.alternatives[0][0] == "b" and len(first.alternatives) == 1
    assert switches([first, second]) == [Switch(2.5, "a", "b")]
    # One window against its neighbours is 2 * log(9) short of a switch and back, less half its score.
    assert [span.label for span in smooth(table([a, [0, 8.7], a, a]), one, window=2.0, switch=0.1)] == ["a"]
    assert len(smooth(table([a, [0, 8.9], a, a]), one, window=2.0, switch=0.1)) == 3


def test_evidence_is_counted_once() -> None:
    """A window alone has its own posterior; so do all windows of a stretch whose seconds they share."""
    score = [math.log(3), 0.0]
    (span,) = smooth(table([score]), voice([(0, 2)], [(0, 2)]), window=2.0, switch=0.1)
    assert span.probability == pytest.approx(0.75)
    # Nine windows over 4 s of speech weigh as two: with a switch that is all but impossible 9 : 1.
    many = voice([(0, 4)], [(k / 4, k / 4 + 2) for k in range(9)])
    (span,) = smooth(table([score] * 9), many, window=2.0, switch=1e-9)
    assert span.probability == pytest.approx(0.9, abs=1e-6)
    # One second of speech is half a window's worth.
    (span,) = smooth(table([score]), voice([(0, 1)], [(0, 1)]), window=2.0, switch=0.1)
    assert span.probability == pytest.approx(math.sqrt(3) / (1 + math.sqrt(3)))


def test_pauses_split_spans_unless_short() -> None:
    one = voice([(0, 2), (2.4, 4), (9, 9.2)], [(0, 2), (2.4, 4)])
    scores = table([[5.0, 0.0], [5.0, 0.0]])
    found = smooth(scores, one, window=2.0, max_gap=0.5)
    assert [(span.start, span.end) for span in found] == [(0, 4), (9, 9.2)]  # the last by the window nearest to it
    assert len(smooth(scores, one, window=2.0, max_gap=0.0)) == 3


def test_unknown_where_the_threshold_says_so() -> None:
    """Alone, a row is unknown exactly when its largest detection LLR is below; llr of [x, 0, 0] for a is x."""
    one = voice([(0, 2)], [(0, 2)])
    for x, label in ((1.9, "unknown"), (2.1, "a")):
        (span,) = smooth(table([[x, 0, 0]], threshold=2.0), one, window=2.0, switch=0.01)
        assert span.label == label
    assert [span.label for span in smooth(table([[1.9, 0, 0]]), one, window=2.0)] == ["a"]
    named = ScoreTable(("a", "unknown"), np.zeros((1, 2)), np.array(["x"]), np.zeros(1), np.zeros(1), threshold=1.0)
    (span,) = smooth(named, one, window=2.0)
    assert (span.label, span.probability) == ("unknown", pytest.approx(math.e / (1 + math.e)))


def test_switches_pass_over_unknown_and_stay_with_their_speaker() -> None:
    spans = [Span(0, 1, "a"), Span(1, 2, "unknown"), Span(2, 3, "b"), Span(3, 4, "unknown"), Span(4, 5, "b")]
    assert switches(spans) == [Switch(2, "a", "b")]
    assert switches([Span(0, 1, "a", "x"), Span(1, 2, "b", "y"), Span(2, 3, "c", "x")]) == [Switch(2, "a", "c", "x")]
    assert switches([]) == []


def test_a_voice_overall_is_the_mean_of_its_seconds() -> None:
    """Three seconds at log-odds 2 and one at -2, whatever the windows' overlap: mean 1."""
    one = voice([(0, 3), (5, 6)], [(0, 3), (5, 6)], "ann")
    found = overall(table([[2.0, 0.0], [-2.0, 0.0]]), one)
    assert (found.speaker, found.label, found.seconds, found.heard) == ("ann", "a", 4, 4)
    assert found.probability == pytest.approx(math.e / (1 + math.e))
    assert found.alternatives == (("b", pytest.approx(1 / (1 + math.e))),)
    assert overall(table([[2.0, 0.0], [-2.0, 0.0]], threshold=1.5), one).label == "unknown"


# ---- from a file ----


class Ear:
    """Stands in for a classifier: its embedding of a span is the mean of the samples, and 0.1 a step on that scale."""

    labels = ("a", "b", "c")

    def __init__(self) -> None:
        self.embedder = SimpleNamespace(rate=16000, bundle=SimpleNamespace(fingerprint="ear"), spans=self.spans)
        self.calls: list[list[Segment]] = []

    def spans(self, path: Path, spans: list[Segment], *, channel: str) -> Doubles:
        assert spans == sorted(spans)
        self.calls.append(spans)
        samples, rate = soundfile.read(path)
        return np.array([[samples[round(one.start * rate) : round(one.end * rate)].mean()] for one in spans])

    def score(self, embeddings: EmbeddingSet, what: str) -> ScoreTable:
        scores = -np.abs(embeddings.data.astype(float) - np.array([0.1, 0.2, 0.3])) * 200
        return ScoreTable(self.labels, scores, embeddings.name, embeddings.start, embeddings.end)


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """Ten seconds each of a, silence, b and c, as the Ear hears them."""
    path = tmp_path / "steps.wav"
    soundfile.write(path, np.repeat([0.1, 0.0, 0.2, 0.3], 160_000), 16000)
    return path


@pytest.fixture
def speaking(monkeypatch: pytest.MonkeyPatch) -> None:
    from knn_cli.audio import speech_activity

    def speech(blocks: object) -> Timeline:
        for _ in blocks:  # type: ignore[attr-defined]
            pass
        return Timeline([Segment(0, 10), Segment(20, 40)])

    monkeypatch.setattr(speech_activity, "speech", speech)


def test_languages_of_a_file(steps: Path, speaking: None) -> None:
    found = timeline(steps, Ear())  # type: ignore[arg-type]
    assert [(span.label, round(span.start, 1), round(span.end, 1)) for span in found.spans] == [
        ("a", 0, 10),
        ("b", 20, 30),
        ("c", 30, 40),
    ]
    assert found.seconds == 40 and found.name == "steps"
    assert [(one.before, one.after, round(one.time, 1)) for one in found.switches] == [("a", "b", 20), ("b", "c", 30)]
    assert found.durations == pytest.approx({"a": 10, "b": 10, "c": 10})
    assert found.document().metadata == {
        "switches": [{"time": 20.0, "from": "a", "to": "b"}, {"time": 30.0, "from": "b", "to": "c"}]
    }


def test_languages_of_speakers(steps: Path, speaking: None) -> None:
    """x speaks a, and more under y; y alone 8 s of b and 9 of c; z never alone; w in silence only."""
    turns = Annotation()
    for number, (start, end, who) in enumerate(
        [(0, 10, "x"), (22, 24, "x"), (20, 40, "y"), (38, 39, "z"), (12, 15, "w"), (3, 4, "x")]
    ):
        turns[Segment(start, end), number] = who
    ear = Ear()
    found = timeline(steps, ear, speakers=turns)  # type: ignore[arg-type]
    assert len(ear.calls) == 1  # the file is read once for all speakers
    overall = {one.speaker: (one.label, one.seconds, one.heard) for one in found.speakers}
    assert overall == {"x": ("a", 12, 10), "y": ("c", 20, 17), "z": ("c", 1, 1)}
    assert [span.label for span in found.spans if span.tier == "x"] == ["a", "a"]
    assert [(one.time, one.before, one.after, one.speaker) for one in found.switches] == [
        (pytest.approx(30, abs=0.5), "b", "c", "y")
    ]
    assert found.document().metadata["speakers"][0]["speaker"] == "x"
    json.dumps(found.document().metadata)


def test_silence_has_no_language(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "s.wav", np.zeros(48_000), 16000)
    for use_vad in (True, False):
        found = timeline(tmp_path / "s.wav", Ear(), use_vad=use_vad)  # type: ignore[arg-type]
        assert (found.spans, found.switches, found.seconds) == ((), (), 3.0)


def test_settings_are_checked_before_the_work(tmp_path: Path) -> None:
    for settings_ in ({"window": 0.0}, {"step": 4.0}, {"switch": 0.0}, {"switch": 0.9}):
        with pytest.raises(KnnError):
            timeline(tmp_path / "none.wav", Ear(), **settings_)  # type: ignore[arg-type]


def test_with_the_network(example: Path, tmp_path: Path) -> None:
    path = tmp_path / "meeting.wav"
    soundfile.write(path, reading.read(example).crop(0.0, 6.0).samples, 16000)
    classifier = Classifier("language", device="cpu")
    found = timeline(path, classifier, window=3.0, step=3.0)
    assert found.spans and {span.label for span in found.spans} <= {*classifier.labels, room.UNKNOWN}
    assert all(0 <= span.start < span.end <= found.seconds + 1e-6 for span in found.spans)
    for span in found.spans:
        assert span.probability is not None and 0 < span.probability <= 1
    for known in TIMELINE_FORMATS.values():
        write(found.document(), tmp_path / f"t{known.suffix}")
    assert len(read_rttm(tmp_path / "t.rttm")["meeting"]) == len(found.spans)
