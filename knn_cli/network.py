"""What a bundle's weights are the weights of: an encoder and a pooling, from waveforms to embeddings."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """Encoder and pooling as one module.

    The parts keep the contracts of `registry.ENCODERS` and `registry.POOLINGS` (docs/architecture.md).
    """

    def __init__(self, encoder: nn.Module, pooling: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling

    @property
    def dimension(self) -> int:
        """Values an embedding."""
        return cast(int, self.pooling.dimension)

    @property
    def minimum(self) -> int:
        """Samples of the shortest clip that the encoder takes."""
        return cast(int, self.encoder.minimum)

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
