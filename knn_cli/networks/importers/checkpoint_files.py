"""Reading the files of checkpoints without running code in them, and checking their settings."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError  # only to catch what torch.load raises
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

from knn_cli.core.errors import KnnError
from knn_cli.core.input_files import check_regular, read_bytes
from knn_cli.core.lfs import check_pointer
from knn_cli.networks.construction import first_line
from knn_cli.networks.importers.inert_objects import inert_globals
from knn_cli.networks.importers.weight_names import SOURCES

__all__ = [
    "checked_settings",
    "list_keys",
    "read",
    "read_hugging_face_weights",
    "read_json",
    "read_preprocessor",
    "read_weights",
    "read_yaml",
    "require_settings",
    "sources_hint",
    "weight_parts",
    "weights_in",
    "without_wrappers",
]

_MAX_LISTED_KEYS = 20  # keys listed in an error
_MAX_JSON_BYTES = 1 << 28  # the largest tokenizers have 20 MB
_MAX_SMALL_BYTES = 1 << 20  # of a checkpoint that is next to nothing
_DEEPEST = 100  # dictionaries and lists within each other in a checkpoint
_MAX_SETTINGS = 100_000  # values in a settings file, repeated values counted each time
_STATES = ("state_dict", "model_state_dict", "model")  # where trainers put weights; Lightning, most others, fairseq
# What data-parallel training, torch.compile and Lightning put before the names of all weights.
_WRAPPERS = ("module.", "_orig_mod.", "model.")
# Raised by torch.load and safetensors for bytes that are no checkpoint; torch does not document which errors it raises.
_UNREADABLE = (
    *(SafetensorError, RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError),
    *(AssertionError, OverflowError, MemoryError, zipfile.BadZipFile),
)


def read(path: Path) -> dict[str, Any]:
    """Read the dictionary in a .safetensors or PyTorch file without running code in it; KnnError if that fails."""
    check_regular(path, "a checkpoint")
    check_pointer(path)
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with path.open("rb") as file:
            if file.read(2) not in (b"PK", b"\x80\x02"):
                raise KnnError(f"{path} is no PyTorch file.", sources_hint())
        _check_archive(path)
        known: list[Any] = [torch.torch_version.TorchVersion, *inert_globals(path)]
        with torch.serialization.safe_globals(known), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of damaged archives
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise KnnError(f"{path} cannot be read: {first_line(error)}.", "Download it again.") from error
    except UnpicklingError as error:
        raise KnnError(
            f"{path} is damaged, or holds objects beside weights, which knn does not load because that could run "
            "foreign code.",
            "Save its state dict alone, or as safetensors.",
        ) from error
    if not isinstance(content, dict):
        raise KnnError(f"{path} holds no dictionary of weights.", sources_hint())
    _check_depth(content, path)
    return content


def _check_depth(content: Mapping[Any, Any], path: Path) -> None:
    """Raise a KnnError if dictionaries and lists are nested without end, or deeper than functions can follow."""
    level: list[Any] = [content]
    for _ in range(_DEEPEST):
        parts = (part for each in level for part in (each.values() if isinstance(each, dict) else each))
        level = list({id(part): part for part in parts if isinstance(part, dict | list | tuple)}.values())
        if not level:
            return
    raise KnnError(f"{path} is nested more than {_DEEPEST} levels deep, which no checkpoint is.", sources_hint())


def _check_archive(path: Path) -> None:
    """Raise a KnnError if a zip is a program in TorchScript or a bomb; files that are no zip are left to torch."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > 2 * path.stat().st_size + _MAX_SMALL_BYTES:  # torch does not compress
        raise KnnError(f"{path} claims to unpack to {unpacked:,} bytes, which no checkpoint does.", sources_hint())
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        raise KnnError(
            f"{path} is TorchScript, a program with its weights, which knn does not run.",
            f"Save its state dict: torch.save(torch.jit.load('{path.name}').state_dict(), 'weights.pt').",
        )


def read_weights(path: Path) -> dict[str, Any]:
    """Read the weights in a file as `read` does, without what trainers put around them and before their names."""
    return weights_in(read(path))


def weights_in(content: Mapping[str, Any]) -> dict[str, Any]:
    """The state dict within the content of a checkpoint, or the content itself, `without_wrappers`."""
    inner = next((content[key] for key in _STATES if isinstance(content.get(key), dict)), None)
    return without_wrappers(content) if inner is None else weights_in(inner)


def without_wrappers(weights: Mapping[Any, Any]) -> dict[str, Any]:
    """Weights under names without what wrappers of modules put before all of them."""
    named = {str(key): value for key, value in weights.items()}
    while named:
        prefix = next((each for each in _WRAPPERS if all(key.startswith(each) for key in named)), None)
        if prefix is None:
            break
        named = {key.removeprefix(prefix): value for key, value in named.items()}
    return named


def read_hugging_face_weights(folder: Path) -> dict[str, Any]:
    """Read the weights in a Hugging Face folder, in one file or in several with an index; KnnError if there are none.

    Safetensors come before PyTorch's files, and a whole file before parts.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_weights(folder / name)
        if (index := folder / f"{name}.index.json").is_file():
            return _read_parts(index)
    raise KnnError(f"{folder} has neither model.safetensors nor pytorch_model.bin.", "Copy the whole folder.")


def _read_parts(index: Path) -> dict[str, Any]:
    """The weights that an index names, each from the file that it names. KnnError for missing and further ones."""
    parts = weight_parts(index)
    named: dict[str, str] = {str(key): str(name) for key, name in read_json(index)["weight_map"].items()}
    weights: dict[str, Any] = {}
    for part in parts:
        content = read(part)
        expected = {key for key, name in named.items() if name == part.name}
        if odd := sorted(expected ^ set(map(str, content))):
            raise KnnError(
                f"{part} holds other weights than {index.name} says: {list_keys(odd)}.", "Download it again."
            )
        weights |= content
    return weights_in(weights)


def weight_parts(index: Path) -> list[Path]:
    """The files that an index of weights names, beside it. KnnError if it names none, others, or one that is missing.

    An index is {"weight_map": {weight: file}}.
    """
    parts = read_json(index).get("weight_map")
    names = sorted({str(name) for name in parts.values()}) if isinstance(parts, dict) else []
    if not names:
        raise KnnError(f"{index} is no index of files with weights.", "Copy the whole folder.")
    suffix = index.name.removesuffix(".index.json").rpartition(".")[2]
    if foreign := [name for name in names if Path(name).name != name or not name.endswith(f".{suffix}")]:
        shown = list_keys([repr(name[:80]) for name in foreign])
        raise KnnError(f"{index} names files that are no parts of the weights beside it: {shown}.", sources_hint())
    present = {path.name for path in index.parent.iterdir() if path.is_file()}
    if missing := [name for name in names if name not in present]:
        raise KnnError(f"{index.parent} lacks parts of its weights: {list_keys(missing)}.", "Copy the whole folder.")
    return [index.parent / name for name in names]


def read_json(path: Path) -> dict[str, Any]:
    """Read the settings in a JSON file; KnnError if there are none."""
    try:
        content = json.loads(_settings_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise KnnError(f"{path} cannot be read: {first_line(error)}.", sources_hint()) from error
    if not isinstance(content, dict):
        raise KnnError(f"{path} holds no settings.", sources_hint())
    return content


def _settings_text(path: Path) -> str:
    """The text of a file of settings. KnnError if it is no file of a possible size, ValueError if it is no text."""
    check_regular(path, "a file of settings")
    data = read_bytes(path, "a file of settings", most=_MAX_JSON_BYTES)
    check_pointer(path, data)
    return data.decode("utf-8")


def read_preprocessor(folder: Path) -> dict[str, Any]:
    """The settings of a Hugging Face folder's features, which two files may hold; {} where neither is there."""
    if (own := folder / "preprocessor_config.json").is_file():
        return read_json(own)
    if (all_of_them := folder / "processor_config.json").is_file():
        features = read_json(all_of_them).get("feature_extractor")
        return features if isinstance(features, dict) else {}
    return {}


class _InertLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """A safe loader that reads the tags of HyperPyYAML and Python as data: nothing is built, called or looked up."""


def _tagged(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {"!": tag, **loader.construct_mapping(node, deep=True)}
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return f"!{tag} {node.value}".strip()


_InertLoader.add_multi_constructor("!", _tagged)
_InertLoader.add_multi_constructor("tag:yaml.org,2002:python/", _tagged)  # of tensors and tuples that were dumped


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the settings in a YAML file; KnnError if there are none.

    HyperPyYAML's `!new:CLASS` becomes a dictionary with the class under "!", and `!ref <name>` becomes the value of
    the top-level key `name`; other tags become strings.
    """
    try:
        content = yaml.load(_settings_text(path), Loader=_InertLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise KnnError(f"{path} cannot be read: {first_line(error)}.", sources_hint()) from error
    if not isinstance(content, dict):
        raise KnnError(f"{path} holds no settings.", sources_hint())

    visited = 0

    def resolve(value: Any, depth: int = 0) -> Any:
        nonlocal visited
        visited += 1
        if visited > _MAX_SETTINGS:
            raise KnnError(f"{path} repeats itself without end.", sources_hint())
        if isinstance(value, dict):
            return {key: resolve(item, depth) for key, item in value.items()}
        if isinstance(value, list):
            return [resolve(item, depth) for item in value]
        reference = re.fullmatch(r"!ref <(\w+)>", value) if isinstance(value, str) else None
        if reference is None or reference[1] not in content or depth > len(content):
            return value
        return resolve(content[reference[1]], depth + 1)

    try:
        return {str(key): resolve(item) for key, item in content.items()}
    except RecursionError as error:
        raise KnnError(f"{path} is nested too deep.", sources_hint()) from error


def require_settings(settings: Mapping[str, Any], wanted: Mapping[str, Any], path: Path, network: str) -> None:
    """Raise KnnError where a setting is present and differs from the only value that knn's network supports."""
    for key, value in wanted.items():
        if (given := settings.get(key, value)) != value:
            raise KnnError(f"{path} has {key} {given!r}, and knn's {network} supports {value!r} only.", sources_hint())


def checked_settings(
    settings: Mapping[str, Any], defaults: Mapping[str, Any], path: Path, network: str
) -> dict[str, Any]:
    """Fill in `defaults` where `settings` lacks a key.

    Parameters
    ----------
    settings : mapping
        The settings of the checkpoint.
    defaults : mapping
        The keys to return, with the value of each where it is missing; a given value must have the same type.
    path : Path
        The file with the settings, for error messages.
    network : str
        The kind of network, for error messages.

    Returns
    -------
    dict
        The value of each key of `defaults`, in the same order.

    Raises
    ------
    KnnError
        A setting has another type than its default, or a list holds anything but integers.
    """
    checked = {key: settings.get(key, default) for key, default in defaults.items()}
    checked |= {
        key: float(value) for key, value in checked.items() if (type(defaults[key]), type(value)) == (float, int)
    }
    odd = [key for key, value in checked.items() if type(value) is not type(defaults[key])]
    odd += [key for key, value in checked.items() if type(value) is list and {type(item) for item in value} != {int}]
    if odd:
        raise KnnError(f"{path} has settings of another kind than {network}'s: {list_keys(odd)}.", sources_hint())
    return checked


def list_keys(keys: Sequence[object]) -> str:
    """List the first keys and the number of further ones, for messages."""
    shown = ", ".join(str(key) for key in keys[:_MAX_LISTED_KEYS])
    return f"{shown} and {len(keys) - _MAX_LISTED_KEYS} more" if len(keys) > _MAX_LISTED_KEYS else shown


def sources_hint() -> str:
    """The hint of an error message that lists all supported sources."""
    return "Known: " + "; ".join(f"{name}: {what}" for name, what in SOURCES.items()) + "."
