"""Bottleneck adapters: small trainable layers inside a frozen transformer.

Houlsby et al., "Parameter-efficient transfer learning for NLP", ICML 2019 (arXiv:1902.00751), section 2.1; for
speech: Thomas et al., "Efficient adapter transfer of self-supervised speech models", ICASSP 2022 (arXiv:2202.03218).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import KnnError

__all__ = ["KINDS", "Adapter", "adapters_of", "insert"]

# Kind -> the block's attributes that hold an adapter, applied before the residual sum: "houlsby" has one after the
# attention and one after the feed-forward layer (figure 2); "pfeiffer" only the second, as in Pfeiffer et al.,
# "AdapterFusion", EACL 2021 (arXiv:2005.00247), without the layer norm that they add; "parallel" has one beside each,
# of the same input, whose output is added, as in He et al., "Towards a unified view of parameter-efficient transfer
# learning", ICLR 2022 (arXiv:2110.04366), section 3.3.
KINDS = {
    "houlsby": ("attention_adapter", "output_adapter"),
    "pfeiffer": ("output_adapter",),
    "parallel": ("attention_beside", "output_beside"),
}


class Adapter(nn.Module):
    """x + W_up gelu(W_down x): (..., channels) -> (..., channels); at first the identity, because W_up starts at 0.

    Without `residual` it is the second term alone.
    """

    def __init__(self, channels: int, bottleneck: int, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.down = nn.Linear(channels, bottleneck)
        self.up = nn.Linear(bottleneck, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        change = self.up(F.gelu(self.down(x)))
        return cast(Tensor, x + change if self.residual else change)


def insert(blocks: Iterable[nn.Module], channels: int, bottleneck: int, kind: str = "houlsby") -> None:
    """Insert new adapters into transformer blocks, on the device of the blocks' weights.

    Parameters
    ----------
    blocks : iterable of Module
        Blocks with the attributes that `KINDS` names.
    channels : int
        Width of the blocks.
    bottleneck : int
        Width of the adapters, from 1 to `channels` - 1.
    kind : str
        One of `KINDS`.

    Raises
    ------
    KnnError
        The kind is unknown, or the bottleneck is out of range.
    """
    if kind not in KINDS:
        raise KnnError(f"There are no adapters of kind {kind!r}.", f"Known: {', '.join(KINDS)}.")
    if type(bottleneck) is not int or not 1 <= bottleneck < channels:
        raise KnnError(
            f"Adapters {bottleneck!r} wide are no bottleneck of {channels} channels.", "64 is usual for WavLM-Base."
        )
    for block in blocks:
        for place in KINDS[kind]:
            adapter = Adapter(channels, bottleneck, residual=kind != "parallel")
            setattr(block, place, adapter.to(next(block.parameters()).device))


def adapters_of(encoder: nn.Module) -> dict[str, Any]:
    """The weights of all adapters in an encoder, by parameter name."""
    return {
        f"{name}.{parameter}": weight
        for name, module in encoder.named_modules()
        if isinstance(module, Adapter)
        for parameter, weight in module.named_parameters()
    }
