"""The base class of encoders with a single layer on filter-bank features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar, TypeAlias

from torch import Tensor

from knn_cli.networks.contracts import Encoder, Samples
from knn_cli.networks.features import DecibelMel, LogMel, PaddedLogMel, StandardMel, check_clip_lengths

__all__ = ["FilterBankEncoder"]

FilterBank: TypeAlias = LogMel | DecibelMel | PaddedLogMel | StandardMel


class FilterBankEncoder(Encoder):
    """An encoder that computes one layer from filter-bank features; subclasses define `encode`.

    Parameters
    ----------
    front : LogMel, DecibelMel, PaddedLogMel or StandardMel
        The filter bank.
    channels : int
        Width C of the layer.
    subsampling : int
        Frames of the filter bank per frame of the layer.
    minimum : int, optional
        Samples of the shortest clip; by default the filter bank's.
    """

    rate = 16000
    mask_kind = "filter bank"
    title: ClassVar[str] = "this encoder"  # its name in messages

    def __init__(self, front: FilterBank, channels: int, subsampling: int = 1, minimum: int | None = None) -> None:
        super().__init__()
        self.front = front
        self.layers, self.channels, self.subsampling = 1, channels, subsampling
        self.stride = subsampling * front.stride
        self.minimum = front.minimum if minimum is None else minimum

    def frames(self, samples: Samples) -> Samples:
        """Number of frames of a clip of `samples`, 0 below `minimum`: int for int, int64 tensor for int64 tensor."""
        frames = (self.front.frames(samples) + self.subsampling - 1) // self.subsampling
        if isinstance(samples, Tensor):
            return frames.masked_fill(samples < self.minimum, 0)
        return frames if samples >= self.minimum else 0

    def mask_features(self, mask: Callable[[Tensor], Tensor]) -> None:
        """As `Encoder.mask_features`."""
        self.front.register_forward_hook(lambda module, args, features: mask(features))

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Iterator[Tensor]:
        """(B, S) float32 at 16 kHz, clip lengths (B,) int64 or None -> one layer (B, frames(S), C).

        With `lengths`, a clip's frames equal those of the clip on its own; frames past its end are finite but
        undefined.

        Raises
        ------
        AudioError
            A clip is shorter than `minimum` samples.
        """
        check_clip_lengths(waveforms, lengths, self.minimum, self.title)
        return self._layers(waveforms, lengths)

    def _layers(self, waveforms: Tensor, lengths: Tensor | None) -> Iterator[Tensor]:
        counts = None if lengths is None else self.front.frames(lengths)
        yield self.encode(self.front(waveforms, lengths).transpose(1, 2), counts)

    @abstractmethod
    def encode(self, features: Tensor, counts: Tensor | None = None) -> Tensor:
        """Features (B, bins, N), of which the first `counts` (B,) int64 are real -> the layer (B, T, C)."""
