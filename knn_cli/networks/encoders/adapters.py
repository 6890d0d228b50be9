"""Bottleneck adapters: small layers inside a frozen transformer, which learn in its place.

Houlsby et al., "Parameter-efficient transfer learning for NLP", ICML 2019 (arXiv:1902.00751), section 2.1; in speech:
Thomas et al., "Efficient adapter transfer of self-supervised speech models", ICASSP 2022 (arXiv:2202.03218).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import KnnError

__all__ = ["KINDS", "Adapter", "adapters_of", "insert"]

# Kind -> places in a block that get one, before the sum with the shortcut: "houlsby" behind the attention and behind
# the feed-forward layer (figure 2); "pfeiffer" the second of these only, after Pfeiffer et al., "AdapterFusion", EACL
# 2021 (arXiv:2005.00247), who settled on one a layer; the layer norm that they add is left out.
KINDS = {"houlsby": ("attention_adapter", "output_adapter"), "pfeiffer": ("output_adapter",)}


class Adapter(nn.Module):
    """x + W_up gelu(W_down x): (..., channels) to the same; W_up starts at 0, so nothing changes at first."""

    def __init__(self, channels: int, bottleneck: int) -> None:
        super().__init__()
        self.down = nn.Linear(channels, bottleneck)
        self.up = nn.Linear(bottleneck, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.up(F.gelu(self.down(x))))


def insert(blocks: Iterable[nn.Module], channels: int, bottleneck: int, kind: str = "houlsby") -> None:
    """Put new adapters into the places that transformer blocks keep for them, on the device of their weights.

    channels   : width of the blocks
    bottleneck : width of the adapters, from 1 to below that
    kind       : one of `KINDS`

    Raises KnnError for another width or kind.
    """
    if kind not in KINDS:
        raise KnnError(f"There are no adapters of kind {kind!r}.", f"Known: {', '.join(KINDS)}.")
    if type(bottleneck) is not int or not 1 <= bottleneck < channels:
        raise KnnError(
            f"Adapters {bottleneck!r} wide are no bottleneck of {channels} channels.", "64 is usual for WavLM-Base."
        )
    for block in blocks:
        for place in KINDS[kind]:
            setattr(block, place, Adapter(channels, bottleneck).to(next(block.parameters()).device))


def adapters_of(encoder: nn.Module) -> dict[str, Any]:
    """All weights of adapters in an encoder, by name."""
    return {
        f"{name}.{own}": weight
        for name, module in encoder.named_modules()
        if isinstance(module, Adapter)
        for own, weight in module.named_parameters()
    }
