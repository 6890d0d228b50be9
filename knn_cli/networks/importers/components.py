"""What an importer hands back, and the matching of a checkpoint's weights with those of our modules, key by key."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS, HEADS, POOLINGS
from knn_cli.networks.chunk_setting import CHUNK_SECONDS, Chunk
from knn_cli.networks.construction import built
from knn_cli.networks.importers.checkpoint_files import list_keys
from knn_cli.networks.importers.weight_names import WeightNames

__all__ = [
    "ComponentToFill",
    "ImportedComponent",
    "ImportedModel",
    "ImportedSegmenter",
    "encoder_to_fill",
    "head_to_fill",
    "match_weights",
    "pooling_to_fill",
]

_SOURCE = "The checkpoint"


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
    chunk : float or "whole"
        The most seconds of speech that it hears at once, as where it was trained and scored.
    """

    encoder: ImportedComponent
    source: str
    licence_note: str
    pooling: ImportedComponent = field(default_factory=lambda: ImportedComponent("mean"))
    head: ImportedComponent | None = None
    labels: tuple[str, ...] = ()
    level: str = "group"
    scale: float = 1.0
    chunk: Chunk = CHUNK_SECONDS

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


def encoder_to_fill(name: str, args: dict[str, Any], names: WeightNames, prefix: str = "") -> ComponentToFill:
    """Build an encoder on the meta device. Raises KnnError for arguments that it does not take."""
    with torch.device("meta"):
        return ComponentToFill(
            ImportedComponent(name, args), built(ENCODERS, name, args, source=_SOURCE), names, prefix
        )


def pooling_to_fill(
    encoder: ComponentToFill, name: str, args: dict[str, Any], names: WeightNames, prefix: str = ""
) -> ComponentToFill:
    """Build the pooling after `encoder` on the meta device. Raises KnnError for arguments that it does not take."""
    sizes: dict[str, Any] = {"layers": encoder.module.layers, "channels": encoder.module.channels}
    with torch.device("meta"):
        return ComponentToFill(
            ImportedComponent(name, args), built(POOLINGS, name, args, source=_SOURCE, **sizes), names, prefix
        )


def head_to_fill(
    pooling: ComponentToFill, classes: int, name: str, args: dict[str, Any], names: WeightNames, prefix: str = ""
) -> ComponentToFill:
    """Build the head after `pooling` on the meta device. Raises KnnError for arguments that it does not take."""
    sizes: dict[str, Any] = {"dimension": pooling.module.dimension, "classes": classes}
    with torch.device("meta"):
        return ComponentToFill(
            ImportedComponent(name, args), built(HEADS, name, args, source=_SOURCE, **sizes), names, prefix
        )


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


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape of a plain tensor; None for anything else, and for one that repeats its data to look larger."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_complex() or value.is_quantized:
        return None
    stored = value.untyped_storage().nbytes() // max(1, value.element_size())
    return tuple(value.shape) if value.numel() <= stored else None
