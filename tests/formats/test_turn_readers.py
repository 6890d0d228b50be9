"""Turns are read from every text format that writes them, and from what other programs write."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Diarization, Turn, sort_turns
from knn_cli.formats.span_formats import TURN_FORMATS, write
from knn_cli.formats.spans import turn_document
from knn_cli.formats.turn_readers import TURN_READERS, read_given_turns, read_turns

TEXT_FORMATS = [known for known in TURN_FORMATS.values() if not known.binary]


@st.composite
def talks(draw: st.DrawFn) -> Diarization:
    """Turns in whole milliseconds, of speakers whose names every format can hold; none overlaps one of its speaker."""
    names = st.text("abcé日本 .-_()<&\"'", min_size=1, max_size=8).map(str.strip).filter(lambda name: name.strip("()"))
    turns: list[Turn] = []
    for name in draw(st.lists(names, min_size=1, max_size=3, unique_by=lambda name: name.replace(" ", "_"))):
        at = 0
        for gap, length in draw(st.lists(st.tuples(st.integers(0, 900), st.integers(1, 9000)), max_size=3)):
            turns.append(Turn((at + gap) / 1000, (at + gap + length) / 1000, name))
            at += gap + length
    return Diarization(sort_turns(turns), "talk", seconds=40.0)


@pytest.mark.parametrize("known", TEXT_FORMATS, ids=lambda known: known.name)
@given(talk=talks())
@settings(max_examples=25, deadline=None)
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, known, talk: Diarization) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("turns") / f"talk{known.suffix}"
    write(turn_document(talk), path, known.name)
    found = read_turns(path)
    assert list(found) == ["talk"]

    def rows(turns: tuple[Turn, ...]) -> list[tuple[int, int, str]]:
        spell = (lambda name: "_".join(name.split())) if known.name == "rttm" else (lambda name: " ".join(name.split()))
        return sorted((round(turn.start * 1000), round(turn.end * 1000), spell(turn.speaker)) for turn in turns)

    assert rows(found["talk"]) == rows(talk.turns)


def test_every_text_format_has_a_reader() -> None:
    assert {known.suffix.lower() for known in TEXT_FORMATS} <= set(TURN_READERS)


OTHERS = {  # the same two turns, by other programs
    "pandas.csv": "Start [s],End [s],Speaker\n0.5,2.0,A\n2.0,3.25,B\n",
    "tabs.tsv": "recording\tonset\tduration\tlabel\ntalk\t0.5\t1.5\tA\ntalk\t2\t1.25\tB\n",
    "excel.csv": "\ufefffile;begin;stop;speaker\ntalk;0.5;2;A\ntalk;2;3.25;B\n",
    "whole.json": '{\n "turns": [{"start": 0.5, "end": 2, "speaker": "A"},\n'
    ' {"start": 2, "end": 3.25, "speaker": "B"}]}',
    "voices.vtt": "WEBVTT\n\nNOTE x\n\n00:00.500 --> 00:02.000 align:start\n<v.loud A>well\nthen\n\n"
    "1\n00:00:02.000 --> 00:00:03.250\n<v B>&lt;yes&gt;</v>\n",
    "whisperx.srt": "1\n00:00:00,500 --> 00:00:02,000\n[A]: well: then\n\n"
    "2\n00:00:02,000 --> 00:00:03,250\n[B]: yes\n\n",
    "labels.txt": "0.500000\t2.000000\tA\n\\\t100\t200\n2.000000\t3.250000\tB\n",
    "short.TextGrid": 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n4\n<exists>\n3\n'
    '"IntervalTier"\n"A"\n0\n4\n3\n'
    '0\n0.5\n""\n0.5\n2\n"what ""he"" said 3"\n2\n4\n""\n"TextTier"\n"clicks"\n0\n4\n1\n1.5\n"x"\n'
    '"IntervalTier"\n"B"\n0\n4\n1\n2\n3.25\n"yes"\n',
    "elan.eaf": '<ANNOTATION_DOCUMENT><TIME_ORDER><TIME_SLOT TIME_SLOT_ID="a" TIME_VALUE="500"/>'
    '<TIME_SLOT TIME_SLOT_ID="b" TIME_VALUE="2000"/><TIME_SLOT TIME_SLOT_ID="c" TIME_VALUE="3250"/></TIME_ORDER>'
    '<TIER TIER_ID="t1" PARTICIPANT="A"><ANNOTATION><ALIGNABLE_ANNOTATION TIME_SLOT_REF1="a" TIME_SLOT_REF2="b">'
    "<ANNOTATION_VALUE>well</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER>"
    '<TIER TIER_ID="B"><ANNOTATION><ALIGNABLE_ANNOTATION TIME_SLOT_REF1="b" TIME_SLOT_REF2="c"/></ANNOTATION></TIER>'
    '<TIER TIER_ID="words" PARENT_REF="t1"><ANNOTATION><REF_ANNOTATION ANNOTATION_REF="x"/></ANNOTATION></TIER>'
    "</ANNOTATION_DOCUMENT>",
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_other_programs_write(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(OTHERS[name], encoding="utf-8")
    (turns,) = read_turns(path).values()
    assert [(turn.start, turn.end, turn.speaker) for turn in turns] == [(0.5, 2.0, "A"), (2.0, 3.25, "B")]


def test_a_textgrid_in_utf16(tmp_path: Path) -> None:
    path = tmp_path / "talk.TextGrid"
    path.write_text(OTHERS["short.TextGrid"].replace('"A"', '"Zoë"'), encoding="utf-16")
    assert read_turns(path)["talk"][0].speaker == "Zoë"


GRID, ELAN = OTHERS["short.TextGrid"], OTHERS["elan.eaf"]
BROKEN = {
    "a.csv": [
        "",
        "start,end\n0,1\n",
        *(
            f"start,end,speaker,confidence\n{row}\n"
            for row in ("0,x,A", "2,1,A", "0,1,", "-1,1,A", "0,nan,A", "0,1,A,7")
        ),
    ],
    "a.json": [
        "",
        "[]",
        "{}",
        "[" * 9000,
        *(f'{{"turns": [{turn}]}}' for turn in ("1", '{"speaker": "A"}', '{"start": 0, "end": 1, "speaker": 3}')),
        *(f'{{"turns": [{{"start": 0, "end": {end}, "speaker": "A"}}]}}' for end in ("true", "1e999", '"x"', "null")),
    ],
    "a.TextGrid": ["", "words", GRID[:120], GRID.replace('3\n"Int', '1e9\n"Int', 1)],
    "a.eaf": [
        "",
        "<a>",
        '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        ELAN.replace('"3250"', '"x"'),
        ELAN.replace('TIME_SLOT_REF2="c"', ""),
    ],
    "a.srt": ["hello\n", "1\n00:00:02,000 --> 00:00:01,000\nA\n", "1\n00:00:01,000 --> 00:00:02,000\n\n"],
    "a.txt": ["0 1 A\n", "0\t1\t\n", "x\t1\tA\n"],
    "a.rttm": ["SPEAKER a 1 0\n"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BROKEN.items() for text in texts])
def test_what_is_wrong_is_said(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(KnnError, match=r"a\."):
        read_turns(tmp_path / name)


def test_folders_have_one_format(tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / f"{name}.csv").write_text("start,end,speaker\n0,1,A\n", encoding="utf-8")
    assert set(read_given_turns(tmp_path)) == {"x", "y"}
    (tmp_path / "notes.txt").write_text("bring cake", encoding="utf-8")
    with pytest.raises(KnnError, match=r"several formats: \.csv, \.txt"):
        read_given_turns(tmp_path)
    (tmp_path / "x.rttm").write_text("SPEAKER x 1 0 2 <NA> <NA> B <NA> <NA>\n", encoding="utf-8")
    assert {name: len(turns) for name, turns in read_given_turns(tmp_path).items()} == {"x": 1}
