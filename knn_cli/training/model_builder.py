"""Builds the network of a recipe: encoder, pooling and head with their initial weights."""

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
from knn_cli.networks import bundle, bundle_weights
from knn_cli.networks.bundle import Bundle
from knn_cli.networks.chunk_setting import CHUNK_SECONDS, Chunk, chunk_seconds
from knn_cli.networks.construction import IMPOSSIBLE_SIZES, first_line, limited
from knn_cli.networks.contracts import Head
from knn_cli.networks.encoders.adapters import adapters_of, arguments
from knn_cli.networks.network import Network
from knn_cli.training.dataset import Rows
from knn_cli.training.fine_tuning import FineTuner, parameter_groups
from knn_cli.training.recipe import COMPONENTS, AdapterConfig, ComponentConfig, Recipe
from knn_cli.training.recipe_reader import check_args


class TrainingModule(nn.Module):
    """A network and its loss as a single module, for `DistributedDataParallel`.

    Parameters
    ----------
    network : Network
        Encoder, pooling and head.
    scale : float
        The factor by which waveforms in [-1, 1] are multiplied before the network.
    """

    def __init__(self, network: Network, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    @property
    def head(self) -> Head:
        """The network's head."""
        return cast(Head, self.network.head)

    def forward(self, waveforms: Tensor, lengths: Tensor | None, labels: Tensor) -> Tensor:
        """Compute the mean loss of a batch.

        Parameters
        ----------
        waveforms : (B, S) float32 tensor
            Samples in [-1, 1].
        lengths : (B,) int64 tensor or None
            The number of samples of each clip, where clips are padded.
        labels : (B,) int64 tensor
            The class of each clip.

        Returns
        -------
        () tensor
            The loss.
        """
        return self.head.loss(self.network(waveforms * self.scale, lengths), labels)


class ModelBuilder:
    """Builds the network of a recipe, with initial weights from the bundle of [init] if the recipe names one.

    Parameters
    ----------
    recipe : Recipe
        The recipe.

    Raises
    ------
    BundleError
        The bundle is missing.
    KnnError
        The bundle lacks a component that the recipe takes from it.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.origin: Bundle | None = bundle.find(recipe.init.model) if recipe.init.model else None
        self.components = {component: self._component(component) for component in COMPONENTS}

    @property
    def rate(self) -> int:
        """The sample rate of the network in Hz."""
        return reading.RATE if self.origin is None else self.origin.rate

    @property
    def scale(self) -> float:
        """The factor on waveforms in [-1, 1]: the bundle's if the encoder is taken from it, otherwise the recipe's."""
        taken = self.origin is not None and "encoder" in self.recipe.init.parts
        return self.origin.scale if taken and self.origin is not None else self.recipe.scale

    @property
    def chunk(self) -> Chunk:
        """The most seconds of speech that the network will hear at once: the recipe's, else the encoder's bundle's."""
        if self.recipe.chunk is not None or self.origin is None or "encoder" not in self.recipe.init.parts:
            return CHUNK_SECONDS if self.recipe.chunk is None else self.recipe.chunk
        return self.origin.chunk

    def config(self, labels: Sequence[str]) -> dict[str, Any]:
        """The configuration of audio, encoder, pooling and head in the bundle to be written, for `labels`."""
        parts = {key: {"name": component.name, "args": component.args} for key, component in self.components.items()}
        parts["head"] |= {"labels": list(labels), "level": self.recipe.data.label}
        chunk = {} if self.chunk == CHUNK_SECONDS else {"chunk": self.chunk}
        return {"audio": {"rate": self.rate, "scale": self.scale}, **chunk, **parts}

    def check(self) -> None:
        """Check the recipe by building everything on the meta device, before any audio is read.

        Raises
        ------
        KnnError
            Arguments describe no possible network, an option does not suit the network, the head does not support the
            margin, or the crops are too short.
        """
        with torch.device("meta"):
            network = self._network(["", " "], None, 1)
            chunk_seconds(self.chunk, network.encoder.longest_seconds, self.recipe.name)
            FineTuner(network, self.recipe)
        parameter_groups(network, self.recipe.optimizer)
        head, margin = cast(Head, network.head), self.recipe.margin
        if margin is not None and not takes_margin(head):
            raise KnnError(
                "The recipe has [margin], but its head has no margin.", "Take [margin] out, or choose aam-softmax."
            )
        for value in () if margin is None else (margin.start, margin.end):
            head.set_margin(value)
        if round(self.recipe.data.seconds * self.rate) < network.minimum:
            needed = network.minimum / self.rate
            raise KnnError(f"data.seconds is too short for this encoder: it needs {needed:.3f} s.", "3 s are usual.")

    def build(self, labels: Sequence[str], weights: Sequence[float] | None, folds: int) -> Network:
        """Build a network with its initial weights, drawn with the recipe's seed or taken from the bundle.

        Parameters
        ----------
        labels : sequence of str
            The labels of the head.
        weights : sequence of float or None
            The weight of each label in the loss.
        folds : int
            The number of classes that the head has for each label (see `augmentation.Augmenter`).

        Raises
        ------
        KnnError
            The head is taken from a bundle that has other labels.
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
        """Build a head without class weights."""
        return self._head(dimension, classes, None)

    def _head(self, dimension: int, classes: int, weights: list[float] | None) -> Head:
        sizes = {"dimension": dimension, "classes": classes, "class_weights": weights}
        return cast(Head, self._built(HEADS, "head", **sizes))

    def _built(self, registry: Registry, part: str, **sizes: Any) -> Any:
        config = self.components[part]
        try:
            with warnings.catch_warnings(), limited():
                warnings.simplefilter("ignore")  # torch warns of empty weights, which are refused below
                built = registry.build(config.name, **sizes, **config.args)
            if any(weight.numel() == 0 for weight in built.parameters()):
                raise ValueError("a weight would be empty")
        except IMPOSSIBLE_SIZES as error:
            args = ", ".join(f"{key} = {value}" for key, value in config.args.items()) or "its default arguments"
            raise KnnError(
                f"[{part}] {config.name} cannot be built with {args}: {first_line(error)}.", "Change its sizes."
            ) from error
        return built

    def _component(self, part: str) -> ComponentConfig:
        config: ComponentConfig = getattr(self.recipe, part)
        if self.origin is None or part not in self.recipe.init.parts:
            return config  # adapters need an encoder from a bundle: see `recipe_reader`
        if part not in self.origin.config:
            raise KnnError(f"The model {self.origin.name} has no {part} to begin with.", "Take it out of init.parts.")
        original = self.origin.config[part]
        check_args(part, original["name"], config.args)
        component = ComponentConfig(original["name"], {**original["args"], **config.args})
        adapters = self.recipe.tuning.adapters
        return component if part != "encoder" or adapters is None else self._adapted(component, adapters)

    def _adapted(self, encoder: ComponentConfig, adapters: AdapterConfig) -> ComponentConfig:
        """The encoder of the bundle, with the adapters that the recipe asks for in its blocks."""
        assert self.origin is not None
        if "adapters" not in inspect.signature(ENCODERS.get(encoder.name)).parameters:
            raise KnnError(
                f"tuning.adapters needs a transformer such as wavlm, and {self.origin.name} has {encoder.name}.",
                "Take it out.",
            )
        wanted = arguments(adapters.kind, adapters.bottleneck, adapters.prefix)
        present = encoder.args.get("adapters")
        if present is not None and {"kind": "houlsby", **present} != wanted:
            raise KnnError(
                f"{self.origin.name} already has adapters, which differ from those of [tuning.adapters].",
                f"Write these values: {', '.join(f'{key} = {value!r}' for key, value in present.items())}.",
            )
        return ComponentConfig(encoder.name, {**encoder.args, "adapters": wanted})

    def _take(self, network: Network, labels: Sequence[str], folds: int) -> None:
        assert self.origin is not None
        source = bundle.load_network(self.origin, float_products=True)
        for part in self.recipe.init.parts:
            if part == "head" and (tuple(labels) != self.origin.head_labels or folds > 1):
                raise KnnError(
                    f"The head of {self.origin.name} has other labels than this corpus.",
                    "Take head out of init.parts and give the recipe a [head].",
                )
            state = dict(getattr(source, part).state_dict())
            if part == "encoder" and not self.origin.config["encoder"]["args"].get("adapters"):
                state |= adapters_of(network.encoder)  # new adapters keep their initial weights
            bundle_weights.load_strictly(getattr(network, part), state, f"{part} of {self.origin.name}")


def class_weights(recipe: Recipe, labels: Sequence[str], classes: Rows) -> list[float] | None:
    """The weight of each label in the loss.

    Parameters
    ----------
    recipe : Recipe
        The recipe, of which `loop.class_weights` is used.
    labels : sequence of str
        The labels.
    classes : (M,) int64 array
        The class of each training row.

    Returns
    -------
    list of float or None
        Balanced weights have mean 1 over the rows. None: all labels have the same weight.

    Raises
    ------
    KnnError
        The recipe's table names unknown labels or lacks some, or its list has another length.
    """
    chosen = recipe.loop.class_weights
    if isinstance(chosen, dict):
        if set(chosen) != set(labels):
            differing = sorted(set(chosen) ^ set(labels))
            raise KnnError(
                f"loop.class_weights and the corpus differ in {', '.join(differing)}.", "Name each label once."
            )
        return [chosen[label] for label in labels]
    if isinstance(chosen, tuple):
        if len(chosen) != len(labels):
            raise KnnError(
                f"loop.class_weights has {len(chosen)} weights, and the corpus {len(labels)} labels: "
                f"{', '.join(labels)}.",
                "Give one for each, in this order.",
            )
        return [*chosen]
    if chosen == "none":
        return None
    counts = np.bincount(classes, minlength=len(labels))
    return [float(len(classes) / (len(labels) * count)) for count in counts]


def without_speed_classes(
    builder: ModelBuilder, state: dict[str, Tensor], dimension: int, classes: int
) -> dict[str, Tensor]:
    """Reduce a head with a class for each label and speed to a head with a class for each label.

    The classes at the original speed come first, and the rows of a class are consecutive, so that the first rows are
    kept.

    Parameters
    ----------
    builder : ModelBuilder
        The builder of the network.
    state : dict of str to Tensor
        The state dict of the network.
    dimension : int
        The dimension of the embedding.
    classes : int
        The number of labels.

    Returns
    -------
    dict of str to Tensor
        The state dict with the reduced head.
    """
    expected = builder.plain_head(dimension, classes).state_dict()
    result = dict(state)
    for name, value in expected.items():
        weight = result[f"head.{name}"]
        result[f"head.{name}"] = weight if weight.shape == value.shape else weight[: value.shape[0]].clone()
    return result


def takes_margin(head: Head) -> bool:
    """Whether the head has a margin that can be set."""
    return head.has_margin and "margin" in inspect.signature(type(head)).parameters
