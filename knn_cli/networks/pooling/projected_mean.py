"""The pooling of transformers' sequence classification: a linear layer on each frame, then the mean over time."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import POOLINGS
from knn_cli.networks.contracts import Pooling
from knn_cli.networks.pooling.base import check_sizes, last_layer, layer_sums, time_mean

__all__ = ["ACTIVATIONS", "ProjectedMean"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
}


@POOLINGS.register("projected-mean")
class ProjectedMean(Pooling):
    """Mean over time of the projected last layer, or of a weighted sum of all layers.

    The mean of projected frames is the projection of their mean, which is computed here. With the head `softmax`
    without normalisation this is the classifier of wav2vec 2.0 models in transformers, as of MMS for languages.

    Parameters
    ----------
    layers : int
        Number of layers L of the encoder.
    channels : int
        Width C of a layer.
    dimension : int
        Width E of the projection, and so of the embedding.
    weighted : bool
        Whether to pool the weighted sum of all layers instead of the last layer alone (Yang et al., "SUPERB",
        Interspeech 2021, arXiv:2105.01051, section 3).
    activation : str
        What is applied to the projected mean, one of `ACTIVATIONS`, as fairseq's classifiers can have it.

    Examples
    --------
    >>> import torch
    >>> pooling = ProjectedMean(layers=2, channels=8, dimension=4)
    >>> pooling([torch.zeros(1, 5, 8), torch.ones(1, 5, 8)]).shape
    torch.Size([1, 4])
    """

    def __init__(
        self, layers: int, channels: int, dimension: int = 256, weighted: bool = False, activation: str = "none"
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise KnnError(f"Projected mean has no activation {activation!r}.", f"Known: {', '.join(ACTIVATIONS)}.")
        self.activation = ACTIVATIONS[activation]
        check_sizes("Projected mean", layers=layers, channels=channels, dimension=dimension)
        self.layers, self.dimension, self.weighted = layers, dimension, weighted
        if weighted:
            self.layer_weights = nn.Parameter(torch.zeros(layers))
        self.projector = nn.Linear(channels, dimension)

    def forward(self, layers: Iterable[Tensor], mask: Tensor | None = None) -> Tensor:
        """Embeddings (B, E) of `layers` (B, T, C), mask (B, T) bool True at real frames.

        Raises
        ------
        ValueError
            The number of layers is not L.
        """
        frames = layer_sums(layers, self.layer_weights)[0] if self.weighted else last_layer(layers, self.layers)
        return self.activation(self.projector(time_mean(frames, mask)))
