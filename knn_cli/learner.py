"""From a recipe to what is trained: a network with its head, its first weights, its rates and margins."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from knn_cli import audio, bundle
from knn_cli.bundle import Bundle
from knn_cli.corpus import Rows
from knn_cli.errors import KnnError
from knn_cli.heads import Head, MarginSchedule
from knn_cli.network import Network
from knn_cli.recipe import PARTS, Optimizer, PartRecipe, Recipe, Schedule
from knn_cli.recipe_reader import check_args
from knn_cli.registry import ENCODERS, HEADS, POOLINGS
from knn_cli.tuning import groups


class Learner(nn.Module):
    """A network with its head as one module from sound to loss, which is what several processes share.

    network : encoder, pooling and head
    scale   : factor on [-1, 1] waveforms before the network
    """

    def __init__(self, network: Network, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    @property
    def head(self) -> Head:
        """The network's head."""
        return cast(Head, self.network.head)

    def forward(self, waveforms: Tensor, lengths: Tensor | None, labels: Tensor) -> Tensor:
        """(B, S) float32 in [-1, 1], (B,) int64 samples where clips are padded, (B,) int64 labels -> mean loss."""
        return self.head.loss(self.network(waveforms * self.scale, lengths), labels)


class Design:
    """What a recipe builds: the config of its parts, and the bundle that its first weights come from.

    Raises BundleError for a bundle that is missing, KnnError for parts that it does not have.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.origin: Bundle | None = bundle.find(recipe.init.model) if recipe.init.model else None
        self.parts = {part: self._part(part) for part in PARTS}

    @property
    def rate(self) -> int:
        """Samples a second that the network hears."""
        return audio.RATE if self.origin is None else self.origin.rate

    @property
    def scale(self) -> float:
        """Factor on waveforms in [-1, 1]: the bundle's where the encoder comes from one, else the recipe's."""
        taken = self.origin is not None and "encoder" in self.recipe.init.parts
        return self.origin.scale if taken and self.origin is not None else self.recipe.scale

    def config(self, labels: Sequence[str]) -> dict[str, Any]:
        """The bundle's config of encoder, pooling and head, for `labels`."""
        parts = {part: {"name": one.name, "args": one.args} for part, one in self.parts.items()}
        parts["head"] |= {"labels": list(labels), "level": self.recipe.data.label}
        return {"audio": {"rate": self.rate, "scale": self.scale}, **parts}

    def build(self, labels: Sequence[str], weights: Sequence[float] | None, folds: int) -> Network:
        """A network with its first weights, drawn with the recipe's seed or taken from the bundle.

        weights : of the classes in the loss
        folds   : how many classes the head has for each label (see `augment.Augmenter`)

        Raises KnnError for a bundle's head that knows other labels.
        """
        torch.manual_seed(self.recipe.seed)
        encoder = ENCODERS.build(self.parts["encoder"].name, **self.parts["encoder"].args)
        sizes = {"layers": encoder.layers, "channels": encoder.channels}
        pooling = POOLINGS.build(self.parts["pooling"].name, **sizes, **self.parts["pooling"].args)
        head = self._head(pooling.dimension, len(labels) * folds, None if weights is None else [*weights] * folds)
        network = Network(encoder, pooling, head)
        if self.origin is not None:
            self._take(network, labels, folds)
        return network

    def plain_head(self, dimension: int, classes: int) -> Head:
        """A head of so many classes, without class weights."""
        return self._head(dimension, classes, None)

    def _head(self, dimension: int, classes: int, weights: list[float] | None) -> Head:
        part = self.parts["head"]
        sizes = {"dimension": dimension, "classes": classes, "class_weights": weights}
        return cast(Head, HEADS.build(part.name, **sizes, **part.args))

    def _part(self, part: str) -> PartRecipe:
        mine: PartRecipe = getattr(self.recipe, part)
        if self.origin is None or part not in self.recipe.init.parts:
            return mine
        if part not in self.origin.config:
            raise KnnError(f"The model {self.origin.name} has no {part} to begin with.", "Take it out of init.parts.")
        theirs = self.origin.config[part]
        check_args(part, theirs["name"], mine.args)
        return PartRecipe(theirs["name"], {**theirs["args"], **mine.args})

    def _take(self, network: Network, labels: Sequence[str], folds: int) -> None:
        assert self.origin is not None
        source = bundle.load_network(self.origin)
        for part in self.recipe.init.parts:
            if part == "head" and (tuple(labels) != self.origin.head_labels or folds > 1):
                raise KnnError(
                    f"The head of {self.origin.name} knows other labels than this corpus.",
                    "Take head out of init.parts and give the recipe a [head].",
                )
            theirs = getattr(source, part).state_dict()
            bundle.load_strictly(getattr(network, part), theirs, f"{part} of {self.origin.name}")


def class_weights(recipe: Recipe, labels: Sequence[str], classes: Rows) -> list[float] | None:
    """Weight of each label in the loss, of mean 1 over rows where they are balanced; None for all alike.

    Raises KnnError for a table that names unknown labels or leaves some out.
    """
    asked = recipe.loop.class_weights
    if isinstance(asked, dict):
        if set(asked) != set(labels):
            strange = sorted(set(asked) ^ set(labels))
            raise KnnError(
                f"loop.class_weights and the corpus differ in {', '.join(strange)}.", "Name each label once."
            )
        return [asked[label] for label in labels]
    if asked == "none":
        return None
    counts = np.bincount(classes, minlength=len(labels))
    return [float(len(classes) / (len(labels) * count)) for count in counts]


def factor(schedule: Schedule, rate: float, step: int, steps: int) -> float:
    """What learning rates are multiplied by at `step`, counted from 0, of `steps` an epoch; `rate` is the head's.

    Warm-up is linear and goes with the decay, as in wespeaker's ExponentialDecrease.
    """
    epochs, decay, final = step / steps, schedule.decay, schedule.final_rate
    warm = min(1.0, (step + 1) / (schedule.warmup * steps)) if schedule.warmup else 1.0
    if final is None:
        return float(warm * decay**epochs)
    return float(warm * (final / rate) ** (epochs / schedule.epochs))


def margins(recipe: Recipe, steps: int) -> MarginSchedule | None:
    """The margin's schedule for `steps` an epoch; None where the recipe has none."""
    margin = recipe.margin
    if margin is None:
        return None
    first, last = round(margin.first * steps), round(margin.last * steps)
    return MarginSchedule(margin.start, margin.end, max(0, last - first), first, cast(Any, margin.kind))


def optimizer(network: Network, recipe: Optimizer) -> torch.optim.Optimizer:
    """The optimizer of a recipe over the network's moving weights."""
    found = groups(network, recipe)
    if recipe.name == "sgd":
        nesterov = recipe.nesterov and recipe.momentum > 0
        return torch.optim.SGD(found, lr=recipe.rate, momentum=recipe.momentum, nesterov=nesterov)
    return torch.optim.AdamW(found, lr=recipe.rate, betas=cast(Any, recipe.betas))


def plain_state(design: Design, state: dict[str, Tensor], dimension: int, classes: int) -> dict[str, Tensor]:
    """Weights of a head with one class for each label, from one with a class for each label and speed.

    Rows of a class are consecutive and the plain speed's classes come first, so the first rows are theirs.
    """
    expected = design.plain_head(dimension, classes).state_dict()
    result = dict(state)
    for name, value in expected.items():
        mine = result[f"head.{name}"]
        result[f"head.{name}"] = mine if mine.shape == value.shape else mine[: value.shape[0]].clone()
    return result


def takes_margin(head: Head) -> bool:
    """Whether a margin can be set."""
    return head.has_margin and "margin" in inspect.signature(type(head)).parameters
