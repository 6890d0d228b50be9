"""Mean pooling, which has no parameters."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from torch import Tensor

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import POOLINGS
from knn_cli.networks.contracts import Pooling
from knn_cli.networks.pooling.base import time_mean

__all__ = ["MeanPooling"]


@POOLINGS.register("mean")
class MeanPooling(Pooling):
    """Mean over time of one layer, without parameters: the pooling of an imported encoder until another is trained.

    Parameters
    ----------
    layers : int
        Number of layers L of the encoder.
    channels : int
        Width of a layer, and so of the embedding.
    layer : int
        Index of the layer, counted from 0 for the encoder's first output, or from the end (-1 is the last).
    """

    def __init__(self, layers: int, channels: int, layer: int = -1) -> None:
        super().__init__()
        if not -layers <= layer < layers:
            raise KnnError(
                f"Mean pooling cannot take layer {layer} of an encoder that has {layers}.",
                f"Choose from {-layers} to {layers - 1}.",
            )
        self.layers, self.layer, self.dimension = layers, layer % layers, channels

    def forward(self, layers: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
        """Embeddings (B, C) of `layers`; layers after the chosen one are never requested.

        `mask` (B, T) bool is True at real frames, of which each clip has at least one; the others may have any value.

        Raises
        ------
        ValueError
            There are too few layers for the chosen one.
        """
        chosen = next(islice(layers, self.layer, None), None)
        if chosen is None:
            raise ValueError(f"the layers ended before number {self.layer}")
        return time_mean(chosen, mask)
