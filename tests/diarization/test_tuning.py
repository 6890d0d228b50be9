"""Errors under many settings: those of one diarization each; analyses are made once."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyannote.core import Annotation, Segment, Timeline

from knn_cli.core.errors import KnnError
from knn_cli.diarization import recordings, tuning
from knn_cli.diarization.kept_analysis import SILERO, KeptAnalysis, save
from knn_cli.diarization.options import DiarizationOptions
from knn_cli.diarization.presets import PRESETS
from knn_cli.diarization.tuning import AnalysisFolder, Scoring, kept_source, score_settings
from knn_cli.embedding.embedder import Embedder
from knn_cli.evaluation.diarization_error import diarization_error
from tests.helpers.windows import windows_of

TURNS = [(0.0, 8.0, 0), (8.4, 16.0, 1), (15.0, 24.0, 2), (24.4, 36.0, 0), (36.0, 40.0, 1)]
SETTINGS = [
    DiarizationOptions("silero", clusterer="spectral"),
    DiarizationOptions("silero", clusterer="ahc", clusterer_settings={"threshold": 0.3}),
    DiarizationOptions("silero", clusterer="ahc", clusterer_settings={"threshold": 0.3}, margin=0.0, max_gap=2.0),
    DiarizationOptions("silero", clusterer="ahc", clusterer_settings={"threshold": 1.9}),
]


def truth() -> Annotation:
    turns = Annotation(uri="meeting")
    for start, end, speaker in TURNS:
        turns[Segment(start, end), start] = str(speaker)
    return turns


@pytest.fixture
def analysis() -> KeptAnalysis:
    windows = windows_of(TURNS, 40.0, np.eye(24)[:3], noise=0.2)
    return KeptAnalysis(windows, "meeting", 40.0, "mix", "tiny", SILERO)


@pytest.mark.parametrize("uem", [None, Timeline([Segment(3.0, 30.0)])])
@pytest.mark.parametrize(
    "scoring", [Scoring(), Scoring(collar=0.25, skip_overlap=True), Scoring(num_speakers=2), Scoring(max_speakers=2)]
)
def test_the_errors_are_those_of_one_diarization_each(
    analysis: KeptAnalysis, tmp_path: Path, scoring: Scoring, uem: Timeline | None
) -> None:
    save(analysis, tmp_path / "meeting.h5")
    found = score_settings(SETTINGS, kept_source(tmp_path / "meeting.h5"), None, (truth(), uem), scoring)
    for options, error in zip(SETTINGS, found, strict=True):
        turns = recordings.diarize_analysis(replace(analysis, clustering={}), None, options=options, **scoring.bounds)
        wanted = diarization_error(
            truth(), turns.annotation, collar=scoring.collar, skip_overlap=scoring.skip_overlap, uem=uem
        )
        assert error == wanted
    assert len(set(found)) > 1


def test_each_kind_of_windows_is_opened_once(analysis: KeptAnalysis) -> None:
    opened = []

    @contextmanager
    def source(options: DiarizationOptions):  # type: ignore[no-untyped-def]
        opened.append(options)
        yield analysis

    score_settings([*SETTINGS, *SETTINGS], source, None, (truth(), None), Scoring())
    assert len(opened) == 1


def test_kept_analyses_have_no_other_windows(analysis: KeptAnalysis, tmp_path: Path) -> None:
    save(analysis, tmp_path / "meeting.h5")
    source = kept_source(tmp_path / "meeting.h5")
    with pytest.raises(KnnError, match="other windows"):
        score_settings([PRESETS["pyannote-3.1"]], source, None, (truth(), None), Scoring())
    with pytest.raises(KnnError, match="was made with silero-vad, not network"):
        score_settings([DiarizationOptions(segmentation="network")], source, None, (truth(), None), Scoring())


def test_analyses_are_made_once_and_again_where_they_are_of_something_else(
    tmp_path: Path, example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = tmp_path / "meeting.flac"
    sound.write_bytes(example.read_bytes())
    embedder, made = Embedder("tiny-test", device="cpu"), []
    analyse = recordings.analyse_recording

    def counted(path: Path, *rest: object) -> KeptAnalysis:
        made.append(path)
        return analyse(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(tuning.recordings, "analyse_recording", counted)
    options = SETTINGS[1]

    def scores(channel: str = "mix") -> object:
        folder = AnalysisFolder(tmp_path, embedder, {"silero": None}, channel)
        return score_settings(
            [options], lambda each: folder.opened(sound, each), embedder.bundle, (truth(), None), Scoring()
        )

    first = scores()
    kept = AnalysisFolder(tmp_path, embedder, {"silero": None}, "mix").path(sound, options)
    assert kept.is_file() and len(made) == 1
    assert scores() == first and len(made) == 1
    scores(channel="1")
    assert len(made) == 2
    before, times = sound.read_bytes(), sound.stat()
    sound.write_bytes(before[:44] + bytes(2) + before[46:])  # another first sample, and the old time
    os.utime(sound, ns=(times.st_atime_ns, times.st_mtime_ns))
    scores(channel="1")
    assert len(made) == 3
    sound.write_bytes(before)
    kept.write_bytes(b"damaged")
    assert scores() == first and len(made) == 4
