"""Bundles that nobody named: a bad one breaks no command, and one in place of a shipped one is said."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from knn_cli.core.errors import BundleError
from knn_cli.networks import bundle
from tests.helpers.command import done, knn

DATA = Path(__file__).resolve().parents[1] / "data"
BROKEN = {
    "no-json": "{",
    "nameless": '{"schema": 1, "kind": "embedder"}',
    "newer": '{"schema": 99, "kind": "embedder", "name": "newer"}',
    "no-object": "[]",
    "no-text": "\udcff",
}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`./models`, of which each bundle is bad but `good`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KNN_MODELS", str(DATA))
    models = tmp_path / "models"
    for name, text in BROKEN.items():
        (models / name).mkdir(parents=True)
        (models / name / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    shutil.copytree(DATA / "tiny-test", models / "good")
    shutil.copytree(DATA / "tiny-test", models / "weightless")
    (models / "weightless" / "weights.safetensors").unlink()
    return models


def test_a_bad_bundle_breaks_no_command_that_did_not_name_it(models: Path) -> None:
    listed = {Path(facts["path"]).name: facts for facts in map(json.loads, done("info", "--json").stdout.splitlines())}
    assert "error" in listed["nameless"] and "error" in listed["newer"] and "error" not in listed["good"]
    fingerprint = bundle.find("good").fingerprint
    assert bundle.find_embedder(fingerprint).folder.name == "tiny-test"
    assert {"good", "tiny-test"} <= {found.folder.name for found in bundle.usable()}
    with pytest.raises(BundleError, match="computes embeddings of x@1"):
        bundle.find_embedder("x@1")
    for name in BROKEN:
        assert knn("info", name).exit_code == 1
        with pytest.raises(BundleError, match=name):
            bundle.find(name)


def test_an_embedder_without_its_weights_is_passed_over(
    models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(models / "good")
    monkeypatch.setenv("KNN_MODELS", "")
    fingerprint = bundle.find("weightless").fingerprint
    monkeypatch.setattr("knn_cli.networks.bundle_search.search_path", lambda: [models, DATA])
    logging.getLogger("knn_cli").propagate = True
    with caplog.at_level(logging.INFO):
        assert bundle.find_embedder(fingerprint).folder == DATA / "tiny-test"
    assert "lacks weights.safetensors" in caplog.text


@pytest.mark.parametrize("config", ["{", '{"schema": 1, "kind": "embedder"}'])
def test_a_default_that_cannot_be_used_is_passed_over_and_said(models: Path, config: str, tone: Path) -> None:
    (models / "voice").mkdir()
    (models / "voice" / "config.json").write_text(config)
    (models.parent / "voice").mkdir()
    (models.parent / "voice" / "config.json").write_text("{}")  # of another program
    result = done("embed", tone, "--no-vad")
    assert "models/voice/config.json" in result.stderr and "passed over" in result.stderr
    assert "Model voice@" in result.stderr and "in place of" not in result.stderr


def test_a_bundle_in_place_of_a_shipped_one_is_said(models: Path, tone: Path) -> None:
    shutil.copytree(DATA / "tiny-test", models / "voice")
    said = "The model voice is that of models/voice, in place of the shipped one."
    for arguments in ([], ["--model", "voice"]):
        assert said in done("embed", tone, "--no-vad", *arguments).stderr
    assert said not in done("embed", tone, "--no-vad", "--model", "good").stderr


def test_a_name_is_not_taken_for_the_folder_of_another_program(models: Path) -> None:
    (models.parent / "good").mkdir()
    (models.parent / "good" / "config.json").write_text('{"model_type": "wavlm"}')
    assert bundle.find("good").folder == Path("models/good")


def test_finding_one_of_two_bundles_loads_no_torch(models: Path) -> None:
    fingerprint = bundle.find("good").fingerprint
    code = (
        "import sys; from knn_cli.networks import bundle; "
        f"bundle.find_embedder({fingerprint!r}); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
