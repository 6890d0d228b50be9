"""Scores of many sources: one bad source costs none of the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from knn_cli.core.errors import KnnError, StoreError
from knn_cli.core.values import ScoreTable
from knn_cli.embedding.options import EmbeddingOptions
from knn_cli.recognition.classifier import Classifier
from knn_cli.recognition.classify_files import classify_files
from knn_cli.recognition.train_classifier import train_classifier
from knn_cli.store.writer import write_store
from tests.helpers.embedding_sets import blobs


def test_a_damaged_store_is_one_failure(tmp_path: Path) -> None:
    rows = blobs()
    train_classifier(rows, tmp_path / "m")
    classifier = Classifier(tmp_path / "m")
    good, bad = tmp_path / "good.h5", tmp_path / "bad.h5"
    write_store(good, rows)
    bad.write_text("no store")
    results = list(classify_files([bad, good, bad], classifier))
    assert [path for path, _ in results] == [bad, good, bad]
    assert isinstance(results[0][1], StoreError) and isinstance(results[2][1], StoreError)
    table = results[1][1]
    assert isinstance(table, ScoreTable)
    np.testing.assert_array_equal(table.log_likelihood, classifier.score(rows).log_likelihood)
    with pytest.raises(KnnError, match="segments already"):
        list(classify_files([good], classifier, EmbeddingOptions(segment=2.0)))
