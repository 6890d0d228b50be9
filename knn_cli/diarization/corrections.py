"""Corrections: what a person changes in a diarization, and the files in which the HTML player saves it.

Each edit is a value; `apply` makes them one after the other, as pure functions of a `Diarization`. Times are seconds
and speakers are labels at that moment, after the edits before. A file of corrections is JSON:

    {"knn": "corrections", "version": 1, "recording": "meeting", "edits": [
    {"edit": "merge", "speaker": "SPEAKER_01", "into": "SPEAKER_00"},
    {"edit": "rename", "speaker": "SPEAKER_00", "to": "Anna"},
    {"edit": "reassign", "start": 1.2, "end": 3.4, "speaker": "SPEAKER_01", "to": "SPEAKER_02"},
    {"edit": "split", "at": 2.5, "start": 1.2, "end": 3.4, "speaker": "SPEAKER_01"},
    {"edit": "move", "to_start": 1.5, "to_end": 3.4, "start": 1.2, "end": 3.4, "speaker": "SPEAKER_01"},
    {"edit": "delete", "start": 1.2, "end": 3.4, "speaker": "SPEAKER_01"}]}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from knn_cli.core.errors import KnnError
from knn_cli.core.texts import read_text
from knn_cli.core.values import Diarization, Floats, Turn, sort_turns
from knn_cli.diarization.linking import rename_speakers, speaker_labels

VERSION = 1
TIME_TOLERANCE = 0.0101  # seconds by which a turn may differ from what an edit says: 0.01 and rounding
MIN_PIECE_SECONDS = 0.0099  # of a turn that is split, on both sides

SpeakerSplitter = Callable[[Diarization, str], Diarization]


@dataclass(frozen=True)
class Merge:
    """All turns of a speaker become those of another, who is there.

    max_gap : seconds; pauses of the speaker up to this long are filled, None leaves all turns as they are
    """

    speaker: str
    into: str
    max_gap: float | None = None


@dataclass(frozen=True)
class Rename:
    """A speaker gets a label that no other has."""

    speaker: str
    to: str


@dataclass(frozen=True)
class Reassign:
    """One turn becomes another speaker's, who may be new."""

    start: float
    end: float
    speaker: str
    to: str


@dataclass(frozen=True)
class SplitTurn:
    """One turn becomes two of the same speaker, at a time."""

    at: float
    start: float
    end: float
    speaker: str


@dataclass(frozen=True)
class Move:
    """One turn begins and ends at other times."""

    to_start: float
    to_end: float
    start: float
    end: float
    speaker: str


@dataclass(frozen=True)
class Delete:
    """One turn goes."""

    start: float
    end: float
    speaker: str


@dataclass(frozen=True)
class SplitSpeaker:
    """A speaker becomes two, by the embeddings of the windows; not in files."""

    speaker: str


Edit = Merge | Rename | Reassign | SplitTurn | Move | Delete | SplitSpeaker

_IN_FILES: dict[str, type[Edit]] = {
    "merge": Merge,
    "rename": Rename,
    "reassign": Reassign,
    "split": SplitTurn,
    "move": Move,
    "delete": Delete,
}


def apply(
    diarization: Diarization, edits: Sequence[Edit], *, split_speaker: SpeakerSplitter | None = None
) -> Diarization:
    """Make edits, in their order.

    The embedding of merged speakers is the mean of theirs, weighted by their seconds of clean speech. Single turns
    leave embeddings as they are, but a speaker whose last turn goes loses its own (see `speaker_windows.correct` for
    embeddings of the turns that are left).

    Parameters
    ----------
    diarization : Diarization
    edits : sequence of Edit
    split_speaker : callable, optional
        What a SplitSpeaker does, where the windows are at hand.

    Returns
    -------
    Diarization

    Raises
    ------
    KnnError
        For an edit that does not fit, with its number, from 1.
    """
    for number, edit in enumerate(edits, start=1):
        try:
            if isinstance(edit, SplitSpeaker):
                _check_speaker(diarization, edit.speaker)
                if split_speaker is None:
                    raise KnnError("the windows are not at hand.", "Split speakers of one recording, not of channels.")
                diarization = split_speaker(diarization, edit.speaker)
            else:
                diarization = _APPLY[type(edit)](diarization, edit)
        except KnnError as error:
            message = f"Edit {number} ({_kind(edit)}) does not fit: {error.message}"
            raise KnnError(message, error.hint or "Give the same options as when it was made.") from error
    return diarization


def _kind(edit: Edit) -> str:
    return next((name for name, kind in _IN_FILES.items() if isinstance(edit, kind)), "split of a speaker")


def _check_speaker(diarization: Diarization, speaker: str) -> None:
    known = speaker_labels(diarization)
    if speaker not in known:
        raise KnnError(f"there is no speaker {speaker!r}, only {', '.join(known) or 'silence'}.")


def _turn_at(diarization: Diarization, edit: Reassign | SplitTurn | Move | Delete) -> int:
    """The turn of this speaker at these times, the nearest to the millisecond, and the first of several."""
    _check_speaker(diarization, edit.speaker)
    distances = {
        row: round(max(abs(round(turn.start, 3) - edit.start), abs(round(turn.end, 3) - edit.end)), 6)
        for row, turn in enumerate(diarization.turns)
        if turn.speaker == edit.speaker
    }
    best = min(distances, key=distances.__getitem__, default=-1)
    if best < 0 or distances[best] > TIME_TOLERANCE:
        raise KnnError(f"{edit.speaker} has no turn from {edit.start:.3f} to {edit.end:.3f} s.")
    return best


def _sorted(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Turns by start and end in milliseconds, as the player has them, so that its RTTM and ours have one order."""
    return tuple(sorted(turns, key=lambda turn: (round(turn.start * 1000), round(turn.end * 1000))))


def _with_turns(diarization: Diarization, turns: Iterable[Turn]) -> Diarization:
    """Other turns; speakers that have none left lose their embedding."""
    turns = _sorted(turns)
    speakers = {turn.speaker for turn in turns}
    gone = {turn.speaker for turn in diarization.turns} - speakers
    vectors = {name: vector for name, vector in diarization.speaker_embeddings.items() if name not in gone}
    seconds = {name: value for name, value in diarization.clean_speech_seconds.items() if name not in gone}
    return replace(diarization, turns=turns, speaker_embeddings=vectors, clean_speech_seconds=seconds)


def _merge(diarization: Diarization, edit: Merge) -> Diarization:
    _check_speaker(diarization, edit.speaker)
    _check_speaker(diarization, edit.into)
    if edit.speaker == edit.into:
        raise KnnError(f"{edit.speaker} and {edit.into} are one speaker already.")
    turns = [replace(turn, speaker=edit.into) if turn.speaker == edit.speaker else turn for turn in diarization.turns]
    if edit.max_gap is not None:
        turns = _without_gaps(turns, edit.into, edit.max_gap)
    pair = (edit.into, edit.speaker)
    vectors, seconds = dict(diarization.speaker_embeddings), dict(diarization.clean_speech_seconds)
    weights = {name: max(seconds.get(name, 1.0), 1e-3) for name in pair if name in vectors}
    if weights:
        rows = np.stack([vectors[name] for name in weights]).astype(np.float64)
        mean: Floats = np.average(rows, axis=0, weights=[*weights.values()]).astype(np.float32)
        vectors[edit.into] = mean
    if any(name in seconds for name in pair):
        seconds[edit.into] = sum(seconds.get(name, 0.0) for name in pair)
    vectors.pop(edit.speaker, None)
    seconds.pop(edit.speaker, None)
    return replace(diarization, turns=_sorted(turns), speaker_embeddings=vectors, clean_speech_seconds=seconds)


def _without_gaps(turns: Iterable[Turn], speaker: str, max_gap: float) -> list[Turn]:
    """Turns of the speaker with gaps up to `max_gap` become one, its confidence the mean by their durations."""
    joined: list[Turn] = []
    others: list[Turn] = []
    for turn in sort_turns(turns):
        if turn.speaker != speaker:
            others.append(turn)
        elif joined and turn.start - joined[-1].end <= max_gap + 1e-6:
            last = joined[-1]
            confidence = None
            if last.confidence is not None and turn.confidence is not None:
                parts = last.duration, turn.duration
                confidence = float(np.average([last.confidence, turn.confidence], weights=parts))
            joined[-1] = Turn(last.start, max(last.end, turn.end), speaker, confidence)
        else:
            joined.append(turn)
    return [*joined, *others]


def _rename(diarization: Diarization, edit: Rename) -> Diarization:
    _check_speaker(diarization, edit.speaker)
    if not edit.to.strip():
        raise KnnError("a speaker cannot be nameless.")
    if edit.to in speaker_labels(diarization):
        raise KnnError(f"there is a speaker {edit.to!r} already.", "To make one speaker of two, merge them.")
    return rename_speakers(diarization, {edit.speaker: edit.to})


def _reassign(diarization: Diarization, edit: Reassign) -> Diarization:
    row = _turn_at(diarization, edit)
    if edit.speaker == edit.to or not edit.to.strip():
        raise KnnError(f"the turn cannot go from {edit.speaker!r} to {edit.to!r}.")
    turns = list(diarization.turns)
    turns[row] = replace(turns[row], speaker=edit.to, confidence=None)  # a person is sure
    return _with_turns(diarization, turns)


def _split_turn(diarization: Diarization, edit: SplitTurn) -> Diarization:
    row = _turn_at(diarization, edit)
    turn = diarization.turns[row]
    if not turn.start + MIN_PIECE_SECONDS <= edit.at <= turn.end - MIN_PIECE_SECONDS:
        raise KnnError(f"{edit.at:.3f} s is not within the turn from {turn.start:.3f} to {turn.end:.3f} s.")
    turns = list(diarization.turns)
    turns[row : row + 1] = [replace(turn, end=edit.at), replace(turn, start=edit.at)]
    return _with_turns(diarization, turns)


def _move(diarization: Diarization, edit: Move) -> Diarization:
    row = _turn_at(diarization, edit)
    last = diarization.seconds + TIME_TOLERANCE if diarization.seconds > 0 else np.inf
    if not 0 <= edit.to_start <= edit.to_end - MIN_PIECE_SECONDS or edit.to_end > last:
        raise KnnError(f"the turn cannot be from {edit.to_start:.3f} to {edit.to_end:.3f} s.")
    turns = list(diarization.turns)
    turns[row] = replace(turns[row], start=edit.to_start, end=edit.to_end)
    return _with_turns(diarization, turns)


def _delete(diarization: Diarization, edit: Delete) -> Diarization:
    row = _turn_at(diarization, edit)
    return _with_turns(diarization, [*diarization.turns[:row], *diarization.turns[row + 1 :]])


_APPLY: dict[type, Callable[[Diarization, Any], Diarization]] = {
    Merge: _merge,
    Rename: _rename,
    Reassign: _reassign,
    SplitTurn: _split_turn,
    Move: _move,
    Delete: _delete,
}


def label_after(label: str, edits: Iterable[Edit]) -> str:
    """What the speaker with this label is called after merges and renames."""
    for edit in edits:
        if isinstance(edit, Merge) and edit.speaker == label:
            label = edit.into
        elif isinstance(edit, Rename) and edit.speaker == label:
            label = edit.to
    return label


def read(path: Path | str) -> tuple[str, list[Edit]]:
    """Read a file of corrections.

    Parameters
    ----------
    path : path

    Returns
    -------
    recording : str
        The recording's name.
    edits : list of Edit

    Raises
    ------
    KnnError
        Where the file is missing or no file of corrections, or an edit of it is unknown or lacks a value, with its
        number.
    """
    again = "Save the corrections in the player again."
    try:
        content = json.loads(read_text(path, "a file of corrections"))
    except (ValueError, RecursionError) as error:
        raise KnnError(f"{path} is no file of corrections.", again) from error
    if not isinstance(content, dict) or content.get("knn") != "corrections":
        raise KnnError(f"{path} is no file of corrections.", again)
    if content.get("version") != VERSION:
        raise KnnError(
            f"{path} has version {content.get('version')}; this knn reads {VERSION}.", "Install another knn."
        )
    recording, edits = content.get("recording"), content.get("edits")
    if not isinstance(recording, str) or not isinstance(edits, list):
        raise KnnError(f"{path} lacks its recording or its edits.", again)
    parsed: list[Edit] = []
    for number, edit in enumerate(edits, start=1):
        try:
            parsed.append(_parsed(edit))
        except (KeyError, TypeError, ValueError) as error:
            raise KnnError(f"Edit {number} of {path} is none that knn knows, or lacks a value.", again) from error
    return recording, parsed


def _parsed(edit: Any) -> Edit:
    """An edit from its JSON. KeyError, TypeError or ValueError for another value."""
    kind = _IN_FILES[edit["edit"]]
    values: dict[str, Any] = {}
    for field in fields(kind):
        if field.name == "max_gap":
            continue
        value = edit[field.name]
        is_time = field.type == "float"
        if isinstance(value, bool) or not isinstance(value, (int, float) if is_time else str):
            raise TypeError(field.name)
        if is_time and not np.isfinite(value):
            raise ValueError(field.name)
        values[field.name] = float(value) if is_time else value
    return kind(**values)
