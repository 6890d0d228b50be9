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
from tests.helpers.command import knn
from tests.helpers.hub_server import COMMIT, FakeHub, served
from tests.helpers.oracles import load_transformers
from tests.networks.importers.test_speaker import resnet_state


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
    with pytest.raises(KnnError, match="cannot be reached for other/wavlm"):
        convert("hf:other/wavlm", tmp_path / "m")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(KnnError, match="other/wavlm is not in the Hugging Face cache, and HF_HUB_OFFLINE forbids"):
        convert("hf:other/wavlm", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_model_of_the_hub_says_where_it_comes_from(
    loopback: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size, licence and files are said before, quiet says nothing; card and config keep origin, revision, licence."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    torch.save({**resnet_state(18, 4, False), "projection.weight": torch.ones(7, 12)}, tmp_path / "avg_model.pt")
    torch.save({"other": torch.zeros(1)}, tmp_path / "bad.pt")
    hub = FakeHub({"some/resnet": {}, "some/bad": {"avg_model.pt": (tmp_path / "bad.pt").read_bytes()}})
    hub.repositories["some/resnet"] |= {"avg_model.pt": (tmp_path / "avg_model.pt").read_bytes(), "README.md": b""}
    hub.cards["some/resnet"] = {"license": "other", "license_name": "a-b-c"}
    with served(hub):
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        with pytest.raises(KnnError, match=r"avg_model.pt is no checkpoint that knn knows"):
            convert("hf:some/bad", tmp_path / "m")
        result = knn("convert", "hf:some/resnet@v1", tmp_path / "m")
        assert result.exit_code == 0, result.output
        assert "hf:some/resnet@v1: 0." in result.stderr and " MB, licence a-b-c, revision cccccccc: " in result.stderr
        asked = len(hub.asked)
        with pytest.raises(KnnError, match="exists already"):
            convert("hf:some/resnet", tmp_path / "m")
        assert len(hub.asked) == asked  # not fetched in vain
        quiet = knn("convert", "-q", "hf:some/resnet", tmp_path / "n")
        assert (quiet.exit_code, quiet.output) == (0, "")
    model = bundle.find(tmp_path / "m")
    source = f"wespeaker: hf:some/resnet@v1 (revision {COMMIT})"
    facts = {"origin": "hf:some/resnet", "revision": COMMIT, "licence": "a-b-c"}
    assert model.config["training"] == {"imported": source, **facts}
    assert source in model.card and "Licence: a-b-c, as the hub states it." in model.card


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
