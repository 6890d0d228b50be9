"""Bundles of some of a model's labels: their probabilities are those of the model with a declared set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.registry import HEADS
from knn_cli.core.values import EmbeddingSet
from knn_cli.networks import bundle
from knn_cli.recognition.classifier import Classifier, posteriors
from knn_cli.recognition.label_sets import write_label_set
from knn_cli.recognition.train_classifier import train_classifier
from tests.helpers.head_bundles import CALIBRATION, OPEN_SET, embedded_scores, write_head_bundle

LABELS = ("cs", "de", "pl", "sk", "zxx")


def test_the_rows_of_a_head(tmp_path: Path) -> None:
    measured = {"cs": {"accuracy": 0.9}}
    source = write_head_bundle(tmp_path / "m", LABELS, calibration=CALIBRATION, open_set=OPEN_SET, measured=measured)
    written = write_label_set(source.folder, tmp_path / "slavic", ["Slovak", "cs"])
    assert written.name == "slavic" and written.head_labels == ("cs", "sk", "zxx")
    assert written.fingerprint != source.fingerprint and source.fingerprint in written.card
    head = written.config["head"]
    assert head["calibration"] == CALIBRATION and not {"open_set", "measured"} & set(head)
    rows = embedded_scores(np.random.default_rng(0).normal(size=(9, 5)).tolist(), seconds=9.0)
    some = Classifier(written.folder, open_set=False)
    declared = Classifier(source.folder, languages=["cs", "sk"], open_set=False)
    np.testing.assert_allclose(posteriors(some.score(rows)), posteriors(declared.score(rows)), atol=1e-9)
    every = Classifier(written.folder).score(rows)
    assert every.labels == ("cs", "sk", "zxx") and every.threshold is None and every.rivals is None
    sound = [np.random.default_rng(0).normal(size=8000).astype(np.float32)]
    np.testing.assert_array_equal(some.embedder(sound), declared.embedder(sound))


@pytest.mark.parametrize(
    ("name", "args"), [("softmax", {"normalize": True}), ("aam-softmax", {"subcenters": 2}), ("am-softmax", {})]
)
def test_every_head_keeps_its_scores(name: str, args: dict[str, Any], tmp_path: Path) -> None:
    """Also one with as many classes as dimensions, whose sizes alone do not tell classes."""
    torch.manual_seed(0)
    labels = [f"l{number:02}" for number in range(24)]
    source = write_head_bundle(tmp_path / "first", labels)
    state = {
        f"head.{key}": value for key, value in HEADS.build(name, dimension=24, classes=24, **args).state_dict().items()
    }
    network = {
        key: value for key, value in bundle.load_network(source).state_dict().items() if not key.startswith("head.")
    }
    config = {**source.config, "name": "m", "head": {"name": name, "args": args, "labels": labels}}
    model = bundle.write(tmp_path / "m", config, state={**network, **state}).folder
    written = write_label_set(model, tmp_path / "some", ["l20", "l03", "l11"])
    rows = embedded_scores(np.random.default_rng(1).normal(size=(5, 24)).tolist())
    wanted = Classifier(model).score(rows).log_likelihood[:, [3, 11, 20]]
    np.testing.assert_allclose(Classifier(written.folder).score(rows).log_likelihood, wanted, atol=1e-5)


def test_a_head_in_8_bits(tmp_path: Path) -> None:
    source = write_head_bundle(tmp_path / "m", LABELS)
    state = load_file(source.folder / bundle.WEIGHTS)
    key = "head.trans.0.weight"
    state |= {key: (100 * state[key]).to(torch.int8), f"{key}_scale": torch.arange(5) / 100}
    model = bundle.write(tmp_path / "m8", {**source.config, "products": "int8"}, state=state).folder
    written = write_label_set(model, tmp_path / "some", ["cs", "pl", "sk"])
    assert written.precision == "int8"
    found = Classifier(written.folder).score(embedded_scores([[9.0, 8.0, 7.0, 6.0, 5.0]])).log_likelihood
    np.testing.assert_allclose(found, [[0, 14, 18, 20]], atol=0.2)


def test_the_classes_of_a_classifier(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 8)) * 2
    labels = np.repeat(["cs", "de", "pl", "sk", "x"], 40)
    rows = EmbeddingSet.from_columns(
        centres[np.repeat(np.arange(5), 40)] + rng.normal(size=(200, 8)),
        [f"{label}{number % 10}" for number, label in enumerate(labels)],
        group=labels,
        end=rng.uniform(1, 9, 200),
        start=np.zeros(200),
        embedder="nowhere@000000000000",
    )
    groups = {"cs": "slavic", "pl": "slavic", "sk": "slavic", "de": "germanic"}
    train_classifier(rows, tmp_path / "m", label="group", out_of_set=["x"], groups=groups, priors={"cs": 8.0})
    written = write_label_set(tmp_path / "m", tmp_path / "some", ["sk", "de", "Czech"])
    some = Classifier(written.folder)
    declared = Classifier(tmp_path / "m", languages=["sk", "de", "cs"])
    assert some.labels == declared.labels == ("cs", "de", "sk")
    found, wanted = some.score(rows), declared.score(rows)
    np.testing.assert_allclose(posteriors(found), posteriors(wanted), atol=1e-9)
    assert found.groups == wanted.groups == ("slavic", "germanic", "slavic")
    assert found.threshold is None and wanted.threshold is not None
    assert some.priors == pytest.approx(declared.priors)
    assert written.fingerprint == bundle.find(tmp_path / "m").fingerprint  # the same embeddings serve both


def test_what_is_refused(tmp_path: Path) -> None:
    source = write_head_bundle(tmp_path / "m", LABELS).folder
    for languages, sentence in ((["cs"], "two or more"), (["cs", "zu"], "does not know Zulu")):
        with pytest.raises(KnnError, match=sentence):
            write_label_set(source, tmp_path / "some", languages)
    with pytest.raises(BundleError, match="knows no labels"):
        write_label_set("tiny-test", tmp_path / "some", ["cs", "sk"])
    write_label_set(source, tmp_path / "some", ["cs", "sk"])
    with pytest.raises(KnnError, match="exists"):
        write_label_set(source, tmp_path / "some", ["cs", "pl"])
    assert write_label_set(source, tmp_path / "some", ["cs", "pl"], force=True).head_labels == ("cs", "pl", "zxx")
