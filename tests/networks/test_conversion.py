"""Checkpoints to models."""

from __future__ import annotations

import json
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


def test_the_hub_is_asked_for_one_kind_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several precisions and formats one is fetched, with the files that name tokens; what is cached, not again."""
    hub = pytest.importorskip("huggingface_hub")
    settings = ["added_tokens.json", "config.json", "generation_config.json", "tokenizer.json"]
    large = ["model.fp32-00001-of-00002.safetensors", "model.safetensors.index.fp32.json", "pytorch_model.bin"]
    parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    repositories = {
        "large": ([*large, "model.safetensors", "flax_model.msgpack"], ["model.safetensors"]),
        "parts": ([*large, *parts], parts),
        "old": (["pytorch_model.bin", "tf_model.h5"], ["pytorch_model.bin"]),
        "faster": (["model.bin", "vocabulary.txt"], ["model.bin"]),
    }
    asked = []

    def snapshot_download(name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        if local_files_only and not (tmp_path / name).is_dir():
            raise FileNotFoundError
        (tmp_path / name).mkdir(exist_ok=True)
        for file in hub.utils.filter_repo_objects([*settings, *repositories[name][0]], allow_patterns=allow_patterns):
            if not local_files_only:
                asked.append(file)
                index = {"weight_map": dict(enumerate(parts[:2]))}
                (tmp_path / name / file).write_text(json.dumps(index) if file.endswith("index.json") else "{}")
        return str(tmp_path / name)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    for name, (_, weights) in repositories.items():
        for expected in ([*settings, *weights], []):  # the second time nothing
            asked.clear()
            with pytest.raises(KnnError):  # these are no weights
                convert(f"hf:{name}", tmp_path / "m")
            assert sorted(set(asked)) == sorted(expected)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted([*settings, *weights])
    repositories["none"] = (["model.onnx"], [])
    with pytest.raises(KnnError, match="has no weights that knn reads"):
        convert("hf:none", tmp_path / "m")


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
