"""Networks of sizes that nobody has checked: impossible ones are one sentence, before memory is taken."""

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.registry import ENCODERS, HEADS, POOLINGS, SEGMENTERS, Registry
from knn_cli.networks import bundle
from knn_cli.networks.construction import built, limited

TINY = Path(__file__).parents[1] / "data" / "tiny-test"
SIZES: dict[str, dict[str, Any]] = {
    "pooling": {"layers": 3, "channels": 32},
    "head": {"dimension": 8, "classes": 3},
    "segmentation network": {},
    "encoder": {},
}
ODD = (0, -1, 1.5, 10**9, 2**70, True, None, "2", "x", [], [1], [[1, 2]], {}, float("nan"), float("inf"), 1e308)
COMPONENTS = [
    pytest.param(registry, name, id=name)
    for registry in (ENCODERS, POOLINGS, HEADS, SEGMENTERS)
    for name in registry.names()
]


def parameters(registry: Registry, name: str) -> list[str]:
    given = {"layers", "channels", "dimension", "classes"}
    sized = given if registry.kind in ("pooling", "head") or name == "encoder-lstm" else set()
    return [key for key in inspect.signature(registry.get(name)).parameters if key not in sized]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(("registry", "name"), COMPONENTS)
def test_any_argument_of_any_component_may_be_odd(registry: Registry, name: str, tmp_path: Path) -> None:
    """Every argument as every odd value: a network, or a KnnError that names the component or its reason."""
    (tmp_path / "weights").write_bytes(bytes(1 << 22))
    sizes = SIZES["pooling" if name == "encoder-lstm" else registry.kind]
    for key in parameters(registry, name):
        for value in ODD:
            try:
                with limited(tmp_path / "weights"):
                    built(registry, name, {key: value}, **sizes)
            except KnnError as error:
                assert error.message


def test_a_network_of_too_many_blocks_is_given_up(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "m")
    for key, value in (
        ("blocks", 10**6),
        ("channels", 4 * 10**5),
        ("inner", 10**7),
        ("convolutions", [[1, 1, 1]] * 10**4),
    ):
        config = json.loads((TINY / "config.json").read_text())
        config["encoder"]["args"][key] = value
        (tmp_path / "m" / "config.json").write_text(json.dumps(config))
        with pytest.raises(BundleError, match=r"m/config\.json makes no encoder 'wavlm'"):
            bundle.load_network(bundle.find(tmp_path / "m"))


def test_counting_ends_with_the_block(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(100))
    with limited(tmp_path / "weights"), pytest.raises(ValueError, match="larger than its weights"):
        nn.Linear(100, 100)
    assert nn.Linear(100, 100).weight.numel() == 10**4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"blocks": "2"}, "blocks of the encoder 'wavlm' is '2': expected `int`, got `str`"),
        ({"blocks": True}, "blocks of the encoder 'wavlm' is True"),
        ({"convolutions": [[16, 10]]}, "convolutions of the encoder"),
        ({"normalize": 1}, "expected `bool`"),
        ({"channels": 10**9}, "no network has it so large"),
    ],
)
def test_a_wrong_type_names_the_argument(args: dict[str, Any], message: str) -> None:
    with pytest.raises(KnnError, match=message):
        built(ENCODERS, "wavlm", args)
