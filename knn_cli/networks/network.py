"""The network of a bundle: an encoder, a pooling, and optionally a head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from knn_cli.networks.contracts import Encoder, Head, Pooling


class Network(nn.Module):
    """Waveforms to embeddings by an encoder and a pooling; the head, if any, maps embeddings to scores.

    Parameters
    ----------
    encoder : Encoder
    pooling : Pooling
        Built for the encoder's `layers` and `channels`.
    head : Head, optional
        Built for the pooling's `dimension`.
    """

    encoder: Encoder
    pooling: Pooling
    head: Head | None

    def __init__(self, encoder: Encoder, pooling: Pooling, head: Head | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.head = head

    @property
    def dimension(self) -> int:
        """Number of values of an embedding."""
        return self.pooling.dimension

    @property
    def minimum(self) -> int:
        """Samples of the shortest clip that the encoder takes."""
        return self.encoder.minimum

    def scores(self, embeddings: Tensor) -> Tensor:
        """(B, E) embeddings -> (B, C) float32 scores of the head's classes. Raises ValueError without a head."""
        if self.head is None:
            raise ValueError("the network has no head")
        return self.head.logits(embeddings)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, S) float32 waveforms, (B,) int64 lengths in samples if clips are padded -> (B, E) embeddings.

        A padded clip has the same embedding as on its own.
        """
        layers = self.encoder(waveforms, lengths)
        if lengths is None:
            return self.pooling(layers)
        frames = self.encoder.frames(waveforms.shape[1])
        mask = torch.arange(frames, device=waveforms.device) < self.encoder.frames(lengths)[:, None]  # (B, T)
        return self.pooling(layers, mask)

    if TYPE_CHECKING:

        def __call__(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor: ...
