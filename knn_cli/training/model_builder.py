"""From a recipe to the network that is trained: encoder, pooling and head with their first weights."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from knn_cli.audio import reading
from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS, HEADS, POOLINGS, Registry
from knn_cli.networks import bundle
from knn_cli.networks.bundle import Bundle
from knn_cli.networks.contracts import Head
from knn_cli.networks.encoders.adapters import adapters_of
from knn_cli.networks.network import Network
from knn_cli.training.dataset import Rows
from knn_cli.training.fine_tuning import FineTuner, parameter_groups
from knn_cli.training.recipe import COMPONENTS, AdapterConfig, ComponentConfig, Recipe
from knn_cli.training.recipe_reader import check_args

# What networks raise for arguments that make no network, where they do not say it themselves.
_IMPOSSIBLE = (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError)


class TrainingModule(nn.Module):
    """A network with its head as one module from waveforms to loss, for `DistributedDataParallel`.

    Parameters
    ----------
    network
        Encoder, pooling and head.
    scale
        Factor on waveforms in [-1, 1] before the network.
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


class ModelBuilder:
    """Builds the network of a recipe, with first weights of the bundle of [init] where there is one.

    Raises
    ------
    BundleError
        If the bundle is missing.
    KnnError
        If the bundle does not have a component that the recipe takes.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.origin: Bundle | None = bundle.find(recipe.init.model) if recipe.init.model else None
        self.components = {component: self._component(component) for component in COMPONENTS}

    @property
    def rate(self) -> int:
        """Samples per second that the network takes."""
        return reading.RATE if self.origin is None else self.origin.rate

    @property
    def scale(self) -> float:
        """Factor on waveforms in [-1, 1]: the bundle's where the encoder comes from one, else the recipe's."""
        taken = self.origin is not None and "encoder" in self.recipe.init.parts
        return self.origin.scale if taken and self.origin is not None else self.recipe.scale

    def config(self, labels: Sequence[str]) -> dict[str, Any]:
        """The bundle's config of encoder, pooling and head, for `labels`."""
        parts = {key: {"name": component.name, "args": component.args} for key, component in self.components.items()}
        parts["head"] |= {"labels": list(labels), "level": self.recipe.data.label}
        return {"audio": {"rate": self.rate, "scale": self.scale}, **parts}

    def check(self) -> None:
        """Build everything without weights, before any sound is read.

        Raises KnnError for arguments that make no network, for what the recipe asks of a network that has no such
        thing, for margins that the head cannot have, and for crops that are too short.
        """
        with torch.device("meta"):
            network = self._network(["", " "], None, 1)
            FineTuner(network, self.recipe)
        parameter_groups(network, self.recipe.optimizer)
        head, margin = cast(Head, network.head), self.recipe.margin
        if margin is not None and not takes_margin(head):
            raise KnnError(
                "[margin] is there, and the head has no margin.", "Take [margin] out, or choose aam-softmax."
            )
        for value in () if margin is None else (margin.start, margin.end):
            head.set_margin(value)
        if round(self.recipe.data.seconds * self.rate) < network.minimum:
            needed = network.minimum / self.rate
            raise KnnError(f"data.seconds is too short for this encoder: it needs {needed:.3f} s.", "3 s are usual.")

    def build(self, labels: Sequence[str], weights: Sequence[float] | None, folds: int) -> Network:
        """A network with its first weights, drawn with the recipe's seed or taken from the bundle.

        weights : of the classes in the loss
        folds   : how many classes the head has for each label (see `augmentation.Augmenter`)

        Raises KnnError for a bundle's head that knows other labels.
        """
        torch.manual_seed(self.recipe.seed)
        network = self._network(labels, weights, folds)
        if self.origin is not None:
            self._take(network, labels, folds)
        return network

    def _network(self, labels: Sequence[str], weights: Sequence[float] | None, folds: int) -> Network:
        encoder = self._built(ENCODERS, "encoder")
        pooling = self._built(POOLINGS, "pooling", layers=encoder.layers, channels=encoder.channels)
        head = self._head(pooling.dimension, len(labels) * folds, None if weights is None else [*weights] * folds)
        return Network(encoder, pooling, head)

    def plain_head(self, dimension: int, classes: int) -> Head:
        """A head of so many classes, without class weights."""
        return self._head(dimension, classes, None)

    def _head(self, dimension: int, classes: int, weights: list[float] | None) -> Head:
        sizes = {"dimension": dimension, "classes": classes, "class_weights": weights}
        return cast(Head, self._built(HEADS, "head", **sizes))

    def _built(self, registry: Registry, part: str, **sizes: Any) -> Any:
        config = self.components[part]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch, about empty weights
                built = registry.build(config.name, **sizes, **config.args)
            if any(weight.numel() == 0 for weight in built.parameters()):
                raise ValueError("a weight would be empty")
        except _IMPOSSIBLE as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            args = ", ".join(f"{key} = {value}" for key, value in config.args.items()) or "its defaults"
            raise KnnError(
                f"[{part}] {config.name} cannot be built so ({args}): {reason}.", "Change its sizes."
            ) from error
        return built

    def _component(self, part: str) -> ComponentConfig:
        config: ComponentConfig = getattr(self.recipe, part)
        if self.origin is None or part not in self.recipe.init.parts:
            return config  # adapters come with an encoder that is taken: see `recipe_reader`
        if part not in self.origin.config:
            raise KnnError(f"The model {self.origin.name} has no {part} to begin with.", "Take it out of init.parts.")
        theirs = self.origin.config[part]
        check_args(part, theirs["name"], config.args)
        found = ComponentConfig(theirs["name"], {**theirs["args"], **config.args})
        asked = self.recipe.tuning.adapters
        return found if part != "encoder" or asked is None else self._adapted(found, asked)

    def _adapted(self, encoder: ComponentConfig, asked: AdapterConfig) -> ComponentConfig:
        """The encoder that is taken, with the adapters that the recipe asks for in its blocks."""
        assert self.origin is not None
        if "adapters" not in inspect.signature(ENCODERS.get(encoder.name)).parameters:
            raise KnnError(f"tuning.adapters needs wavlm, and {self.origin.name} has {encoder.name}.", "Take it out.")
        wanted = {"bottleneck": asked.bottleneck, "kind": asked.kind}
        there = encoder.args.get("adapters")
        if there is not None and {"kind": "houlsby", **there} != wanted:
            raise KnnError(
                f"{self.origin.name} has adapters of its own, other than those of [tuning.adapters].",
                f"They are {', '.join(f'{key} = {value!r}' for key, value in there.items())}: write these.",
            )
        return ComponentConfig(encoder.name, {**encoder.args, "adapters": wanted})

    def _take(self, network: Network, labels: Sequence[str], folds: int) -> None:
        assert self.origin is not None
        source = bundle.load_network(self.origin)
        for part in self.recipe.init.parts:
            if part == "head" and (tuple(labels) != self.origin.head_labels or folds > 1):
                raise KnnError(
                    f"The head of {self.origin.name} has other labels than this corpus.",
                    "Take head out of init.parts and give the recipe a [head].",
                )
            theirs = dict(getattr(source, part).state_dict())
            if part == "encoder" and not self.origin.config["encoder"]["args"].get("adapters"):
                theirs |= adapters_of(network.encoder)  # new ones stay as they were drawn
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


def without_speed_classes(
    builder: ModelBuilder, state: dict[str, Tensor], dimension: int, classes: int
) -> dict[str, Tensor]:
    """Weights of a head with one class for each label, from one with a class for each label and speed.

    Rows of a class are consecutive and the plain speed's classes come first, so the first rows are theirs.
    """
    expected = builder.plain_head(dimension, classes).state_dict()
    result = dict(state)
    for name, value in expected.items():
        mine = result[f"head.{name}"]
        result[f"head.{name}"] = mine if mine.shape == value.shape else mine[: value.shape[0]].clone()
    return result


def takes_margin(head: Head) -> bool:
    """Whether a margin can be set."""
    return head.has_margin and "margin" in inspect.signature(type(head)).parameters
