"""Checkpoints to models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from knn_cli.core.errors import KnnError
from knn_cli.embedding.embedder import Embedder
from knn_cli.networks import bundle
from knn_cli.networks.conversion import convert
from tests.helpers.oracles import load_transformers


def test_a_checkpoint_becomes_a_model(tmp_path: Path) -> None:
    """A Hugging Face folder of a tiny random WavLM, converted, embeds as transformers does."""
    pytest.importorskip("transformers")
    transformers = load_transformers()
    torch.manual_seed(0)
    config = transformers.WavLMConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=[16] * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        num_buckets=32,
        max_bucket_distance=80,
    )
    reference = transformers.WavLMModel(config).eval()
    reference.save_pretrained(tmp_path / "hf")
    result = convert(tmp_path / "hf", tmp_path / "models" / "mine")
    assert result.kind == "bundle"
    clip = np.random.default_rng(0).normal(size=16000).astype(np.float32) * 0.1
    with torch.inference_mode():
        expected = reference(torch.from_numpy(clip)[None]).last_hidden_state.mean(1)[0].numpy()
    assert np.allclose(Embedder(tmp_path / "models" / "mine", device="cpu")([clip])[0], expected, atol=1e-4)
    assert "licence" in (tmp_path / "models" / "mine" / "README.md").read_text()
    with pytest.raises(KnnError, match="exists already"):
        convert(tmp_path / "hf", tmp_path / "models" / "mine")


def test_hugging_face_cache_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hf:` takes what the cache has; without cache and network it says so in a sentence."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    root = tmp_path / "hub" / "models--some--wavlm"
    snapshot = root / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("a" * 40)
    (snapshot / "config.json").write_text('{"model_type": "bert"}')
    (snapshot / "model.safetensors").touch()
    with pytest.raises(KnnError, match=r"WavLM|wavlm"):  # read, and rejected by its kind
        convert("hf:some/wavlm", tmp_path / "m")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("other/wavlm", "a/b/c"):
        with pytest.raises(KnnError, match="cannot be downloaded from the Hugging Face hub"):
            convert(f"hf:{name}", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_converted_model_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = bundle.find("tiny-test")
    state = bundle.load_network(source).state_dict()
    config = {key: value for key, value in source.config.items() if key not in {"schema", "weights_sha256"}}
    bundle.write(tmp_path / "models" / "mine", {**config, "name": "mine"}, state=state)
    monkeypatch.chdir(tmp_path)
    assert bundle.find("mine").name == "mine"


def test_unknown_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="segments"):
        convert(tmp_path, tmp_path / "a.h5", segments=4)
