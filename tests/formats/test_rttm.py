"""RTTM: what is written reads back; broken files are named by line."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.core import Annotation, Segment

from knn_cli.core.atomic import replacing_text
from knn_cli.core.errors import KnnError
from knn_cli.formats.rttm import (
    check_names,
    read_rttm,
    rttm_field,
    turns_of_recording,
    write_rttm,
)
from knn_cli.formats.turn_readers import read_references


def turns_of(annotation: Annotation) -> list[tuple[int, int, str]]:
    return sorted(
        (round(s.start * 1000), round(s.end * 1000), str(label))
        for s, _, label in annotation.itertracks(yield_label=True)
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 40_000), st.floats(0.002, 100), st.sampled_from("ABC")), min_size=1, max_size=8))
def test_rttm_round_trip(tmp_path_factory: pytest.TempPathFactory, turns: list[tuple[float, float, str]]) -> None:
    annotation = Annotation(uri="talk")
    for track, (start, duration, label) in enumerate(turns):
        annotation[Segment(start, start + duration), track] = label
    path = tmp_path_factory.mktemp("rttm") / "talk.rttm"
    with replacing_text(path) as file:
        write_rttm(annotation, file)
    assert turns_of(read_rttm(path)["talk"]) == turns_of(annotation)


@pytest.mark.parametrize("name", ["ES2011a", "IS1008a"])
def test_ami_references(shared: Path, tmp_path: Path, name: str) -> None:
    source = shared / "reference" / "ami-rttm" / f"{name}.rttm"
    found = read_rttm(source)
    assert list(found) == [name]
    lines = source.read_text().split("\n")[:-1]
    assert len(turns_of(found[name])) == len(lines)
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
    assert turns_of(found["two"]) == [(1000, 3000, "B"), (1000, 3000, "C")]
    assert turns_of(found["one"]) == [(500, 1000, "A")]
    path.write_text("")
    assert read_rttm(path) == {}


@pytest.mark.parametrize(
    "line",
    [
        "SPEAKER my file 1 0.7 2.3 <NA> <NA> A <NA> <NA>",  # a blank in the file's name, ten and nine fields
        "SPEAKER my file 1 0.7 2.3 <NA> <NA> A <NA>",
        "SPEAKER my file 1 0.7 2.3 <NA> A <NA> <NA>",
        "SPEAKER a 1 0.7 2.3 <NA> <NA> Speaker A <NA> <NA>",  # in the speaker's
        "SPEAKER a 1 0.7 2.3 <NA> <NA> Speaker A <NA>",
        "SPEAKER a 1 0.7 2.3 <NA> <NA> Speaker 2 <NA>",
        "SPEAKER a 1 0.7 2.3 <NA> <NA> Speaker 0 <NA>",
        "SPEAKER a 1 0.7 2.3 <NA> A <NA> <NA>",  # a field left out
        "SPEAKER a 1 0.7 2.3 <NA> A B <NA> <NA>",
        "SPEAKER a 0.7 2.3 <NA> <NA> A <NA> <NA>",
        "SPEAKER a 1 0.7 2.3 <NA> <NA> <NA> <NA> <NA>",
        "SPEAKER a 1 0.7 2.3 <NA> <NA> \u00a0 <NA> <NA>",
        "SPEAKER a 1 0,7 2.3 <NA> <NA> A <NA> <NA>",
        "SPEAKER a 1 1_0 2.3 <NA> <NA> A <NA> <NA>",
        "SPEAKER a 1 1e308 1e308 <NA> <NA> A <NA> <NA>",
        "SPEAKER a 1 0.7 2.3 <NA> <NA> Speaker 1 A",
        "SPEAKERS a 1 0.7 2.3 <NA> <NA> A <NA> <NA>",
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


def test_names_with_a_no_break_space_are_kept_whole(tmp_path: Path) -> None:
    lines = [f"SPEAKER a {1} {start} 1 <NA> <NA> Speaker\u00a0{who} <NA> <NA>" for start, who in enumerate("AB")]
    (tmp_path / "a.rttm").write_text("\n".join(lines), encoding="utf-8")
    assert read_rttm(tmp_path / "a.rttm")["a"].labels() == ["Speaker\u00a0A", "Speaker\u00a0B"]


def test_composed_and_decomposed_names_are_one_speaker(tmp_path: Path) -> None:
    lines = [f"SPEAKER caf{e} 1 {at} 1 <NA> <NA> Ren{e} 0.5 <NA>" for at, e in enumerate(["\u00e9", "e\u0301"])]
    (tmp_path / "a.rttm").write_text("\n".join(lines), encoding="utf-8")
    found = read_rttm(tmp_path / "a.rttm")
    assert list(found) == ["caf\u00e9"] and found["caf\u00e9"].labels() == ["Ren\u00e9"]


def test_recordings_in_which_nobody_speaks(tmp_path: Path) -> None:
    (tmp_path / "empty.rttm").write_text("")
    (tmp_path / "comment.RTTM").write_text(";; nobody\n")
    (tmp_path / "info.rttm").write_text("SPKR-INFO talk 1 <NA> <NA> <NA> unknown A <NA> <NA>\n")
    (tmp_path / "._info.rttm").write_bytes(b"\0\5\x16\7")  # macOS
    found = read_references(tmp_path)
    assert sorted(found) == ["comment", "empty", "talk"] and not any(found.values())
    assert list(read_references(tmp_path / "info.rttm")) == ["talk"]
    with pytest.raises(KnnError, match="no turns of other"):
        turns_of_recording("other", found, [Path("other.wav"), Path("talk.wav")], tmp_path)


def test_names_that_rttm_makes_one_are_refused() -> None:
    check_names(["a b", "c", "c"], "recordings")
    for pair in (["a b", "a_b"], ["a\u00a0b", "a b"], ["e\u0301", "\u00e9"]):
        with pytest.raises(KnnError, match="Two recordings"):
            check_names(pair, "recordings")
    turns = Annotation(uri="talk")
    turns[Segment(0, 1)], turns[Segment(1, 2)] = "Speaker A", "Speaker_A"
    with pytest.raises(KnnError, match="Two speakers would have the name Speaker_A"):
        write_rttm(turns, io.StringIO())


def test_recordings_are_found_by_the_name_that_rttm_gives_them(tmp_path: Path) -> None:
    turns = {"my_file": Annotation(uri="my_file"), "b": Annotation(uri="b")}
    files = [Path("my file.wav"), Path("b.wav")]
    assert turns_of_recording("my file", turns, files, "ref.rttm").uri == "my_file"


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "sound").write_bytes(b"\xff\xfe\x00\x80")
    for path in (tmp_path / "sound", tmp_path / "missing", tmp_path):
        with pytest.raises(KnnError):
            read_rttm(path)


def test_fields_have_no_white_space_and_are_never_empty() -> None:
    assert [rttm_field(text) for text in (" a  b\t", "", None, "\n")] == ["a_b", "<NA>", "<NA>", "_"]
    file = io.StringIO()
    write_rttm(Annotation(), file)
    assert file.getvalue() == ""


def test_importing_is_light() -> None:
    heavy = ("numpy", "pandas", "pyannote.core")
    modules = "knn_cli.formats.span_formats, knn_cli.formats.uem, knn_cli.formats.elan"
    code = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_folders_of_references(tmp_path: Path) -> None:
    with pytest.raises(KnnError, match="no files of turns"):
        read_references(tmp_path)
    for name in ("x", "y"):
        (tmp_path / f"{name}.rttm").write_text(f"SPEAKER {name} 1 0 2 <NA> <NA> ann <NA> <NA>\n")
    assert set(read_references(tmp_path)) == {"x", "y"} and set(read_references(tmp_path / "x.rttm")) == {"x"}
    (tmp_path / "z.rttm").write_text("SPEAKER x 1 0 2 <NA> <NA> ann <NA> <NA>\n")
    with pytest.raises(KnnError, match=r"recording x is in two files of .*: x\.rttm and z\.rttm"):
        read_references(tmp_path)
