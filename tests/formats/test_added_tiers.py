"""Turns are added to TextGrids and ELAN documents, and nothing that was in them changes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Diarization, Turn
from knn_cli.formats.added_tiers import textgrid_end, with_added_tiers
from knn_cli.formats.spans import SpanDocument, turn_document
from knn_cli.formats.transcripts import TranscriptSegment
from knn_cli.formats.turn_readers import read_turns

TURNS = (Turn(0.5, 2.0, "Anna"), Turn(1.5, 3.25, 'Bob "<&>"'), Turn(3.5, 4.0, "Anna"))
ELAN = """<?xml version="1.0" encoding="UTF-8"?>
<!-- a comment with </TIME_ORDER> in it -->
<ANNOTATION_DOCUMENT AUTHOR="eva" DATE="2026-01-01T10:00:00+01:00" FORMAT="3.0" VERSION="3.0"
    xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:noNamespaceSchemaLocation="http://www.mpi.nl/tools/elan/EAFv3.0.xsd">
    <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">
        <MEDIA_DESCRIPTOR MEDIA_URL="file:///a.wav" MIME_TYPE="audio/x-wav" RELATIVE_MEDIA_URL="./a.wav"/>
        <PROPERTY NAME="URN">urn:nl-mpi-tools-elan-eaf:1</PROPERTY>
        <PROPERTY NAME="lastUsedAnnotationId">7</PROPERTY>
    </HEADER>
    <TIME_ORDER>
        <TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="100"/>
        <TIME_SLOT TIME_SLOT_ID="ts2"/>
        <TIME_SLOT TIME_SLOT_ID="ts9" TIME_VALUE="2500"/>
    </TIME_ORDER>
    <TIER LINGUISTIC_TYPE_REF="default-lt" PARTICIPANT="Eva" TIER_ID="Anna">
        <ANNOTATION>
            <ALIGNABLE_ANNOTATION ANNOTATION_ID="a7" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts9">
                <ANNOTATION_VALUE>  d\u011bkuji &amp; <![CDATA[<x>]]> &#10;</ANNOTATION_VALUE>
            </ALIGNABLE_ANNOTATION>
        </ANNOTATION>
    </TIER>
    <TIER LINGUISTIC_TYPE_REF="note" PARENT_REF="Anna" TIER_ID="note"/>
    <LINGUISTIC_TYPE GRAPHIC_REFERENCES="false" LINGUISTIC_TYPE_ID="default-lt" TIME_ALIGNABLE="true"/>
    <LINGUISTIC_TYPE CONSTRAINTS="Symbolic_Association" GRAPHIC_REFERENCES="false" LINGUISTIC_TYPE_ID="note"
        TIME_ALIGNABLE="false"/>
    <LOCALE LANGUAGE_CODE="cs"/>
    <CONSTRAINT DESCRIPTION="1-1 association" STEREOTYPE="Symbolic_Association"/>
    <CONTROLLED_VOCABULARY CV_ID="words"/>
</ANNOTATION_DOCUMENT>
"""
LONG = '''File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0 
xmax = 4.0001234 
tiers? <exists> 
size = 2 
item []: 
    item [1]:
        class = "IntervalTier" 
        name = "Anna" 
        xmin = 0 
        xmax = 4.0001234 
        intervals: size = 2 
        intervals [1]:
            xmin = 0 
            xmax = 1.2345678901 
            text = "said ""size = 2""" 
        intervals [2]:
            xmin = 1.2345678901 
            xmax = 4.0001234 
            text = "" 
    item [2]:
        class = "TextTier" 
        name = "p\u0159\u00edzvuk" 
        xmin = 0 
        xmax = 4.0001234 
        points: size = 1 
        points [1]:
            number = 1.5 
            mark = "x" 
'''
SHORT = (
    'File type = "ooTextFile"\nObject class = "TextGrid"\n\n1\n4\n<exists>\n1\n"IntervalTier"\n"a"\n1\n4\n1\n1\n4\n"3"'
)


def document(turns: tuple[Turn, ...] = TURNS, **more: object) -> SpanDocument:
    return replace(turn_document(Diarization(turns, "talk", seconds=4.0)), **more)  # type: ignore[arg-type]


def kept(before: str, after: str, changed: str) -> bool:
    """Whether all lines of a text are in another, in their order, but for those that count."""
    lines = iter(after.splitlines(keepends=True))
    return all(line in lines for line in before.splitlines(keepends=True) if not re.search(changed, line))


def elements(root: ElementTree.Element) -> list[tuple[str, str, tuple[tuple[str, str], ...], str]]:
    """Each element with its parent's identity, attributes and text."""
    found = []
    for parent in root.iter():
        name = parent.get("TIER_ID") or parent.get("ANNOTATION_ID") or parent.tag
        found += [(name, one.tag, tuple(sorted(one.items())), (one.text or "").strip("\n ")) for one in parent]
    return found


def added(path: Path, raw: bytes, more: SpanDocument) -> bytes:
    path.write_bytes(raw)
    after = with_added_tiers(path, more)
    assert path.read_bytes() == raw
    path.write_bytes(after)
    return after


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_elan_by_hand(tmp_path: Path, line_end: str) -> None:
    text = ELAN.replace("\n", line_end)
    after = added(tmp_path / "a.eaf", text.encode(), document(template=True)).decode()
    assert kept(text, after, "lastUsedAnnotationId") and after.count("\n") == after.count(line_end)
    before, root = ElementTree.fromstring(text), ElementTree.fromstring(after)
    old = [one for one in elements(before) if "lastUsedAnnotationId" not in str(one)]
    assert [one for one in elements(root) if one in old] == old
    tiers = [(tier.get("TIER_ID"), tier.get("PARTICIPANT"), tier.get("PARENT_REF")) for tier in root.iter("TIER")]
    assert tiers[2:] == [
        ("Anna (2)", "Anna", None),
        ("Anna (2) transcription", "Anna", "Anna (2)"),
        ('Bob "<&>"', 'Bob "<&>"', None),
        ('Bob "<&>" transcription', 'Bob "<&>"', 'Bob "<&>"'),
    ]
    numbers = [one.get("ANNOTATION_ID") for one in root.iter() if one.get("ANNOTATION_ID")]
    assert numbers == ["a7", *(f"a{number}" for number in range(10, 16))]
    assert root.findtext("HEADER/PROPERTY[@NAME='lastUsedAnnotationId']") == "15"
    slots = [slot.get("TIME_VALUE") for slot in root.iter("TIME_SLOT")]
    assert slots == ["100", None, "500", "1500", "2000", "2500", "3250", "3500", "4000"]
    kinds = [one.get("LINGUISTIC_TYPE_ID") for one in root.iter("LINGUISTIC_TYPE")]
    assert kinds == ["default-lt", "note", "turn", "transcription"]
    order = ["HEADER", "TIME_ORDER", *["TIER"] * 6, *["LINGUISTIC_TYPE"] * 4, "LOCALE", "CONSTRAINT"]
    assert [one.tag for one in root] == [*order, "CONTROLLED_VOCABULARY"]
    turns = read_turns(tmp_path / "a.eaf")["a"]
    assert turns == tuple(sorted([Turn(0.1, 2.5, "Eva"), *TURNS], key=lambda turn: (turn.start, turn.end)))


def test_elan_without_what_is_needed(tmp_path: Path) -> None:
    """An empty document; types of the same names but of other kinds; no constraints; identifiers of their own."""
    bare = '<ANNOTATION_DOCUMENT><HEADER/><TIME_ORDER/><LINGUISTIC_TYPE LINGUISTIC_TYPE_ID="turn" CONSTRAINTS="x"/>'
    after = added(tmp_path / "a.eaf", (bare + "</ANNOTATION_DOCUMENT>").encode(), document(template=True)).decode()
    root = ElementTree.fromstring(after)
    assert [one.get("LINGUISTIC_TYPE_ID") for one in root.iter("LINGUISTIC_TYPE")] == [
        "turn",
        "turn (2)",
        "transcription",
    ]
    assert {tier.get("LINGUISTIC_TYPE_REF") for tier in root.iter("TIER")} == {"turn (2)", "transcription"}
    assert [one.get("STEREOTYPE") for one in root.iter("CONSTRAINT")] == ["Symbolic_Association"]
    assert read_turns(tmp_path / "a.eaf")["a"] == TURNS
    again = added(tmp_path / "a.eaf", after.encode(), document())
    assert len(read_turns(tmp_path / "a.eaf")["a"]) == 6 and again.count(b"<LINGUISTIC_TYPE ") == 3
    numbers = re.findall(rb'ANNOTATION_ID="(\w+)"', again)
    assert len(numbers) == len(set(numbers)) == 9
    (tmp_path / "b.eaf").write_bytes(b"<ANNOTATION_DOCUMENT><TIME_ORDER/></ANNOTATION_DOCUMENT>")
    assert with_added_tiers(tmp_path / "b.eaf", document(())) == (tmp_path / "b.eaf").read_bytes()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 2000), st.text(max_size=5)), max_size=6))
def test_elan_slots_stay_in_order(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, str]]) -> None:
    turns = tuple(Turn(at / 1000, (at + length) / 1000, name) for at, length, name in rows)
    path = tmp_path_factory.mktemp("elan") / "a.eaf"
    after = added(path, ELAN.encode(), document(turns)).decode()
    root = ElementTree.fromstring(after)
    values = [int(slot.attrib["TIME_VALUE"]) for slot in root.iter("TIME_SLOT") if "TIME_VALUE" in slot.attrib]
    slots = [slot.attrib["TIME_SLOT_ID"] for slot in root.iter("TIME_SLOT")]
    assert values == sorted(values) and len(slots) == len(set(slots))
    assert [slot for slot in slots if slot in ("ts1", "ts2", "ts9")] == ["ts1", "ts2", "ts9"]
    assert kept(ELAN, after, "lastUsedAnnotationId")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_textgrid_by_hand(tmp_path: Path, encoding: str, line_end: str) -> None:
    text = LONG.replace("\n", line_end)
    raw = text.encode(encoding)
    after = added(tmp_path / "a.TextGrid", raw, document(template=True))
    counted = after.decode(encoding).replace("size = 6 " + line_end + "item", "size = 2 " + line_end + "item", 1)
    assert counted.startswith(text) and after[:2] == raw[:2]
    new = counted[len(text) :]
    assert re.findall('name = "(.*)"', new) == [
        "Anna (2)", "Anna (2) transcription", 'Bob ""<&>""', 'Bob ""<&>"" transcription'
    ]  # fmt: skip
    assert re.findall(r"item \[(\d)\]", new) == ["3", "4", "5", "6"]
    assert new.count("xmax = 4.0001234 ") == 8  # four tiers, and the last interval of each
    assert textgrid_end(tmp_path / "a.TextGrid") == 4.0001234
    found = [turn for turn in read_turns(tmp_path / "a.TextGrid")["a"] if turn.speaker != "Anna"]
    assert [(turn.start, turn.end) for turn in found] == [(1.5, 3.25)]


def test_short_textgrid_is_cut_to_its_time(tmp_path: Path) -> None:
    after = added(
        tmp_path / "a.TextGrid", SHORT.encode(), document((Turn(0.5, 2.0, "A"), Turn(3.5, 9.0, "A")))
    ).decode()
    assert after == SHORT.replace("exists>\n1", "exists>\n2") + (
        '\n"IntervalTier"\n"A"\n1\n4\n3\n1\n2\n"A"\n2\n3.5\n""\n3.5\n4\n"A"\n'
    )


def test_words_are_added_too(tmp_path: Path) -> None:
    said = (TranscriptSegment(0.5, 2.0, "well &", speaker="Anna"),)
    for name, text in (("a.eaf", ELAN), ("a.TextGrid", LONG)):
        after = added(tmp_path / name, text.encode(), document(transcript=said)).decode()
        assert "Anna transcription" in after and re.search('>well &amp;<|"well &"', after)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.eaf", "<x/>"),
        ("a.eaf", "<ANNOTATION_DOCUMENT/>"),
        ("a.eaf", "<ANNOTATION_DOCUMENT>"),
        ("a.eaf", '<!DOCTYPE a [<!ENTITY b "c">]>' + ELAN.split("\n", 2)[2]),
        ("a.eaf", ELAN.replace("UTF-8", "ISO-8859-1")),
        ("a.TextGrid", LONG.replace("size = 2", "size = 3", 1)),
        ("a.TextGrid", LONG[:-40]),
        ("a.TextGrid", SHORT.replace("<exists>", "<absent>")),
        ("a.TextGrid", "ooBinaryFile"),
        ("a.txt", LONG),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(KnnError, match=name):
        with_added_tiers(tmp_path / name, document())
