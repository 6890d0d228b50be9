"""Folders of wav2vec 2.0, HuBERT, XLS-R and MMS, written by transformers, give the outputs of transformers."""

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
from knn_cli.store import hdf5
from tests.helpers.imported_networks import imported_network
from tests.helpers.oracles import load_transformers

BASE: dict[str, Any] = {
    "conv_dim": [12] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 30,
    "classifier_proj_size": 10,
}
LARGE = {"conv_bias": True, "feat_extract_norm": "layer", "do_stable_layer_norm": True}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "wav2vec2-base": ("Wav2Vec2", {}),
    "xls-r": ("Wav2Vec2", LARGE),
    "mms": ("Wav2Vec2", {**LARGE, "adapter_attn_dim": 6}),
    "group-norm, pre-norm blocks": ("Wav2Vec2", {"do_stable_layer_norm": True, "num_conv_pos_embeddings": 7}),
    "layer-norm, post-norm blocks": ("Wav2Vec2", {"feat_extract_norm": "layer"}),
    "hubert-base": ("Hubert", {}),
    "hubert-large": ("Hubert", LARGE),
    "hubert without projection norm": ("Hubert", {"feat_proj_layer_norm": False}),
}
LANGUAGES = {0: "ces", 1: "eng", 2: "slk", 3: "deu"}


def clip(samples: int = 6000) -> Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(3)) * 0.1 + 0.02


def saved(folder: Path, kind: str, task: str = "Model", do_normalize: bool = True, **extra: Any) -> Any:
    transformers = load_transformers()
    family, settings = KINDS[kind]
    config = getattr(transformers, f"{family}Config")(**{**BASE, **settings, **extra})
    torch.manual_seed(1)
    model = getattr(transformers, f"{family}{task}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=do_normalize).save_pretrained(folder)
    return model


def inputs(folder: Path, *clips: Tensor) -> Any:
    extractor = load_transformers().Wav2Vec2FeatureExtractor.from_pretrained(folder)
    options = {"sampling_rate": 16000, "return_tensors": "pt", "padding": True, "return_attention_mask": len(clips) > 1}
    return extractor([each.numpy() for each in clips], **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("do_normalize", [True, False])
@torch.no_grad()
def test_all_layers_equal_those_of_transformers(tmp_path: Path, kind: str, do_normalize: bool) -> None:
    model = saved(tmp_path / "hf", kind, do_normalize=do_normalize)
    out = model(**inputs(tmp_path / "hf", clip()), output_hidden_states=True)
    theirs = [*out.hidden_states[:-1], out.last_hidden_state]
    network = imported_network(tmp_path / "hf")
    for one, other in zip(network.encoder(clip()[None]), theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "without" not in kind])
@pytest.mark.parametrize("weighted", [False, True])
@torch.no_grad()
def test_classifier_equals_that_of_transformers_alone_and_padded(tmp_path: Path, kind: str, weighted: bool) -> None:
    extra: dict[str, Any] = {"use_weighted_layer_sum": weighted, "id2label": LANGUAGES}
    model = saved(tmp_path / "hf", kind, "ForSequenceClassification", **extra)
    clips = [clip(), clip(4321)]
    network = imported_network(tmp_path / "hf")
    alone = torch.cat([model(**inputs(tmp_path / "hf", each)).logits for each in clips])
    for each, logits in zip(clips, alone, strict=True):
        torch.testing.assert_close(network.scores(network(each[None]))[0], logits, atol=1e-4, rtol=0)
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    padded = network.scores(network(batch, torch.tensor([len(each) for each in clips])))
    torch.testing.assert_close(padded, alone, atol=1e-4, rtol=0)
    if KINDS[kind][1].get("feat_extract_norm") == "layer":  # a norm over time mixes padding into transformers' clips
        theirs = model(**inputs(tmp_path / "hf", *clips)).logits
        torch.testing.assert_close(padded, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["wav2vec2-base", "xls-r"])
@pytest.mark.parametrize("weighted", [False, True])
@torch.no_grad()
def test_x_vector_equals_that_of_transformers(tmp_path: Path, kind: str, weighted: bool) -> None:
    sizes: dict[str, Any] = {
        "tdnn_dim": [8, 8, 12],
        "tdnn_kernel": [5, 3, 1],
        "tdnn_dilation": [1, 2, 1],
        "xvector_output_dim": 9,
    }
    model = saved(tmp_path, kind, "ForXVector", use_weighted_layer_sum=weighted, **sizes)
    network, clips = imported_network(tmp_path), [clip(), clip(4900)]
    assert import_embedding_network(tmp_path).head is None
    alone = torch.cat([model(**inputs(tmp_path, each)).embeddings for each in clips])
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    padded = network(batch, torch.tensor([len(each) for each in clips]))
    torch.testing.assert_close(padded, alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(network(clips[0][None])[0], alone[0], atol=1e-4, rtol=0)


def test_a_network_that_classifies_frames_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "wav2vec2-base", "ForAudioFrameClassification")
    with pytest.raises(KnnError, match="classifies each frame by itself"):
        import_embedding_network(tmp_path)


@pytest.mark.parametrize("kind", ["wav2vec2-base", "mms", "hubert-large"])
def test_heads_of_other_tasks_are_left_out(tmp_path: Path, kind: str) -> None:
    tasks = ["ForCTC", "ForPreTraining"] if KINDS[kind][0] == "Wav2Vec2" else ["ForCTC"]
    for task in tasks:
        folder = tmp_path / task
        model = saved(folder, kind, task)
        imported = import_embedding_network(folder)
        assert imported.head is None and imported.pooling.name == "mean"
        assert ("CTC" in imported.licence_note) == (task == "ForCTC")
        weight = model.base_model.encoder.layers[1].attention.q_proj.weight
        torch.testing.assert_close(imported.encoder.state["blocks.1.attention.query.weight"], weight.detach())


def test_mms_without_adapters_in_its_weights_has_none(tmp_path: Path) -> None:
    saved(tmp_path, "mms", "ForSequenceClassification", id2label=LANGUAGES)
    state = load_file(tmp_path / "model.safetensors")
    save_file({key: state[key] for key in state if "adapter" not in key}, tmp_path / "model.safetensors")
    assert import_embedding_network(tmp_path).encoder.args["adapter"] == 0
    save_file({key: state[key] for key in state if "1.adapter" not in key}, tmp_path / "model.safetensors")
    with pytest.raises(KnnError, match=r"6 missing: encoder\.layers\.1\.adapter_layer"):
        import_embedding_network(tmp_path)


def test_missing_extra_and_mis_sized_weights_are_listed(tmp_path: Path) -> None:
    saved(tmp_path, "hubert-base", "ForSequenceClassification", id2label=LANGUAGES)
    state = load_file(tmp_path / "model.safetensors")
    state["hubert.encoder.layers.0.final_layer_norm.weight"] = torch.ones(2)
    state["hubert.odd"] = state.pop("projector.bias")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(KnnError, match=r"1 missing: projector\.bias; 1 extra: odd; 1 mis-sized: encoder\.layers\.0"):
        import_embedding_network(tmp_path)


def test_labels_are_codes_of_languages_and_must_name_every_class(tmp_path: Path) -> None:
    saved(tmp_path, "mms", "ForSequenceClassification", id2label=LANGUAGES)
    assert import_embedding_network(tmp_path).labels == ("cs", "en", "sk", "de")
    config = json.loads((tmp_path / "config.json").read_text())
    names = {"0": "calm", "1": "angry", "2": "glad", "3": "sad-ish"}
    (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": names}))
    assert import_embedding_network(tmp_path).labels == tuple(names.values())
    for table in ({"0": "ces", "1": "eng", "2": "slk"}, {**names, "3": "calm"}, {**names, "3": 7}, "ces"):
        (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": table}))
        with pytest.raises(KnnError, match="does not name the 4 classes"):
            import_embedding_network(tmp_path)


def test_without_a_preprocessor_the_norm_tells_whether_clips_are_normalised(tmp_path: Path) -> None:
    for kind, normalised in (("wav2vec2-base", False), ("xls-r", True)):
        folder = tmp_path / kind
        saved(folder, kind)
        (folder / "preprocessor_config.json").unlink()
        imported = import_embedding_network(folder)
        assert imported.encoder.args["normalize"] is normalised
        assert "has no preprocessor_config.json" in imported.licence_note


def test_settings_of_another_network_are_refused(tmp_path: Path) -> None:
    saved(tmp_path, "hubert-base")
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"add_adapter": True}, {"conv_pos_batch_norm": True}, {"hidden_act": "relu"}):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(KnnError, match=next(iter(change))):
            import_embedding_network(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": ["wav2vec2"]}))
    with pytest.raises(KnnError):
        import_embedding_network(tmp_path)


def test_a_converted_folder_classifies_and_embeds(tmp_path: Path) -> None:
    import soundfile

    saved(tmp_path / "hf", "mms", "ForSequenceClassification", id2label=LANGUAGES)
    convert(tmp_path / "hf", tmp_path / "mms")
    soundfile.write(tmp_path / "talk.wav", np.tile(clip(16000).numpy(), 3), 16000)
    for arguments in (["classify", "talk.wav"], ["embed", "talk.wav", "-o", "talk.h5"]):
        places = [str(tmp_path / each) if "talk" in each else each for each in arguments]
        result = CliRunner().invoke(app, [*places, "--no-vad", "--model", str(tmp_path / "mms")])
        assert result.exit_code == 0, result.output
        if arguments[0] == "classify":
            assert any(code in result.stdout for code in ("cs", "en", "sk", "de"))
    assert hdf5.read(tmp_path / "talk.h5").data.shape[1] == 10


@pytest.mark.parametrize("shape", [["a"], [None], [8.0], "8", [True]])
def test_sizes_that_are_no_numbers_are_refused_with_the_file(tmp_path: Path, shape: Any) -> None:
    saved(tmp_path, "hubert-base")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "conv_dim": shape}))
    with pytest.raises(KnnError, match=r"config.json has settings of another kind than wav2vec 2.0's: conv_dim"):
        import_embedding_network(tmp_path)
