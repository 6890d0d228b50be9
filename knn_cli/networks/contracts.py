"""Interfaces of encoders, poolings, heads and segmentation networks.

Each is an abstract class, because every component is also a `torch.nn.Module`, from which no `typing.Protocol` can
inherit. A component inherits from its interface and is registered in `core.registry` (ENCODERS, POOLINGS, HEADS,
SEGMENTERS); the contract tests run over all registered components.

Shapes: B clips, S samples, T frames, L layers, C channels of a layer, E values of an embedding, K speakers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = [
    "Encoder",
    "FramePooling",
    "Head",
    "LayerSegmenter",
    "Pooling",
    "Samples",
    "SegmentationNetwork",
    "WaveformSegmenter",
]

Samples = TypeVar("Samples", int, Tensor)  # a number of samples, or an int64 tensor of them


class Encoder(nn.Module, ABC):
    """Waveforms to hidden layers, one after the other.

    Built as `ENCODERS.build(name, **args)`.

    Attributes
    ----------
    layers : int
        Number of layers L.
    channels : int
        Width C of every layer.
    stride : int
        Samples from one frame to the next.
    minimum : int
        Samples of the shortest clip that the encoder takes.
    mask_kind : {"", "filter bank", "frames"}
        Features that `mask_features` masks: a filter bank's output, the frames of a convolutional front end, or none.
    longest_seconds : float
        The most sound that fits into the memory of an ordinary machine at once: chunks are not longer.
    norm_after_blocks : bool
        Whether the submodule `norm` is applied after the blocks although it is registered before them.
    """

    mask_kind: ClassVar[Literal["", "filter bank", "frames"]] = ""
    longest_seconds: ClassVar[float] = 300.0
    norm_after_blocks: bool = False
    layers: int
    channels: int
    stride: int
    minimum: int

    @abstractmethod
    def frames(self, samples: Samples) -> Samples:
        """Number of frames T of a clip of `samples`: int for int, int64 tensor for int64 tensor; 0 below `minimum`."""

    @abstractmethod
    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Iterator[Tensor]:
        """Yield the layers, each computed on request, so that a pooling never needs all of them at once.

        Parameters
        ----------
        waveforms : Tensor, (B, S) float32
            Samples in [-1, 1] times the bundle's `scale`.
        lengths : Tensor, (B,) int64, optional
            Samples of each clip, if clips are padded. Samples past a clip's end do not change its frames.

        Yields
        ------
        Tensor, (B, frames(S), C) float
            A layer. With `lengths`, frames past a clip's end are finite but undefined.

        Raises
        ------
        AudioError
            A clip is shorter than `minimum`.
        ValueError
            `lengths` do not fit `waveforms`.
        """

    def block_list(self) -> list[nn.Module]:
        """The blocks in order, for layer-wise learning rates and layer drop; none by default."""
        return []

    def convolution_weights(self) -> list[nn.Parameter]:
        """Weights of the convolutions over the waveform, whose gradients a recipe can scale; none by default."""
        return []

    def fold(self) -> None:
        """Prepare for inference with the weights as they are, which then must not change; nothing by default.

        Layers stay the same but for rounding; in training, and where gradients are wanted, nothing changes.
        """

    def mask_features(self, mask: Callable[[Tensor], Tensor]) -> None:
        """Apply `mask` to the features of clips, (B, T, F) to the same, in every forward pass from here on.

        `mask_kind` tells which features these are; the method is not called for encoders that have none.
        """
        raise NotImplementedError

    if TYPE_CHECKING:  # nn.Module.__call__ is of type Any

        def __call__(self, waveforms: Tensor, lengths: Tensor | None = None) -> Iterator[Tensor]: ...


class Pooling(nn.Module, ABC):
    """Hidden layers to one embedding per clip.

    Built as `POOLINGS.build(name, layers=L, channels=C, **args)`.

    Attributes
    ----------
    dimension : int
        Values E of an embedding.
    """

    dimension: int

    @abstractmethod
    def forward(self, layers: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
        """Embeddings of the clips.

        Parameters
        ----------
        layers : iterable of Tensor, each (B, T, C) float
            Exactly L layers; they may come from a generator, and at most one of them is held at a time.
        mask : Tensor, (B, T) bool, optional
            True at real frames, of which each clip has at least one; the others may have any value, including NaN.

        Returns
        -------
        Tensor, (B, E) float

        Raises
        ------
        ValueError
            The number of layers is not L.
        """

    if TYPE_CHECKING:

        def __call__(self, layers: Iterable[Tensor], mask: Tensor | None = None) -> Tensor: ...


class FramePooling(Pooling):
    """A pooling in two steps: `forward(layers, mask)` is `pool(frames(layers), mask)`.

    The first step treats each frame separately, so that its result can be kept, concatenated over clips, and pooled
    under many masks, as `Embedder.frames` and `Embedder.pool` do. For any other pooling all layers are kept.
    """

    @abstractmethod
    def frames(self, layers: Iterable[Tensor]) -> Tensor:
        """L layers (B, T, C) -> the input of `pool`, (B, T, X)."""

    @abstractmethod
    def pool(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """`frames` (B, T, X) under a mask (B, T) as of `forward` -> embeddings (B, E)."""

    def forward(self, layers: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
        return self.pool(self.frames(layers), mask)


class Head(nn.Module, ABC):
    """Computes the training loss from embeddings and labels, and scores without margin from embeddings.

    Built as `HEADS.build(name, dimension=E, classes=C, **args)`.

    Attributes
    ----------
    dimension : int
        Values E of an embedding.
    classes : int
        Number of classes C.
    margin : float
        Margin in training.
    plain_margin : float
        The margin that has no effect.
    margin_limit : float
        Upper bound, which no margin reaches.
    has_margin : bool
        Whether the head can have a margin other than `plain_margin`.
    class_weights : Tensor, (C,) float32, or None
        Weights of the classes in the loss.
    """

    plain_margin: ClassVar[float]
    margin_limit: ClassVar[float]
    has_margin: ClassVar[bool]
    dimension: int
    classes: int
    margin: float
    class_weights: Tensor | None

    @abstractmethod
    def set_margin(self, margin: float) -> None:
        """Set the margin for training from here on; raises KnnError if the head cannot have it."""

    @abstractmethod
    def logits(self, embeddings: Tensor) -> Tensor:
        """Scores (B, C) float32 of embeddings (B, E), without margin."""

    @abstractmethod
    def forward(self, embeddings: Tensor, labels: Tensor, *, margin: float | None = None) -> Tensor:
        """Training scores (B, C) float32 of embeddings (B, E) and labels (B,) int64.

        `margin`, if given, replaces the head's margin in this call.
        """

    @abstractmethod
    def loss(self, embeddings: Tensor, labels: Tensor, *, margin: float | None = None) -> Tensor:
        """Mean loss, a float32 scalar, of embeddings (B, E) and labels (B,) int64."""

    if TYPE_CHECKING:

        def __call__(self, embeddings: Tensor, labels: Tensor, *, margin: float | None = None) -> Tensor: ...


class SegmentationNetwork(nn.Module, ABC):
    """Which of a few local speakers speak in each frame of a chunk, as classes of `segmenters.powerset`.

    Built as `SEGMENTERS.build(name, **args)`. A network is one of the two kinds below.

    Attributes
    ----------
    speakers : int
        Number of local speakers K that a chunk can have.
    most : int
        Number of speakers that can speak in one frame.
    """

    speakers: int
    most: int


class WaveformSegmenter(SegmentationNetwork):
    """A segmentation network that takes waveforms."""

    @abstractmethod
    def frames(self, samples: Samples) -> Samples:
        """Number of frames of a chunk of `samples`: int for int, int64 tensor for int64 tensor."""

    @abstractmethod
    def nearest(self, seconds: NDArray[np.floating[Any]], frames: int) -> NDArray[np.int64]:
        """Index of the nearest of a chunk's `frames` to each time, in seconds from the chunk's start."""

    @abstractmethod
    def forward(self, waveforms: Tensor) -> Tensor:
        """Chunks (B, S) float32 in [-1, 1] -> (B, frames(S), classes) float32 log-probabilities of the classes."""

    def of_windows(self, waveform: Tensor, starts: Sequence[int], size: int) -> Tensor:
        """The result of `forward` for windows of a waveform, which may overlap.

        Parameters
        ----------
        waveform : Tensor, (S,) float32
        starts : sequence of int
            The first sample of each window.
        size : int
            Samples of a window.

        Returns
        -------
        Tensor, (B, frames(size), classes) float32
        """
        return self(torch.stack([waveform[start : start + size] for start in starts]))

    if TYPE_CHECKING:

        def __call__(self, waveforms: Tensor) -> Tensor: ...


class LayerSegmenter(SegmentationNetwork):
    """A segmentation network that takes the layers of an encoder.

    Attributes
    ----------
    layers, channels : int
        Number and width of the encoder's layers.
    pace : int
        Frames of the encoder per frame of this network.
    """

    layers: int
    channels: int
    pace: int

    @abstractmethod
    def begin(self, layers: Iterable[Tensor]) -> Tensor:
        """Layers (B, T, C) of any part of a recording -> (B, T // pace, X) float32, from which windows are cut.

        Raises
        ------
        ValueError
            The number of layers is not L.
        """

    @abstractmethod
    def classify(self, x: Tensor) -> Tensor:
        """Windows (B, T, X) of the result of `begin` -> (B, T, classes) float32 log-probabilities of the classes."""
