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
    scores = speaker_turns.aggregate_scores(windows, labels)
    active = reconstruction.select_active(reconstruction.speaker_count(windows.segmentation), scores)
    assert speaker_turns.merge_contradicted(windows, labels, active) is None
