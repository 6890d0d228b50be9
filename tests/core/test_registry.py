"""Tables of named components."""

from __future__ import annotations

from typing import Any

import pytest

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import Registry


@pytest.fixture
def shapes() -> Registry:
    registry = Registry("shape")

    @registry.register("circle")
    def circle(*, radius: float, label: str = "") -> tuple[float, str]:
        return radius, label

    @registry.register("broken")
    def broken() -> None:
        raise TypeError("an argument inside is wrong")

    return registry


def test_components_are_found_by_name(shapes: Registry) -> None:
    assert shapes.names() == ["broken", "circle"]
    assert shapes.build("circle", radius=2.0) == (2.0, "")
    with pytest.raises(KnnError, match=r"no shape named 'square'.*Known: broken, circle"):
        shapes.get("square")
    with pytest.raises(ValueError, match="registered already"):
        shapes.register("circle")(abs)


@pytest.mark.parametrize(
    ("args", "complaint"), [({}, "missing.*radius"), ({"radius": 1, "colour": "red"}, "got an unexpected.*colour")]
)
def test_arguments_must_fit_the_signature(shapes: Registry, args: dict[str, Any], complaint: str) -> None:
    with pytest.raises(KnnError, match=f"The shape 'circle' does not take these arguments: {complaint}"):
        shapes.build("circle", **args)


def test_type_errors_of_a_component_are_its_own(shapes: Registry) -> None:
    with pytest.raises(TypeError, match="an argument inside is wrong"):
        shapes.build("broken")
