"""The recipe of a training of a segmentation network: what it adds to `recipe`, and what it does not take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from knn_cli.core.errors import KnnError
from knn_cli.training.recipe import ComponentConfig, NonNegative, Recipe

__all__ = ["SegmentationConfig", "SegmentationRecipe", "check_segmentation", "is_segmentation"]

# Keys of other trainings, which would do nothing here: table -> keys, or () for all of it.
_WITHOUT_EFFECT: dict[str, tuple[str, ...]] = {
    "encoder": (),
    "pooling": (),
    "head": (),
    "margin": (),
    "init": ("parts", "seen_rows"),
    "data": ("label", "ignore", "labels", "speech", "minimum", "maximum", "long", "balance", "unit", "fit"),
    "augment": ("speeds", "speed_classes", "mask_share", "mask_time_share", "mask_feature_share"),
    "optimizer": ("encoder_rate", "layer_decay"),
    "tuning": ("cnn_gradient", "encoder_gradient", "layer_drop", "pull", "lora", "adapters"),
    "loop": ("class_weights", "classifier"),
}


class SegmentationConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """Where reference turns are, and how close the network is held to the one that it begins with.

    `references` is a file or folder of turns, `uem` a file of the regions that they cover; `divergence` weighs the
    divergence from the class probabilities of the model of [init].
    """

    references: str = ""
    uem: str = ""
    divergence: NonNegative = 0.0


class SegmentationRecipe(Recipe, frozen=True, forbid_unknown_fields=True):
    """A recipe with a table [segmentation], and [segmenter] where the network is new."""

    segmenter: ComponentConfig = ComponentConfig()
    segmentation: SegmentationConfig = SegmentationConfig()


def is_segmentation(table: Mapping[str, Any]) -> bool:
    """Whether a table of a file is the recipe of a segmentation network."""
    return "segmentation" in table or "segmenter" in table


def check_segmentation(recipe: SegmentationRecipe) -> None:
    """Raise KnnError for keys that would have no effect, and where there is no network or no reference."""
    for table, keys in _WITHOUT_EFFECT.items():
        given, default = getattr(recipe, table), getattr(Recipe(), table)
        if not keys and given != default:
            raise KnnError(f"[{table}] has no effect on a segmentation network.", "Take it out.")
        for key in set(keys) & set(getattr(given, "__struct_fields__", ())):
            if getattr(given, key) != getattr(default, key):
                raise KnnError(f"{table}.{key} has no effect on a segmentation network.", "Take it out.")
    if not recipe.segmentation.references:
        raise KnnError("segmentation.references is missing.", "Name a file or folder of turns, such as RTTM.")
    if bool(recipe.init.model) == bool(recipe.segmenter.name):
        raise KnnError(
            "A segmentation network is new, or begins with another.", "Give either [segmenter] or init.model."
        )
    if recipe.segmentation.divergence and not recipe.init.model:
        raise KnnError("segmentation.divergence needs a model to stay close to.", "Name it in [init].")
    if recipe.loop.patience > 0 and recipe.data.held_out == 0:
        raise KnnError("loop.patience needs held-out recordings.", "Set data.held_out.")
