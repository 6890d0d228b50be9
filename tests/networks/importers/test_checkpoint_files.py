"""Checkpoints as they lie about: wrapped, in parts, as pointers, as programs; and what their settings ask for."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from knn_cli.core.errors import KnnError
from knn_cli.networks.conversion import convert
from knn_cli.networks.importers.checkpoint_files import read, read_hugging_face_weights, read_preprocessor, weights_in
from knn_cli.networks.importers.entry import import_embedding_network
from tests.networks.importers.test_wavlm import hugging_face_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
WEIGHTS = {"encoder.a": torch.arange(3.0), "encoder.b": torch.ones(2, 2)}


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module.model.", "_orig_mod.module."])
@pytest.mark.parametrize("place", [(), ("state_dict",), ("model",), ("model_state_dict",), ("state_dict", "model")])
def test_wrappers_of_all_weights_are_taken_off(prefix: str, place: tuple[str, ...]) -> None:
    content: dict[str, Any] = {prefix + key: value for key, value in WEIGHTS.items()}
    for key in reversed(place):
        content = {key: content, "epoch": 3}
    assert weights_in(content) == WEIGHTS
    assert weights_in({"model.a": 1, "loss.b": 2}) == {"model.a": 1, "loss.b": 2}  # not what all have


def folder_of_parts(folder: Path, weight_map: dict[str, str], parts: dict[str, dict[str, Tensor]]) -> Path:
    folder.mkdir()
    for name, part in parts.items():
        save_file(part, folder / name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_parts_are_what_the_index_says(tmp_path: Path) -> None:
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    keys = [*WEIGHTS]
    parts = {name: {key: WEIGHTS[key]} for name, key in zip(names, keys, strict=True)}
    whole = dict(zip(keys, names, strict=True))
    assert read_hugging_face_weights(folder_of_parts(tmp_path / "good", whole, parts)).keys() == set(keys)
    for number, (wrong, message) in enumerate(
        [
            ({**whole, keys[0]: "none.safetensors"}, "lacks parts of its weights: none.safetensors"),
            ({**whole, keys[0]: f"../good/{names[0]}"}, "no parts of the weights beside it"),
            ({**whole, keys[0]: "/etc/hostname"}, "no parts of the weights beside it"),
            ({**whole, keys[0]: "config.json"}, "no parts of the weights beside it"),
            ({**whole, keys[0]: "9" * 5000 + ".safetensors"}, "lacks parts"),
            (dict.fromkeys(keys, names[0]), "holds other weights than model.safetensors.index.json says: encoder.b"),
            ({keys[0]: names[0], "more": names[1]}, "holds other weights than .*: encoder.b, more"),
            ({}, "is no index"),
        ]
    ):
        with pytest.raises(KnnError, match=message):
            read_hugging_face_weights(folder_of_parts(tmp_path / f"{number}", wrong, parts))


@pytest.mark.parametrize(
    "name", ["model.pt", "model.bin", "model.safetensors", "model.ckpt", "store.h5", "folder/config.json"]
)
def test_a_pointer_is_named_as_such(name: str, tmp_path: Path) -> None:
    source = tmp_path / name
    source.parent.mkdir(exist_ok=True)
    source.write_text(POINTER)
    if name == "folder/config.json":
        (source.parent / "model.safetensors").write_text(POINTER)
        source = source.parent
    with pytest.raises(KnnError, match="is a Git LFS pointer, not the file itself"):
        convert(source, tmp_path / "out")


def test_torch_says_nothing_beside_our_sentence(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps([1], 4))  # of a protocol that torch warns of
        archive.writestr("x/version", "3\n")
    with warnings.catch_warnings(record=True) as caught, pytest.raises(KnnError, match=r"x\.pt"):
        warnings.simplefilter("always")
        read(tmp_path / "x.pt")
    assert not caught


@pytest.mark.parametrize("suffix", [".pt", ".zip", ".jit", ".model"])
def test_torchscript_is_named_as_such(suffix: str, tmp_path: Path) -> None:
    source = tmp_path / f"network{suffix}"
    with zipfile.ZipFile(source, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"network/{name}", "1")
    with pytest.raises(KnnError, match="is TorchScript, a program with its weights"):
        convert(source, tmp_path / "out")


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(10 << 20))
    with pytest.raises(KnnError, match="claims to unpack"):
        convert(tmp_path / "bomb.pt", tmp_path / "out")


def test_another_sampling_rate_is_refused(tmp_path: Path) -> None:
    hugging_face_model("base").save_pretrained(tmp_path)
    for name, content in (
        ("processor_config.json", {"feature_extractor": {"sampling_rate": 8000}}),
        ("preprocessor_config.json", {"sampling_rate": 44100}),
    ):
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(KnnError, match=r"has sampling_rate (8000|44100), and knn's WavLM supports 16000 only"):
            import_embedding_network(tmp_path)
    assert read_preprocessor(tmp_path) == {"sampling_rate": 44100}


def test_a_tensor_that_repeats_its_data_is_none(tmp_path: Path) -> None:
    hugging_face_model("base").save_pretrained(tmp_path, safe_serialization=False)
    file = tmp_path / "pytorch_model.bin"
    if not file.is_file():
        pytest.skip("this transformers writes safetensors only")
    state = torch.load(file)
    key = next(key for key in state if key.endswith("q_proj.weight"))
    torch.save({**state, key: torch.zeros(1).expand(state[key].shape)}, file)
    with pytest.raises(KnnError, match="mis-sized"):
        import_embedding_network(tmp_path)
