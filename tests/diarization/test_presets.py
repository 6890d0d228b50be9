"""Recipes of other programs: their windows, and kept analyses that have others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from knn_cli.core.errors import KnnError
from knn_cli.diarization import kept_analysis, pipeline, speaker_turns
from knn_cli.diarization.options import DiarizationOptions
from knn_cli.diarization.presets import PRESETS
from knn_cli.embedding.embedder import Embedder


@pytest.fixture(scope="module")
def tiny() -> Embedder:
    return Embedder("tiny-test", device="cpu")


def test_local_speakers_of_a_window_a_second_are_clustered(tiny: Embedder, example: Path) -> None:
    options = PRESETS["pyannote-3.1"]
    windows, seconds = pipeline.analyse(example, tiny, options)
    assert np.all(np.diff(windows.segmentation.starts)[:-1] == 25) and windows.segmentation.starts[0] == 0
    assert windows.short_windows is windows.segmentation and not windows.local
    clusterer = pipeline.build_clusterer(options.clusterer, options.clusterer_settings, tiny.bundle)
    nothing = {"num_speakers": None, "min_speakers": None, "max_speakers": None}
    labels = pipeline.cluster_windows(windows, clusterer, nothing)
    found = speaker_turns.reconstruct(windows, labels, options, seconds, "meeting")
    # two local speakers of one window are two speakers wherever there are two
    scores = np.concatenate([part for _, part in speaker_turns.score_parts(windows, labels)])
    assert found.turns and set(np.unique(scores.sum(1) > 0)) <= {False, True}


def test_kept_windows_of_other_options_are_refused(tiny: Embedder, example: Path) -> None:
    windows, _ = pipeline.analyse(example, tiny, DiarizationOptions())
    kept_analysis.check_windows(windows, DiarizationOptions(clusterer="ahc", margin=0.0))
    for options in (PRESETS["pyannote-3.1"], DiarizationOptions(step=1.0), DiarizationOptions(short_windows=False)):
        with pytest.raises(KnnError, match="other windows"):
            kept_analysis.check_windows(windows, options)


def test_presets_are_recipes_of_a_window_a_second() -> None:
    for options in PRESETS.values():
        assert (options.step, options.short_windows) == (1.0, False)
        assert (options.min_turn, options.max_gap, options.margin) == (0.0, 0.0, 0.0)
    with pytest.raises(KnnError, match="step"):
        DiarizationOptions(step=0.0)
