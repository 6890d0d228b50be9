"""The splits of all trainings behind a model, so that no recording that one of them used is held out as if unseen.

A bundle of a training says how its corpus was split, and how all models before it split theirs: a hash of the corpus
and the keys of [data] that decide a split. With the same corpus at hand, each split is made again and compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Texts
from knn_cli.networks.bundle import Bundle
from knn_cli.training.corpus_split import TrainingSplit, split_corpus
from knn_cli.training.model_builder import ModelBuilder
from knn_cli.training.recipe import DataConfig

__all__ = ["SplitHistory", "check"]

SPLIT_KEYS = ("label", "ignore", "minimum", "maximum", "long", "held_out", "unit")  # of [data], that decide a split


@dataclass(frozen=True)
class SplitHistory:
    """The splits behind a training.

    Attributes
    ----------
    splits : list of dict
        This training's and those of all models before it, for the bundle's config.
    note : str
        What the card says of them; "" if they are all alike.
    """

    splits: list[dict[str, Any]]
    note: str


def check(split: TrainingSplit, builder: ModelBuilder) -> SplitHistory:
    """Compare the splits behind a training.

    Raises
    ------
    KnnError
        If the model that it begins with was trained on recordings that are held out now, unless the recipe allows it.
    """
    recipe, origin = builder.recipe, builder.origin
    data = {key: getattr(recipe.data, key) for key in SPLIT_KEYS} | {"ignore": list(recipe.data.ignore)}
    current = {"corpus": split.corpus.identity, "seed": recipe.seed, "data": data}
    if origin is None:
        return SplitHistory([current], "")
    earlier = _splits_of(origin)
    splits = [*(each for each in earlier if each != current), current]
    same_corpus = [each for each in earlier if each["corpus"] == current["corpus"]]
    if not len(split.held_out_rows):
        return SplitHistory(splits, "")
    seen = [_train_recordings(split, each) for each in same_corpus]
    held_out = split.corpus.columns.name[split.held_out_rows]
    count = int(np.isin(held_out, np.unique(np.concatenate(seen))).sum()) if seen else 0
    rows = f"{len(held_out)} held-out rows are of recordings that {origin.name}"
    if count and recipe.init.seen_rows == "refuse":
        keys = {"seed": same_corpus[-1]["seed"], **same_corpus[-1]["data"]}
        settings = ", ".join(f"{key} = {value!r}" for key, value in keys.items())
        raise KnnError(
            f"{count} of {rows}, which this training begins with, was trained on.",
            f'Split as there ({settings}), or set init.heard = "allow" and do not believe the accuracy.',
        )
    if count:
        note = f"{count} of the {rows}, with which this training began, was trained on: the accuracy is too good."
        return SplitHistory(splits, note)
    if len(same_corpus) < len(earlier) or not earlier:
        note = (
            f"{origin.name}, with which this training began, was trained on other sound too; whether the held-out "
            "recordings were part of it is not known."
        )
        return SplitHistory(splits, note)
    return SplitHistory(splits, "")


def _splits_of(origin: Bundle) -> list[dict[str, Any]]:
    """The splits in a bundle's config that can be made again."""
    training = origin.config.get("training")
    splits = training.get("splits", []) if isinstance(training, dict) else []
    known = {field.encode_name for field in msgspec.structs.fields(DataConfig)}
    return [
        each
        for each in splits
        if isinstance(each, dict)
        and {"corpus", "seed", "data"} <= each.keys()
        and isinstance(each["data"], dict)
        and each["data"].keys() <= known
    ]


def _train_recordings(split: TrainingSplit, earlier: dict[str, Any]) -> Texts:
    """Names (N,) of the recordings that a training with this earlier split of the same corpus was trained on."""
    settings = {"long": "leave-out", **earlier["data"]}  # as it was before there was a choice
    data = DataConfig(**{**settings, "ignore": tuple(settings.get("ignore", ()))})
    names: Texts = split.corpus.columns.name[split_corpus(split.corpus, data, earlier["seed"]).train_rows]
    return names
