"""Trials on stores: the scores are those of `score_trials` on mean embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from knn_cli.core.errors import KnnError
from knn_cli.recognition.train_classifier import train_classifier
from knn_cli.recognition.trials import read_trials
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
