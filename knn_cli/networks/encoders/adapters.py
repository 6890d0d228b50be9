"""Adapters: small trainable layers and prefixes inside a frozen transformer.

Houlsby et al., "Parameter-efficient transfer learning for NLP", ICML 2019 (arXiv:1902.00751), section 2.1; for
speech: Thomas et al., "Efficient adapter transfer of self-supervised speech models", ICASSP 2022 (arXiv:2202.03218).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import KnnError

__all__ = ["KINDS", "PREFIXED", "Adapter", "Prefix", "adapters_of", "arguments", "insert"]

# Kind -> the block's attributes that hold an adapter, applied before the residual sum: "houlsby" has one after the
# attention and one after the feed-forward layer (figure 2); "pfeiffer" only the second, as in Pfeiffer et al.,
# "AdapterFusion", EACL 2021 (arXiv:2005.00247), without the layer norm that they add; "parallel" has one beside each,
# of the same input, whose output is added, as in He et al., "Towards a unified view of parameter-efficient transfer
# learning", ICLR 2022 (arXiv:2110.04366), section 3.3. "prefix" has learnt keys and values in the attention instead,
# "mam" both these and an adapter beside the feed-forward layer (mix-and-match, section 4.6 there).
KINDS: dict[str, tuple[str, ...]] = {
    "houlsby": ("attention_adapter", "output_adapter"),
    "pfeiffer": ("output_adapter",),
    "parallel": ("attention_beside", "output_beside"),
    "prefix": (),
    "mam": ("output_beside",),
}
PREFIXED = ("prefix", "mam")


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


class Prefix(nn.Module):
    """Learnt keys and values that attention finds before those of a clip.

    Li and Liang, "Prefix-tuning: optimizing continuous prompts for generation", ACL 2021 (arXiv:2101.00190), in the
    arithmetic of a public fork of wespeaker: the result is the mean of the attention with the prefix and of that
    without it, neither of which has relative positions.

    Parameters
    ----------
    heads, length, width : int
        Attention heads H, number of keys and values P for each, and their width D.
    """

    def __init__(self, heads: int, length: int, width: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.randn(heads, length, width))
        self.values = nn.Parameter(torch.randn(heads, length, width))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None) -> Tensor:
        """Queries, keys and values (B, H, T, D), `padding` (B, T) True at padding -> attended values (B, H, T, D)."""
        real = None if padding is None else ~padding[:, None, None, :]
        alone = F.scaled_dot_product_attention(query, key, value, attn_mask=real)
        shape = (key.shape[0], *self.keys.shape)
        keys = torch.cat([self.keys.to(key.dtype).expand(shape), key], dim=2)
        values = torch.cat([self.values.to(value.dtype).expand(shape), value], dim=2)
        seen = None if real is None else F.pad(real, (self.keys.shape[1], 0), value=True)
        return 0.5 * alone + 0.5 * F.scaled_dot_product_attention(query, keys, values, attn_mask=seen)


def arguments(kind: str, bottleneck: int, prefix: int) -> dict[str, Any]:
    """The arguments of `insert` that adapters of a kind have."""
    args: dict[str, Any] = {"bottleneck": bottleneck} if KINDS.get(kind, True) else {}
    return args | ({"prefix": prefix} if kind in PREFIXED else {}) | {"kind": kind}


def insert(
    blocks: Iterable[nn.Module], channels: int, bottleneck: int = 64, kind: str = "houlsby", prefix: int = 50
) -> None:
    """Insert new adapters into transformer blocks, on the device of the blocks' weights.

    Parameters
    ----------
    blocks : iterable of Module
        Blocks with the attributes that `KINDS` names, and attention with heads and a `prefix`.
    channels : int
        Width of the blocks.
    bottleneck : int
        Width of the adapters, from 1 to `channels` - 1.
    kind : str
        One of `KINDS`.
    prefix : int
        Number of learnt keys and values of an attention head, for the kinds in `PREFIXED`.

    Raises
    ------
    KnnError
        The kind is unknown, or the bottleneck or the prefix is out of range.
    """
    if kind not in KINDS:
        raise KnnError(f"There are no adapters of kind {kind!r}.", f"Known: {', '.join(KINDS)}.")
    if type(prefix) is not int or prefix < 1:
        raise KnnError(f"There is no prefix of {prefix!r} keys.", "Give 1 or more; 50 are usual.")
    if KINDS[kind] and (type(bottleneck) is not int or not 1 <= bottleneck < channels):
        raise KnnError(
            f"Adapters {bottleneck!r} wide are no bottleneck of {channels} channels.", "64 is usual for WavLM-Base."
        )
    for block in blocks:
        device = next(block.parameters()).device
        for place in KINDS[kind]:
            setattr(block, place, Adapter(channels, bottleneck, residual=not place.endswith("beside")).to(device))
        if kind in PREFIXED:
            attention = cast(Any, block).attention
            attention.prefix = Prefix(attention.heads, prefix, channels // attention.heads).to(device)


def adapters_of(encoder: nn.Module) -> dict[str, Any]:
    """The weights of all adapters in an encoder, by parameter name."""
    return {
        f"{name}.{parameter}": weight
        for name, module in encoder.named_modules()
        if isinstance(module, Adapter | Prefix)
        for parameter, weight in module.named_parameters()
    }
