"""ELAN documents: the structure that EAF 3.0 asks for, and turns that read back."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.core import Annotation, Segment

from knn_cli.formats import elan
from knn_cli.formats.spans import turn_document
from tests.helpers.turns import diarization

DATE = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)
Spoken = tuple[str, int, int]


def eaf(turns: list[tuple[float, float, str]], **where: Path) -> ElementTree.Element:
    annotation = Annotation(uri="talk")
    for track, (start, end, speaker) in enumerate(turns):
        annotation[Segment(start, end), track] = speaker
    file = io.StringIO()
    document = turn_document(diarization(annotation, seconds=60.0))
    elan.write_eaf(replace(document, **where), file, date=DATE)
    text = file.getvalue()
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n')
    return ElementTree.fromstring(text)


def annotations(root: ElementTree.Element) -> list[Spoken]:
    times = {one.attrib["TIME_SLOT_ID"]: int(one.attrib["TIME_VALUE"]) for one in root.iter("TIME_SLOT")}
    found = [
        (
            one.findtext("ANNOTATION_VALUE") or "",
            times[one.attrib["TIME_SLOT_REF1"]],
            times[one.attrib["TIME_SLOT_REF2"]],
        )
        for one in root.iter("ALIGNABLE_ANNOTATION")
    ]
    return sorted(found)


def test_structure_by_hand(tmp_path: Path) -> None:
    sound = tmp_path / "sound" / "a b #1.wav"
    root = eaf(
        [(0.5, 2.0, "Anna"), (1.0, 3.25, 'Bob "<&>"'), (4.0, 5.0, "Anna")],
        audio_path=sound,
        location=tmp_path / "out" / "x.eaf",
    )
    assert root.tag == "ANNOTATION_DOCUMENT"
    assert root.attrib["DATE"] == "2026-11-23T12:00:00+00:00" and root.attrib["FORMAT"] == "3.0"
    assert {"AUTHOR", "VERSION"} <= set(root.attrib)
    order = [one.tag for one in root]  # the schema's sequence
    assert order == ["HEADER", "TIME_ORDER", "TIER", "TIER", "LINGUISTIC_TYPE", *["CONSTRAINT"] * 4]
    header = root[0]
    assert header.attrib["TIME_UNITS"] == "milliseconds"
    media = header[0].attrib
    assert media["MEDIA_URL"] == f"file://{sound.resolve()}"
    assert media["RELATIVE_MEDIA_URL"] == "../sound/a b #1.wav"
    assert media["MIME_TYPE"] == "audio/x-wav"
    assert [one.attrib["TIME_VALUE"] for one in root.iter("TIME_SLOT")] == [
        "500",
        "1000",
        "2000",
        "3250",
        "4000",
        "5000",
    ]
    assert [one.attrib["TIER_ID"] for one in root.iter("TIER")] == ["Anna", 'Bob "<&>"']
    kinds = {one.attrib["LINGUISTIC_TYPE_ID"] for one in root.iter("LINGUISTIC_TYPE")}
    assert {one.attrib["LINGUISTIC_TYPE_REF"] for one in root.iter("TIER")} == kinds
    assert annotations(root) == [("Anna", 500, 2000), ("Anna", 4000, 5000), ('Bob "<&>"', 1000, 3250)]
    assert header.findtext("PROPERTY") == "3"


def test_beside_and_without_the_recording(tmp_path: Path) -> None:
    media = eaf([], audio_path=tmp_path / "a.flac", location=tmp_path / "a.eaf")[0][0].attrib
    assert media["RELATIVE_MEDIA_URL"] == "./a.flac" and media["MIME_TYPE"] == "unknown"
    assert "RELATIVE_MEDIA_URL" not in eaf([], audio_path=tmp_path / "a.flac")[0][0].attrib
    root = eaf([])
    assert root.find("HEADER/MEDIA_DESCRIPTOR") is None and not list(root.iter("TIER"))


def test_a_tier_holds_one_annotation_at_a_time() -> None:
    root = eaf([(0, 2, "a"), (1, 3, "a"), (1.5, 2.5, "a"), (2.5, 4, "b"), (3, 4, "a")])
    assert annotations(root) == [("a", 0, 2000), ("a", 2000, 3000), ("a", 3000, 4000), ("b", 2500, 4000)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10**7), st.integers(1, 10**4), st.text(max_size=12)), min_size=1, max_size=6),
)
def test_any_name_makes_a_valid_document(turns: list[tuple[int, int, str]]) -> None:
    root = eaf([(start / 1000, (start + length) / 1000, name) for start, length, name in turns])
    tiers = [one.attrib["TIER_ID"] for one in root.iter("TIER")]
    assert len(tiers) == len(set(tiers)) and all(tiers)
    ids = [one.attrib["ANNOTATION_ID"] for one in root.iter("ALIGNABLE_ANNOTATION")]
    assert len(ids) == len(set(ids))
    starts = {start for _, start, _ in annotations(root)}
    assert min(start for start, _, _ in turns) in starts
