"""Everything that is registered keeps its contract's form: an abstract class that it inherits from."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

from knn_cli.core.registry import ENCODERS, HEADS, POOLINGS, SEGMENTERS, Registry
from knn_cli.networks.construction import without_new_weights
from knn_cli.networks.contracts import Encoder, Head, LayerSegmenter, Pooling, SegmentationNetwork, WaveformSegmenter

SIZES: dict[str, dict[str, Any]] = {
    "encoder": {},
    "pooling": {"layers": 2, "channels": 16},
    "head": {"dimension": 4, "classes": 3},
    "segmentation network": {"layers": 2, "channels": 16},
}
REGISTERED = [
    (registry, contract, name)
    for registry, contract in (
        (ENCODERS, Encoder),
        (POOLINGS, Pooling),
        (HEADS, Head),
        (SEGMENTERS, SegmentationNetwork),
    )
    for name in registry.names()
]
IDS = [f"{registry.kind}-{name}" for registry, _, name in REGISTERED]


@pytest.mark.parametrize(("registry", "contract", "name"), REGISTERED, ids=IDS)
def test_registered_parts_inherit_from_their_contract(registry: Registry, contract: type[nn.Module], name: str) -> None:
    part = registry.get(name)
    assert isinstance(part, type) and issubclass(part, contract)
    assert not getattr(part, "__abstractmethods__", None)
    if contract is SegmentationNetwork:
        assert issubclass(part, WaveformSegmenter) != issubclass(part, LayerSegmenter)


@pytest.mark.parametrize(("registry", "contract", "name"), REGISTERED, ids=IDS)
def test_registered_parts_have_their_contract_s_attributes(
    registry: Registry, contract: type[nn.Module], name: str
) -> None:
    kind: Any = registry.get(name)
    sizes = {} if issubclass(kind, WaveformSegmenter) else SIZES[registry.kind]
    with torch.device("meta"):
        part = registry.build(name, **sizes)
    wanted = {key for base in type(part).__mro__ if base.__module__ == contract.__module__ for key in annotations(base)}
    assert wanted and all(hasattr(part, key) for key in wanted)


def annotations(kind: type) -> dict[str, Any]:
    return {key: value for key, value in inspect.get_annotations(kind).items() if not key.startswith("_")}


@pytest.mark.parametrize("contract", [Encoder, Pooling, Head, WaveformSegmenter, LayerSegmenter])
def test_a_part_that_lacks_a_method_cannot_be_built(contract: type[nn.Module]) -> None:
    with pytest.raises(TypeError, match="abstract"):
        type("Incomplete", (contract,), {})()


@pytest.mark.parametrize(("registry", "contract", "name"), REGISTERED, ids=IDS)
def test_only_what_is_stored_depends_on_new_weights(registry: Registry, contract: type[nn.Module], name: str) -> None:
    """So that a network may be built without drawing them, and is whole once its stored weights are there."""
    kind: Any = registry.get(name)
    sizes = {} if issubclass(kind, WaveformSegmenter) else SIZES[registry.kind]
    with without_new_weights():
        part = registry.build(name, **sizes)
    other = registry.build(name, **sizes)
    stored = part.state_dict().keys()
    assert stored == other.state_dict().keys()
    for key, value in other.named_buffers():
        assert key in stored or torch.equal(part.get_buffer(key), value), key
