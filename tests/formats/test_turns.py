"""Diarization reports: what is written reads back in every form; broken files are named, nothing is half-written."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.core import Annotation, Segment

from knn_cli.core.atomic import replacing_text
from knn_cli.core.errors import KnnError
from knn_cli.core.values import Diarization
from knn_cli.formats.turns import (
    FILE_SUFFIXES,
    FILES_ONLY,
    SUFFIXES,
    Turn,
    form_of,
    read_references,
    read_rttm,
    read_uem,
    spoken,
    suffix,
    turns_of,
    write,
    write_rttm,
    write_turns,
)


def said(annotation: Annotation) -> list[tuple[int, int, str]]:
    return sorted(
        (round(s.start * 1000), round(s.end * 1000), str(label))
        for s, _, label in annotation.itertracks(yield_label=True)
    )


def meeting() -> Annotation:
    annotation = Annotation(uri="a talk")
    annotation[Segment(1.0, 2.5), 0] = "SPEAKER_01"
    annotation[Segment(0.25, 1.0004), 1] = "SPEAKER_00"
    annotation[Segment(1.0, 2.5), 2] = "Zoë, the guest"
    annotation[Segment(3.0, 3.0002), 3] = "SPEAKER_01"  # nothing at 1 ms
    return annotation


def written(form: str, annotation: Annotation, confidence: dict[int, float] | None = None, seconds: float = 0) -> str:
    file = io.StringIO()
    write_turns(Diarization(annotation, confidence or {}, seconds=seconds), file, form)
    return file.getvalue()


def test_rttm_by_hand() -> None:
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


def test_spoken_counts_time_once_a_speaker() -> None:
    turns = [
        Turn(0, 1000, "a"),
        Turn(200, 600, "a"),
        Turn(900, 1500, "a"),
        Turn(1400, 1600, "b"),
        Turn(3000, 3001, "a"),
    ]
    assert spoken(turns) == {"a": 1.501, "b": 0.2}
    assert spoken([]) == {}
    assert [turn.confidence for turn in turns_of(Diarization(meeting(), {0: 0.5}))] == [None, 0.5, None]


def test_forms_by_suffix(tmp_path: Path) -> None:
    for form in (*SUFFIXES, *FILE_SUFFIXES):
        assert form_of(f"a.b{suffix(form)}") == form_of(f"x{suffix(form).upper()}") == form
    assert form_of("a") is form_of("a.flac") is form_of(".rttm") is None
    with pytest.raises(KnnError, match=r"suffix of .* names no form") as raised:
        write(Diarization(meeting()), tmp_path / "a.doc")
    assert "html (.html)" in raised.value.hint
    with pytest.raises(KnnError, match="no form 'doc'"):
        write(Diarization(meeting()), tmp_path / "a.rttm", "doc")
    for form in FILES_ONLY:
        with pytest.raises(KnnError, match="is not text"):
            written(form, meeting())
    with pytest.raises(KnnError, match="needs the recording"):
        write(Diarization(meeting()), tmp_path / "a.html")
    assert not list(tmp_path.iterdir())


def test_every_form_is_written_whole_or_not_at_all(tmp_path: Path, tone: Path) -> None:
    made = Diarization(meeting(), {0: 0.9}, seconds=4.0)
    for form in (*SUFFIXES, *FILE_SUFFIXES):
        path = tmp_path / f"out{suffix(form)}"
        write(made, path, audio_path=tone)
        data = path.read_bytes()
        assert b"\x89PNG" in data[:8] if form == "png" else b"SPEAKER_01" in data
        if form in SUFFIXES:
            assert data.decode() == written(form, meeting(), {0: 0.9}, 4.0)
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(KnnError):
        write(made, tmp_path / "out.html", audio_path=tmp_path / "broken.wav")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert b"SPEAKER_01" in (tmp_path / "out.html").read_bytes()


@pytest.mark.parametrize("form", sorted({*SUFFIXES, "eaf"}))
def test_every_writer_takes_an_empty_result(form: str) -> None:
    assert "SPEAKER_" not in written(form, Annotation(uri="silence"))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 40_000), st.floats(0.002, 100), st.sampled_from("ABC")), min_size=1, max_size=8))
def test_rttm_round_trip(tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[float, float, str]]) -> None:
    annotation = Annotation(uri="talk")
    for track, (start, duration, label) in enumerate(turns):
        annotation[Segment(start, start + duration), track] = label
    path = tmp_path_factory.mktemp("rttm") / "talk.rttm"
    with replacing_text(path) as file:
        write_rttm(annotation, file)
    assert said(read_rttm(path)["talk"]) == said(annotation)


@pytest.mark.parametrize("name", ["ES2011a", "IS1008a"])
def test_ami_references(shared: Path, tmp_path: Path, name: str) -> None:
    source = shared / "reference" / "ami-rttm" / f"{name}.rttm"
    found = read_rttm(source)
    assert list(found) == [name]
    lines = source.read_text().split("\n")[:-1]
    assert len(said(found[name])) == len(lines)
    with replacing_text(tmp_path / "again.rttm") as file:
        write_rttm(found[name], file)

    def fields(text: str) -> list[tuple[str, float, float, str]]:
        rows = [line.split() for line in text.splitlines()]
        return sorted((row[1], float(row[3]), float(row[4]), row[7]) for row in rows)

    assert fields((tmp_path / "again.rttm").read_text()) == fields(source.read_text())


def test_tolerant_where_the_format_is(tmp_path: Path) -> None:
    path = tmp_path / "a.rttm"
    path.write_bytes(
        b"\xef\xbb\xbf;; made by hand\r\n\r\n"
        b"SPKR-INFO two 1 <NA> <NA> <NA> unknown B <NA>\r\n"
        b"SPEAKER\ttwo  1 1 2 <NA> <NA> B <NA>\r\n"
        b"  ;; nine fields above, eight below\n"
        b"SPEAKER one 1 0.5 .5 <NA> <NA> A\n"
        b"SPEAKER two 1 1 2 <NA> <NA> C <NA> <NA>\n"
        b"SPEAKER two 1 7 0 <NA> <NA> C <NA> <NA>"
    )
    found = read_rttm(path)
    assert list(found) == ["two", "one"]
    assert said(found["two"]) == [(1000, 3000, "B"), (1000, 3000, "C")]
    assert said(found["one"]) == [(500, 1000, "A")]
    path.write_text("")
    assert read_rttm(path) == {}


@pytest.mark.parametrize(
    "line",
    [
        "SPEAKER a 1 0.0 1.0 <NA> <NA>",
        "SPEAKER a 1 zero 1.0 <NA> <NA> A <NA> <NA>",
        "SPEAKER a 1 0.0 -1.0 <NA> <NA> A <NA> <NA>",
        "SPEAKER a 1 nan 1.0 <NA> <NA> A <NA> <NA>",
        "SPEAKER a 1 0.0 inf <NA> <NA> A <NA> <NA>",
        "0.0 1.0 A",
    ],
)
def test_broken_lines_are_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.rttm"
    path.write_text(f";; a comment\nSPEAKER a 1 0.0 1.0 <NA> <NA> A <NA> <NA>\n{line}\n")
    with pytest.raises(KnnError, match="Line 3 of") as raised:
        read_rttm(path)
    assert raised.value.hint


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "sound").write_bytes(b"\xff\xfe\x00\x80")
    for path in (tmp_path / "sound", tmp_path / "missing", tmp_path):
        with pytest.raises(KnnError):
            read_rttm(path)


def test_importing_is_light() -> None:
    heavy = ("numpy", "pandas", "pyannote.core")
    code = f"import sys, knn_cli.formats.turns; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_uem_and_folders_of_references(tmp_path: Path) -> None:
    (tmp_path / "a.uem").write_text(";; scored\none 1 0.0 5.0\none 1 4.0 9.5\ntwo NA 1 2\n")
    found = read_uem(tmp_path / "a.uem")
    assert [(span.start, span.end) for span in found["one"]] == [(0, 9.5)] and found["two"].duration() == 1
    for text, sentence in (("one 1 0.0\n", "Line 1"), ("one 1 5 2\n", "from 5 to 2"), ("one 1 a b\n", "Line 1")):
        (tmp_path / "b.uem").write_text(text)
        with pytest.raises(KnnError, match=sentence):
            read_uem(tmp_path / "b.uem")
    with pytest.raises(KnnError, match=r"no \.rttm files"):
        read_references(tmp_path)
    for name in ("x", "y"):
        (tmp_path / f"{name}.rttm").write_text(f"SPEAKER {name} 1 0 2 <NA> <NA> ann <NA> <NA>\n")
    assert set(read_references(tmp_path)) == {"x", "y"} and set(read_references(tmp_path / "x.rttm")) == {"x"}
    (tmp_path / "z.rttm").write_text("SPEAKER x 1 0 2 <NA> <NA> ann <NA> <NA>\n")
    with pytest.raises(KnnError, match=r"recording x is in z\.rttm"):
        read_references(tmp_path)
