"""A segmentation network on the layers of the encoder that also computes the embeddings.

Classes are those of `powerset` (Plaquet and Bredin, Interspeech 2023). The encoder's layers are concatenated,
projected, brought to half their frame rate by a strided convolution, and passed to bidirectional LSTM layers and a
classifier.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import SEGMENTERS
from knn_cli.networks.contracts import LayerSegmenter
from knn_cli.networks.segmenters.powerset import powerset

__all__ = ["SegmentationHead"]


@SEGMENTERS.register("encoder-lstm")
class SegmentationHead(LayerSegmenter):
    """Layers of an encoder to log-probabilities of who speaks, one frame for two frames of the encoder.

    Parameters
    ----------
    layers, channels : int
        Number and width of the encoder's layers.
    width : int
        Channels after the projection.
    hidden : int
        Width of the LSTM in one direction.
    depth : int
        Layers of the LSTM.
    dropout : float
        Dropout probability before each layer of the LSTM and before the classifier, in training.
    speakers : int
        Number of speakers that a window can have.
    most : int
        Number of speakers that can speak in one frame.
    """

    pace = 2  # frames of the encoder per frame of this network

    def __init__(
        self,
        layers: int,
        channels: int,
        width: int = 160,
        hidden: int = 160,
        depth: int = 2,
        dropout: float = 0.1,
        speakers: int = 3,
        most: int = 2,
    ) -> None:
        super().__init__()
        if min(layers, channels, width, hidden, depth) < 1 or not 0 < most <= speakers:
            raise KnnError("A segmentation head has positive sizes, and no more speakers at once than in all.")
        self.layers, self.channels, self.speakers, self.most = layers, channels, speakers, most
        self.narrow = nn.Linear(layers * channels, width)
        self.halve = nn.Conv1d(width, width, 5, stride=self.pace, padding=2)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        between = dropout if depth > 1 else 0.0
        self.lstm = nn.LSTM(width, hidden, depth, batch_first=True, bidirectional=True, dropout=between)
        self.linear = nn.Linear(2 * hidden, width)
        self.classifier = nn.Linear(width, len(powerset(speakers, most)))

    def begin(self, layers: Iterable[Tensor]) -> Tensor:
        """All layers (B, T, C) of the encoder -> (B, T // 2, width), from which windows are cut.

        Raises
        ------
        ValueError
            The number of layers is not that of the encoder.
        """
        x = torch.cat(list(layers), dim=2)  # (B, T, layers * C)
        if x.shape[2] != self.layers * self.channels:
            raise ValueError(f"{x.shape[2] / self.channels:g} layers came, {self.layers} expected")
        x = x[:, : x.shape[1] // self.pace * self.pace]
        x = F.gelu(self.narrow(x)).transpose(1, 2)  # (B, width, T)
        result: Tensor = self.norm(F.gelu(self.halve(x)).transpose(1, 2))
        return result

    def classify(self, x: Tensor) -> Tensor:
        """Windows (B, T, width) of the result of `begin` -> (B, T, classes) log-probabilities."""
        x, _ = self.lstm(self.dropout(x))
        x = F.gelu(self.linear(self.dropout(x)))
        logs: Tensor = F.log_softmax(self.classifier(x), dim=-1)
        return logs

    def forward(self, layers: Iterable[Tensor]) -> Tensor:
        """Layers (B, T, C) of a window -> (B, T // 2, classes) log-probabilities."""
        return self.classify(self.begin(layers))
