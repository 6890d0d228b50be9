"""Trials on stores: the scores are those of `score_trials` on mean embeddings."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

from knn_cli.core.errors import KnnError
from knn_cli.core.values import EmbeddingSet
from knn_cli.networks import bundle
from knn_cli.recognition.train_classifier import train_classifier
from knn_cli.recognition.trials import read_trials, write_trial_scores
from knn_cli.recognition.verification import mean_embeddings, score_trials
from knn_cli.recognition.verify_trials import verify_trials
from knn_cli.store.writer import write_store
from tests.helpers.embedding_sets import labelled


def test_cosines_and_the_plda_of_a_model(tmp_path: Path) -> None:
    rows = labelled()
    write_store(tmp_path / "e.h5", rows)
    (tmp_path / "trials.txt").write_text("1 a0 a1\n0 a0 b0\n1 c2 c3\n0 d1 e4\n")
    trials = read_trials(tmp_path / "trials.txt")
    plain = verify_trials([tmp_path / "e.h5"], trials)
    np.testing.assert_array_equal(plain.scores, score_trials(trials, mean_embeddings([rows])))
    assert plain.scorer == "cosine" and plain.metrics is not None and plain.metrics.cllr is None
    train_classifier(rows, tmp_path / "m", label="speaker")
    by_model = verify_trials([tmp_path / "e.h5"], trials, tmp_path / "m")
    assert by_model.scorer == "PLDA" and by_model.metrics is not None and by_model.metrics.cllr is not None
    assert verify_trials([tmp_path / "e.h5"], trials, tmp_path / "m", scorer="cosine").scorer == "cosine"
    with pytest.raises(KnnError, match="A PLDA comes with a model"):
        verify_trials([tmp_path / "e.h5"], trials, scorer="plda")


def test_verdicts_where_the_model_says_what_its_cosines_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = bundle.find("tiny-test")
    settings = {"threshold": 0.5, "margin": 0.1, "linking_threshold": 0.6, "llr_scale": 20.0, "llr_offset": -9.0}
    means = {"same_mean": 0.8, "same_recording_mean": 0.9, "different_mean": 0.2, "prior_speakers": 3.0}
    config = {**tiny.settings, "speaker_decision": settings | means}
    made = bundle.write(tmp_path / "models" / "mine", config, weights=tiny.folder / bundle.WEIGHTS)
    monkeypatch.setenv("KNN_MODELS", str(tmp_path / "models"))
    data = np.zeros((9, 24), dtype=np.float32)  # three speakers; two clips of each have a cosine of 0.6, others of 0
    for row in range(9):
        data[row, [row // 3, 3 + row]] = np.sqrt([0.6, 0.4])
    names = [f"{'abc'[row // 3]}{row % 3}" for row in range(9)]
    rows = EmbeddingSet.from_columns(data, names, speaker=[name[0] for name in names], embedder=made.fingerprint)
    write_store(tmp_path / "e.h5", rows)
    (tmp_path / "trials.txt").write_text("a0 a1\na0 b1\n")
    trials = read_trials(tmp_path / "trials.txt")
    shipped = verify_trials([tmp_path / "e.h5"], trials)
    assert shipped.decision is not None and (shipped.decision.threshold, shipped.undecided) == (0.5, "")
    table = StringIO()
    write_trial_scores(trials, shipped.scores, table, shipped.decision)
    assert table.getvalue().splitlines() == [
        "enrol\ttest\tscore\tllr\tprobability\tverdict",
        "a0\ta1\t0.600000\t3.000\t0.9526\tsame",
        "a0\tb1\t0.000000\t-9.000\t0.0001\tdifferent",
    ]
    own = verify_trials([tmp_path / "e.h5"], trials, speakers=tmp_path / "e.h5").decision
    assert own is not None and own.speakers == 3 and own.threshold < 0.5
    write_store(tmp_path / "o.h5", replace(rows, embedder="other@1"), force=True)
    unknown = verify_trials([tmp_path / "o.h5"], trials)
    assert unknown.decision is None and unknown.undecided == "the model other@1 is not here"
    with pytest.raises(KnnError, match="other@1"):
        verify_trials([tmp_path / "e.h5"], trials, speakers=tmp_path / "o.h5")
    with pytest.raises(KnnError, match="Only cosines"):
        verify_trials([tmp_path / "e.h5"], trials, cohort=tmp_path / "e.h5", speakers=tmp_path / "e.h5")
