"""What a bundle's weights are the weights of: an encoder, a pooling, and a head where the bundle has one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from knn_cli.networks.contracts import Encoder, Head, Pooling


class Network(nn.Module):
    """Encoder and pooling as one module, from waveforms to embeddings; the head, if any, goes from there to scores.

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
        """Values of an embedding."""
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
        """(B, S) float32 waveforms, (B,) int64 lengths in samples where clips are padded -> (B, E) embeddings.

        A padded clip has the embedding that it has alone.
        """
        layers = self.encoder(waveforms, lengths)
        if lengths is None:
            return self.pooling(layers)
        frames = self.encoder.frames(waveforms.shape[1])
        mask = torch.arange(frames, device=waveforms.device) < self.encoder.frames(lengths)[:, None]  # (B, T)
        return self.pooling(layers, mask)

    if TYPE_CHECKING:

        def __call__(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor: ...
