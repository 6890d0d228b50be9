"""Corrections of a diarization, by hand and by what must hold for any."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Diarization, Turn
from knn_cli.diarization import corrections
from knn_cli.diarization.corrections import Delete, Edit, Merge, Move, Reassign, Rename, SplitSpeaker, SplitTurn

A, B, C = "SPEAKER_00", "SPEAKER_01", "SPEAKER_02"


@pytest.fixture
def meeting() -> Diarization:
    """A 0-2, B 2-3, A 3.2-4, C 3.5-5; B is embedded from 1 s, A from 3 s."""
    turns = (Turn(0, 2, A, 0.8), Turn(2, 3, B, 0.6), Turn(3.2, 4, A, 0.5), Turn(3.5, 5, C, 0.9))
    vectors = dict(zip((A, B, C), np.array([[1, 0], [0, 1], [2, 2]], dtype=np.float32), strict=True))
    return Diarization(turns, "meeting", vectors, {A: 3.0, B: 1.0, C: 1.5}, 6.0)


def turns(diarization: Diarization) -> list[tuple[float, float, str]]:
    return [(turn.start, turn.end, turn.speaker) for turn in diarization.turns]


def test_merging_by_hand(meeting: Diarization) -> None:
    merged = corrections.apply(meeting, [Merge(B, A)])
    assert turns(merged) == [(0, 2, A), (2, 3, A), (3.2, 4, A), (3.5, 5, C)]
    assert merged.speaker_embeddings[A].tolist() == [0.75, 0.25]
    assert merged.clean_speech_seconds == {A: 4.0, C: 1.5} and set(merged.speaker_embeddings) == {A, C}
    filled = corrections.apply(meeting, [Merge(B, A, max_gap=0.1)])
    assert turns(filled) == [(0, 3, A), (3.2, 4, A), (3.5, 5, C)]
    assert filled.turns[0].confidence == pytest.approx((2 * 0.8 + 0.6) / 3)
    assert turns(corrections.apply(meeting, [Merge(C, A, max_gap=0.0)])) == [(0, 2, A), (2, 3, B), (3.2, 5, A)]


def test_edits_follow_each_other(meeting: Diarization) -> None:
    edits: list[Edit] = [
        SplitTurn(0.5, 0, 2, A),
        Reassign(0.5, 2.004, A, "SPEAKER_07"),  # a hundredth of a second is near enough
        Rename("SPEAKER_07", "Anna"),
        Merge(B, "Anna"),
        Delete(3.5, 5, C),
    ]
    corrected = corrections.apply(meeting, edits)
    assert turns(corrected) == [(0, 0.5, A), (0.5, 2, "Anna"), (2, 3, "Anna"), (3.2, 4, A)]
    assert [turn.confidence for turn in corrected.turns] == [0.8, None, 0.6, 0.5]
    assert set(corrected.speaker_embeddings) == set(corrected.clean_speech_seconds) == {A, "Anna"}
    assert corrections.label_after("SPEAKER_07", edits) == corrections.label_after(B, edits) == "Anna"


def test_a_turn_moves(meeting: Diarization) -> None:
    moved = corrections.apply(meeting, [Move(0.25, 2.5, 0.0, 2.0, A), Move(0.1, 1.0, 2.0, 3.0, B)])
    assert turns(moved)[:2] == [(0.1, 1.0, B), (0.25, 2.5, A)]  # by time again
    assert moved.turns[1].confidence == 0.8 and moved.speaker_embeddings is not None


def test_the_order_does_not_matter_where_it_should_not(meeting: Diarization) -> None:
    one = corrections.apply(meeting, [Merge(B, A), Rename(A, "Anna")])
    other = corrections.apply(meeting, [Rename(A, "Anna"), Merge(B, "Anna")])
    assert one.turns == other.turns and one.clean_speech_seconds == other.clean_speech_seconds
    assert np.array_equal(one.speaker_embeddings["Anna"], other.speaker_embeddings["Anna"])
    back = corrections.apply(meeting, [Rename(A, "Anna"), Rename("Anna", A)])
    assert back.turns == meeting.turns and corrections.apply(meeting, []) is meeting
    assert turns(meeting)[0] == (0, 2, A)  # what is given stays as it is


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Merge("Eva", A), "no speaker 'Eva', only SPEAKER_00, SPEAKER_01, SPEAKER_02"),
        (Merge(A, A), "one speaker already"),
        (Rename(A, B), "'SPEAKER_01' already"),
        (Rename(A, " "), "nameless"),
        (Reassign(0, 2.02, A, B), "no turn from 0.000 to 2.020 s"),
        (Reassign(2, 3, A, B), "no turn from"),
        (Reassign(0, 2, A, A), "cannot go from"),
        (SplitTurn(2.0, 0, 2, A), "not within the turn"),
        (Delete(0, 1, C), "no turn from"),
        (Move(0.5, 1, 0, 1, C), "no turn from"),
        (Move(-0.1, 2, 0, 2, A), "cannot be from"),
        (Move(1, 1.005, 0, 2, A), "cannot be from"),
        (Move(0, 5000, 0, 2, A), "cannot be from"),
        (SplitSpeaker(A), "windows are not at hand"),
    ],
)
def test_an_edit_that_does_not_fit_is_named_by_its_number(meeting: Diarization, edit: Edit, message: str) -> None:
    with pytest.raises(KnnError, match=f"Edit 2 .* does not fit: .*{message}") as raised:
        corrections.apply(meeting, [SplitTurn(4.5, 3.5, 5, C), edit])
    assert raised.value.hint


FILE: dict[str, Any] = {
    "knn": "corrections",
    "version": 1,
    "recording": "meeting",
    "edits": [
        {"edit": "merge", "speaker": B, "into": A},
        {"edit": "rename", "speaker": A, "to": "Žofie"},
        {"edit": "reassign", "start": 3.5, "end": 5, "speaker": C, "to": "Žofie"},
        {"edit": "split", "at": 1.5, "start": 0, "end": 2, "speaker": "Žofie"},
        {"edit": "move", "to_start": 0.25, "to_end": 1.75, "start": 0, "end": 1.5, "speaker": "Žofie"},
        {"edit": "delete", "start": 0.25, "end": 1.75, "speaker": "Žofie"},
    ],
}


def test_files_are_read(tmp_path: Path, meeting: Diarization) -> None:
    path = tmp_path / "corrections.json"
    path.write_text(json.dumps(FILE, ensure_ascii=False), encoding="utf-8")
    recording, edits = corrections.read(path)
    assert recording == "meeting" and [type(edit) for edit in edits] == [
        Merge,
        Rename,
        Reassign,
        SplitTurn,
        Move,
        Delete,
    ]
    assert {turn.speaker for turn in corrections.apply(meeting, edits).turns} == {"Žofie"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"knn": "turns"}, "no file of corrections"),
        ({"version": 2}, "has version 2"),
        ({"edits": None}, "lacks its recording or its edits"),
        ({"edits": [FILE["edits"][0], {"edit": "shout"}]}, "Edit 2 of .* none that knn knows"),
        ({"edits": [{"edit": "merge", "speaker": A}]}, "Edit 1 of .* lacks a value"),
        ({"edits": [{"edit": "delete", "speaker": A, "start": "0", "end": 1}]}, "Edit 1 of"),
        ({"edits": [{"edit": "delete", "speaker": A, "start": float("nan"), "end": 1}]}, "Edit 1 of"),
        ({"edits": ["merge"]}, "Edit 1 of"),
        ({"edits": [{"edit": ["merge"]}]}, "Edit 1 of"),
    ],
)
def test_files_that_are_something_else_are_refused(tmp_path: Path, changes: Mapping[str, Any], message: str) -> None:
    path = tmp_path / "corrections.json"
    path.write_text(json.dumps({**FILE, **changes}), encoding="utf-8")
    with pytest.raises(KnnError, match=message):
        corrections.read(path)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    for number, content in enumerate((b"", b"\xff\xfe", b"[1]", b"[" * 100_000)):
        path = tmp_path / f"{number}.json"
        path.write_bytes(content)
        with pytest.raises(KnnError, match=r"no file of corrections|UTF-16"):
            corrections.read(path)
    with pytest.raises(KnnError, match="cannot be read"):
        corrections.read(tmp_path / "none.json")


def test_the_player_means_the_same() -> None:
    """The turns and edits of tests/formats/test_player_corrections.py, where a browser makes the same of them."""
    before = [(0.25, 3.5, "A"), (3.0004, 6.0, "B b"), (3.0004, 6.0, "C"), (6.5, 8.0, "A"), (8.25, 11.75, "C")]
    edits: list[Edit] = [
        Merge("C", "A"),
        Reassign(6.5, 8.0, "A", "B b"),
        Reassign(8.25, 11.75, "A", "SPEAKER_00"),
        Rename("SPEAKER_00", "Zoë"),
        SplitTurn(9.5, 8.25, 11.75, "Zoë"),
        Reassign(9.5, 11.75, "Zoë", "A"),
        Delete(0.25, 3.5, "A"),
    ]
    after = corrections.apply(Diarization(tuple(Turn(*turn) for turn in before), "talk", seconds=12.0), edits)
    expected = [(3.0004, 6.0, "B b"), (3.0004, 6.0, "A"), (6.5, 8.0, "B b"), (8.25, 9.5, "Zoë"), (9.5, 11.75, "A")]
    assert turns(after) == expected
