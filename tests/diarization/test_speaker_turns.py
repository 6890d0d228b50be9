"""Turns of clusters: what the two kinds of windows say of each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from knn_cli.diarization import reconstruction, speaker_turns
from knn_cli.diarization.options import DiarizationOptions
from knn_cli.diarization.pipeline import WindowEmbeddings
from tests.helpers.windows import windows_of

VOICES = np.eye(8)[:2]


@pytest.fixture
def music_within() -> tuple[WindowEmbeddings, np.ndarray]:
    """One voice over 30 s, of which two short windows sound otherwise and make a cluster of their own."""
    windows = windows_of([(0.0, 30.0, 0)], 30.0, VOICES)
    labels = np.zeros(len(windows.short), dtype=np.int64)
    labels[len(labels) // 2 :][:2] = 1
    vectors = windows.vectors.copy()
    vectors[labels == 1] = 0.8 * VOICES[0] + 0.6 * VOICES[1]
    return replace(windows, vectors=vectors, full_vectors=vectors), labels


def test_a_cluster_that_long_windows_give_to_another_speaker_is_none(
    music_within: tuple[WindowEmbeddings, np.ndarray],
) -> None:
    windows, labels = music_within
    found = speaker_turns.reconstruct(windows, labels, DiarizationOptions(), 30.0, "talk")
    assert found.speakers == ["SPEAKER_00"] and sum(turn.duration for turn in found.turns) > 29
    assert set(found.speaker_embeddings) == {"SPEAKER_00"}
    asked = speaker_turns.reconstruct(windows, labels, DiarizationOptions(), 30.0, "talk", min_speakers=2)
    assert len(asked.speakers) == 2


def test_windows_of_a_contradicted_cluster_join_who_speaks_in_them(
    music_within: tuple[WindowEmbeddings, np.ndarray],
) -> None:
    windows, labels = music_within
    active = np.zeros((windows.segmentation.frames, 3), dtype=bool)
    active[:, 2] = True
    swapped = np.where(labels == 0, 2, 0)  # speaker 1 has no window
    merged = speaker_turns.merge_contradicted(windows, swapped, active)
    assert merged is not None and merged.tolist() == [1] * len(labels)
    assert speaker_turns.merge_contradicted(replace(windows, local=()), swapped, active) is None


def test_speakers_that_long_windows_know_too_stay() -> None:
    windows = windows_of([(0.0, 10.0, 0), (10.0, 14.0, 1), (14.0, 30.0, 0)], 30.0, VOICES)
    labels = windows.vectors[:, :2].argmax(1)
    scores = np.concatenate([part for _, part in speaker_turns.score_parts(windows, labels)])
    active = reconstruction.select_active(reconstruction.speaker_count(windows.segmentation), scores)
    assert speaker_turns.merge_contradicted(windows, labels, active) is None


TALK = [(0.0, 9.0, 0), (7.0, 15.0, 1), (15.5, 24.0, 0), (23.0, 39.0, 2), (41.0, 60.0, 1)]


@pytest.mark.parametrize("kind", ["both", "short alone", "local speakers"])
@pytest.mark.parametrize("frames", [90, 251, 700])
def test_parts_of_the_frames_have_the_scores_of_all(frames: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = windows_of(TALK, 60.0, np.eye(8)[:3])
    if kind == "short alone":
        windows = replace(windows, local=(), local_vectors=windows.local_vectors[:0])
    elif kind == "local speakers":
        windows = replace(
            windows, short_windows=windows.segmentation, short=windows.local, vectors=windows.local_vectors
        )
    labels = windows.vectors[:, :3].argmax(1)
    labels[::7] = -1
    ((_, whole),) = speaker_turns.score_parts(windows, labels)
    monkeypatch.setattr(speaker_turns, "FRAMES_AT_ONCE", frames)
    parts = list(speaker_turns.score_parts(windows, labels))
    assert [first for first, _ in parts] == list(range(0, 1500, frames))
    np.testing.assert_allclose(np.concatenate([part for _, part in parts]), whole, atol=1e-6)


def test_confidence_is_the_mean_score_of_the_speaker_where_it_speaks() -> None:
    active = np.zeros((10, 2), dtype=bool)
    active[1:4, 0] = active[3:9, 1] = True
    scores = np.zeros((10, 2), dtype=np.float32)
    scores[1:4, 0], scores[3:9, 1] = (0.2, 0.4, 0.9), (0.5, 0.5, 0.5, 0.5, 1.0, 1.0)
    windows = windows_of([(0.0, 0.4, 0)], 0.4, VOICES)
    activity = speaker_turns.SpeakerActivity(active, scores[active], np.zeros(len(windows.short), dtype=np.int64))
    turns = [(1, 4, 0), (3, 7, 1), (7, 10, 1)]  # the last one has a margin
    found = speaker_turns._to_diarization(turns, activity, windows, 0.4, "talk")
    assert [turn.confidence for turn in found.turns] == pytest.approx([0.5, 0.5, 1.0])
