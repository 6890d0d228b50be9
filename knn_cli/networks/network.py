"""What a bundle's weights are the weights of: an encoder, a pooling, and a head where the bundle has one."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """Encoder and pooling as one module, from waveforms to embeddings; the head, if any, goes from there to scores.

    The parts keep the contracts of `registry.ENCODERS`, `POOLINGS` and `HEADS` (docs/architecture.md).
    """

    def __init__(self, encoder: nn.Module, pooling: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.head = head

    @property
    def dimension(self) -> int:
        """Values an embedding."""
        return cast(int, self.pooling.dimension)

    @property
    def minimum(self) -> int:
        """Samples of the shortest clip that the encoder takes."""
        return cast(int, self.encoder.minimum)

    def scores(self, embeddings: Tensor) -> Tensor:
        """(B, E) embeddings -> (B, C) float32 scores of the head's classes. Raises ValueError without a head."""
        if self.head is None:
            raise ValueError("the network has no head")
        return cast(Tensor, cast(Any, self.head).logits(embeddings))

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, S) float32 waveforms, (B,) int64 lengths in samples where clips are padded -> (B, E) embeddings.

        A padded clip gives the embedding that it gives alone.
        """
        layers = self.encoder(waveforms, lengths)
        if lengths is None:
            return cast(Tensor, self.pooling(layers))
        encoder = cast(Any, self.encoder)
        frames = encoder.frames(waveforms.shape[1])
        mask = torch.arange(frames, device=waveforms.device) < encoder.frames(lengths)[:, None]  # (B, T)
        return cast(Tensor, self.pooling(layers, mask))
