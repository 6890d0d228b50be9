"""Three spellings of WavLM, written by their own library or by hand, give the outputs of the network they came from."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS
from knn_cli.networks.importers import wavlm
from knn_cli.networks.importers.checkpoint_files import read_json, read_yaml
from knn_cli.networks.importers.entry import import_embedding_network
from tests.helpers.imported_networks import imported_network
from tests.helpers.oracles import load_torchaudio, load_transformers

KERNELS, STRIDES = [10, 3, 3, 3, 3, 2, 2], [5, 2, 2, 2, 2, 2, 2]
WIDTH, CHANNELS, BLOCKS, HEADS, INNER = 12, 24, 2, 3, 20
SIZES = ["base", "large"]


def waveforms() -> Tensor:
    return torch.randn(2, 4000, generator=torch.Generator().manual_seed(0)) * 0.1


def layers_of(path: Path) -> list[Tensor]:
    imported = import_embedding_network(path)
    assert json.loads(json.dumps(imported.encoder.args)) == imported.encoder.args
    network = ENCODERS.build(imported.encoder.name, **imported.encoder.args)
    network.load_state_dict(imported.encoder.state)
    with torch.no_grad():
        return list(network.eval()(waveforms()))


def hugging_face_model(size: str, model_class: str = "WavLMModel", **extra: Any) -> Any:
    transformers = load_transformers()
    config = transformers.WavLMConfig(
        conv_dim=[WIDTH] * 7,
        conv_kernel=KERNELS,
        conv_stride=STRIDES,
        conv_bias=size == "large",
        feat_extract_norm="layer" if size == "large" else "group",
        do_stable_layer_norm=size == "large",
        hidden_size=CHANNELS,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        vocab_size=30,
        **extra,
    )
    torch.manual_seed(1)
    model = getattr(transformers, model_class)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@torch.no_grad()
def hugging_face_layers(model: Any, size: str) -> list[Tensor]:
    clips = F.layer_norm(waveforms(), (4000,)) if size == "large" else waveforms()
    out = model(clips, output_hidden_states=True)
    return [*out.hidden_states[:-1], out.last_hidden_state]


def assert_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=0)


def older_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = ((".parametrizations.weight.original0", ".weight_g"), (".parametrizations.weight.original1", ".weight_v"))
    for new, old in parts:
        state = {key.replace(new, old): value for key, value in state.items()}
    return state


def write_hugging_face(folder: Path, model: Any, older: bool = False, binary: bool = False) -> Path:
    model.config.save_pretrained(folder)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state = older_names(state) if older else state
    if binary:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("older", [False, True], ids=["parametrizations", "weight_g"])
@pytest.mark.parametrize("binary", [False, True], ids=["safetensors", "bin"])
def test_hugging_face_folder(tmp_path: Path, size: str, older: bool, binary: bool) -> None:
    model = hugging_face_model(size)
    folder = write_hugging_face(tmp_path, model, older, binary)
    assert any("weight_g" in key for key in saved_keys(folder)) == older
    assert_same(layers_of(folder), hugging_face_layers(model, size))


def saved_keys(folder: Path) -> list[str]:
    if (folder / "model.safetensors").is_file():
        return list(load_file(folder / "model.safetensors"))
    return list(torch.load(folder / "pytorch_model.bin", weights_only=True))


@pytest.mark.parametrize("model_class", ["WavLMForCTC", "WavLMForXVector"])
def test_hugging_face_heads_are_left_out_but_for_the_x_vector(tmp_path: Path, model_class: str) -> None:
    model = hugging_face_model("base", model_class, use_weighted_layer_sum=True)
    model.save_pretrained(tmp_path)
    assert any(not key.startswith("wavlm.") for key in saved_keys(tmp_path))
    assert_same(layers_of(tmp_path), hugging_face_layers(model.wavlm, "base"))
    imported = import_embedding_network(tmp_path)
    assert imported.pooling.name == ("xvector" if "XVector" in model_class else "mean")
    assert ("CTC" in imported.licence_note) == ("CTC" in model_class)


def test_hugging_face_network_that_classifies_frames_is_refused(tmp_path: Path) -> None:
    hugging_face_model("base", "WavLMForAudioFrameClassification").save_pretrained(tmp_path)
    with pytest.raises(KnnError, match="classifies each frame by itself"):
        import_embedding_network(tmp_path)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("task", ["SequenceClassification", "XVector"])
@pytest.mark.parametrize("weighted", [False, True])
@torch.no_grad()
def test_hugging_face_heads_give_the_outputs_of_transformers(
    tmp_path: Path, size: str, task: str, weighted: bool
) -> None:
    names = {"id2label": {0: "calm", 1: "angry", 2: "glad"}, "use_weighted_layer_sum": weighted}
    widths = {"tdnn_dim": [8, 12], "tdnn_kernel": [3, 2], "tdnn_dilation": [1, 1], "xvector_output_dim": 9}
    model = hugging_face_model(size, f"WavLMFor{task}", classifier_proj_size=10, **names, **widths)
    model.save_pretrained(tmp_path)
    clips = F.layer_norm(waveforms(), (4000,)) if size == "large" else waveforms()
    network = imported_network(tmp_path)
    embeddings = network(waveforms())
    ours = network.scores(embeddings) if task == "SequenceClassification" else embeddings
    theirs = model(clips).logits if task == "SequenceClassification" else model(clips).embeddings
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert import_embedding_network(tmp_path).labels == (("calm", "angry", "glad") if "Seq" in task else ())


def test_hugging_face_unknown_head_is_told(tmp_path: Path) -> None:
    folder = write_hugging_face(tmp_path, hugging_face_model("base", "WavLMForCTC"))
    state = load_file(folder / "model.safetensors")
    save_file({**state, "encoder.layer_norm.weight": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(KnnError, match=r"1 extra: \(without wavlm\.\) encoder\.layer_norm\.weight"):
        import_embedding_network(folder)


def test_hugging_face_preprocessor_says_whether_to_normalize(tmp_path: Path) -> None:
    folder = write_hugging_face(tmp_path, hugging_face_model("base"))
    assert import_embedding_network(folder).encoder.args["normalize"] is False
    (folder / "preprocessor_config.json").write_text('{"do_normalize": true}')
    assert import_embedding_network(folder).encoder.args["normalize"] is True


MICROSOFT_NAMES = [  # (Hugging Face, Microsoft), as whole words of a key
    ("feature_projection.layer_norm", "layer_norm"),
    ("feature_projection.projection", "post_extract_proj"),
    ("masked_spec_embed", "mask_emb"),
    ("encoder.pos_conv_embed.conv", "encoder.pos_conv.0"),
    (r"encoder.layers.(\d+).layer_norm", r"encoder.layers.\1.self_attn_layer_norm"),
    (r"encoder.layers.(\d+).feed_forward.intermediate_dense", r"encoder.layers.\1.fc1"),
    (r"encoder.layers.(\d+).feed_forward.output_dense", r"encoder.layers.\1.fc2"),
    (r"encoder.layers.0.attention.rel_attn_embed", "encoder.layers.0.self_attn.relative_attention_bias"),
    (r"encoder.layers.(\d+).attention.gru_rel_pos_linear", r"encoder.layers.\1.self_attn.grep_linear"),
    (r"encoder.layers.(\d+).attention.gru_rel_pos_const", r"encoder.layers.\1.self_attn.grep_a"),
    (r"encoder.layers.(\d+).attention.(k|v|q|out)_proj", r"encoder.layers.\1.self_attn.\2_proj"),
    (r"feature_extractor.conv_layers.(\d+).conv", r"feature_extractor.conv_layers.\1.0"),
]


def microsoft_checkpoint(model: Any, size: str) -> dict[str, Any]:
    """What Microsoft's files hold; names mapped by hand, and `cfg` with settings that only training needs."""
    norm = "2.1" if size == "large" else "2"
    norms = (r"feature_extractor.conv_layers.(\d+).layer_norm", rf"feature_extractor.conv_layers.\1.{norm}")
    state = {}
    for key, value in older_names(model.state_dict()).items():
        for theirs, microsoft in (*MICROSOFT_NAMES, norms):
            if found := re.match(theirs.replace(".(", r"\.(") + r"(?=\.|$)", key):
                key = found.expand(microsoft) + key[found.end() :]
                break
        state[key] = value.clone()
    config = {
        "extractor_mode": "layer_norm" if size == "large" else "default",
        "encoder_layers": BLOCKS,
        "encoder_embed_dim": CHANNELS,
        "encoder_ffn_embed_dim": INNER,
        "encoder_attention_heads": HEADS,
        "activation_fn": "gelu",
        "layer_norm_first": size == "large",
        "conv_feature_layers": f"[({WIDTH},10,5)] + [({WIDTH},3,2)] * 4 + [({WIDTH},2,2)] * 2",
        "conv_bias": size == "large",
        "normalize": size == "large",
        "conv_pos": 8,
        "conv_pos_groups": 2,
        "relative_position_embedding": True,
        "num_buckets": 320,
        "max_distance": 800,
        "gru_rel_pos": True,
        "dropout": 0.1,
        "mask_length": 10,
        "feature_grad_mult": 0.1,
    }
    return {"cfg": config, "model": state}


@pytest.mark.parametrize("size", SIZES)
def test_microsoft_file(tmp_path: Path, size: str) -> None:
    model = hugging_face_model(size)
    checkpoint = microsoft_checkpoint(model, size)
    assert {"mask_emb", "encoder.layers.1.self_attn.grep_a", "post_extract_proj.bias"} <= checkpoint["model"].keys()
    torch.save(checkpoint, tmp_path / "WavLM.pt")
    assert_same(layers_of(tmp_path / "WavLM.pt"), hugging_face_layers(model, size))
    imported = import_embedding_network(tmp_path / "WavLM.pt")
    assert imported.source == "Microsoft: WavLM.pt" and "licence" in imported.licence_note


def torchaudio_model(size: str) -> Any:
    torch.manual_seed(2)
    build = load_torchaudio().models.wavlm_model
    model = build(
        extractor_mode="layer_norm" if size == "large" else "group_norm",
        extractor_conv_layer_config=[(WIDTH, *shape) for shape in zip(KERNELS, STRIDES, strict=True)],
        extractor_conv_bias=size == "large",
        encoder_embed_dim=CHANNELS,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=8,
        encoder_pos_conv_groups=2,
        encoder_num_layers=BLOCKS,
        encoder_num_heads=HEADS,
        encoder_num_buckets=320,
        encoder_max_distance=800,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=INNER,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=size == "large",
        encoder_layer_drop=0.0,
        aux_num_out=5,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("form", ["pt", "safetensors", "older", "wrapped"])
def test_torchaudio_state(tmp_path: Path, size: str, form: str) -> None:
    model = torchaudio_model(size)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    if form == "older":
        state = older_names(state)
    if form == "wrapped":  # what a bundle's get_model() gives where it normalises
        state = {f"model.{key}": value for key, value in state.items()}
    path = tmp_path / ("wavlm.safetensors" if form == "safetensors" else "wavlm.pt")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    ours = layers_of(path)
    with torch.no_grad():
        clips = F.layer_norm(waveforms(), (4000,)) if size == "large" else waveforms()
        theirs, _ = model.extract_features(clips)
    if size == "large":  # its features lack the last norm
        theirs[-1] = model.encoder.transformer.layer_norm(theirs[-1])
    assert_same(ours[1:], theirs)


def edited(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> Path:
    path = folder / "model.safetensors"
    state = load_file(path)
    edit(state)
    save_file(state, path)
    return folder


def test_missing_extra_and_missized_keys_are_listed(tmp_path: Path) -> None:
    folder = write_hugging_face(tmp_path, hugging_face_model("base"))
    edited(folder, lambda state: state.pop("encoder.layers.1.attention.k_proj.bias"))
    with pytest.raises(KnnError, match=r"1 missing: encoder\.layers\.1\.attention\.k_proj\.bias\."):
        import_embedding_network(folder)
    edited(folder, lambda state: state.update({"adapter.proj.weight": torch.ones(1)}))
    with pytest.raises(KnnError, match=r"1 missing: .*; 1 extra: adapter\.proj\.weight\."):
        import_embedding_network(folder)
    edited(folder, lambda state: state.update({"encoder.layer_norm.weight": torch.ones(5)}))
    with pytest.raises(KnnError, match=r"1 missing.*1 extra.*1 mis-sized: encoder\.layer_norm\.weight is \(5,\), not"):
        import_embedding_network(folder)
    edited(folder, lambda state: [state.pop(key) for key in list(state) if "attention" in key])
    with pytest.raises(KnnError, match=r"23 missing: .* and 3 more; 1 extra"):
        import_embedding_network(folder)


def test_microsoft_faults(tmp_path: Path) -> None:
    good = microsoft_checkpoint(hugging_face_model("base"), "base")
    path = tmp_path / "WavLM.pt"
    for change, why in (
        ({"encoder_layers": 3}, r"19 missing: encoder\.layers\.2\.self_attn\.grep_a"),
        ({"encoder_layers": 1}, r"extra: encoder\.layers\.1\."),
        ({"encoder_ffn_embed_dim": 21}, r"mis-sized: encoder\.layers\.0\.fc1\.weight is \(20, 24\), not \(21, 24\)"),
        ({"gru_rel_pos": False}, "gru_rel_pos False, and knn's WavLM supports True only"),
        ({"activation_fn": "relu"}, "'relu'"),
        ({"conv_feature_layers": "__import__('os').getcwd()"}, "which is no list of sizes"),
        ({"conv_feature_layers": "([(12,10,5)] * 99) * 99"}, "which is no list of sizes"),
        ({"encoder_layers": "12"}, "settings of another kind than WavLM's: blocks"),
        ({"extractor_mode": "batch_norm"}, "convolution_norm must be"),
    ):
        torch.save({"cfg": {**good["cfg"], **change}, "model": good["model"]}, path)
        with pytest.raises(KnnError, match=why):
            import_embedding_network(path)
    del good["cfg"]["num_buckets"], good["cfg"]["max_distance"]  # absent means what Microsoft's own reader takes
    torch.save(good, path)
    assert import_embedding_network(path).encoder.args["buckets"] == 320
    assert import_embedding_network(path).encoder.args["distance"] == 1280
    del good["cfg"]["gru_rel_pos"]
    torch.save(good, path)
    with pytest.raises(KnnError, match="gru_rel_pos False"):
        import_embedding_network(path)
    torch.save({"cfg": 1, "model": good["model"]}, path)
    with pytest.raises(KnnError, match="no dictionaries"):
        import_embedding_network(path)


def test_hugging_face_faults(tmp_path: Path) -> None:
    folder = write_hugging_face(tmp_path, hugging_face_model("base"))
    config = json.loads((folder / "config.json").read_text())
    for change, why in (
        ({"model_type": "data2vec-audio"}, "no model_type wavlm"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"add_adapter": True}, "add_adapter True"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps"),
        ({"conv_kernel": [10, 3]}, "different lengths"),
        ({"num_attention_heads": 5}, "heads must divide channels"),
        ({"hidden_size": "24"}, "another kind than WavLM's: channels"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(KnnError, match=why):
            import_embedding_network(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(KnnError, match=r"config\.json cannot be read"):
        import_embedding_network(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(KnnError, match="holds no settings"):
        import_embedding_network(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-50])
    with pytest.raises(KnnError, match=r"model\.safetensors cannot be read"):
        import_embedding_network(folder)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(KnnError, match="has neither"):
        import_embedding_network(folder)
    with pytest.raises(KnnError, match="without its config"):
        save_file(hugging_face_model("base").state_dict(), folder / "weights.safetensors")
        import_embedding_network(folder / "weights.safetensors")


def test_torchaudio_faults(tmp_path: Path) -> None:
    state = torchaudio_model("base").state_dict()
    path, attention = tmp_path / "wavlm.pt", "encoder.transformer.layers.1.attention.attention"

    def refused(why: str, drop: str = "", **changes: Tensor) -> None:
        torch.save({key: value for key, value in {**state, **changes}.items() if key != drop}, path)
        with pytest.raises(KnnError, match=why):
            import_embedding_network(path)

    refused(r"3 missing: .*1\.attention\.attention\.in_proj_bias\[query\]", drop=f"{attention}.in_proj_bias")
    refused(r"in_proj_bias\[query\] is \(3,\), not \(24,\)", **{f"{attention}.in_proj_bias": torch.ones(9)})
    refused(r"extra: .*in_proj_bias", **{f"{attention}.in_proj_bias": torch.ones(10)})
    refused("1 extra: encoder.transformer.other", **{"encoder.transformer.other": torch.ones(1)})
    relative = "encoder.transformer.layers.0.attention.rel_attn_embed.weight"
    refused(f"does not determine the sizes .*{re.escape(relative)}", drop=relative)
    convolution = "feature_extractor.conv_layers.3.conv.weight"
    refused("whose strides knn does not know", **{convolution: torch.ones(WIDTH, WIDTH, 4)})


class Planted:
    """An object that a checkpoint has no business to hold."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 5000 + "]" * 5000, "cannot be read|nested too deep"),
        ("a: &one\n  - *one\n", "nested too deep|repeats itself"),
        ("\n".join(f"a{n}: [{', '.join([f'!ref <a{n + 1}>'] * 9)}]" for n in range(9)) + "\na9: 1", "repeats itself"),
    ],
)
def test_settings_without_end_are_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(KnnError, match=message):
        read_yaml(tmp_path / "config.yaml")
    (tmp_path / "config.json").write_text('{"a": ' + "[" * 200_000)
    with pytest.raises(KnnError, match="cannot be read"):
        read_json(tmp_path / "config.json")


def test_public_importers_say_what_they_take() -> None:
    assert all(inspect.getdoc(getattr(wavlm, name)) for name in wavlm.__all__)


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "WavLM-Base+.pt"
    with pytest.raises(KnnError, match=r"There is no checkpoint .*Microsoft: .*Hugging Face: .*torchaudio: "):
        import_embedding_network(path)
    for content in (b"", b"PK", b"\x80\x02", b"PK\x03\x04" + bytes(100), b"\x80\x02}q\x00(broken", b"RIFF and more"):
        path.write_bytes(content)
        with pytest.raises(KnnError, match=r"is no PyTorch file|cannot be read|is damaged"):
            import_embedding_network(path)
    torch.save(microsoft_checkpoint(hugging_face_model("base"), "base"), path)
    path.write_bytes(path.read_bytes()[:-500])  # a truncated download
    with pytest.raises(KnnError, match="cannot be read"):
        import_embedding_network(path)
    torch.save({"cfg": Planted(), "model": {}}, path)
    with pytest.raises(KnnError, match="objects beside weights"):
        import_embedding_network(path)
    torch.save([torch.ones(1)], path)
    with pytest.raises(KnnError, match="no dictionary"):
        import_embedding_network(path)
    torch.save({"weight": torch.ones(1)}, path)
    with pytest.raises(KnnError, match=r"no checkpoint that knn knows.*Known: Microsoft"):
        import_embedding_network(path)
    with pytest.raises(KnnError, match=r"config\.json cannot be read"):
        import_embedding_network(tmp_path)
