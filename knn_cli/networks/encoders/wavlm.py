"""WavLM of every size, which yields its layers one after the other.

Chen et al., "WavLM: large-scale self-supervised pre-training for full stack speech processing", IEEE JSTSP 2022
(arXiv:2110.13900). The relative position bias is a Toeplitz matrix per head, stored as one row of 2 T - 1 values;
attention is computed for blocks of queries, so that nothing of size (B, heads, T, T) is allocated. The rest is that of
`waveform_transformer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from knn_cli.core.registry import ENCODERS
from knn_cli.networks.encoders.waveform_transformer import WaveformTransformer, chosen_sizes, signature_of
from knn_cli.networks.encoders.wavlm_blocks import GatedRelativeAttention, RelativePositions, TransformerBlock
from knn_cli.networks.encoders.wavlm_sizes import SIZES, WavLMSizes

__all__ = ["WavLM"]


@ENCODERS.register("wavlm")
class WavLM(WaveformTransformer):
    """Waveforms to the layers of WavLM, as `WaveformTransformer` yields them.

    Parameters
    ----------
    size : str
        Release whose sizes are the defaults of `sizes`: "base", "base-plus" or "large".
    adapters : mapping, optional
        `bottleneck` and `kind` of adapters in the blocks (see `adapters.insert`), None for none.
    sizes
        Fields of `WavLMSizes`.
    """

    __signature__ = signature_of(WavLMSizes)
    sizes: WavLMSizes

    def __init__(self, size: str = "base", adapters: Mapping[str, Any] | None = None, **sizes: Any) -> None:
        chosen = chosen_sizes("wavlm", size, SIZES, sizes)
        blocks = (
            TransformerBlock(chosen, GatedRelativeAttention(chosen.channels, chosen.heads))
            for _ in range(chosen.blocks)
        )
        super().__init__(chosen, blocks, adapters)

    def _add_positions(self) -> None:
        self.distances = RelativePositions(self.sizes.heads, self.sizes.buckets, self.sizes.distance)

    def _bias(self, frames: int) -> Tensor | None:
        """Biases (H, 2 T - 1) of relative positions."""
        bias: Tensor = self.distances(frames)
        return bias
