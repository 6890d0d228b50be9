"""Languages over time: the hidden Markov model against enumeration, spans by hand, and files parsed back by others."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
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
from knn_cli.formats.spans import SUFFIXES, WRITERS, About, Span, write, write_table, writer
from knn_cli.formats.turns import read_rttm
from knn_cli.recognition import timeline as room
from knn_cli.recognition.hmm import chances, switch_probabilities, viterbi
from knn_cli.recognition.timeline import Switch, Voice, overall, smooth, switches, timeline
from knn_cli.recognition.train_classifier import Classifier

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
    assert found.about().more == {
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
    assert found.about().more["speakers"][0]["speaker"] == "x"
    json.dumps(found.about().more)


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
    for suffix in SUFFIXES:
        write(tmp_path / f"t{suffix}", found.spans, found.about())
    assert len(read_rttm(tmp_path / "t.rttm")["meeting"]) == len(found.spans)


# ---- files ----

SPANS = [
    Span(1.0, 2.5, 'say "a"', "ann", 0.91234, (("b", 0.05), ("c\td", 0.01))),
    Span(2.5, 3.00049, "b<i>&", "ann", 0.5, (("c", 0.2),)),
    Span(2.75, 3600.0, "c", "bob"),
    Span(4.0, 4.0004, "gone", "ann"),
]
ABOUT = About("my file", 3601.5, more={"switches": []})


def text(form: str, spans: list[Span] = SPANS, about: About = ABOUT) -> str:
    stream = io.StringIO()
    WRITERS[form](spans, about, stream)
    return stream.getvalue()


def test_table() -> None:
    assert text("table") == (
        "file\tstart\tend\ttier\tlabel\tprobability\tlabel_2\tprobability_2\tlabel_3\tprobability_3\n"
        'my file\t1.000\t2.500\tann\tsay "a"\t0.9123\tb\t0.0500\tc\\td\t0.0100\n'
        "my file\t2.500\t3.000\tann\tb<i>&\t0.5000\tc\t0.2000\t\t\n"
        "my file\t2.750\t3600.000\tbob\tc\t\t\t\t\t\n"
    )


def test_a_table_of_several_recordings_has_one_header() -> None:
    file = io.StringIO()
    spans = [Span(0, 1, "cs", "", 0.9, (("de", 0.1),))]
    for number, some in enumerate(([], spans, spans)):
        write_table(some, About(f"r{number}", 1.0), file, header=number == 0, alternatives=2)
    lines = [line.split("\t") for line in file.getvalue().splitlines()]
    assert lines[0][4:] == ["label", "probability", "label_2", "probability_2", "label_3", "probability_3"]
    assert [line[0] for line in lines] == ["file", "r1", "r2"] and {len(line) for line in lines} == {10}


def test_json() -> None:
    found = json.loads(text("json"))
    assert (found["file"], found["seconds"], found["switches"]) == ("my file", 3601.5, [])
    assert found["spans"][1:] == [
        {
            "start": 2.5,
            "end": 3.0,
            "label": "b<i>&",
            "tier": "ann",
            "probability": 0.5,
            "alternatives": {"c": 0.2},
        },
        {"start": 2.75, "end": 3600.0, "label": "c", "tier": "bob"},
    ]


def test_audacity_srt_vtt_rttm() -> None:
    assert text("audacity") == (
        '1.000000\t2.500000\tann: say "a"\n2.500000\t3.000000\tann: b<i>&\n2.750000\t3600.000000\tbob: c\n'
    )
    assert text("srt") == (
        '1\n00:00:01,000 --> 00:00:02,500\nann: say "a"\n\n2\n00:00:02,500 --> 00:00:03,000\nann: b<i>&\n\n'
        "3\n00:00:02,750 --> 01:00:00,000\nbob: c\n\n"
    )
    assert text("vtt") == (
        'WEBVTT\n\n00:00:01.000 --> 00:00:02.500\n<v ann>say "a"\n\n'
        "00:00:02.500 --> 00:00:03.000\n<v ann>b&lt;i&gt;&amp;\n\n00:00:02.750 --> 01:00:00.000\n<v bob>c\n"
    )
    assert text("rttm") == (
        'SPEAKER my_file 1 1.000 1.500 <NA> <NA> say_"a" 0.9123 <NA>\n'
        "SPEAKER my_file 1 2.500 0.500 <NA> <NA> b<i>& 0.5000 <NA>\n"
        "SPEAKER my_file 1 2.750 3597.250 <NA> <NA> c <NA> <NA>\n"
    )


def test_textgrid_by_hand() -> None:
    assert text("textgrid", [Span(0.5, 1.25, 'a"b')], About("x", 2.0, "language")) == (
        'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0 \nxmax = 2 \ntiers? <exists> \nsize = 1 \n'
        'item []: \n    item [1]:\n        class = "IntervalTier" \n        name = "language" \n        xmin = 0 \n'
        "        xmax = 2 \n        intervals: size = 3 \n"
        '        intervals [1]:\n            xmin = 0 \n            xmax = 0.5 \n            text = "" \n'
        '        intervals [2]:\n            xmin = 0.5 \n            xmax = 1.25 \n            text = "a""b" \n'
        '        intervals [3]:\n            xmin = 1.25 \n            xmax = 2 \n            text = "" \n'
    )


def parsed_textgrid(content: str) -> tuple[float, dict[str, list[tuple[float, float, str]]]]:
    """As Praat reads: free-standing numbers and quoted strings in their order, all else is talk."""
    tokens = re.findall(r'"((?:[^"]|"")*)"|(?<![\w.\[])(-?\d+(?:\.\d+)?)(?![\w.\]])|(<exists>)', content)
    values = iter([(string.replace('""', '"') if not number else float(number)) for string, number, _ in tokens])
    assert [next(values) for _ in range(2)] == ["ooTextFile", "TextGrid"]
    start, end, exists, size = (next(values) for _ in range(4))
    assert (start, exists) == (0, "")
    tiers: dict[str, list[tuple[float, float, str]]] = {}
    for _ in range(int(size)):
        kind, name, first, last, count = (next(values) for _ in range(5))
        assert (kind, first, last) == ("IntervalTier", 0, end)
        tiers[name] = [(next(values), next(values), next(values)) for _ in range(int(count))]
        assert tiers[name][0][0] == 0 and tiers[name][-1][1] == end
        assert all(a[1] == b[0] for a, b in itertools.pairwise(tiers[name]))
    assert next(values, None) is None
    return end, tiers


def parsed_subtitles(content: str) -> list[tuple[int, int, str]]:
    """Cues of SRT or VTT in milliseconds."""
    found = []
    for block in content.split("\n\n"):
        lines = [line for line in block.split("\n") if line]
        at = next((number for number, line in enumerate(lines) if " --> " in line), None)
        if at is None:
            continue
        clocks = [re.fullmatch(r"(\d\d+):(\d\d):(\d\d)[.,](\d{3})", part) for part in lines[at].split(" --> ")]
        start, end = (((int(c[1]) * 60 + int(c[2])) * 60 + int(c[3])) * 1000 + int(c[4]) for c in clocks if c)
        found.append((start, end, "\n".join(lines[at + 1 :])))
    return found


def test_textgrid_keeps_what_overlaps() -> None:
    turns = [Span(start, end, one, one) for start, end, one in ((0, 2, "A"), (1, 3, "A"), (2, 5, "A"), (1, 2, "B"))]
    end, tiers = parsed_textgrid(text("textgrid", turns, About("x", 4.5)))
    assert end == 5
    assert tiers == {
        "A": [(0, 2, "A"), (2, 5, "A")],
        "A (2)": [(0, 1, ""), (1, 3, "A"), (3, 5, "")],
        "B": [(0, 1, ""), (1, 2, "B"), (2, 5, "")],
    }
    assert text("srt", turns).startswith("1\n00:00:00,000 --> 00:00:02,000\nA\n\n")
    assert "<v" not in text("vtt", turns)


def test_nothing_said_is_still_a_file() -> None:
    assert parsed_textgrid(text("textgrid", [], About("x", 1.5))) == (1.5, {"labels": [(0, 1.5, "")]})
    assert text("vtt", []) == "WEBVTT\n" and text("srt", []) == text("audacity", []) == text("rttm", []) == ""
    assert json.loads(text("json", []))["spans"] == []


words = st.sampled_from(['"', '""a" <b>', "1 2\n3", "x\ty", "-->", "& é", "intervals [1]:", 'text = "', "\\"])
times = st.floats(0, 4e5, allow_nan=False)


@given(st.lists(st.tuples(times, times, words, st.sampled_from(["", "x y", 'q"<&>'])), max_size=6))
@settings(max_examples=30, deadline=None)
def test_times_and_labels_come_back(rows: list[tuple[float, float, str, str]]) -> None:
    spans = [Span(min(a, b), max(a, b), label, tier) for a, b, label, tier in rows]
    kept = sorted(
        (round(span.start * 1000), round(span.end * 1000), " ".join(span.label.split()), span.tier)
        for span in spans
        if round(span.end * 1000) > round(span.start * 1000)
    )
    times_kept = [one[:2] for one in kept]
    _, tiers = parsed_textgrid(text("textgrid", spans))
    back = [
        (round(start * 1000), round(end * 1000), label, re.sub(r" \(\d+\)$", "", name).replace("labels", ""))
        for name, intervals in tiers.items()
        for start, end, label in intervals
        if label
    ]
    assert sorted(back) == kept
    for form in ("srt", "vtt"):
        cues = parsed_subtitles(text(form, spans))
        assert [cue[:2] for cue in cues] == times_kept
        assert all(cue[2] and "\n" not in cue[2] for cue in cues)
    for form in ("table", "audacity", "rttm"):
        assert len(text(form, spans).split("\n")) == len(kept) + 1 + (form == "table")
    assert [
        (round(one["start"] * 1000), round(one["end"] * 1000)) for one in json.loads(text("json", spans))["spans"]
    ] == (times_kept)


def test_writers_go_by_name_or_suffix(tmp_path: Path) -> None:
    assert set(SUFFIXES.values()) == set(WRITERS)
    assert writer("a.TextGrid") is WRITERS["textgrid"] and writer("a.txt", "srt") is WRITERS["srt"]
    for path, form in (("a.doc", None), ("a.srt", "word"), ("a", None)):
        with pytest.raises(KnnError, match="timeline"):
            writer(path, form)
    write(tmp_path / "é.srt", [Span(0, 1, "čeština")], ABOUT)
    assert (tmp_path / "é.srt").read_bytes().decode() == "1\n00:00:00,000 --> 00:00:01,000\nčeština\n\n"


@pytest.mark.parametrize("args", [(2, 1, "a"), (-1, 1, "a"), (0, math.inf, "a"), (0, math.nan, "a"), (0, 1, " ")])
def test_spans_are_checked(args: tuple[float, float, str]) -> None:
    with pytest.raises(ValueError):
        Span(*args)
