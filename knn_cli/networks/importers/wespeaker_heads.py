"""Heads of wespeaker's trainings (`projection.`), and the names of their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from knn_cli.core.errors import KnnError
from knn_cli.networks.importers.checkpoint_files import checked_settings
from knn_cli.networks.importers.components import (
    ComponentToFill,
    ImportedComponent,
    head_to_fill,
    match_weights,
)
from knn_cli.networks.importers.weight_names import SAME_NAMES
from knn_cli.networks.importers.wespeaker_networks import Training

__all__ = ["CZECH_DIALECTS", "VOXLINGUA107", "with_head"]

PROJECTION = "projection."

# Sorted, as wespeaker numbers its classes.
CZECH_DIALECTS = tuple("1-1 1-2 1-3 1-4 2-1 2-2 2-3 2-4 3-1 3-2 3-3 4-1 4-2".split())
VOXLINGUA107 = tuple(
    "ab af am ar as az ba be bg bn bo br bs ca ceb cs cy da de el en eo es et eu fa fi fo fr gl gn gu gv ha haw hi hr "
    "ht hu hy ia id is it iw ja jw ka kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn no oc pa pl "
    "ps pt ro ru sa sco sd si sk sl sn so sq sr su sv sw ta te tg th tk tl tr tt uk ur uz vi war yi yo zh".split()
)
# project_type -> our head
HEADS = {
    "softmax": "softmax",
    "add_margin": "am-softmax",
    "arc_margin": "aam-softmax",
    "arc_margin_intertopk_subcenter": "aam-softmax",
    "sphere": "sphereface",
    "sphereface2": "sphereface2",
}
_SPHERE_MARGIN = 4.0  # the only one that their trainings use


def with_head(
    to_fill: list[ComponentToFill], training: Training, state: Mapping[str, Any], labels: Sequence[str] | None
) -> tuple[list[ImportedComponent], tuple[str, ...], str]:
    """The encoder, pooling and head with their weights; the names of the classes, and their label level.

    Raises
    ------
    KnnError
        The settings describe no head that knn has, or not the head of these weights; or the names do not fit it.
    """
    projection, path = training.settings.get("projection_args"), training.path
    assert training.config is not None  # there are settings
    if not isinstance(projection, dict):
        raise KnnError(
            f"{training.config} has no projection_args.", "Name the YAML of the training that wrote the checkpoint."
        )
    kind = str(projection.get("project_type"))
    if kind not in HEADS:
        raise KnnError(f"{training.config} has the project_type {kind!r}.", f"Known: {', '.join(HEADS)}.")
    args, centers = _arguments(kind, projection, training)
    key = f"{PROJECTION}{'trans.2.weight' if kind == 'softmax' else 'weight'}"
    rows = state.get(key)
    if not isinstance(rows, Tensor) or rows.ndim != 2:
        raise KnnError(f"{path} lacks {key}, or has another size.", "Is it the right YAML?")
    classes, remainder = divmod(rows.shape[0], max(1, centers))
    # Speed perturbation adds a class per speed: all classes at 1.0, then all at 0.9, then all at 1.1.
    data = training.settings.get("dataset_args")
    speeds = 3 if isinstance(data, dict) and data.get("speed_perturb") else 1
    if remainder or classes % speeds:
        raise KnnError(f"{path} has {rows.shape[0]} rows of {key}, which is not divisible by {centers * speeds}.")
    head = head_to_fill(to_fill[1], classes, HEADS[kind], args, SAME_NAMES, PROJECTION)
    components = match_weights([*to_fill, head], state, path, "network", "wespeaker")
    classes //= speeds
    for name in ("weight", "trans.2.weight", "trans.2.bias"):
        if speeds > 1 and name in components[2].state:
            components[2].state[name] = components[2].state[name][: classes * centers].clone()
    names, level = _names(labels, classes)
    return components, names, level


def _arguments(kind: str, projection: Mapping[str, Any], training: Training) -> tuple[dict[str, Any], int]:
    """Arguments of our head, and its centers per class."""
    assert training.config is not None

    def given(**defaults: Any) -> dict[str, Any]:
        assert training.config is not None
        return checked_settings(projection, defaults, training.config, "a head")

    if kind == "softmax":
        return {}, 1
    if kind == "sphere":
        return {"margin": _SPHERE_MARGIN}, 1
    if kind == "sphereface2":
        settings = given(scale=32.0, lanbuda=0.7, t=3.0, margin_type="C")
        if settings["margin_type"] not in ("C", "A"):
            raise KnnError(f"{training.config} has the margin_type {settings['margin_type']!r}.", "Known: C, A.")
        args = {"margin": 0.0, "scale": settings["scale"], "balance": settings["lanbuda"], "spread": settings["t"]}
        return {**args, "margin_on": "cosine" if settings["margin_type"] == "C" else "angle"}, 1
    settings = given(scale=32.0, easy_margin=False, K=3)
    centers = settings["K"] if kind.endswith("subcenter") else 1
    args = {"margin": 0.0, "scale": settings["scale"], "subcenters": centers}
    if kind.startswith("arc_margin"):
        args["easy_margin"] = settings["easy_margin"]
    return args, centers


def _names(labels: Sequence[str] | None, classes: int) -> tuple[tuple[str, ...], str]:
    """The sorted names of the classes, and their label level."""
    if labels is None:
        sets = {len(names): (names, level) for names, level in ((CZECH_DIALECTS, "subgroup"), (VOXLINGUA107, "group"))}
        if classes not in sets:
            raise KnnError(f"The head has {classes} classes, whose names are unknown.", "Give `labels`.")
        return sets[classes]
    if len(set(labels)) != len(labels) or len(labels) != classes:
        raise KnnError(
            f"The head has {classes} classes, but {len(set(labels))} different names are given.", "Correct `labels`."
        )
    return tuple(sorted(labels)), "subgroup" if set(labels) <= set(CZECH_DIALECTS) else "group"
