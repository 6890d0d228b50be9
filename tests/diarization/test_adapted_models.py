"""Bundles with an adapted PLDA: of a classifier, which verification uses, and of an embedder, which VBx uses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.values import EmbeddingSet
from knn_cli.diarization.adapted_models import write_adapted
from knn_cli.diarization.clustering import plda as embedding_plda
from knn_cli.diarization.clustering.plda import EmbeddingPLDA
from knn_cli.networks import bundle
from knn_cli.recognition.classifier_file import read_classifier
from knn_cli.recognition.plda import PLDA
from knn_cli.recognition.plda_adaptation import adapt_kaldi, moments
from knn_cli.recognition.train_classifier import train_classifier
from knn_cli.store.writer import write_store
from tests.helpers.command import done, knn
from tests.helpers.embedding_sets import labelled


def shifted() -> EmbeddingSet:
    """Rows of another domain, without labels of speakers."""
    rows = labelled(seed=5)
    return replace(rows, data=2 * rows.data + 1, speaker=np.full(len(rows), ""))


def test_the_plda_of_a_classifier(tmp_path: Path) -> None:
    write_store(tmp_path / "there.h5", shifted())
    train_classifier(labelled(), tmp_path / "m", label="speaker", transforms="center,length")
    result = done("convert", tmp_path / "m", tmp_path / "n", "--adapt", tmp_path / "there.h5")
    assert "times as large" in result.stderr
    before, after = (read_classifier(tmp_path / name / bundle.CLASSIFIER) for name in "mn")
    assert before.plda is not None and after.plda is not None
    expected = adapt_kaldi(before.plda, *moments([before.transforms.apply(shifted().data)], len(before.plda.mean)))
    np.testing.assert_allclose(after.plda.between, expected.between, atol=1e-9)
    np.testing.assert_allclose(after.plda.within, expected.within, atol=1e-9)
    np.testing.assert_allclose(after.plda.mean, expected.mean, atol=1e-9)
    np.testing.assert_array_equal(before.classifier.means_, after.classifier.means_)
    assert bundle.find(tmp_path / "m").fingerprint == bundle.find(tmp_path / "n").fingerprint
    assert "exists" in knn("convert", tmp_path / "m", tmp_path / "n", "--adapt", tmp_path / "there.h5").stderr
    done("convert", tmp_path / "m", tmp_path / "n", "--adapt", tmp_path / "there.h5", "--force")


@pytest.mark.parametrize("kept", [4, 3])
def test_the_plda_of_an_embedder(tmp_path: Path, kept: int) -> None:
    """Its log-likelihood ratios are those of the PLDA that is adapted in its coordinates."""
    tiny = bundle.find("tiny-test")
    made = bundle.write(tmp_path / "m", {**tiny.settings, "name": "m"}, weights=tiny.folder / bundle.WEIGHTS)
    generator = np.random.default_rng(0)
    speakers = np.arange(90) % 9
    rows = generator.normal(size=(9, 24))[speakers] + 0.5 * generator.normal(size=(90, 24))
    plda = EmbeddingPLDA.fit(rows, speakers, dimension=4).keep(kept)
    plda.save(tmp_path / "m" / bundle.PLDA, embedder=made.fingerprint)
    there = (2 * rows + generator.normal(size=rows.shape)).astype(np.float32)
    names = [f"r{row}" for row in range(90)]
    write_store(tmp_path / "e.h5", EmbeddingSet.from_columns(there, names, embedder=made.fingerprint))
    adapted = write_adapted(tmp_path / "m", tmp_path / "e.h5", tmp_path / "n", method="coral-plus")
    assert adapted.rows == 90 and adapted.growth[0] >= 1 and adapted.growth[1] >= 1
    write_adapted(tmp_path / "m", tmp_path / "e.h5", tmp_path / "n", force=True)
    before, after = embedding_plda.load(made), embedding_plda.load(bundle.find(tmp_path / "n"))
    x = before.coordinates(there)
    model = adapt_kaldi(PLDA(np.zeros(kept), np.diag(before.between), np.eye(kept)), *moments([x], kept))
    simple = PLDA(np.zeros(kept), np.diag(after.between), np.eye(kept))
    y = after.coordinates(there)[:6]
    np.testing.assert_allclose(simple.llr(y, y), model.llr(x[:6], x[:6]), rtol=1e-3, atol=1e-3)


def test_refusals(tmp_path: Path) -> None:
    write_store(tmp_path / "e.h5", labelled())
    train_classifier(labelled(), tmp_path / "m", label="subgroup")
    with pytest.raises(BundleError, match="has no PLDA"):
        write_adapted(tmp_path / "m", tmp_path / "e.h5", tmp_path / "n")
    with pytest.raises(BundleError, match="tiny-test has no PLDA"):
        write_adapted("tiny-test", tmp_path / "e.h5", tmp_path / "n")
    with pytest.raises(KnnError, match="no adaptation 'x'"):
        write_adapted(tmp_path / "m", tmp_path / "e.h5", tmp_path / "n", method="x")
    assert "requires --adapt" in knn("convert", "a", "b", "--adaptation", "coral-plus").stderr
