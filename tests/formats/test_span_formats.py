"""The formats of span files: a contract that each keeps, and the text of each by hand."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.core import Annotation, Segment

from knn_cli.core.errors import KnnError
from knn_cli.formats.rttm import read_rttm
from knn_cli.formats.span_formats import (
    TIMELINE_FORMATS,
    TURN_FORMATS,
    SpanFormat,
    find_format,
    format_by_suffix,
    span_format,
    write,
    write_text,
)
from knn_cli.formats.span_tables import write_timeline_tsv
from knn_cli.formats.spans import Span, SpanDocument, SpanKind, turn_document
from tests.helpers.turns import by_track, diarization

FORMATS: list[tuple[SpanKind, SpanFormat]] = [
    *(("turns", known) for known in TURN_FORMATS.values()),
    *(("timeline", known) for known in TIMELINE_FORMATS.values()),
]
TEXT_FORMATS = [(kind, known) for kind, known in FORMATS if not known.binary]


def identifier(value: object) -> str:
    return value.name if isinstance(value, SpanFormat) else str(value)


def meeting() -> Annotation:
    annotation = Annotation(uri="a talk")
    annotation[Segment(1.0, 2.5), 0] = "SPEAKER_01"
    annotation[Segment(0.25, 1.0004), 1] = "SPEAKER_00"
    annotation[Segment(1.0, 2.5), 2] = "Zoë, the guest"
    annotation[Segment(3.0, 3.0002), 3] = "SPEAKER_01"  # nothing at 1 ms
    return annotation


def written(name: str, annotation: Annotation, confidence: dict[int, float] | None = None, seconds: float = 0) -> str:
    file = io.StringIO()
    write_text(
        turn_document(diarization(annotation, by_track(annotation, confidence), seconds=seconds)),
        file,
        name,
    )
    return file.getvalue()


# ---- the contract of every format ----


def document(kind: SpanKind, tone: Path, spans: list[Span] | None = None) -> SpanDocument:
    if spans is None:
        spans = [Span(0.25, 1.0, "SPEAKER_01", "SPEAKER_01", 0.9, (("b", 0.05),)), Span(0.5, 2.0, 'čes & <"b">', "x")]
    return SpanDocument(kind, "a talk", 4.0, spans, audio_path=tone)


@pytest.mark.parametrize(("kind", "known"), FORMATS, ids=identifier)
def test_a_format_is_found_by_name_and_suffix(kind: SpanKind, known: SpanFormat) -> None:
    found = [find_format(kind, None, f"x{known.suffix}")]
    found += [format_by_suffix(kind, f"{name}") for name in (f"a.b{known.suffix}", f"x{known.suffix.upper()}")]
    assert find_format(kind, known.name) is known
    assert all((one is known) != known.named_only and one.suffix == known.suffix for one in found)


@pytest.mark.parametrize(("kind", "known"), FORMATS, ids=identifier)
def test_a_format_is_written_whole_or_not_at_all(
    kind: SpanKind, known: SpanFormat, tmp_path: Path, tone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"out{known.suffix}"
    write(document(kind, tone), path, known.name)
    data = path.read_bytes()
    assert b"\x89PNG" in data[:8] if known.name == "png" else b"SPEAKER_01" in data
    assert known.binary or "čes" in data.decode()
    write(document(kind, tone), tmp_path / "other.name", known.name)
    if known.name not in ("eaf", "html"):  # which hold the time, and where the recording is from there
        assert (tmp_path / "other.name").read_bytes() == data

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(SpanDocument, "rounded", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(document(kind, tone), path, known.name)
    assert sorted(tmp_path.iterdir()) == before and path.read_bytes() == data


@pytest.mark.parametrize(("kind", "known"), FORMATS, ids=identifier)
def test_a_format_holds_no_spans_at_all(kind: SpanKind, known: SpanFormat, tmp_path: Path, tone: Path) -> None:
    write(document(kind, tone, []), tmp_path / "x", known.name)
    assert b"SPEAKER_0" not in (tmp_path / "x").read_bytes()


@pytest.mark.parametrize(("kind", "known"), TEXT_FORMATS, ids=identifier)
def test_text_of_a_file_is_that_of_a_stream(kind: SpanKind, known: SpanFormat, tmp_path: Path, tone: Path) -> None:
    path = tmp_path / "x"
    if known.name != "eaf":  # which names the recording by its path from the file
        write(document(kind, tone), path, known.name)
        stream = io.StringIO()
        write_text(document(kind, tone), stream, known.name)
        assert path.read_bytes().decode() == stream.getvalue()


@pytest.mark.parametrize(("kind", "known"), [pair for pair in TEXT_FORMATS if pair[1].multiple], ids=identifier)
def test_a_format_for_several_recordings_names_each(kind: SpanKind, known: SpanFormat, tone: Path) -> None:
    stream = io.StringIO()
    for name in ("first", "second"):
        write_text(replace(document(kind, tone), name=name), stream, known.name)
    assert "first" in stream.getvalue() and "second" in stream.getvalue()


def test_binary_formats_go_to_files_only(tone: Path) -> None:
    for known in TURN_FORMATS.values():
        if known.binary:
            with pytest.raises(KnnError, match="is not text"):
                write_text(document("turns", tone), io.StringIO(), known.name)


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    assert format_by_suffix("turns", "a") is format_by_suffix("turns", ".rttm") is None
    for kind, noun in (("turns", "turns"), ("timeline", "a timeline")):
        empty = SpanDocument(kind, "x", 1.0, [])  # type: ignore[arg-type]
        with pytest.raises(KnnError, match=rf"suffix of .* names no format of {noun}") as raised:
            write(empty, tmp_path / "a.doc")
        assert "textgrid (.TextGrid)" in raised.value.hint
        with pytest.raises(KnnError, match=rf"no format 'doc' of {noun}"):
            write(empty, tmp_path / "a.rttm", "doc")
    with pytest.raises(KnnError, match="needs the recording"):
        write(SpanDocument("turns", "x", 1.0, []), tmp_path / "a.html")
    assert not list(tmp_path.iterdir())


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="'srt' of turns is registered already"):
        span_format("srt", ".srt")(lambda document, file: None)


def test_broken_audio_leaves_the_old_player(tmp_path: Path, tone: Path) -> None:
    write(document("turns", tone), tmp_path / "out.html")
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(KnnError):
        write(document("turns", tmp_path / "broken.wav"), tmp_path / "out.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert b"SPEAKER_01" in (tmp_path / "out.html").read_bytes()


# ---- speaker turns ----


def test_turns_rttm_by_hand() -> None:
    assert written("rttm", meeting()).splitlines() == [
        "SPEAKER a_talk 1 0.250 0.750 <NA> <NA> SPEAKER_00 <NA> <NA>",
        "SPEAKER a_talk 1 1.000 1.500 <NA> <NA> SPEAKER_01 <NA> <NA>",
        "SPEAKER a_talk 1 1.000 1.500 <NA> <NA> Zoë,_the_guest <NA> <NA>",
    ]
    assert written("rttm", Annotation()) == ""


def test_csv_and_json() -> None:
    rows = list(csv.DictReader(io.StringIO(written("csv", meeting()))))
    assert rows[0] == {"file": "a talk", "start": "0.250", "end": "1.000", "speaker": "SPEAKER_00"}
    assert rows[2]["speaker"] == "Zoë, the guest"
    theirs = list(csv.DictReader(io.StringIO(written("knn-proj", meeting()))))
    assert theirs[0] == {"Start [s]": "0.250", "End [s]": "1.000", "Speaker": "SPEAKER_00"}
    assert [row["Speaker"] for row in theirs] == [row["speaker"] for row in rows]
    text = written("json", meeting())
    assert text.count("\n") == 1
    found = json.loads(text)
    assert found["file"] == "a talk"
    assert found["speakers"] == ["SPEAKER_00", "SPEAKER_01", "Zoë, the guest"]
    assert found["turns"][0] == {"start": 0.25, "end": 1.0, "speaker": "SPEAKER_00"}
    assert found["spoken"] == {"SPEAKER_00": 0.75, "SPEAKER_01": 1.5, "Zoë, the guest": 1.5}
    assert "duration" not in found
    assert json.loads(written("json", Annotation())) == {"file": None, "speakers": [], "spoken": {}, "turns": []}


def test_confidence_goes_into_csv_and_json() -> None:
    sure = {0: 0.98765, 1: 1 / 3, 3: 0.1}  # of track 2 nothing is known
    found = json.loads(written("json", meeting(), sure, 60.0))
    assert found["duration"] == 60.0
    assert [turn.get("confidence") for turn in found["turns"]] == [0.333, 0.988, None]
    assert found["turns"][2] == {"start": 1.0, "end": 2.5, "speaker": "Zoë, the guest"}
    rows = list(csv.reader(io.StringIO(written("csv", meeting(), sure))))
    assert rows[0] == ["file", "start", "end", "speaker", "confidence"]
    assert [row[4] for row in rows[1:]] == ["0.333", "0.988", ""]
    assert written("csv", meeting()).startswith("file,start,end,speaker\n")  # as ever, where nothing is known
    assert written("rttm", meeting(), sure) == written("rttm", meeting())


# ---- languages over time ----

TIMELINE_SPANS = [
    Span(1.0, 2.5, 'say "a"', "ann", 0.91234, (("b", 0.05), ("c\td", 0.01))),
    Span(2.5, 3.00049, "b<i>&", "ann", 0.5, (("c", 0.2),)),
    Span(2.75, 3600.0, "c", "bob"),
    Span(4.0, 4.0004, "gone", "ann"),
]
TIMELINE = SpanDocument("timeline", "my file", 3601.5, TIMELINE_SPANS, metadata={"switches": []})


def timeline_text(name: str, spans: list[Span] = TIMELINE_SPANS, **fields: Any) -> str:
    stream = io.StringIO()
    write_text(replace(TIMELINE, spans=spans, **fields), stream, name)
    return stream.getvalue()


def test_timeline_table() -> None:
    assert timeline_text("table") == (
        "file\tstart\tend\ttier\tlabel\tprobability\tlabel_2\tprobability_2\tlabel_3\tprobability_3\n"
        'my file\t1.000\t2.500\tann\tsay "a"\t0.9123\tb\t0.0500\tc\\td\t0.0100\n'
        "my file\t2.500\t3.000\tann\tb<i>&\t0.5000\tc\t0.2000\t\t\n"
        "my file\t2.750\t3600.000\tbob\tc\t\t\t\t\t\n"
    )


def test_a_table_of_several_recordings_has_one_header() -> None:
    file = io.StringIO()
    spans = [Span(0, 1, "cs", "", 0.9, (("de", 0.1),))]
    for number, some in enumerate(([], spans, spans)):
        document = SpanDocument("timeline", f"r{number}", 1.0, some)
        write_timeline_tsv(document, file, header=number == 0, alternatives=2)
    lines = [line.split("\t") for line in file.getvalue().splitlines()]
    assert lines[0][4:] == ["label", "probability", "label_2", "probability_2", "label_3", "probability_3"]
    assert [line[0] for line in lines] == ["file", "r1", "r2"] and {len(line) for line in lines} == {10}


def test_timeline_json() -> None:
    found = json.loads(timeline_text("json"))
    assert (found["file"], found["seconds"], found["switches"]) == ("my file", 3601.5, [])
    assert found["spans"][1:] == [
        {
            "start": 2.5,
            "end": 3.0,
            "label": "b<i>&",
            "tier": "ann",
            "probability": 0.5,
            "uncertain": False,
            "alternatives": {"c": 0.2},
        },
        {"start": 2.75, "end": 3600.0, "label": "c", "tier": "bob"},
    ]


def test_timeline_as_audacity_srt_vtt_rttm() -> None:
    assert timeline_text("audacity") == (
        '1.000000\t2.500000\tann: say "a" 91%\n2.500000\t3.000000\tann: b<i>& 50%\n2.750000\t3600.000000\tbob: c\n'
    )
    assert timeline_text("srt") == (
        '1\n00:00:01,000 --> 00:00:02,500\nann: say "a" 91%\n\n2\n00:00:02,500 --> 00:00:03,000\nann: b<i>& 50%\n\n'
        "3\n00:00:02,750 --> 01:00:00,000\nbob: c\n\n"
    )
    assert timeline_text("vtt") == (
        'WEBVTT\n\n00:00:01.000 --> 00:00:02.500\n<v ann>say "a" 91%\n\n'
        "00:00:02.500 --> 00:00:03.000\n<v ann>b&lt;i&gt;&amp; 50%\n\n00:00:02.750 --> 01:00:00.000\n<v bob>c\n"
    )
    assert timeline_text("rttm") == (
        'SPEAKER my_file 1 1.000 1.500 <NA> <NA> say_"a" 0.9123 <NA>\n'
        "SPEAKER my_file 1 2.500 0.500 <NA> <NA> b<i>& 0.5000 <NA>\n"
        "SPEAKER my_file 1 2.750 3597.250 <NA> <NA> c <NA> <NA>\n"
    )


LANGUAGES: dict[str, Any] = {
    "spans": [Span(1, 2.5, "cs", "ann", 0.9123, (("sk", 0.05),)), Span(2, 3, "yue", "bob", 0.5)],
    "label_names": {"cs": "Czech", "sk": "Slovak"},
    "tier_labels": {"ann": ("cs", 0.97), "bob": ("yue", 0.25)},
}


def test_every_format_of_a_timeline_has_names_probabilities_and_the_languages_of_speakers() -> None:
    rows = [line.split("\t") for line in timeline_text("table", **LANGUAGES).splitlines()]
    assert rows[0][3:10] == ["tier", "tier_label", "tier_name", "tier_probability", "label", "name", "probability"]
    assert rows[1][3:] == ["ann", "cs", "Czech", "0.9700", "cs", "Czech", "0.9123", "sk", "Slovak", "0.0500"]
    assert rows[2][3:] == ["bob", "yue", "", "0.2500", "yue", "", "0.5000", "", "", ""]
    assert timeline_text("audacity", **LANGUAGES).splitlines()[0] == "1.000000\t2.500000\tann: cs Czech 91%"
    assert timeline_text("srt", **LANGUAGES).splitlines()[2] == "ann: cs Czech 91%"
    assert timeline_text("vtt", **LANGUAGES) == (
        "WEBVTT\n\nNOTE ann: cs Czech 97%\n\nNOTE bob: yue 25%\n\n"
        "00:00:01.000 --> 00:00:02.500\n<v ann>cs Czech 91%\n\n00:00:02.000 --> 00:00:03.000\n<v bob>yue 50%\n"
    )
    assert timeline_text("rttm", **LANGUAGES).splitlines() == [
        ";; my_file ann: cs Czech 97%",
        ";; my_file bob: yue 25%",
        "SPEAKER my_file 1 1.000 1.500 <NA> <NA> cs 0.9123 <NA>",
        "SPEAKER my_file 1 2.000 1.000 <NA> <NA> yue 0.5000 <NA>",
    ]
    _, tiers = parsed_textgrid(timeline_text("textgrid", seconds=3, **LANGUAGES))
    assert list(tiers) == ["ann", "ann probability", "bob", "bob probability"]
    assert tiers["ann"] == [(0, 1, ""), (1, 2.5, "cs"), (2.5, 3, "")]
    assert tiers["ann probability"] == [(0, 1, ""), (1, 2.5, "0.9123"), (2.5, 3, "")]


def test_the_comments_of_a_timeline_do_not_disturb_readers(tmp_path: Path) -> None:
    (tmp_path / "x.rttm").write_text(timeline_text("rttm", **LANGUAGES), encoding="utf-8")
    turns = read_rttm(tmp_path / "x.rttm")["my_file"]
    assert [(turn.start, turn.end, label) for turn, _, label in turns.itertracks(yield_label=True)] == [
        (1, 2.5, "cs"), (2, 3, "yue")
    ]  # fmt: skip
    assert len(parsed_subtitles(timeline_text("vtt", **LANGUAGES))) == 2


def test_textgrid_by_hand() -> None:
    assert timeline_text("textgrid", [Span(0.5, 1.25, 'a"b')], seconds=2.0, tier="language") == (
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
    end, tiers = parsed_textgrid(timeline_text("textgrid", turns, seconds=4.5))
    assert end == 5
    assert tiers == {
        "A": [(0, 2, "A"), (2, 5, "A")],
        "A (2)": [(0, 1, ""), (1, 3, "A"), (3, 5, "")],
        "B": [(0, 1, ""), (1, 2, "B"), (2, 5, "")],
    }
    assert timeline_text("srt", turns).startswith("1\n00:00:00,000 --> 00:00:02,000\nA\n\n")
    assert timeline_text("vtt", turns).startswith("WEBVTT\n\n00:00:00.000 --> 00:00:02.000\n<v A>A\n")


def test_an_empty_timeline_is_still_a_file() -> None:
    assert parsed_textgrid(timeline_text("textgrid", [], seconds=1.5)) == (1.5, {"labels": [(0, 1.5, "")]})
    assert (
        timeline_text("vtt", []) == "WEBVTT\n"
        and timeline_text("srt", []) == timeline_text("audacity", []) == timeline_text("rttm", []) == ""
    )
    assert json.loads(timeline_text("json", []))["spans"] == []


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
    _, tiers = parsed_textgrid(timeline_text("textgrid", spans))
    back = [
        (round(start * 1000), round(end * 1000), label, re.sub(r" \(\d+\)$", "", tier).replace("labels", ""))
        for tier, intervals in tiers.items()
        for start, end, label in intervals
        if label
    ]
    assert sorted(back) == kept
    for name in ("srt", "vtt"):
        cues = parsed_subtitles(timeline_text(name, spans))
        assert [cue[:2] for cue in cues] == times_kept
        assert all(cue[2] and "\n" not in cue[2] for cue in cues)
    for name in ("table", "audacity", "rttm"):
        assert len(timeline_text(name, spans).split("\n")) == len(kept) + 1 + (name == "table")
    found = json.loads(timeline_text("json", spans))["spans"]
    assert [(round(span["start"] * 1000), round(span["end"] * 1000)) for span in found] == times_kept
