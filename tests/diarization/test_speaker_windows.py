"""Corrections with the windows at hand: a speaker is split by its embeddings, and embeddings follow the turns."""

from __future__ import annotations

import numpy as np
import pytest

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import CLUSTERERS
from knn_cli.core.values import Diarization, Doubles, Turn
from knn_cli.diarization import pipeline, speaker_turns, speaker_windows
from knn_cli.diarization.corrections import Delete, Edit, Merge, Reassign, Rename, SplitSpeaker
from knn_cli.diarization.options import DiarizationOptions
from knn_cli.diarization.pipeline import WindowEmbeddings
from tests.helpers.windows import windows_of

VOICES = np.eye(8)[:3]
TURNS = [(0.0, 8.0, 0), (8.4, 16.0, 1), (16.0, 24.0, 2), (24.4, 36.0, 0), (36.0, 40.0, 1)]
A, B, C = "SPEAKER_00", "SPEAKER_01", "SPEAKER_02"
AHC = CLUSTERERS.build("ahc")


@pytest.fixture(scope="module")
def windows() -> WindowEmbeddings:
    return windows_of(TURNS, 40.0, VOICES)


def clustered(windows: WindowEmbeddings, speakers: int) -> Diarization:
    labels = pipeline.cluster_windows(windows, AHC, {"num_speakers": speakers})
    return speaker_turns.reconstruct(windows, labels, DiarizationOptions(), 40.0, "meeting")


def cosine(diarization: Diarization, speaker: str, voice: Doubles) -> float:
    vector = diarization.speaker_embeddings[speaker]
    return float(vector @ voice / np.linalg.norm(vector))


def test_splitting_a_merged_speaker_gives_the_two_back(windows: WindowEmbeddings) -> None:
    found = clustered(windows, 3)
    assert [turn.speaker for turn in found.turns] == [A, B, C, A, B]
    both: list[Edit] = [Merge(C, B, max_gap=0.4), SplitSpeaker(B)]
    split = speaker_windows.correct(found, both, windows, AHC)
    assert [turn.speaker for turn in split.turns] == [A, B, C, A, B]  # B speaks longer
    for turn, (start, end, _) in zip(split.turns, TURNS, strict=True):
        assert abs(turn.start - start) < 0.5 and abs(turn.end - end) < 0.5
    assert [turn for turn in split.turns if turn.speaker == A] == [turn for turn in found.turns if turn.speaker == A]
    for speaker, voice in zip((B, C), VOICES[1:], strict=True):
        assert cosine(split, speaker, voice) > 0.95
    assert sum(turn.duration for turn in split.turns) == pytest.approx(sum(turn.duration for turn in found.turns))


def test_embeddings_follow_reassigned_and_deleted_turns(windows: WindowEmbeddings) -> None:
    found = clustered(windows, 3)
    second, last = found.turns[1], found.turns[4]
    edits: list[Edit] = [
        Reassign(second.start, second.end, B, "new"),
        Delete(last.start, last.end, B),
        Rename("new", "Eva"),
    ]
    corrected = speaker_windows.correct(found, edits, windows, AHC)
    assert corrected.speakers == [A, "Eva", C]
    assert cosine(corrected, "Eva", VOICES[1]) > 0.95
    assert corrected.clean_speech_seconds["Eva"] == pytest.approx(7.6, abs=0.8)
    assert set(corrected.speaker_embeddings) == set(corrected.clean_speech_seconds) == {A, "Eva", C}
    for speaker in (A, C):  # others are as they were, to the bit
        assert np.array_equal(corrected.speaker_embeddings[speaker], found.speaker_embeddings[speaker])


def test_too_little_speech_is_not_split(windows: WindowEmbeddings) -> None:
    tiny = Diarization((Turn(0.0, 1.0, A), Turn(1.0, 30.0, B)), "meeting", seconds=40.0)
    with pytest.raises(KnnError, match=r"Edit 1 .* SPEAKER_00 has too little speech"):
        speaker_windows.correct(tiny, [SplitSpeaker(A)], windows, AHC)
    with pytest.raises(KnnError, match="not at hand"):
        speaker_windows.correct(tiny, [SplitSpeaker(A)], None, AHC)
