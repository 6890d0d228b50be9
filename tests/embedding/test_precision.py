"""In which numbers a network computes: near float32, written in fingerprints, refused where the machine cannot."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from knn_cli.cli.app import app
from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.values import EmbeddingSet
from knn_cli.embedding.cluster_embedding import EmbedderPlace
from knn_cli.embedding.embedder import Embedder
from knn_cli.embedding.precision_comparison import PrecisionFigures, compare_precisions, speech_clips
from knn_cli.networks import bundle
from knn_cli.networks.conversion import convert
from knn_cli.networks.int8 import Int8Linear
from knn_cli.networks.precision import AUTO, PRECISIONS, Precision, check_precision, with_suffix, without_suffix
from knn_cli.recognition.classifier import Classifier
from knn_cli.recognition.train_classifier import train_classifier
from knn_cli.store.hdf5 import Store
from knn_cli.store.writer import write_store
from tests.helpers.gaussian_classes import overlapping

MEETING = Path(__file__).resolve().parents[2] / "examples" / "meeting.flac"


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(0, 0.1, size).astype(np.float32) for size in (16_000, 9_000, 16_000)]


def cosines(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    return (rows * others).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(others, axis=1)


@given(st.sampled_from(["whole", 0.5, 20.0, 40.0, 1e3]), st.sampled_from([AUTO, *PRECISIONS]))
def test_a_suffix_says_both_settings(chunk: float | str, precision: Precision) -> None:
    assert without_suffix(with_suffix("a+b@c0ffee", chunk, precision)) == ("a+b@c0ffee", chunk, precision)  # type: ignore[arg-type]
    assert with_suffix("", chunk, precision) == ""  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["e", ".", "+", "3.4.5", "20+20", "1e999", "0", "1e+400", "int8+5", "int8+int8"])
def test_a_fingerprint_with_another_suffix_is_one_that_nobody_knows(suffix: str) -> None:
    unknown = f"{bundle.find('tiny-test').fingerprint}+{suffix}"
    assert without_suffix(unknown) == (unknown, 20.0, AUTO)
    with pytest.raises(BundleError, match="No model here computes embeddings of"):
        bundle.find_embedder(unknown)


def test_the_fingerprint_says_it_and_finds_it() -> None:
    found = bundle.find("tiny-test")
    small = found.with_settings(chunk="whole", precision="int8")
    assert small.fingerprint == f"{found.fingerprint}+whole+int8"
    assert found.with_settings(precision="fp32").fingerprint == found.fingerprint == found.with_settings().fingerprint
    assert bundle.find_embedder(small.fingerprint).precision == "int8"
    assert small.with_settings(precision=AUTO).precision == found.precision == "fp32"
    with pytest.raises(BundleError, match=r"embeddings of tiny-test@\w+\+whole\+int8, the model works on those of"):
        bundle.check_embedder(small.fingerprint, found.fingerprint, "The store")
    alone = bundle.Bundle(found.folder, {"name": "x", "kind": "classifier", "embedder": found.fingerprint})
    assert alone.with_settings(precision="int8").fingerprint == f"{found.fingerprint}+int8"
    place = EmbedderPlace.of(Embedder(small, device="cpu"), "cpu")  # what a worker of a cluster is told
    assert place.load().precision == "int8" and place.load().chunk_seconds == 120.0


def test_8_bits_are_near_and_one_by_one(clips: list[np.ndarray]) -> None:
    exact, small = Embedder("tiny-test", device="cpu"), Embedder("tiny-test", device="cpu", precision="int8")
    assert any(isinstance(module, Int8Linear) for module in small.encoder.modules())
    rows = small(clips)
    assert np.array_equal(rows, np.concatenate([small([clip]) for clip in clips]))
    assert not np.array_equal(rows, exact(clips)) and cosines(rows, exact(clips)).min() > 0.99


def test_bfloat16_only_where_the_device_has_it(clips: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("knn_cli.embedding.embedder.has_bfloat16", lambda device: False)
    with pytest.raises(KnnError, match="This processor cannot compute in bf16"):
        Embedder("tiny-test", device="cpu", precision="bf16")
    monkeypatch.setattr("knn_cli.embedding.embedder.has_bfloat16", lambda device: True)
    half, exact = Embedder("tiny-test", device="cpu", precision="bf16"), Embedder("tiny-test", device="cpu")
    rows = half(clips)
    assert rows.dtype == np.float32
    assert not np.array_equal(rows, exact(clips)) and cosines(rows, exact(clips)).min() > 0.999
    whole = half.frames(clips[:1])[0]
    pooled = half.pool(whole, torch.ones(1, whole.shape[1], dtype=torch.bool))
    assert cosines(pooled, exact(clips[:1])).min() > 0.999


def test_onnx_runtime_computes_the_same(
    clips: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr("knn_cli.networks.onnx_network.platformdirs.user_cache_dir", lambda name: str(tmp_path / name))
    embedder = Embedder("tiny-test", device="cpu", precision="onnx")
    exact = Embedder("tiny-test", device="cpu")
    np.testing.assert_allclose(embedder(clips), exact(clips), atol=1e-4 * np.abs(exact(clips)).max())
    with pytest.raises(KnnError, match="embeds whole clips only"):
        embedder.frames(clips)
    (file,) = tmp_path.rglob("*.onnx")
    assert file.stem == bundle.find("tiny-test").fingerprint.rpartition("@")[2]
    assert "exported for ONNX Runtime, once" in caplog.text
    caplog.clear()
    Embedder("tiny-test", device="cpu", precision="onnx")
    assert not caplog.text
    file.write_bytes(b"not a graph")
    with pytest.raises(KnnError, match="cannot load"):
        Embedder("tiny-test", device="cpu", precision="onnx")


def test_why_there_is_no_network_for_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr("knn_cli.networks.onnx_network.platformdirs.user_cache_dir", lambda name: str(file))
    with pytest.raises(KnnError, match="cannot be made") as no_folder:
        Embedder("tiny-test", device="cpu", precision="onnx")
    assert "XDG_CACHE_HOME" in no_folder.value.hint
    monkeypatch.setattr("knn_cli.networks.onnx_network.platformdirs.user_cache_dir", lambda name: str(tmp_path / name))
    monkeypatch.setattr("knn_cli.networks.onnx_export.MAX_WEIGHT_BYTES", 10)
    with pytest.raises(KnnError, match="an ONNX file holds 2 GB") as too_large:
        Embedder("tiny-test", device="cpu", precision="onnx")
    assert "Delete" not in too_large.value.hint


def test_a_bundle_states_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNN_MODELS", str(tmp_path), prepend=os.pathsep)
    shutil.copytree(bundle.find("tiny-test").folder, tmp_path / "own")
    path = tmp_path / "own" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "precision": "int8"}))
    assert Embedder("own", device="cpu").precision == "int8"
    assert Embedder("own", device="cpu", precision="fp32").precision == "fp32"
    for entry in ({"precision": "fp8"}, {"precision": ["int8"]}, {"precision_cosines": {"int8": 1.0}}):
        path.write_text(json.dumps({**config, **entry}))
        with pytest.raises(BundleError, match="precision"):
            bundle.find("own")


def test_a_model_of_8_bits_has_no_precision_of_the_model_that_it_is_from(tmp_path: Path) -> None:
    shutil.copytree(bundle.find("tiny-test").folder, tmp_path / "floats")
    path = tmp_path / "floats" / "config.json"
    cosines = {"int8": {"least": 0.9, "mean": 0.9, "clips": 50}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "precision": "bf16", "precision_cosines": cosines}))
    convert(tmp_path / "floats", tmp_path / "small", int8=True)
    small = bundle.find(tmp_path / "small")
    assert small.precision == "int8" and "precision_cosines" not in small.config


def test_a_model_that_is_trained_on_embeddings_hears_in_their_precision(tmp_path: Path) -> None:
    embedder = bundle.find("tiny-test").with_settings(chunk=40.0, precision="int8").fingerprint
    data, group = overlapping(rows=60, dimension=24, classes=2)
    names = [f"tape-{number}" for number in range(60)]
    write_store(tmp_path / "e.h5", EmbeddingSet.from_columns(data, names, group=group, embedder=embedder))
    train_classifier(tmp_path / "e.h5", tmp_path / "model", label="group")
    trained = Classifier(tmp_path / "model", device="cpu")
    assert trained.bundle.fingerprint == embedder and trained.embedder.precision == "int8"
    assert len(next(trained.score_store(tmp_path / "e.h5"))) == 60


def test_float32_of_a_bundle_of_8_bits() -> None:
    found = bundle.find("language")
    assert found.precision == "int8"
    floats = found.with_settings(precision="fp32")
    assert floats.fingerprint == f"{found.fingerprint}+fp32"


def test_from_the_command_line(tmp_path: Path) -> None:
    sound = tmp_path / "sound.wav"
    soundfile.write(sound, np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32), 16_000)
    options = ["--model", "tiny-test", "--no-vad", "-o", str(tmp_path / "e.h5")]
    run = CliRunner().invoke(app, ["embed", str(sound), *options, "--precision", "int8"])
    assert run.exit_code == 0, run.output
    with Store(tmp_path / "e.h5") as store:
        assert store.embedder.endswith("+int8")
    refused = CliRunner().invoke(app, ["embed", str(sound), "--model", "tiny-test", "--precision", "fp8"])
    assert refused.exit_code == 2
    with pytest.raises(KnnError, match="cannot be 'fp8'"):
        check_precision("fp8")


def test_cosines_are_measured_on_given_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("knn_cli.embedding.embedder.has_bfloat16", lambda device: False)
    (first, *_) = clips = speech_clips([MEETING], 16_000)
    assert 1 < len(clips) < 8 and 8 * 16_000 < len(first) < 16 * 16_000
    exact, bf16, int8 = compare_precisions(bundle.find("tiny-test"), clips[:2], ("fp32", "bf16", "int8"))
    assert isinstance(exact, PrecisionFigures) and (exact.least, exact.cost) == (pytest.approx(1), 1)
    assert isinstance(bf16, KnnError)
    assert isinstance(int8, PrecisionFigures) and 0.9 < int8.least <= int8.mean < 1 and int8.clips == 2
    run = CliRunner().invoke(app, ["info", "tiny-test", "--precisions", str(MEETING)])
    assert run.exit_code == 0, run.output
    lines = [line.split("\t")[:2] for line in run.stdout.splitlines()]
    assert lines[1:3] == [["tiny-test", "fp32"], ["tiny-test", "int8"]]
    both = CliRunner().invoke(app, ["info", str(MEETING), "--speech-quality", "--precisions", str(MEETING)])
    assert both.exit_code == 1 and "cannot be combined" in both.output


def test_shipped_models_say_what_was_measured() -> None:
    for name in ("voice", "language"):
        of = bundle.find(name).config["precision_cosines"]
        assert of.keys() == {"bf16", "int8", "onnx"} and all(figures["clips"] >= 40 for figures in of.values())
    run = CliRunner().invoke(app, ["info", "voice"])
    assert "cosine to fp32" in run.stdout
