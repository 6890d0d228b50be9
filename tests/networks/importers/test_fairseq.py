"""Files of fairseq: transformers' weights under its names, with settings as argparse and omegaconf pickle them."""

from __future__ import annotations

import argparse
import enum
import pickle
import sys
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from knn_cli.core.errors import KnnError
from knn_cli.networks.importers.checkpoint_files import read
from knn_cli.networks.importers.components import ImportedModel
from knn_cli.networks.importers.entry import import_checkpoint, import_embedding_network
from knn_cli.networks.importers.inert_objects import plain_settings
from tests.helpers.imported_networks import imported_network
from tests.networks.importers.test_wav2vec2 import KINDS, clip, inputs, saved

WHOLE = {  # transformers' names of modules -> fairseq's
    "feature_projection.layer_norm": "layer_norm",
    "feature_projection.projection": "post_extract_proj",
    "encoder.pos_conv_embed.conv": "encoder.pos_conv.0",
    "masked_spec_embed": "mask_emb",
}
PARTS = {
    ".attention.q_proj.": ".self_attn.q_proj.",
    ".attention.k_proj.": ".self_attn.k_proj.",
    ".attention.v_proj.": ".self_attn.v_proj.",
    ".attention.out_proj.": ".self_attn.out_proj.",
    ".feed_forward.intermediate_dense.": ".fc1.",
    ".feed_forward.output_dense.": ".fc2.",
    ".parametrizations.weight.original0": ".weight_g",
    ".parametrizations.weight.original1": ".weight_v",
}
LABELS = ["ces", "eng", "slk", "deu"]


def weights(model: Any, kind: str, prefix: str = "") -> dict[str, Tensor]:
    """The encoder of a model of transformers under fairseq's names."""
    norm = "2.1" if KINDS[kind][1].get("feat_extract_norm") == "layer" else "2"
    state = {}
    for name, value in model.base_model.state_dict().items():
        for theirs, ours in WHOLE.items():
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
        for theirs, ours in PARTS.items():
            name = name.replace(theirs, ours)
        if name.startswith("feature_extractor"):
            name = name.replace(".conv.", ".0.").replace(".layer_norm.", f".{norm}.")
        elif name.startswith("encoder.layers.") and ".layer_norm." in name and "final" not in name:
            name = name.replace(".layer_norm.", ".self_attn_layer_norm.")
        state[prefix + name] = value.clone()
    return state


def settings(kind: str, model: Any) -> dict[str, Any]:
    config, large = model.config, KINDS[kind][1]
    shapes = list(zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True))
    return {
        "extractor_mode": "layer_norm" if large.get("feat_extract_norm") == "layer" else "default",
        "encoder_layers": config.num_hidden_layers,
        "encoder_embed_dim": config.hidden_size,
        "encoder_ffn_embed_dim": config.intermediate_size,
        "encoder_attention_heads": config.num_attention_heads,
        "activation_fn": "gelu",
        "layer_norm_first": config.do_stable_layer_norm,
        "conv_feature_layers": str(shapes),
        "conv_bias": config.conv_bias,
        "conv_pos": config.num_conv_pos_embeddings,
        "conv_pos_groups": config.num_conv_pos_embedding_groups,
        "dropout": 0.1,
        "quantize_input": False,
    }


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Stand-ins for classes of omegaconf and fairseq, which pickle as theirs do; none of them is there on reading."""

    class Mode(enum.Enum):
        default = "default"
        layer_norm = "layer_norm"

    kinds: dict[str, Any] = {"Mode": Mode}
    for name in ("DictConfig", "ListConfig", "AnyNode", "Metadata", "Dictionary"):
        kinds[name] = type(name, (), {})
    places = {
        "DictConfig": "omegaconf.dictconfig",
        "ListConfig": "omegaconf.listconfig",
        "AnyNode": "omegaconf.nodes",
        "Metadata": "omegaconf.base",
        "Dictionary": "fairseq.data.dictionary",
        "Mode": "fairseq.dataclass.constants",
    }
    for name, place in places.items():
        kinds[name].__module__, kinds[name].__qualname__ = place, name
        for module in (place.split(".")[0], place):
            monkeypatch.setitem(sys.modules, module, sys.modules.get(module) or ModuleType(module))
        setattr(sys.modules[place], name, kinds[name])
    yield kinds


def container(programs: dict[str, Any], value: Any, parent: Any = None) -> Any:
    """As omegaconf keeps a value: containers with their parents, leaves with their types, enumerations as members."""
    if isinstance(value, dict | list):
        made = programs["DictConfig" if isinstance(value, dict) else "ListConfig"]()
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        children = {key: container(programs, each, made) for key, each in pairs}
        made._content = children if isinstance(value, dict) else list(children.values())
    else:
        made = programs["AnyNode"]()
        made._val = programs["Mode"](value) if value in ("default", "layer_norm") else value
    made._metadata = programs["Metadata"]()
    made._metadata.__dict__.update(ref_type=int, object_type=dict, resolver_cache=defaultdict(dict, {"a": {}}))
    made._parent = parent
    return made


def write(path: Path, content: dict[str, Any], old: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    for name in [name for name in sys.modules if name.split(".")[0] in ("omegaconf", "fairseq")]:
        del sys.modules[name]  # nothing may be looked up
    return path


EXTRAS = {
    "quantizer.vars": torch.zeros(1, 4, 2),
    "quantizer.weight_proj.weight": torch.zeros(4, 12),
    "project_q.weight": torch.zeros(4, 4),
    "final_proj.bias": torch.zeros(4),
    "label_embs_concat": torch.zeros(5, 4),
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "without" not in kind and kind != "mms"])
@pytest.mark.parametrize("form", ["args", "cfg", "plain", "old"])
@torch.no_grad()
def test_pretrained_networks(tmp_path: Path, kind: str, form: str, programs: dict[str, Any]) -> None:
    model = saved(tmp_path / "hf", kind)
    chosen = settings(kind, model)
    content: dict[str, Any] = {"args": None, "cfg": None, "model": weights(model, kind) | EXTRAS, "best_loss": 1.5}
    nested = {"model": chosen | {"_name": "wav2vec2"}, "task": {"normalize": True, "labels": ["a", {"b": 1}]}}
    if form == "args":
        content["args"] = argparse.Namespace(**chosen, normalize=True, arch="wav2vec2")
    else:
        content["cfg"] = nested if form == "plain" else container(programs, nested)
    file = write(tmp_path / "w2v.pt", content, form in ("args", "old"))
    theirs = model(**inputs(tmp_path / "hf", clip()), output_hidden_states=True)
    network = imported_network(file)
    for one, other in zip(
        network.encoder(clip()[None]), [*theirs.hidden_states[:-1], theirs.last_hidden_state], strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    imported = import_embedding_network(file)
    assert imported.source == "fairseq: w2v.pt" and imported.head is None and "CTC" not in imported.licence_note


def test_a_network_tuned_for_ctc_is_an_encoder(tmp_path: Path, programs: dict[str, Any]) -> None:
    model = saved(tmp_path / "hf", "xls-r")
    inner = {"model": settings("xls-r", model), "task": {"normalize": False}}
    tuned = {"model": {"_name": "wav2vec_ctc", "normalize": "${task.normalize}", "w2v_args": inner}}
    state = weights(model, "xls-r", "w2v_encoder.w2v_model.") | {"w2v_encoder.proj.bias": torch.zeros(3)}
    cfg = container(programs, tuned | {"task": {"normalize": True}})
    imported = import_embedding_network(write(tmp_path / "ctc.pt", {"args": None, "cfg": cfg, "model": state}))
    assert imported.encoder.args["normalize"] is True and "CTC" in imported.licence_note
    old = argparse.Namespace(w2v_args=argparse.Namespace(**settings("xls-r", model), normalize=True), w2v_path="a.pt")
    imported = import_embedding_network(write(tmp_path / "old.pt", {"args": old, "model": state}))
    assert imported.encoder.args["normalize"] is True and imported.encoder.args["heads"] == 3


@pytest.mark.parametrize("activation", ["linear", "gelu"])
@torch.no_grad()
def test_the_classifier_of_languages(tmp_path: Path, activation: str, programs: dict[str, Any]) -> None:
    model = saved(tmp_path / "hf", "xls-r", "ForSequenceClassification", num_labels=4)
    head = {
        f"pooling_layer.{ours}.{part}": getattr(getattr(model, theirs), part).detach().clone()
        for ours, theirs in (("linear", "projector"), ("projection", "classifier"))
        for part in ("weight", "bias")
    }
    state = weights(model, "xls-r", "w2v_encoder.w2v_model.") | head
    config = {"_name": "wav2vec_classification", "pooling": "mean", "activation_fn": activation}
    cfg = {"model": config | {"w2v_args": {"model": settings("xls-r", model)}}, "task": {"normalize": True}}
    names = programs["Dictionary"]()
    names.symbols, names.indices = LABELS, {name: number for number, name in enumerate(LABELS)}
    content = {"args": None, "cfg": cfg, "model": state}
    file = write(tmp_path / "lid.pt", content | {"task_state": {"target_dictionary": names}})
    clips = [clip(), clip(4321)]
    network = imported_network(file)
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    ours = network.scores(network(batch, torch.tensor([6000, 4321])))
    for row, each in enumerate(clips):
        hidden = model.base_model(**inputs(tmp_path / "hf", each)).last_hidden_state[0]
        latent = model.projector(hidden).mean(0)
        latent = latent if activation == "linear" else torch.nn.functional.gelu(latent)
        torch.testing.assert_close(ours[row], model.classifier(latent), atol=1e-4, rtol=0)
    assert import_embedding_network(file).labels == ("cs", "en", "sk", "de")
    other = write(tmp_path / "other.pt", content)
    with pytest.raises(KnnError, match="4 classes, and 0 names") as caught:
        import_embedding_network(other)
    assert "dict.lang.txt" in caught.value.hint
    (tmp_path / "dict.lang.txt").write_text("".join(f"{name} 1\n" for name in LABELS))
    assert import_embedding_network(other).labels == ("cs", "en", "sk", "de")


def test_checkpoints_of_a_training_are_averaged(tmp_path: Path) -> None:
    model = saved(tmp_path / "hf", "xls-r")
    state, chosen = weights(model, "xls-r"), settings("xls-r", model)

    def checkpoint(number: int, shift: float, **changed: Any) -> Path:
        args = argparse.Namespace(**{**chosen, "normalize": True, **changed})
        shifted = state | {"layer_norm.bias": state["layer_norm.bias"] + shift}
        return write(tmp_path / f"checkpoint{number}.pt", {"args": args, "cfg": None, "model": shifted})

    checkpoint(1, 1.0)
    last = checkpoint(2, 3.0)
    imported = import_checkpoint(last, average="2")
    assert isinstance(imported, ImportedModel) and imported.encoder.args["normalize"] is True
    torch.testing.assert_close(imported.encoder.state["front.norm.bias"], state["layer_norm.bias"] + 2)
    checkpoint(1, 1.0, normalize=False)
    with pytest.raises(KnnError, match="other settings of its network"):
        import_checkpoint(last, average="2")


def test_what_is_another_network_is_refused(tmp_path: Path) -> None:
    model = saved(tmp_path / "hf", "xls-r")
    state, chosen = weights(model, "xls-r"), settings("xls-r", model)
    adapters = {"encoder.layers.0.adapter_layer.W_a": torch.zeros(2, 3, 24)}
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({}, {"layer_type": "conformer"}, "layer_type 'conformer'"),
        ({}, {"conv_feature_layers": "__import__('os')"}, "no list of sizes"),
        ({}, {"encoder_layers": "3"}, "another kind"),
        ({}, {"encoder_layers": 2}, "extra: encoder.layers.2"),
        ({}, {"encoder_attention_heads": None}, "another kind"),
        (adapters, {}, "adapters of many languages"),
        ({"odd": torch.zeros(1)}, {}, "1 extra: odd"),
    ]
    for number, (more, change, message) in enumerate(cases):
        file = write(tmp_path / f"{number}.pt", {"cfg": {"model": chosen | change}, "model": state | more})
        with pytest.raises(KnnError, match=message):
            import_embedding_network(file)
    with pytest.raises(KnnError, match="does not say the sizes"):
        import_embedding_network(write(tmp_path / "none.pt", {"args": None, "model": state}))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, ("open('ran', 'w')",))


@pytest.mark.parametrize("old", [False, True])
def test_objects_of_other_programs_run_nothing(tmp_path: Path, old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, evil in (("eval", Evil()), ("system", Path("x"))):
        with pytest.raises(KnnError, match="could run foreign code"):
            read(write(tmp_path / f"{name}.pt", {"args": evil, "model": {}}, old))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_damage_of_compressed_archives_is_told(tmp_path: Path, method: int) -> None:
    content = pickle.dumps({f"weight {number}": number for number in range(3000)}, protocol=2)
    with zipfile.ZipFile(tmp_path / "a.pt", "w", method) as archive:
        archive.writestr("a/data.pkl", content)
    data = bytearray((tmp_path / "a.pt").read_bytes())
    data[200:400] = bytes(value ^ 0x5A for value in data[200:400])
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(KnnError, match=r"a\.pt cannot be read"):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize("old", [False, True])
def test_contents_without_end_or_too_deep_are_refused(tmp_path: Path, old: bool) -> None:
    loop: dict[str, Any] = {}
    loop["model"] = loop
    deep: dict[str, Any] = {}
    for _ in range(150):
        deep = {"model": [deep]}
    for number, content in enumerate((loop, deep)):
        with pytest.raises(KnnError, match="nested more than 100 levels"):
            import_embedding_network(write(tmp_path / f"{number}.pt", content, old))


def test_settings_without_values_are_settings(tmp_path: Path) -> None:
    empty = argparse.Namespace()
    content = read(write(tmp_path / "a.pt", {"args": argparse.Namespace(number=3, empty=empty), "cfg": empty}))
    assert plain_settings(content["args"]) == {"number": 3, "empty": None} and plain_settings(content["cfg"]) == {}


def test_settings_that_repeat_themselves_without_end_come_to_one(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    wide: Any = "x"
    for _ in range(30):
        wide = [wide, wide]
    content = read(write(tmp_path / "a.pt", {"args": argparse.Namespace(number=3, loop=loop, wide=wide)}))
    assert plain_settings(content["args"])["number"] == 3
    assert plain_settings(3) == {}
