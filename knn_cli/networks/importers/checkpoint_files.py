"""What all importers share: files read without running anything in them, and weights matched key by key."""

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
_MAX_SETTINGS = 100_000  # values in a file of settings, what it repeats counted as often as it does


@dataclass(frozen=True)
class ImportedComponent:
    """An encoder, a pooling or a head: its name in the registry, its arguments, ready for JSON, and its weights."""

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ImportedModel:
    """A network from elsewhere, its weights in the types of ours, on the CPU.

    Attributes
    ----------
    encoder
        The encoder.
    source
        Source and file or folder name that it came from.
    licence_note
        What to write about the licence in a bundle's card.
    pooling
        The pooling, the mean over the last layer where the checkpoint has none.
    head
        The head, if the checkpoint has one whose classes have names.
    labels
        These names, in the head's order.
    level
        The level of labels that they belong to: group or subgroup.
    scale
        Factor on waveforms in [-1, 1] that the network expects.
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
        parts = {"encoder": self.encoder, "pooling": self.pooling, "head": self.head or ImportedComponent("")}
        return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state.items()}


@dataclass(frozen=True)
class ImportedSegmenter:
    """A segmentation network from elsewhere: what it is, and source and licence as of `ImportedModel`."""

    network: ImportedComponent
    source: str
    licence_note: str


@dataclass(frozen=True)
class ComponentToFill:
    """A component without weights, how a source names its weights, and what it puts in front of all of them."""

    part: ImportedComponent
    module: nn.Module
    names: WeightNames
    prefix: str = ""


# What torch.load and safetensors raise for bytes that are no checkpoint: torch does not promise one kind of error.
_UNREADABLE = (SafetensorError, RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError)


def encoder_to_fill(name: str, args: dict[str, Any], names: WeightNames, prefix: str = "") -> ComponentToFill:
    """An encoder to be filled. Raises KnnError for arguments that it does not take."""
    with torch.device("meta"):
        return ComponentToFill(ImportedComponent(name, args), ENCODERS.build(name, **args), names, prefix)


def pooling_to_fill(
    encoder: ComponentToFill, name: str, args: dict[str, Any], names: WeightNames, prefix: str = ""
) -> ComponentToFill:
    """A pooling behind `encoder` to be filled. Raises KnnError for arguments that it does not take."""
    sizes: dict[str, Any] = {"layers": encoder.module.layers, "channels": encoder.module.channels}
    with torch.device("meta"):
        return ComponentToFill(ImportedComponent(name, args), POOLINGS.build(name, **sizes, **args), names, prefix)


def head_to_fill(
    pooling: ComponentToFill, classes: int, name: str, args: dict[str, Any], names: WeightNames, prefix: str = ""
) -> ComponentToFill:
    """A head behind `pooling` to be filled. Raises KnnError for arguments that it does not take."""
    sizes: dict[str, Any] = {"dimension": pooling.module.dimension, "classes": classes}
    with torch.device("meta"):
        return ComponentToFill(ImportedComponent(name, args), HEADS.build(name, **sizes, **args), names, prefix)


def match_weights(
    wanted: Sequence[ComponentToFill], found: Mapping[str, Any], path: Path, what: str, dialect: str, extras: str = ""
) -> list[ImportedComponent]:
    """The parts with their weights out of `found`; `extras` is a regular expression of keys that are left out.

    Raises
    ------
    KnnError
        If keys are missing, extra or of another size; all of them are listed.
    """
    expected = {
        each.prefix + each.names.theirs(key): (number, key, value)
        for number, each in enumerate(wanted)
        for key, value in each.module.state_dict().items()
    }
    left_out = [extras, *(f"{re.escape(one.prefix)}({one.names.extras})" for one in wanted if one.names.extras)]
    extra = [key for key in found if key not in expected and not re.fullmatch("|".join(left_out), str(key))]
    missing = [key for key in expected if key not in found]
    sized = [
        f"{key} is {_shape(found[key])}, not {tuple(value.shape)}"
        for key, (_, _, value) in expected.items()
        if key in found and _shape(found[key]) != tuple(value.shape)
    ]
    faults = [
        f"{len(keys)} {fault}: {list_keys(keys)}"
        for fault, keys in (("missing", missing), ("extra", extra), ("mis-sized", sized))
        if keys
    ]
    if faults:
        raise KnnError(
            f"{path} does not hold the {what} that it describes ({dialect} names). {'; '.join(faults)}.",
            "Download it again, or check that its config belongs to it.",
        )
    states: list[dict[str, Tensor]] = [{} for _ in wanted]
    for key, (number, ours, value) in expected.items():
        states[number][ours] = found[key].detach().to(value.dtype).contiguous()
    args = [json.loads(json.dumps(each.part.args)) for each in wanted]
    return [ImportedComponent(each.part.name, args[number], states[number]) for number, each in enumerate(wanted)]


class InertObject:
    """Takes the place of other programs' objects beside the weights: holds what they were made of, does nothing."""

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
    """The dictionary in a .safetensors or PyTorch file; nothing in it is run."""
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
    """The weights in a folder of Hugging Face's; KnnError if there are none."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read(folder / name)
    raise KnnError(f"{folder} has neither model.safetensors nor pytorch_model.bin.", "Copy the whole folder.")


def read_json(path: Path) -> dict[str, Any]:
    """The settings in a JSON file; KnnError when there are none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise KnnError(f"{path} cannot be read: {_first_line(error)}.", sources_hint()) from error
    if not isinstance(content, dict):
        raise KnnError(f"{path} holds no settings.", sources_hint())
    return content


class _Inert(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """A safe loader that takes tags of HyperPyYAML for data: nothing is built, called or looked up."""


def _tagged(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return {"!": tag, **loader.construct_mapping(node, deep=True)}
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return f"!{tag} {node.value}".strip()


_Inert.add_multi_constructor("!", _tagged)


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file; KnnError when there are none.

    Of HyperPyYAML, `!new:CLASS` becomes a dictionary with the class under "!", and `!ref <name>` the value of the
    top-level `name`; other tags become texts.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Inert)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise KnnError(f"{path} cannot be read: {_first_line(error)}.", sources_hint()) from error
    if not isinstance(content, dict):
        raise KnnError(f"{path} holds no settings.", sources_hint())

    seen = 0

    def value(found: Any, depth: int = 0) -> Any:
        nonlocal seen
        seen += 1
        if seen > _MAX_SETTINGS:
            raise KnnError(f"{path} repeats itself without end.", sources_hint())
        if isinstance(found, dict):
            return {key: value(one, depth) for key, one in found.items()}
        if isinstance(found, list):
            return [value(one, depth) for one in found]
        reference = re.fullmatch(r"!ref <(\w+)>", found) if isinstance(found, str) else None
        if reference is None or reference[1] not in content or depth > len(content):
            return found
        return value(content[reference[1]], depth + 1)

    try:
        return {str(key): value(one) for key, one in content.items()}
    except RecursionError as error:
        raise KnnError(f"{path} is nested too deep.", sources_hint()) from error


def require_settings(settings: Mapping[str, Any], wanted: Mapping[str, Any], path: Path, network: str) -> None:
    """KnnError where a setting is there and is not the only one that our network knows."""
    for key, value in wanted.items():
        if (found := settings.get(key, value)) != value:
            raise KnnError(f"{path} has {key} {found!r}, and knn's {network} knows {value!r} only.", sources_hint())


def checked_settings(
    settings: Mapping[str, Any], defaults: Mapping[str, Any], path: Path, network: str
) -> dict[str, Any]:
    """`defaults` with what `settings` say instead; KnnError where that is of another kind."""
    found = {key: settings.get(key, default) for key, default in defaults.items()}
    found |= {key: float(value) for key, value in found.items() if (type(defaults[key]), type(value)) == (float, int)}
    odd = [key for key, value in found.items() if type(value) is not type(defaults[key])]
    odd += [key for key, value in found.items() if type(value) is list and {type(one) for one in value} != {int}]
    if odd:
        raise KnnError(f"{path} has settings of another kind than {network}'s: {list_keys(odd)}.", sources_hint())
    return found


def list_keys(keys: Sequence[object]) -> str:
    """The first keys, and how many more there are."""
    shown = ", ".join(str(key) for key in keys[:_MAX_LISTED_KEYS])
    return f"{shown} and {len(keys) - _MAX_LISTED_KEYS} more" if len(keys) > _MAX_LISTED_KEYS else shown


def sources_hint() -> str:
    """The hint that lists all dialects."""
    return "Known: " + "; ".join(f"{name}: {what}" for name, what in SOURCES.items()) + "."


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
