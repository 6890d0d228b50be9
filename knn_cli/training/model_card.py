"""What a trained bundle tells people about its training: its card, and its recipe without paths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knn_cli.training.corpus_split import TrainingSplit
from knn_cli.training.model_builder import ModelBuilder
from knn_cli.training.recipe import Recipe

__all__ = ["plain_recipe", "write_card"]

PATH_KEYS = (
    ("init", "model"),
    *(("augment", key) for key in ("noise", "music", "rir")),
    *(("segmentation", key) for key in ("references", "uem")),
)


def plain_recipe(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON, without defaults; of paths, which belong to this machine, the last part only."""
    default, mine = type(recipe)().plain(), recipe.plain()
    for table, key in ((table, key) for table, key in PATH_KEYS if table in mine):
        mine[table][key] = Path(mine[table][key]).name
    if mine["data"]["labels"].endswith((".csv", ".tsv")):  # else it is a rule, not a file
        mine["data"]["labels"] = Path(mine["data"]["labels"]).name
    plain: dict[str, Any] = {}
    for key, value in mine.items():
        if isinstance(value, dict) and isinstance(default[key], dict):
            value = {
                name: each for name, each in value.items() if name not in default[key] or each != default[key][name]
            }
        if value not in ({}, default[key]):
            plain[key] = value
    return plain


def write_card(
    split: TrainingSplit, builder: ModelBuilder, facts: Mapping[str, Any], accuracy: float, history_note: str
) -> str:
    """The README.md of a bundle: labels, components, accuracy on held-out rows, and what flatters it."""
    components = ", ".join(f"{component} {config.name}" for component, config in builder.components.items())
    rows = []
    for number, label in enumerate(split.labels):
        counts = [int((split.classes[side] == number).sum()) for side in (split.train_rows, split.held_out_rows)]
        rows.append(f"| {label} | {counts[0]} | {counts[1]} |")
    table = "\n".join(rows)
    first = (
        ""
        if builder.origin is None
        else f" Its {', '.join(builder.recipe.init.parts)} began as {builder.origin.fingerprint}."
    )
    held = (
        "No rows were held out, so nothing is known of its accuracy."
        if math.isnan(accuracy)
        else f"On held-out {builder.recipe.data.unit}s ({builder.recipe.data.held_out:.0%} of each label, seed "
        f"{builder.recipe.seed}) its head is right in {accuracy:.1%} of rows, the mean over labels. The\n"
        "classifier's calibration and, with keep = best, the weights were chosen on these rows, which flatters the "
        "figure."
    )
    return (
        f"# Network trained with the recipe {builder.recipe.name}\n\n{len(split.labels)} labels "
        f"({builder.recipe.data.label}); {components}; {facts['epochs']} epochs, {facts['steps']} "
        f"steps.{first}\n\n{held}\n\n"
        f"| label | rows trained on | rows held out |\n|---|---|---|\n{table}\n\n"
        "Held-out recordings of speakers, rooms and microphones that training also heard flatter the figure too: the\n"
        "network may know the channel. Measure on recordings from elsewhere before trusting it.\n"
    ) + (f"\n{history_note}\n" if history_note else "")
