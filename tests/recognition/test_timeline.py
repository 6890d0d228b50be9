"""Languages of a file over time, of each speaker too, by a stub classifier and by the network."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from pyannote.core import Annotation, Segment

from knn_cli.audio import reading
from knn_cli.core import values
from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, EmbeddingSet, ScoreTable
from knn_cli.evaluation.open_set import UNKNOWN
from knn_cli.formats.rttm import read_rttm
from knn_cli.formats.span_formats import TIMELINE_FORMATS, write
from knn_cli.recognition.calibration import Calibration
from knn_cli.recognition.classifier import Classifier
from knn_cli.recognition.head_settings import HeadSettings
from knn_cli.recognition.timeline import TimelineOptions, timeline


class StubClassifier:
    """Stands in for a classifier: its embedding of a span is the mean of the samples, and 0.1 a step on that scale."""

    labels = ("a", "b", "c")
    threshold: float | None = None
    names: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, head: HeadSettings | None = None) -> None:
        self.head = head
        self.embedder = SimpleNamespace(rate=16000, bundle=SimpleNamespace(fingerprint="stub"), spans=self.spans)
        self.calls: list[list[Segment]] = []

    def spans(self, path: Path, spans: list[Segment], *, channel: str) -> Doubles:
        assert spans == sorted(spans)
        self.calls.append(spans)
        samples, rate = soundfile.read(path)
        return np.array([[samples[round(one.start * rate) : round(one.end * rate)].mean()] for one in spans])

    def score(self, embeddings: EmbeddingSet, what: str) -> ScoreTable:
        scores = -np.abs(embeddings.data.astype(float) - np.array([0.1, 0.2, 0.3])) * 200
        return ScoreTable(
            self.labels, scores, embeddings.name, embeddings.start, embeddings.end, threshold=self.threshold
        )


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """Ten seconds each of a, silence, b and c, as the stub classifier scores them."""
    path = tmp_path / "steps.wav"
    soundfile.write(path, np.repeat([0.1, 0.0, 0.2, 0.3], 160_000), 16000)
    return path


@pytest.fixture
def speaking(monkeypatch: pytest.MonkeyPatch) -> None:
    from knn_cli.audio import speech_activity

    def speech(blocks: object) -> list[values.Segment]:
        for _ in blocks:  # type: ignore[attr-defined]
            pass
        return [values.Segment(0, 10), values.Segment(20, 40)]

    monkeypatch.setattr(speech_activity, "speech", speech)


def test_languages_of_a_file(steps: Path, speaking: None) -> None:
    options = TimelineOptions(window=3.0, step=1.0)
    result = timeline(steps, StubClassifier(), options=options)  # type: ignore[arg-type]
    assert [(span.label, round(span.start, 1), round(span.end, 1)) for span in result.spans] == [
        ("a", 0, 10),
        ("b", 20, 30),
        ("c", 30, 40),
    ]
    assert result.seconds == 40 and result.name == "steps"
    assert [(one.before, one.after, round(one.time, 1)) for one in result.switches] == [("a", "b", 20), ("b", "c", 30)]
    assert result.durations == pytest.approx({"a": 10, "b": 10, "c": 10})
    assert result.document().metadata == {
        "switches": [{"time": 20.0, "from": "a", "to": "b"}, {"time": 30.0, "from": "b", "to": "c"}]
    }


def test_languages_of_speakers(steps: Path, speaking: None) -> None:
    """x speaks a, and more under y; y alone 8 s of b and 9 of c; z never alone; w in silence only."""
    turns = Annotation()
    for number, (start, end, who) in enumerate(
        [(0, 10, "x"), (22, 24, "x"), (20, 40, "y"), (38, 39, "z"), (12, 15, "w"), (3, 4, "x")]
    ):
        turns[Segment(start, end), number] = who
    classifier = StubClassifier()
    result = timeline(steps, classifier, speakers=turns)  # type: ignore[arg-type]
    assert len(classifier.calls) == 1  # the file is read once for all speakers
    overall = {one.speaker: (one.label, one.seconds, one.scored_seconds) for one in result.speakers}
    assert overall == {"x": ("a", 12, 10), "y": ("c", 20, 17), "z": ("c", 1, 1)}
    assert [span.label for span in result.spans if span.tier == "x"] == ["a", "a"]
    assert [(one.time, one.before, one.after, one.speaker) for one in result.switches] == [
        (pytest.approx(30, abs=0.5), "b", "c", "y")
    ]
    assert result.document().metadata["speakers"][0]["speaker"] == "x"
    json.dumps(result.document().metadata)


@pytest.mark.parametrize(
    ("head", "labels"), [(None, {UNKNOWN}), (HeadSettings(Calibration.identity(3)), {"a", "b", "c"})]
)
def test_the_threshold_of_a_head_is_not_for_windows(steps: Path, head: HeadSettings | None, labels: set[str]) -> None:
    classifier = StubClassifier(head)
    classifier.threshold = 1000.0
    result = timeline(steps, classifier, options=TimelineOptions(use_vad=False))  # type: ignore[arg-type]
    assert {span.label for span in result.spans} == labels


def test_silence_has_no_language(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "s.wav", np.zeros(48_000), 16000)
    for use_vad in (True, False):
        result = timeline(tmp_path / "s.wav", StubClassifier(), options=TimelineOptions(use_vad=use_vad))  # type: ignore[arg-type]
        assert (result.spans, result.switches, result.seconds) == ((), (), 3.0)


def test_options_are_checked_before_the_work(tmp_path: Path) -> None:
    for settings_ in ({"window": 0.0}, {"step": 4.5}, {"switch": 0.0}, {"switch": 0.9}):
        with pytest.raises(KnnError):
            timeline(tmp_path / "none.wav", StubClassifier(), options=TimelineOptions(**settings_))  # type: ignore[arg-type]


def test_with_the_network(example: Path, tmp_path: Path) -> None:
    path = tmp_path / "meeting.wav"
    soundfile.write(path, reading.read(example).crop(0.0, 6.0).samples, 16000)
    classifier = Classifier("language", device="cpu")
    result = timeline(path, classifier, options=TimelineOptions(window=3.0, step=3.0))
    assert result.spans and {span.label for span in result.spans} <= {*classifier.labels, UNKNOWN}
    assert all(0 <= span.start < span.end <= result.seconds + 1e-6 for span in result.spans)
    for span in result.spans:
        assert span.probability is not None and 0 < span.probability <= 1
    for known in TIMELINE_FORMATS.values():
        write(result.document(), tmp_path / f"t{known.suffix}")
    assert len(read_rttm(tmp_path / "t.rttm")["meeting"]) == len(result.spans)
