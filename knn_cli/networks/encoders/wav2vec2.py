"""wav2vec 2.0 and its kin, HuBERT, XLS-R and MMS, which yield their layers one after the other.

Baevski et al., "wav2vec 2.0: a framework for self-supervised learning of speech representations", NeurIPS 2020
(arXiv:2006.11477); Hsu et al., "HuBERT", IEEE/ACM TASLP 2021 (arXiv:2106.07447); Babu et al., "XLS-R", Interspeech 2022
(arXiv:2111.09296); Pratap et al., "Scaling speech technology to 1,000+ languages" (MMS), JMLR 2024 (arXiv:2305.13516).
They are one network in several sizes. It differs from WavLM by its attention, which has no relative positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.registry import ENCODERS
from knn_cli.networks.encoders.waveform_transformer import WaveformTransformer, chosen_sizes, signature_of
from knn_cli.networks.encoders.wavlm_blocks import SelfAttention, TransformerBlock
from knn_cli.networks.encoders.wavlm_sizes import TransformerSizes

__all__ = ["WAV2VEC2_SIZES", "LanguageAdapter", "Wav2Vec2", "Wav2Vec2Block", "Wav2Vec2Sizes"]


@dataclass(frozen=True)
class Wav2Vec2Sizes(TransformerSizes):
    """The hyperparameters of a wav2vec 2.0: those of `TransformerSizes`, and two more.

    Attributes
    ----------
    projection_norm : bool
        Whether the output of the convolutions is normalised before its projection; some HuBERTs do without.
    adapter : int
        Width of the adapter at the end of each pre-LN block, as MMS has one per language; 0 for none.
    """

    projection_norm: bool = True
    adapter: int = 0

    def _faults(self) -> list[tuple[bool, str]]:
        numbers = [
            value
            for field in fields(self)
            if field.name != "adapter" and type(value := getattr(self, field.name)) is int
        ]
        (_, rule), *others = super()._faults()
        return [
            (min(numbers) < 1, rule),
            *others,
            (self.adapter < 0, "adapter must be at least 0"),
            (self.adapter > 0 and not self.norm_first, "an adapter needs norm_first"),
        ]


_LARGE: dict[str, Any] = {
    "convolution_norm": "layer",
    "convolution_bias": True,
    "norm_first": True,
    "normalize": True,
    "heads": 16,
}
WAV2VEC2_SIZES = {
    "base": Wav2Vec2Sizes(),  # wav2vec 2.0 Base, HuBERT Base
    "large": Wav2Vec2Sizes(channels=1024, blocks=24, inner=4096, **_LARGE),  # LV-60, XLS-R and MMS 300M, HuBERT Large
    "xlarge": Wav2Vec2Sizes(channels=1280, blocks=48, inner=5120, **_LARGE),  # XLS-R and MMS 1B, HuBERT X-Large
    "xxlarge": Wav2Vec2Sizes(channels=1920, blocks=48, inner=7680, **_LARGE),  # XLS-R 2B
}


class LanguageAdapter(nn.Module):
    """x + W_2 relu(W_1 norm(x)), of (..., C): the adapter of MMS (arXiv:2305.13516, section 4.2)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.down = nn.Linear(channels, width)
        self.up = nn.Linear(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.up(F.relu(self.down(self.norm(x)))))


class Wav2Vec2Block(TransformerBlock):
    """A transformer block with plain attention, followed by the adapter of MMS if there is one."""

    def __init__(self, sizes: Wav2Vec2Sizes) -> None:
        super().__init__(sizes, SelfAttention(sizes.channels, sizes.heads))
        self.language = LanguageAdapter(sizes.channels, sizes.adapter) if sizes.adapter else nn.Identity()

    def forward(self, x: Tensor, bias: Tensor | None, padding: Tensor | None) -> Tensor:
        return cast(Tensor, self.language(super().forward(x, bias, padding)))


@ENCODERS.register("wav2vec2")
class Wav2Vec2(WaveformTransformer):
    """Waveforms to the layers of a wav2vec 2.0, HuBERT, XLS-R or MMS, as `WaveformTransformer` yields them.

    Parameters
    ----------
    size : str
        Release whose sizes are the defaults of `sizes`: "base", "large", "xlarge" or "xxlarge".
    adapters : mapping, optional
        `bottleneck` and `kind` of new adapters in the blocks (see `adapters.insert`), None for none.
    sizes
        Fields of `Wav2Vec2Sizes`.
    """

    __signature__ = signature_of(Wav2Vec2Sizes)
    epsilon = 1e-7  # as in the feature extractor of transformers

    def __init__(self, size: str = "base", adapters: Mapping[str, Any] | None = None, **sizes: Any) -> None:
        chosen = chosen_sizes("wav2vec2", size, WAV2VEC2_SIZES, sizes)
        blocks = (Wav2Vec2Block(chosen) for _ in range(chosen.blocks))
        super().__init__(chosen, blocks, adapters, chosen.projection_norm)
