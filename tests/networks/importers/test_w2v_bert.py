"""Folders of w2v-BERT 2.0, written by transformers, give the outputs of transformers, alone and padded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from knn_cli import convert
from knn_cli.cli.app import app
from knn_cli.core.errors import KnnError
from knn_cli.networks.importers.entry import import_embedding_network
from knn_cli.networks.importers.weight_names import W2V_BERT
from tests.helpers.encoder_contract import sound
from tests.helpers.imported_networks import imported_network
from tests.helpers.oracles import load_transformers

TINY: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "left_max_position_embeddings": 6,
    "right_max_position_embeddings": 2,
    "conv_depthwise_kernel_size": 5,
    "vocab_size": 30,
    "classifier_proj_size": 10,
    "tdnn_dim": [8, 12],
    "tdnn_kernel": [3, 2],
    "tdnn_dilation": [1, 1],
    "xvector_output_dim": 9,
}
POSITIONS = ["relative_key", "relative", "rotary", None]
ABOVE = [
    {"add_adapter": True},
    {"add_adapter": True, "num_adapter_layers": 2, "adapter_act": "gelu"},
    {"add_adapter": True, "output_hidden_size": 12, "use_intermediate_ffn_before_adapter": True},
]
LANGUAGES = {0: "ces", 1: "eng", 2: "slk", 3: "deu"}
LENGTHS = [16000, 12345, 9120, 600]  # 98, 75, 55 and 2 frames of 10 ms, so that some leave one over


def saved(folder: Path, task: str = "Model", **extra: Any) -> Any:
    transformers = load_transformers()
    torch.manual_seed(1)
    model = getattr(transformers, f"Wav2Vec2Bert{task}")(transformers.Wav2Vec2BertConfig(**{**TINY, **extra})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    transformers.SeamlessM4TFeatureExtractor(padding_value=1.0).save_pretrained(folder)
    return model


def inputs(folder: Path, *clips: Tensor) -> Any:
    extractor = load_transformers().SeamlessM4TFeatureExtractor.from_pretrained(folder)
    return extractor([clip.numpy() for clip in clips], sampling_rate=16000, return_tensors="pt")


def clips() -> tuple[Tensor, Tensor]:
    return sound(*LENGTHS), torch.tensor(LENGTHS)


@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_all_layers_equal_those_of_transformers_padded_and_alone(tmp_path: Path, positions: str | None) -> None:
    model, network = saved(tmp_path, position_embeddings_type=positions), imported_network(tmp_path)
    batch, lengths = clips()
    rows = [row[:length] for row, length in zip(batch, LENGTHS, strict=True)]
    theirs = model(**inputs(tmp_path, *rows), output_hidden_states=True).hidden_states
    padded = list(network.encoder(batch, lengths))
    assert len(padded) == len(theirs) == 3
    for row, clip in enumerate(rows):
        alone = list(network.encoder(clip[None]))
        for layer, (one, other) in enumerate(zip(padded, theirs, strict=True)):
            count = network.encoder.frames(len(clip))
            torch.testing.assert_close(one[row, :count], other[row, :count], atol=1e-4, rtol=0)
            torch.testing.assert_close(alone[layer][0], other[row, :count], atol=1e-4, rtol=0)


@pytest.mark.parametrize("positions", POSITIONS)
def test_gradients_equal_those_of_transformers(tmp_path: Path, positions: str | None) -> None:
    model, network = saved(tmp_path, position_embeddings_type=positions), imported_network(tmp_path)
    clip = sound(9200)  # 56 frames of 10 ms: no padding to a pair
    model(**inputs(tmp_path, clip[0])).last_hidden_state.pow(3).mean().backward()
    list(network.encoder(clip))[-1].pow(3).mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in network.encoder.named_parameters():
        theirs = gradients[W2V_BERT.source_name(name)]
        assert parameter.grad is not None and theirs is not None, name
        scale = theirs.abs().max().clamp(min=1e-3)
        difference = (parameter.grad - theirs.view(parameter.shape)).abs().max() / scale
        assert difference.item() < 1e-3, name


@pytest.mark.parametrize("extra", ABOVE, ids=["one", "two", "narrower"])
@torch.no_grad()
def test_the_output_of_layers_above_equals_that_of_transformers(tmp_path: Path, extra: dict[str, Any]) -> None:
    """Alone: in a padded batch transformers lets such layers see the frames past a clip's end."""
    model, network = saved(tmp_path, **extra), imported_network(tmp_path)
    for samples in (16000, 9200):
        clip = sound(samples)
        theirs = model(**inputs(tmp_path, clip[0])).last_hidden_state
        (ours,) = network.encoder(clip)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("weighted", [False, True])
@torch.no_grad()
def test_classifier_equals_that_of_transformers_padded_and_alone(tmp_path: Path, weighted: bool) -> None:
    model = saved(tmp_path, "ForSequenceClassification", use_weighted_layer_sum=weighted, id2label=LANGUAGES)
    network, (batch, lengths) = imported_network(tmp_path), clips()
    rows = [row[:length] for row, length in zip(batch, LENGTHS, strict=True)]
    theirs = model(**inputs(tmp_path, *rows)).logits
    torch.testing.assert_close(network.scores(network(batch, lengths)), theirs, atol=1e-4, rtol=0)
    alone = torch.cat([network.scores(network(row[None])) for row in rows])
    torch.testing.assert_close(alone, theirs, atol=1e-4, rtol=0)
    assert import_embedding_network(tmp_path).labels == ("cs", "en", "sk", "de")


@torch.no_grad()
def test_width_of_a_classifier_that_the_config_leaves_out(tmp_path: Path) -> None:
    saved(tmp_path, "ForSequenceClassification", classifier_proj_size=768, id2label=LANGUAGES)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("classifier_proj_size", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert import_embedding_network(tmp_path).pooling.args["dimension"] == 768


@torch.no_grad()
def test_x_vector_equals_that_of_transformers(tmp_path: Path) -> None:
    model, clip = saved(tmp_path, "ForXVector", use_weighted_layer_sum=True), sound(16000)
    theirs = model(**inputs(tmp_path, clip[0])).embeddings
    torch.testing.assert_close(imported_network(tmp_path)(clip), theirs, atol=1e-4, rtol=0)


def test_other_heads(tmp_path: Path) -> None:
    saved(tmp_path / "ctc", "ForCTC")
    imported = import_embedding_network(tmp_path / "ctc")
    assert imported.head is None and imported.pooling.name == "mean" and "CTC" in imported.licence_note
    saved(tmp_path / "frames", "ForAudioFrameClassification")
    with pytest.raises(KnnError, match="classifies each frame by itself"):
        import_embedding_network(tmp_path / "frames")


def test_pytorch_files_are_read_as_well(tmp_path: Path) -> None:
    saved(tmp_path)
    safe = import_embedding_network(tmp_path).state
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    plain = import_embedding_network(tmp_path).state
    assert safe.keys() == plain.keys() and all(torch.equal(safe[key], plain[key]) for key in safe)


def test_weights_and_settings_of_other_networks_are_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    changes: list[tuple[dict[str, Any], str]] = [
        ({"hidden_act": "tanh"}, "hidden_act 'tanh'"),
        ({"position_embeddings_type": ["rotary"]}, "position_embeddings_type"),
        ({"layer_norm_eps": 1e-3}, "layer_norm_eps"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers"),
        ({"feature_projection_input_dim": 80}, "80 features in config.json, and 2 frames of 80 bins"),
        ({"add_adapter": True}, "missing: adapter.layers.0"),
        ({"num_hidden_layers": 1}, "extra: encoder.layers.1"),
        ({"use_intermediate_ffn_before_adapter": True, "add_adapter": True}, "missing: intermediate_ffn"),
    ]
    for change, message in changes:
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(KnnError, match=message):
            import_embedding_network(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = load_file(tmp_path / "model.safetensors")
    state["encoder.layers.0.conv_module.pointwise_conv1.weight"] = torch.ones(48, 24, 2)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(KnnError, match=r"1 mis-sized: encoder\.layers\.0\.conv_module\.pointwise_conv1"):
        import_embedding_network(tmp_path)


def test_a_converted_folder_classifies_and_embeds(tmp_path: Path) -> None:
    import soundfile

    saved(tmp_path / "hf", "ForSequenceClassification", id2label=LANGUAGES)
    convert(tmp_path / "hf", tmp_path / "bert")
    soundfile.write(tmp_path / "talk.wav", np.tile(sound(16000)[0].numpy(), 3), 16000)
    result = CliRunner().invoke(
        app, ["classify", str(tmp_path / "talk.wav"), "--no-vad", "--model", str(tmp_path / "bert")]
    )
    assert result.exit_code == 0, result.output
    assert any(code in result.stdout for code in ("cs", "en", "sk", "de"))
