"""Tools for all importers: reading files without running code in them, and matching weights key by key."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError  # only to catch what torch.load raises
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS, HEADS, POOLINGS
from knn_cli.networks.importers.weight_names import SOURCES, WeightNames

__all__ = [
    "ImportedComponent",
    "ImportedModel",
    "ImportedSegmenter",
    "InertObject",
    "list_keys",
    "match_weights",
    "read",
    "read_hugging_face_weights",
    "read_json",
    "read_yaml",
    "require_settings",
    "sources_hint",
]

_MAX_LISTED_KEYS = 20  # keys listed in an error
_MAX_SETTINGS = 100_000  # values in a settings file, repeated values counted each time


@dataclass(frozen=True)
class ImportedComponent:
    """An imported encoder, pooling or head.

    Attributes
    ----------
    name : str
        Its name in the registry.
    args : dict
        Its arguments, serializable as JSON.
    state : dict of str to Tensor
        Its state dict.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ImportedModel:
    """An imported embedding network, with weights on the CPU in the data types of knn's modules.

    Attributes
    ----------
    encoder : ImportedComponent
        The encoder.
    source : str
        The source and the name of the file or folder.
    licence_note : str
        Note about the licence for the bundle's card.
    pooling : ImportedComponent
        The pooling; the mean over the last layer if the checkpoint has none.
    head : ImportedComponent or None
        The head, if the checkpoint has one and the names of its classes are known.
    labels : tuple of str
        Names of the classes, in the head's order.
    level : str
        The label level of these names: group or subgroup.
    scale : float
        The factor by which the network expects waveforms in [-1, 1] to be multiplied.
    """

    encoder: ImportedComponent
    source: str
    licence_note: str
    pooling: ImportedComponent = field(default_factory=lambda: ImportedComponent("mean"))
    head: ImportedComponent | None = None
    labels: tuple[str, ...] = ()
    level: str = "group"
    scale: float = 1.0

    @property
    def state(self) -> dict[str, Tensor]:
        """All weights under the names of a bundle: `encoder.*`, `pooling.*`, `head.*`."""
        components = {"encoder": self.encoder, "pooling": self.pooling, "head": self.head or ImportedComponent("")}
        return {
            f"{name}.{key}": value for name, component in components.items() for key, value in component.state.items()
        }


@dataclass(frozen=True)
class ImportedSegmenter:
    """An imported segmentation network; `source` and `licence_note` are those of `ImportedModel`."""

    network: ImportedComponent
    source: str
    licence_note: str


@dataclass(frozen=True)
class ComponentToFill:
    """A component whose weights are still to be loaded from a checkpoint.

    Attributes
    ----------
    component : ImportedComponent
        Its registry name and arguments, without weights.
    module : nn.Module
        The module itself, usually on the meta device.
    names : WeightNames
        The names of its weights in the source.
    prefix : str
        The prefix of all its weights in the checkpoint.
    """

    component: ImportedComponent
    module: nn.Module
    names: WeightNames
    prefix: str = ""


# Raised by torch.load and safetensors for bytes that are no checkpoint; torch does not document which errors it raises.
_UNREADABLE = (SafetensorError, RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError)


def encoder_to_fill(name: str, args: dict[str, Any], names: WeightNames, prefix: str = "") -> ComponentToFill:
    """Build an encoder on the meta device. Raises KnnError for arguments that it does not take."""
    with torch.device("meta"):
        return ComponentToFill(ImportedComponent(name, args), ENCODERS.build(name, **args), names, prefix)


def pooling_to_fill(
    encoder: ComponentToFill, name: str, args: dict[str, Any], names: WeightNames, prefix: str = ""
) -> ComponentToFill:
    """Build the pooling after `encoder` on the meta device. Raises KnnError for arguments that it does not take."""
    sizes: dict[str, Any] = {"layers": encoder.module.layers, "channels": encoder.module.channels}
    with torch.device("meta"):
        return ComponentToFill(ImportedComponent(name, args), POOLINGS.build(name, **sizes, **args), names, prefix)


def head_to_fill(
    pooling: ComponentToFill, classes: int, name: str, args: dict[str, Any], names: WeightNames, prefix: str = ""
) -> ComponentToFill:
    """Build the head after `pooling` on the meta device. Raises KnnError for arguments that it does not take."""
    sizes: dict[str, Any] = {"dimension": pooling.module.dimension, "classes": classes}
    with torch.device("meta"):
        return ComponentToFill(ImportedComponent(name, args), HEADS.build(name, **sizes, **args), names, prefix)


def match_weights(
    components: Sequence[ComponentToFill],
    weights: Mapping[str, Any],
    path: Path,
    network: str,
    source: str,
    extras: str = "",
) -> list[ImportedComponent]:
    """Match the weights of a checkpoint strictly with those that the components need.

    Parameters
    ----------
    components : sequence of ComponentToFill
        The components to load.
    weights : mapping of str to Tensor
        The weights of the checkpoint, under the names that the source gives them.
    path : Path
        The checkpoint, for error messages.
    network, source : str
        The kind of network and the source, for error messages.
    extras : str
        Regular expression of keys that are left out.

    Returns
    -------
    list of ImportedComponent
        The components with their weights, in the order given.

    Raises
    ------
    KnnError
        Keys are missing, extra or of another shape; all of them are listed.
    """
    expected = {
        each.prefix + each.names.source_name(key): (number, key, value)
        for number, each in enumerate(components)
        for key, value in each.module.state_dict().items()
    }
    left_out = [extras, *(f"{re.escape(each.prefix)}({each.names.extras})" for each in components if each.names.extras)]
    faults = _faults({key: value for key, (_, _, value) in expected.items()}, weights, "|".join(left_out))
    if faults:
        raise KnnError(
            f"{path} does not hold the {network} that it describes ({source} names). {'; '.join(faults)}.",
            "Download it again, or check that its config belongs to it.",
        )
    states: list[dict[str, Tensor]] = [{} for _ in components]
    for source_key, (number, key, value) in expected.items():
        states[number][key] = weights[source_key].detach().to(value.dtype).contiguous()
    return [
        ImportedComponent(each.component.name, json.loads(json.dumps(each.component.args)), state)
        for each, state in zip(components, states, strict=True)
    ]


def _faults(expected: Mapping[str, Tensor], weights: Mapping[str, Any], left_out: str) -> list[str]:
    """What is missing, extra or of another shape in the weights of a checkpoint, a sentence part each."""
    extra = [key for key in weights if key not in expected and not re.fullmatch(left_out, str(key))]
    missing = [key for key in expected if key not in weights]
    shapes = {key: (_shape(weights[key]), tuple(value.shape)) for key, value in expected.items() if key in weights}
    mis_sized = [f"{key} is {given}, not {needed}" for key, (given, needed) in shapes.items() if given != needed]
    by_fault = {"missing": missing, "extra": extra, "mis-sized": mis_sized}
    return [f"{len(keys)} {fault}: {list_keys(keys)}" for fault, keys in by_fault.items() if keys]


class InertObject:
    """Placeholder for pickled objects of other programs: keeps their constructor arguments and state, runs nothing."""

    state: object = None

    def __init__(self, *values: object) -> None:
        self.values = values

    def __setstate__(self, state: object) -> None:
        self.state = state


_SAFE: list[Any] = [
    torch.torch_version.TorchVersion,
    *((InertObject, f"pyannote.audio.core.task.{name}") for name in ("Specifications", "Problem", "Resolution")),
]


def read(path: Path) -> dict[str, Any]:
    """Read the dictionary in a .safetensors or PyTorch file without running code in it; KnnError if that fails."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with path.open("rb") as file:
            if file.read(2) not in (b"PK", b"\x80\x02"):
                raise KnnError(f"{path} is no PyTorch file.", sources_hint())
        with torch.serialization.safe_globals(_SAFE):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise KnnError(f"{path} cannot be read: {_first_line(error)}.", "Download it again.") from error
    except UnpicklingError as error:
        raise KnnError(
            f"{path} is damaged, or holds objects beside weights, which knn does not load because that could run "
            "foreign code.",
            "Save its state dict alone, or as safetensors.",
        ) from error
    if not isinstance(content, dict):
        raise KnnError(f"{path} holds no dictionary of weights.", sources_hint())
    return content


def read_hugging_face_weights(folder: Path) -> dict[str, Any]:
    """Read the weights in a Hugging Face folder; KnnError if there are none."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read(folder / name)
    raise KnnError(f"{folder} has neither model.safetensors nor pytorch_model.bin.", "Copy the whole folder.")


def read_json(path: Path) -> dict[str, Any]:
    """Read the settings in a JSON file; KnnError if there are none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise KnnError(f"{path} cannot be read: {_first_line(error)}.", sources_hint()) from error
    if not isinstance(content, dict):
        raise KnnError(f"{path} holds no settings.", sources_hint())
    return content


class _InertLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """A safe loader that reads the tags of HyperPyYAML as data: nothing is built, called or looked up."""


def _tagged(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {"!": tag, **loader.construct_mapping(node, deep=True)}
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return f"!{tag} {node.value}".strip()


_InertLoader.add_multi_constructor("!", _tagged)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the settings in a YAML file; KnnError if there are none.

    HyperPyYAML's `!new:CLASS` becomes a dictionary with the class under "!", and `!ref <name>` becomes the value of
    the top-level key `name`; other tags become strings.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_InertLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise KnnError(f"{path} cannot be read: {_first_line(error)}.", sources_hint()) from error
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


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
