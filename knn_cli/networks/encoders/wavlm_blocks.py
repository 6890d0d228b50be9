"""The transformer of WavLM and wav2vec 2.0: position embedding, attention, gated relative position bias, and blocks."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from knn_cli.networks.encoders.adapters import Prefix
from knn_cli.networks.encoders.gradient_checkpointing import (
    NormalizedConvolution,
    apply_function,
    gated_attention,
    trains_on_cpu,
)
from knn_cli.networks.encoders.wavlm_sizes import TransformerSizes
from knn_cli.networks.onnx_state import is_in_onnx_export

__all__ = ["GatedRelativeAttention", "PositionConvolution", "RelativePositions", "SelfAttention", "TransformerBlock"]

# Attention scores that are held at once, by device: on a CPU 16 MB, which suits its cache.
MAX_SCORES = {"cpu": 2**22}
MAX_SCORES_ELSEWHERE = 2**26


class PositionConvolution(nn.Module):
    """Position embedding (B, T, C) of frames (B, T, C): a grouped convolution with weight norm over its taps.

    Salimans and Kingma 2016 (arXiv:1602.07868), equation 2, for each tap k: w_k = g_k v_k / |v_k|.
    """

    spectra: Tensor | None

    def __init__(self, channels: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.groups, self.kernel = groups, kernel
        direction = torch.randn(channels, channels // groups, kernel) * 2 / (kernel * channels) ** 0.5
        self.direction = nn.Parameter(direction)
        self.magnitude = nn.Parameter(direction.norm(dim=(0, 1), keepdim=True))  # (1, 1, kernel)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("spectra", None, persistent=False)

    def fold(self) -> None:
        """Transform the taps, for `_by_spectra`."""
        size = 1 << (2 * self.kernel - 1).bit_length()
        with torch.no_grad():
            taps = torch.unflatten(self._weight(), 0, (self.groups, -1)).flip(3)  # (G, out, in, kernel)
            self.spectra = torch.fft.rfft(taps, n=size).permute(0, 3, 2, 1).contiguous()  # (G, size / 2 + 1, in, out)

    def forward(self, x: Tensor) -> Tensor:
        if trains_on_cpu(x):
            near = apply_function(NormalizedConvolution, x, self.direction, self.magnitude)
            return F.gelu(near + self.bias)
        is_plain = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled()
        if self.spectra is not None and is_plain:
            return F.gelu(self._by_spectra(x) + self.bias)
        y = F.conv1d(x.transpose(1, 2), self._weight(), self.bias, padding=self.kernel // 2, groups=self.groups)
        return F.gelu(y[..., : x.shape[1]]).transpose(1, 2)  # an even kernel gives one frame too many

    def _weight(self) -> Tensor:
        """The taps (C, C / groups, kernel) with their norm."""
        if is_in_onnx_export():  # the exporter folds norm() into a single weight, but not the form below
            size = self.direction.norm(dim=(0, 1), keepdim=True)
        else:
            size = self.direction.square().sum(dim=(0, 1), keepdim=True).sqrt()  # 8 times as fast as norm() here
        weight: Tensor = self.direction * (self.magnitude / size)
        return weight

    def _by_spectra(self, x: Tensor) -> Tensor:
        """The convolution of (B, T, C) as products of spectra of blocks that overlap: an eighth of the time, on a CPU.

        Overlap-save, Oppenheim and Schafer, "Discrete-time signal processing", section 8.7.3.
        """
        assert self.spectra is not None
        clips, frames = x.shape[:2]
        size = 2 * (self.spectra.shape[1] - 1)
        hop = size - self.kernel + 1  # frames of a block that no other one gives
        count = -(-frames // hop)
        before = self.kernel // 2
        padded = F.pad(x, (0, 0, before, count * hop + self.kernel - 1 - before - frames))
        blocks = torch.unflatten(padded.unfold(1, size, hop), 2, (self.groups, -1))  # (B, count, G, in, size)
        spectra = torch.fft.rfft(blocks).permute(2, 4, 0, 1, 3).flatten(2, 3)  # (G, bins, B count, in)
        products = torch.unflatten(spectra @ self.spectra, 2, (clips, count))  # (G, bins, B, count, out)
        y = torch.fft.irfft(products.permute(2, 3, 0, 4, 1), n=size)[..., self.kernel - 1 :]  # (B, count, G, out, hop)
        whole: Tensor = y.permute(0, 1, 4, 2, 3).reshape(clips, count * hop, -1)
        return whole[:, :frames]


class RelativePositions(nn.Module):
    """A learnt value per head for each bucket of key position minus query position (WavLM, equation 5)."""

    def __init__(self, heads: int, buckets: int, distance: int) -> None:
        super().__init__()
        self.distance = distance
        self.values = nn.Embedding(buckets, heads)
        nn.init.normal_(self.values.weight, std=0.02)

    def forward(self, frames: int) -> Tensor:
        """Biases (H, 2 T - 1) for relative positions 1 - T to T - 1."""
        offsets = torch.arange(1 - frames, frames, device=self.values.weight.device)
        values: Tensor = self.values(self.bucket(offsets))  # (2 T - 1, H)
        return values.T.contiguous()

    def bucket(self, offsets: Tensor) -> Tensor:
        """Bucket int64 of each offset: half of them per direction, of which half are exact and half logarithmic."""
        half = self.values.num_embeddings // 2
        exact = half // 2
        steps = offsets.abs()
        far = torch.log(steps.clamp(min=exact).float() / exact) / log(self.distance / exact) * (half - exact)
        near_or_far = torch.where(steps < exact, steps, (exact + far.long()).clamp(max=half - 1))
        return near_or_far + (offsets > 0) * half


class SelfAttention(nn.Module):
    """Self-attention of (B, T, C) without positions (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.prefix: Prefix | None = None  # set by `adapters.insert`
        self.query, self.key, self.value, self.output = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor, bias: Tensor | None, padding: Tensor | None) -> Tensor:
        """(B, T, C) -> (B, T, C); `bias` as `_attend` needs it, `padding` (B, T) True at padding."""
        placed = self._placed(x, bias)
        query, key, value = (
            linear(frames).view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (B, H, T, D)
            for linear, frames in ((self.query, placed), (self.key, placed), (self.value, x))
        )
        if self.prefix is None:
            y = self._attend(x, query, key, value, bias, padding)
        else:
            y = self.prefix(query, key, value, padding)
        attended: Tensor = self.output(y.transpose(1, 2).reshape(x.shape))
        return attended

    def _placed(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The frames (B, T, C) of which queries and keys are made."""
        return x

    def _attend(
        self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, padding: Tensor | None
    ) -> Tensor:
        """The attended values (B, H, T, D) of the frames `x` (B, T, C)."""
        mask = None if padding is None else ~padding[:, None, None, :]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class GatedRelativeAttention(SelfAttention):
    """Self-attention with a relative position bias that is gated by each query's frame (WavLM, equations 4 to 6).

    The bias is (H, 2 T - 1), of `RelativePositions`.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__(channels, heads)
        self.gate = nn.Linear(channels // heads, 8)
        self.gate_scale = nn.Parameter(torch.ones(1, heads, 1, 1))

    def _attend(
        self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, padding: Tensor | None
    ) -> Tensor:
        assert bias is not None
        gates = self.gate(x.reshape(*x.shape[:2], self.heads, -1)).unflatten(-1, (2, 4)).sum(-1)  # (B, T, H, 2)
        update, reset = gates.sigmoid().transpose(1, 2).chunk(2, dim=-1)  # (B, H, T, 1)
        gate = update * (reset * self.gate_scale - 1.0) + 2.0  # (B, H, T, 1)
        scores = MAX_SCORES.get(x.device.type, MAX_SCORES_ELSEWHERE)
        return gated_attention(query, key, value, gate, bias, padding, scores)


class TransformerBlock(nn.Module):
    """One transformer block, post-LN or pre-LN, with the given attention."""

    def __init__(self, sizes: TransformerSizes, attention: SelfAttention) -> None:
        super().__init__()
        self.norm_first = sizes.norm_first
        self.attention = attention
        self.attention_norm = nn.LayerNorm(sizes.channels)
        self.widen = nn.Linear(sizes.channels, sizes.inner)
        self.narrow = nn.Linear(sizes.inner, sizes.channels)
        self.output_norm = nn.LayerNorm(sizes.channels)
        self.attention_adapter: nn.Module = nn.Identity()  # replaced by `adapters.insert`
        self.output_adapter: nn.Module = nn.Identity()
        self.attention_beside: nn.Module | None = None  # the same, of the input of attention and feed-forward layer
        self.output_beside: nn.Module | None = None

    def forward(self, x: Tensor, bias: Tensor | None, padding: Tensor | None) -> Tensor:
        if self.norm_first:
            x = x + self._attend(self.attention_norm(x), bias, padding)
            return x + self._feed_forward(self.output_norm(x))
        x = self.attention_norm(x + self._attend(x, bias, padding))
        y: Tensor = self.output_norm(x + self._feed_forward(x))
        return y

    def _attend(self, x: Tensor, bias: Tensor | None, padding: Tensor | None) -> Tensor:
        adapted: Tensor = self.attention_adapter(self.attention(x, bias, padding))
        return adapted if self.attention_beside is None else adapted + self.attention_beside(x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        wide = self.widen(x)
        if torch.is_grad_enabled():  # the backward pass recomputes the activation, but not the linear layer
            y: Tensor = checkpoint(
                lambda wide: self.narrow(F.gelu(wide)), wide, use_reentrant=False, preserve_rng_state=False
            )
        else:
            y = self.narrow(F.gelu(wide))
        adapted: Tensor = self.output_adapter(y)
        return adapted if self.output_beside is None else adapted + self.output_beside(x)
