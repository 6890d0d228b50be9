"""What the models that a training begins with were trained on, so that nothing they heard is held out as if unheard.

A bundle of a training says how it split its corpus, and how all models before it split theirs: a hash of the corpus
and the keys of [data] that decide a split. With the same corpus at hand, the split is made again and compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from knn_cli.core.errors import KnnError
from knn_cli.training.dataset import Task, make_task
from knn_cli.training.model_builder import Design
from knn_cli.training.recipe import DataConfig

__all__ = ["Past", "check"]

_KEYS = ("label", "ignore", "minimum", "maximum", "held_out", "unit")  # of [data], that decide a split


@dataclass(frozen=True)
class Past:
    """splits: this training's and those of all models before it, for the bundle; note: what there is to say of them."""

    splits: list[dict[str, Any]]
    note: str


def check(task: Task, design: Design) -> Past:
    """The splits behind a training.

    Raises KnnError when the model that it begins with was trained on recordings that are held out now, unless the
    recipe allows that.
    """
    recipe, origin = design.recipe, design.origin
    data = {key: getattr(recipe.data, key) for key in _KEYS} | {"ignore": list(recipe.data.ignore)}
    mine = {"corpus": task.corpus.identity, "seed": recipe.seed, "data": data}
    if origin is None:
        return Past([mine], "")
    training = origin.config.get("training")
    found = training.get("splits", []) if isinstance(training, dict) else []
    before = [one for one in found if _is_split(one)]
    splits = [*(one for one in before if one != mine), mine]
    same = [one for one in before if one["corpus"] == mine["corpus"]]
    if not len(task.held):
        return Past(splits, "")
    heard = np.unique(np.concatenate([_heard(task, one) for one in same])) if same else np.zeros(0, np.str_)
    count = int(np.isin(task.corpus.columns.name[task.held], heard).sum())
    if count and recipe.init.seen_rows == "refuse":
        last = same[-1]
        told = ", ".join(f"{key} = {value!r}" for key, value in {"seed": last["seed"], **last["data"]}.items())
        raise KnnError(
            f"{count} of {len(task.held)} held-out rows are of recordings that {origin.name}, which this training "
            "begins with, was trained on.",
            f'Split as there ({told}), or set init.heard = "allow" and do not believe the accuracy.',
        )
    if count:
        return Past(
            splits,
            f"{count} of the {len(task.held)} held-out rows are of recordings that {origin.name}, with which this "
            "training began, was trained on: the accuracy is too good.",
        )
    if len(same) < len(before) or not before:
        return Past(
            splits,
            f"{origin.name}, with which this training began, was trained on other sound too; whether the held-out "
            "recordings were part of it is not known.",
        )
    return Past(splits, "")


def _is_split(found: Any) -> bool:
    """Whether a bundle's word for a split is one that can be made again."""
    return (
        isinstance(found, dict)
        and {"corpus", "seed", "data"} <= found.keys()
        and isinstance(found["data"], dict)
        and found["data"].keys() <= {field.name for field in msgspec.structs.fields(DataConfig)}
    )


def _heard(task: Task, one: dict[str, Any]) -> Any:
    """Names (N,) of the recordings that a training with this split of the same corpus was trained on."""
    data = DataConfig(**{**one["data"], "ignore": tuple(one["data"].get("ignore", ()))})
    there = make_task(task.corpus, data, one["seed"])
    return task.corpus.columns.name[there.fitted]
