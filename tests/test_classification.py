"""Training and scoring as functions: what is held out, what is refused, what a bundle carries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from knn_cli import bundle, metrics
from knn_cli.classification import Classifier, posteriors, train
from knn_cli.errors import BundleError, KnnError
from knn_cli.types import EmbeddingSet


def blobs(seed: int = 0, recordings: int = 6, rows: int = 8, spread: float = 1.0, embedder: str = "") -> EmbeddingSet:
    """Three overlapping classes in 5 dimensions, several rows a recording."""
    generator = np.random.default_rng(seed)
    data, name, label = [], [], []
    for index, one in enumerate("abc"):
        for recording in range(recordings):
            centre = 3 * np.eye(5)[index] + 0.3 * generator.normal(size=5)
            data.append(centre + spread * generator.normal(size=(rows, 5)))
            name += [f"{one}{recording}"] * rows
            label += [one] * rows
    return EmbeddingSet.of(np.concatenate(data), name, subgroup=label, embedder=embedder)


def test_figures_are_those_of_held_out_recordings(tmp_path: Path) -> None:
    rows = blobs()
    done = train(rows, tmp_path / "m")
    assert done.units == "recordings" and done.calibrated
    assert {one: sum(counts) for one, counts in done.counts.items()} == {"a": 48, "b": 48, "c": 48}
    assert all(held % 8 == 0 and held for _, held in done.counts.values())  # whole recordings
    assert 0.8 < done.accuracy <= 1 and done.min_cprimary <= done.cprimary < 0.5
    assert done.bundle.config["training"]["held_out"]["accuracy"] == done.accuracy
    assert f"{done.accuracy:.1%}" in (tmp_path / "m" / "README.md").read_text()


def test_the_bundle_is_calibrated_on_rows_it_never_saw(tmp_path: Path) -> None:
    train(blobs(0), tmp_path / "m")
    classifier = Classifier(tmp_path / "m")
    table = classifier.score(blobs(1))
    index = np.searchsorted(table.labels, blobs(1).subgroup)
    llr = metrics.detection_llr(table.log_likelihood)
    assert metrics.cprimary(llr, index) - metrics.min_cprimary(llr, index) < 0.05
    chances = posteriors(table)
    assert np.allclose(chances.sum(axis=1), 1)
    assert chances.max(axis=1).mean() == pytest.approx(metrics.accuracy(chances.argmax(axis=1), index), abs=0.06)


def test_the_seed_decides_the_split(tmp_path: Path) -> None:
    first, again, other = (train(blobs(), tmp_path / f"m{n}", seed=seed) for n, seed in enumerate((1, 1, 2)))
    assert first.cprimary == again.cprimary != other.cprimary


def test_ignored_and_unlabelled_rows_are_left_out(tmp_path: Path) -> None:
    rows = blobs()
    rows.subgroup[:8] = ""
    done = train(rows, tmp_path / "m", ignore=["c"])
    assert done.left_out == 56 and list(done.counts) == ["a", "b"]


def test_refusals(tmp_path: Path) -> None:
    one_recording = EmbeddingSet.of(
        np.random.default_rng(0).normal(size=(12, 3)),
        ["x"] * 6 + [f"y{i}" for i in range(6)],
        subgroup=["a"] * 6 + ["b"] * 6,
    )
    for rows, arguments, message in (
        (blobs(), {"label": "colour"}, "no label level"),
        (blobs(), {"label": "group"}, "there is none"),
        (blobs(), {"ignore": ["a", "b"]}, "there is only 'c'"),
        (blobs(), {"view": "speaker"}, "no view 'speaker'"),
        (one_recording, {}, "'a'"),
    ):
        with pytest.raises(KnnError, match=message):
            train(rows, tmp_path / "m", **arguments)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_embeddings_of_another_model_are_refused_and_unknown_ones_taken(tmp_path: Path) -> None:
    train(blobs(embedder="one@111"), tmp_path / "m")
    classifier = Classifier(tmp_path / "m")
    with pytest.raises(BundleError, match="of two@222, the model works on those of one@111"):
        classifier.score(blobs(embedder="two@222"))
    assert len(classifier.score(blobs(embedder="renamed@111"))) == 144
    assert len(classifier.score(blobs())) == 144
    with pytest.raises(BundleError, match="No model here makes embeddings of one@111"):
        classifier.embedder  # noqa: B018


def test_a_bundle_takes_its_embedder_along(tmp_path: Path) -> None:
    tiny = bundle.find("tiny-test")
    rows = blobs(embedder=tiny.fingerprint)
    wide = EmbeddingSet.of(
        np.tile(rows.data, (1, 5))[:, :24], rows.name, subgroup=rows.subgroup, embedder=rows.embedder
    )
    noisy = EmbeddingSet.of(
        wide.data + 0.1 * np.random.default_rng(0).normal(size=wide.data.shape),
        rows.name,
        subgroup=rows.subgroup,
        embedder=rows.embedder,
    )
    made = train(noisy, tmp_path / "m").bundle
    assert made.has_network and bundle.same_embedder(made.fingerprint, tiny.fingerprint)
    assert Classifier(made.folder).embedder.dimension == 24


def test_a_model_without_labels_is_refused() -> None:
    with pytest.raises(BundleError, match="knows no labels"):
        Classifier("tiny-test")
