"""The sizes of WavLM and wav2vec 2.0 networks: those of the releases, and all that a config may change."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import prod
from typing import ClassVar

from knn_cli.core.errors import KnnError

__all__ = ["SIZES", "TransformerSizes", "WavLMSizes"]


@dataclass(frozen=True)
class TransformerSizes:
    """The hyperparameters that a WavLM shares with a wav2vec 2.0.

    Attributes
    ----------
    convolutions : tuple of (int, int, int)
        (channels, kernel, stride) of each convolution over the waveform.
    convolution_bias : bool
        Whether the convolutions have a bias.
    convolution_norm : str
        "group" normalises the first convolution, each channel over time (Base, Base+);
        "layer" normalises every convolution, each frame over channels (Large).
    channels : int
        Width of the transformer.
    blocks : int
        Number of transformer blocks.
    heads : int
        Attention heads of a block.
    inner : int
        Width of the feed-forward layer.
    position_kernel : int
        Kernel, in frames, of the convolutional position embedding.
    position_groups : int
        Groups of that convolution.
    norm_first : bool
        Pre-LN blocks (Large) instead of post-LN (Base, Base+).
    normalize : bool
        Whether each clip is first normalised to mean 0 and variance 1 (Large).
    final_norm : bool
        Whether the last layer of pre-LN blocks is normalised, as `last_hidden_state` of transformers.
    """

    network: ClassVar[str] = "wav2vec 2.0"

    convolutions: tuple[tuple[int, int, int], ...] = ((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2)
    convolution_bias: bool = False
    convolution_norm: str = "group"
    channels: int = 768
    blocks: int = 12
    heads: int = 12
    inner: int = 3072
    position_kernel: int = 128
    position_groups: int = 16
    norm_first: bool = False
    normalize: bool = False
    final_norm: bool = True

    def __post_init__(self) -> None:
        """Convert lists (as in JSON) to tuples and reject sizes that no network can have."""
        object.__setattr__(self, "convolutions", tuple(tuple(shape) for shape in self.convolutions))
        for wrong, why in self._faults():
            if wrong:
                raise KnnError(f"These sizes make no {self.network}: {why}.", f"They are {self}.")

    def _faults(self) -> list[tuple[bool, str]]:
        """What no network can have: whether it is so here, and the rule that it breaks."""
        numbers = [value for field in fields(self) if type(value := getattr(self, field.name)) is int]
        return [
            (min(numbers) < 1, "every size must be at least 1"),
            (not self.convolutions, "there must be a convolution"),
            (any(len(shape) != 3 or min(shape) < 1 for shape in self.convolutions), "a convolution is 3 sizes"),
            (self.convolution_norm not in ("group", "layer"), 'convolution_norm must be "group" or "layer"'),
            (self.heads > 0 and self.channels % self.heads > 0, "heads must divide channels"),
            (
                self.position_groups > 0 and self.channels % self.position_groups > 0,
                "position_groups must divide channels",
            ),
        ]

    @property
    def stride(self) -> int:
        """Samples from one frame to the next."""
        return prod(stride for _, _, stride in self.convolutions)

    @property
    def minimum(self) -> int:
        """Samples in the receptive field of one frame."""
        samples = 1
        for _, kernel, stride in reversed(self.convolutions):
            samples = (samples - 1) * stride + kernel
        return samples


@dataclass(frozen=True)
class WavLMSizes(TransformerSizes):
    """The hyperparameters of a WavLM: those of `TransformerSizes` and of its relative positions.

    Attributes
    ----------
    buckets : int
        Number of learnt relative positions, both directions together.
    distance : int
        Distance in frames from which all distances share the last bucket.
    """

    network: ClassVar[str] = "WavLM"

    buckets: int = 320
    distance: int = 800

    def _faults(self) -> list[tuple[bool, str]]:
        return [
            *super()._faults(),
            (self.buckets % 4 > 0, "buckets must be a multiple of 4"),
            (self.distance <= self.buckets // 4, "distance must be above a quarter of buckets"),
        ]


SIZES = {
    "base": WavLMSizes(),
    "base-plus": WavLMSizes(),  # the same network, trained on more data
    "large": WavLMSizes(
        convolution_norm="layer", channels=1024, blocks=24, heads=16, inner=4096, norm_first=True, normalize=True
    ),
}
