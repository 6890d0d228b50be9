"""The conformer of w2v-BERT 2.0: attention with three kinds of positions, causal convolution, and blocks.

Gulati et al., "Conformer: convolution-augmented transformer for speech recognition", Interspeech 2020
(arXiv:2005.08100), section 2, with causal convolutions that are normalised over channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from knn_cli.networks.encoders.conformer_sizes import W2vBertSizes
from knn_cli.networks.encoders.wavlm_blocks import MAX_SCORES, MAX_SCORES_ELSEWHERE, SelfAttention
from knn_cli.networks.onnx_state import is_in_onnx_export

__all__ = [
    "ConformerBlock",
    "FeedForward",
    "KeyDistanceAttention",
    "RelativeAttention",
    "RotaryAttention",
    "attention_of",
    "distance_sinusoids",
    "rotations",
]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "swish": F.silu}


def distance_sinusoids(frames: int, channels: int, device: torch.device) -> Tensor:
    """Sinusoids (2 T - 1, C) float32 of the distances T - 1 to 1 - T of a key before its query; sines are even."""
    distances = torch.arange(frames - 1, -frames, -1, device=device).float()
    rates = 10000 ** (-torch.arange(0, channels, 2, device=device).float() / channels)
    angles = distances[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :channels]


def rotations(frames: int, width: int, base: float, device: torch.device) -> Tensor:
    """Cosines and sines (2, T, width) float32 by which "rotary" positions turn a head of `width` values."""
    rates = base ** (-torch.arange(0, width, 2, device=device).float() / width)
    angles = torch.arange(frames, device=device).float()[:, None] * rates
    return torch.stack([angles.cos(), angles.sin()]).repeat(1, 1, 2)


class _BiasedAttention(SelfAttention):
    """Self-attention with a bias that is gathered from products of queries with a table of positions, few at once."""

    def _gathered(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        looking: Tensor,
        table: Tensor,
        place: Callable[[Tensor, Tensor], Tensor],
        padding: Tensor | None,
    ) -> Tensor:
        """The attended values (B, H, T, D).

        Parameters
        ----------
        query, key, value, looking : Tensor, (B, H, T, D)
            `looking` are the queries of positions.
        table : Tensor, (D, R) or (H, D, R)
            Its products with them, scaled as those with keys, are added to the scores, by place in the table.
        place : callable
            Queries (T', 1) and keys (1, T), as numbers of frames, to places (T', T) int64 in the table.
        padding : Tensor, (B, T) bool, optional
            True at keys that are ignored.
        """
        frames = query.shape[2]
        keys = torch.arange(frames, device=query.device)
        mask = None if padding is None else padding[:, None, None, :]

        def attend(query: Tensor, looking: Tensor, numbers: Tensor) -> Tensor:
            products = looking @ table * query.shape[3] ** -0.5  # (B, H, T', R)
            places = place(numbers[:, None], keys[None]).expand(*products.shape[:2], -1, -1)
            bias = products.gather(3, places)  # (B, H, T', T)
            bias = bias if mask is None else bias.masked_fill(mask, float("-inf"))
            return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)

        if is_in_onnx_export():
            return attend(query, looking, keys)
        if torch.is_grad_enabled():  # nothing of size (B, H, T, T) is kept for the backward pass
            return cast(Tensor, checkpoint(attend, query, looking, keys, use_reentrant=False, preserve_rng_state=False))
        scores = MAX_SCORES.get(query.device.type, MAX_SCORES_ELSEWHERE)
        size = max(1, scores // (query.shape[0] * query.shape[1] * frames))
        blocks = (slice(start, start + size) for start in range(0, frames, size))
        return torch.cat([attend(query[:, :, at], looking[:, :, at], keys[at]) for at in blocks], dim=2)


class KeyDistanceAttention(_BiasedAttention):
    """Attention whose keys have a learnt vector of their clipped distance (Shaw et al. 2018, equation 4)."""

    def __init__(self, channels: int, heads: int, left: int, right: int) -> None:
        super().__init__(channels, heads)
        self.left, self.right = left, right
        self.distances = nn.Embedding(left + right + 1, channels // heads)

    def _attend(
        self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, padding: Tensor | None
    ) -> Tensor:
        table = self.distances.weight.T.to(query.dtype)  # (D, R)

        def place(queries: Tensor, keys: Tensor) -> Tensor:
            return (keys - queries).clamp(-self.left, self.right) + self.left

        return self._gathered(query, key, value, query, table, place, padding)


class RelativeAttention(_BiasedAttention):
    """Attention with projected sinusoids of distances and two learnt queries (Dai et al. 2019, section 3.3).

    It takes `distance_sinusoids` as bias.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__(channels, heads)
        self.position = nn.Linear(channels, channels, bias=False)
        self.content_query = nn.Parameter(torch.zeros(heads, channels // heads))
        self.position_query = nn.Parameter(torch.zeros(heads, channels // heads))

    def _attend(
        self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, padding: Tensor | None
    ) -> Tensor:
        assert bias is not None
        table = self.position(bias.to(x.dtype)).view(bias.shape[0], self.heads, -1).permute(1, 2, 0)  # (H, D, 2 T - 1)
        by_position = query + self.position_query[:, None].to(query.dtype)
        by_content = query + self.content_query[:, None].to(query.dtype)
        middle = query.shape[2] - 1

        def place(queries: Tensor, keys: Tensor) -> Tensor:
            return keys - queries + middle

        return self._gathered(by_content, key, value, by_position, table, place, padding)


class RotaryAttention(SelfAttention):
    """Attention whose frames are turned before queries and keys are made of them; it takes `rotations` as bias."""

    def _placed(self, x: Tensor, bias: Tensor | None) -> Tensor:
        assert bias is not None
        cosines, sines = bias.to(x.dtype)[:, :, None]  # (T, 1, D) each
        heads = x.view(*x.shape[:2], self.heads, -1)  # (B, T, H, D)
        first, second = heads.chunk(2, dim=3)
        turned: Tensor = heads * cosines + torch.cat([-second, first], dim=3) * sines
        return turned.flatten(2)


def attention_of(sizes: W2vBertSizes) -> SelfAttention:
    """The attention of a block."""
    if sizes.positions == "key":
        return KeyDistanceAttention(sizes.channels, sizes.heads, sizes.left, sizes.right)
    kinds = {"relative": RelativeAttention, "rotary": RotaryAttention, "none": SelfAttention}
    return kinds[sizes.positions](sizes.channels, sizes.heads)


class FeedForward(nn.Module):
    """W_2 f(W_1 x) of (..., C) -> (..., C); training stores the inner values once and recomputes f."""

    def __init__(self, channels: int, inner: int, activation: str) -> None:
        super().__init__()
        self.activation = _ACTIVATIONS[activation]
        self.widen = nn.Linear(channels, inner)
        self.narrow = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.widen(x)
        if torch.is_grad_enabled():
            return cast(Tensor, checkpoint(self._narrowed, wide, use_reentrant=False, preserve_rng_state=False))
        return self._narrowed(wide)

    def _narrowed(self, wide: Tensor) -> Tensor:
        return cast(Tensor, self.narrow(self.activation(wide)))


class CausalConvolution(nn.Module):
    """The convolution of a conformer block, over the present frame and those before it: (B, T, C) -> (B, T, C)."""

    def __init__(self, sizes: W2vBertSizes) -> None:
        super().__init__()
        channels = sizes.channels
        self.activation = _ACTIVATIONS[sizes.activation]
        self.norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, 2 * channels, bias=False)
        self.depthwise = nn.Conv1d(channels, channels, sizes.kernel, groups=channels, bias=False)
        self.inner_norm = nn.LayerNorm(channels)
        self.narrow = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        x = self.norm(x)
        if padding is not None:
            x = x.masked_fill(padding.unsqueeze(2), 0.0)
        x = F.glu(self.widen(x), dim=2).transpose(1, 2)  # (B, C, T)
        x = self.depthwise(F.pad(x, (self.depthwise.kernel_size[0] - 1, 0))).transpose(1, 2)
        return cast(Tensor, self.narrow(self.activation(self.inner_norm(x))))


class ConformerBlock(nn.Module):
    """Half a feed-forward layer, attention, convolution, half a feed-forward layer, norm.

    Adapters (`adapters.insert`) stand where a transformer block has them: after or beside the attention, and after or
    beside the second feed-forward layer.
    """

    def __init__(self, sizes: W2vBertSizes) -> None:
        super().__init__()
        channels = sizes.channels
        self.first_norm = nn.LayerNorm(channels)
        self.first = FeedForward(channels, sizes.inner, sizes.activation)
        self.attention_norm = nn.LayerNorm(channels)
        self.attention = attention_of(sizes)
        self.convolution = CausalConvolution(sizes)
        self.second_norm = nn.LayerNorm(channels)
        self.second = FeedForward(channels, sizes.inner, sizes.activation)
        self.output_norm = nn.LayerNorm(channels)
        self.attention_adapter: nn.Module = nn.Identity()  # replaced by `adapters.insert`
        self.output_adapter: nn.Module = nn.Identity()
        self.attention_beside: nn.Module | None = None
        self.output_beside: nn.Module | None = None

    def forward(self, x: Tensor, bias: Tensor | None, padding: Tensor | None) -> Tensor:
        """(B, T, C) -> (B, T, C); `bias` as the attention needs it, `padding` (B, T) True at padding."""
        x = x + 0.5 * self.first(self.first_norm(x))
        y = self.attention_norm(x)
        attended = self.attention_adapter(self.attention(y, bias, padding))
        x = x + (attended if self.attention_beside is None else attended + self.attention_beside(y))
        x = x + self.convolution(x, padding)
        y = self.second_norm(x)
        changed = self.output_adapter(self.second(y))
        x = x + 0.5 * (changed if self.output_beside is None else changed + self.output_beside(y))
        normalised: Tensor = self.output_norm(x)
        return normalised
