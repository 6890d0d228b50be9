"""Scores of many sources: one bad source costs none of the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from knn_cli.core.errors import KnnError, StoreError
from knn_cli.core.values import EmbeddingSet, ScoreTable
from knn_cli.embedding import files
from knn_cli.embedding.embedder import Embedder
from knn_cli.embedding.full_batches import embed_in_full_batches
from knn_cli.embedding.options import EmbeddingOptions
from knn_cli.recognition.classifier import Classifier
from knn_cli.recognition.classify_files import classify_files, expand_sources
from knn_cli.recognition.train_classifier import train_classifier
from knn_cli.store.corpora.recordings import CorpusRecording
from knn_cli.store.writer import write_store
from tests.helpers.corpora import CORPORA, PIECES, SECONDS, sound
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


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """A classifier of embeddings near those of the sound of `helpers.corpora`."""
    embedder = Embedder("tiny-test", device="cpu")
    data = np.repeat(embedder([sound(key) for key in PIECES]), 8, axis=0)
    data += np.random.default_rng(0).normal(size=data.shape).astype(np.float32) * 0.05
    rows = EmbeddingSet.from_columns(
        data,
        [f"r{number}" for number in range(len(data))],
        subgroup=[dialect for _, dialect in PIECES.values() for _ in range(8)],
        embedder=embedder.bundle.fingerprint,
    )
    out = tmp_path_factory.mktemp("heard") / "m"
    train_classifier(rows, out)
    return Classifier(out, device="cpu")


@pytest.mark.parametrize("name", [name for name in CORPORA if name != "folder"])
def test_recordings_of_lists_are_named_by_their_keys(name: str, heard: Classifier, tmp_path: Path) -> None:
    """Each utterance has the scores of its own sound, and its true label."""
    (tmp_path / "in").mkdir()
    sources = expand_sources([CORPORA[name][0](tmp_path / "in")] * 2)
    assert all(isinstance(source, CorpusRecording) for source in sources)
    results = [table for _, table in classify_files(sources, heard, EmbeddingOptions(use_vad=False))]
    tables = [table for table in results if isinstance(table, ScoreTable)]
    assert len(tables) == len(results)
    scores = np.concatenate([table.log_likelihood for table in tables])
    assert len(scores) == len(PIECES) == len({key for table in tables for key in table.name.tolist()})
    alone = heard.score(EmbeddingSet.from_columns(heard.embedder([sound(key) for key in PIECES]), list(PIECES)))
    distance = np.abs(scores[:, None] - alone.log_likelihood[None]).max(axis=2)
    assert (distance.min(axis=1) < 0.05 * np.abs(scores).max()).all()
    truth = np.concatenate([table.truth for table in tables])
    assert truth.tolist() == [list(PIECES.values())[row][1] for row in distance.argmin(axis=1)]
    assert {float(seconds) for table in tables for seconds in table.seconds} == {SECONDS}


def test_what_is_no_list_stays_a_path(tmp_path: Path) -> None:
    folder = CORPORA["folder"][0](tmp_path)
    store = tmp_path / "s.h5"
    write_store(store, blobs())
    missing = tmp_path / "missing.wav"
    found = expand_sources([folder, store, missing, folder])
    assert found == [*(tmp_path / key for key in PIECES), store, missing]
    (tmp_path / "silent").mkdir()
    with pytest.raises(KnnError, match="holds no audio files"):
        expand_sources([tmp_path / "silent"])


def test_full_batches_of_accelerators_give_the_same_scores(
    heard: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried on a CPU, with files, recordings of a list, and what is no sound."""
    for folder in ("in", "list"):
        (tmp_path / folder).mkdir()
    sources = expand_sources([CORPORA["folder"][0](tmp_path / "in"), CORPORA["kaldi"][0](tmp_path / "list")])
    (bad := tmp_path / "bad.wav").write_bytes(b"nothing")
    sources.insert(1, bad)
    options = EmbeddingOptions(use_vad=False)
    wanted = [*classify_files(sources, heard, options)]
    monkeypatch.setattr(Classifier, "device", torch.device("meta"))
    monkeypatch.setattr(files, "embed_recordings", embed_in_full_batches)
    found = [*classify_files(sources, heard, options)]
    assert [source for source, _ in found] == [source for source, _ in wanted]
    for (_, table), (_, other) in zip(found, wanted, strict=True):
        if isinstance(other, ScoreTable):
            assert isinstance(table, ScoreTable) and table.name.tolist() == other.name.tolist()
            assert np.allclose(table.log_likelihood, other.log_likelihood, rtol=1e-4, atol=1e-3)
        else:
            assert isinstance(table, KnnError) and str(table) == str(other)
    assert sum(isinstance(table, KnnError) for _, table in found) == 1 and len(found) == len(sources)
