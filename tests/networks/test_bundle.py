"""Bundles: search by name and path, atomic writing, strict loading."""

from __future__ import annotations

import itertools
import json
import math
import os
from pathlib import Path

import pytest
import torch

from knn_cli.core.errors import BundleError, KnnError
from knn_cli.networks import bundle, bundle_weights
from knn_cli.networks.bundle import CONFIG, WEIGHTS
from knn_cli.networks.bundle_config import MAX_CONFIG_BYTES


@pytest.fixture
def tiny(tmp_path: Path) -> bundle.Bundle:
    """A copy of tiny-test that a test may damage."""
    source = bundle.find("tiny-test")
    state = bundle.load_network(source).state_dict()
    config = {key: value for key, value in source.config.items() if key not in {"schema", "weights_sha256"}}
    return bundle.write(tmp_path / "copy", config, state=state)


def test_a_written_bundle_is_the_same_embedder(tiny: bundle.Bundle) -> None:
    source = bundle.find("tiny-test")
    assert bundle.same_embedder(tiny.fingerprint, source.fingerprint)
    for value, other in zip(
        bundle.load_network(tiny).parameters(), bundle.load_network(source).parameters(), strict=True
    ):
        assert torch.equal(value, other)


def test_what_decides_an_embedding_is_in_the_fingerprint(tiny: bundle.Bundle) -> None:
    config = dict(tiny.config)
    for change in ({"audio": {"rate": 16000, "scale": 32768.0}}, {"weights_sha256": "0" * 64}):
        assert bundle.Bundle(tiny.folder, {**config, **change}).fingerprint != tiny.fingerprint
    same = bundle.Bundle(tiny.folder, {**config, "training": {"other": 1}, "labels": ["x"]})
    assert same.fingerprint == tiny.fingerprint


def test_scale_reaches_the_network(tiny: bundle.Bundle) -> None:
    from knn_cli.embedding.embedder import Embedder

    config = {key: value for key, value in tiny.config.items() if key not in {"schema", "weights_sha256"}}
    state = bundle.load_network(tiny).state_dict()
    loud = bundle.write(tiny.folder.parent / "loud", {**config, "audio": {"rate": 16000, "scale": 2.0}}, state=state)
    clip = torch.randn(8000, generator=torch.Generator().manual_seed(0)).numpy() * 0.1
    assert torch.allclose(torch.tensor(Embedder(loud)([clip])), torch.tensor(Embedder(tiny)([clip * 2])), atol=1e-6)


def test_names_and_paths(tiny: bundle.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bundle.find(tiny.folder).folder == tiny.folder
    monkeypatch.setenv("KNN_MODELS", str(tmp_path), prepend=os.pathsep)
    assert bundle.find("copy").folder == tiny.folder
    assert "tiny-test" in bundle.available()
    assert bundle.find_embedder(tiny.fingerprint).has_network
    with pytest.raises(BundleError, match=r"no model 'nosuch'.*Models here: .*copy.*tiny-test"):
        bundle.find("nosuch")
    (tmp_path / "plain").mkdir()
    with pytest.raises(BundleError, match=r"folder has no config.json"):
        bundle.find(tmp_path / "plain")
    with pytest.raises(BundleError, match="computes embeddings of x@1"):
        bundle.find_embedder("x@1")


def test_views() -> None:
    config = {"name": "x", "kind": "embedder", "views": {"speaker": [0, 3]}}
    assert bundle.Bundle(Path(), config).view("speaker") == slice(0, 3)
    assert bundle.Bundle(Path(), config).view("language") == slice(0, None)


def test_altered_weights(tiny: bundle.Bundle) -> None:
    path = tiny.folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(BundleError, match="sha256 differs"):
        bundle.load_network(tiny)
    path.unlink()
    with pytest.raises(BundleError, match=r"lacks weights.safetensors"):
        bundle.load_network(tiny)


def test_keys_that_do_not_fit_are_all_listed(tiny: bundle.Bundle) -> None:
    network = bundle.load_network(tiny)
    state = network.state_dict()
    state["pooling.weights_k"] = torch.ones(99)
    del state["pooling.weights_v"]
    state["pooling.more"] = torch.ones(1)
    with pytest.raises(BundleError) as error:
        bundle_weights.load_strictly(network, state, "here")
    for part in (
        "3 keys differ",
        "missing pooling.weights_v",
        "extra pooling.more",
        r"pooling.weights_k is (99,), not",
    ):
        assert part in error.value.message


def test_broken_configs(tiny: bundle.Bundle) -> None:
    path = tiny.folder / CONFIG
    good = json.loads(path.read_text())
    for text, message in (
        ("{", "cannot be read"),
        ("[]", "no schema number"),
        (json.dumps({**good, "schema": 99}), "schema 99"),
        (json.dumps({key: value for key, value in good.items() if key != "pooling"}), "lacks pooling"),
        (json.dumps({**good, "name": ["a"]}), "name is .*, not a text"),
        (json.dumps({**good, "head": {"name": "softmax", "args": {}, "labels": ["a", "a"]}}), "distinct texts"),
        (json.dumps({**good, "views": {"speaker": [0, "x"]}}), "pairs of whole numbers"),
        (json.dumps({**good, "encoder": {"name": "wavlm", "args": {"x": [math.inf]}}}), "encoder holds NaN"),
        ("[" * 10**5, "brackets are too deep"),
        (" " * (MAX_CONFIG_BYTES + 1), "larger than 64 MB"),
    ):
        path.write_text(text)
        with pytest.raises(BundleError, match=message):
            bundle.find(tiny.folder)
    path.write_text(json.dumps({**good, "encoder": {"name": "nosuch", "args": {}}}))
    with pytest.raises(KnnError, match=r"no encoder named 'nosuch'.*wavlm"):
        bundle.load_network(bundle.find(tiny.folder))
    path.write_text(json.dumps({**good, "pooling": {"name": "mhfa", "args": {"colour": 1}}}))
    with pytest.raises(KnnError, match="does not take these arguments"):
        bundle.load_network(bundle.find(tiny.folder))


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, 1e999, -1.0, 0, "1.0", None, True, [1.0], 1e30])
def test_impossible_scales_are_refused(tiny: bundle.Bundle, scale: object) -> None:
    path = tiny.folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), "audio": {"rate": 16000, "scale": scale}}))
    with pytest.raises(BundleError, match=r"config\.json: audio scale is .*, not a number, 1e-06 to 1e\+06"):
        bundle.find(tiny.folder)


@pytest.mark.parametrize("rate", [math.nan, 0, -16000, 1, 2**31, 16000.0, "16000", None, True])
def test_impossible_rates_are_refused(tiny: bundle.Bundle, rate: object) -> None:
    path = tiny.folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), "audio": {"rate": rate, "scale": 1.0}}))
    with pytest.raises(BundleError, match=r"audio rate is .*, not a whole number, 1000 to 768000"):
        bundle.find(tiny.folder)


def test_a_config_that_is_a_pipe_is_not_waited_for(tiny: bundle.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    (tiny.folder / CONFIG).unlink()
    os.mkfifo(tiny.folder / CONFIG)
    monkeypatch.setenv("KNN_MODELS", str(tiny.folder.parent), prepend=os.pathsep)
    assert tiny.folder.name not in bundle.available()


def test_nothing_is_replaced_unasked(tiny: bundle.Bundle, tmp_path: Path) -> None:
    config = {"name": "copy", "kind": "classifier", "embedder": ""}
    with pytest.raises(KnnError, match="exists already"):
        bundle.write(tiny.folder, config)
    assert bundle.write(tiny.folder, config, force=True).has_network is False
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    (tmp_path / "project" / "weights.safetensors").mkdir(parents=True)
    (tmp_path / "project" / "README.md").write_text("not a model's card")
    for force, folder in itertools.product((False, True), ("notes", "project")):
        with pytest.raises(KnnError, match="is no model bundle"):
            bundle.write(tmp_path / folder, config, force=force)
    assert (tmp_path / "notes" / "thesis.txt").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_folders_that_are_no_bundles_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text('{"model_type": "wavlm"}')
    monkeypatch.setenv("KNN_MODELS", str(tmp_path), prepend=os.pathsep)
    assert "hf" not in bundle.available() and "tiny-test" in bundle.available()


def test_weights_are_copied_to_the_byte(tiny: bundle.Bundle, tmp_path: Path) -> None:
    """A bundle of half-precision weights keeps its fingerprint when a classifier takes it along."""
    state = {key: value.half() for key, value in bundle.load_network(tiny).state_dict().items()}
    config = {key: value for key, value in tiny.config.items() if key not in {"schema", "weights_sha256"}}
    half = bundle.write(tmp_path / "half", config, state=state)
    again = bundle.write(tmp_path / "again", config, weights=half.folder / WEIGHTS)
    assert bundle.same_embedder(half.fingerprint, again.fingerprint)
