"""w2v-BERT 2.0, a conformer over stacked log-mel features, which yields its layers one after the other.

Chung et al., "w2v-BERT: combining contrastive learning and masked language modeling for self-supervised speech
pre-training", ASRU 2021 (arXiv:2108.06209); its second version with 600 million parameters, trained on 4.5 million
hours of more than 143 languages: Seamless Communication, "Seamless: multilingual expressive and streaming speech
translation", 2023 (arXiv:2312.05187).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.registry import ENCODERS, check_arguments
from knn_cli.networks.contracts import Encoder, Samples
from knn_cli.networks.encoders.adapters import insert
from knn_cli.networks.encoders.conformer import ConformerBlock, FeedForward, distance_sinusoids, rotations
from knn_cli.networks.encoders.conformer_sizes import W2V_BERT_SIZES, W2vBertSizes
from knn_cli.networks.encoders.gradient_checkpointing import free_memory, free_memory_on_backward
from knn_cli.networks.encoders.waveform_transformer import chosen_sizes, signature_of
from knn_cli.networks.encoders.wavlm_blocks import SelfAttention
from knn_cli.networks.features import (
    MelPower,
    centred,
    check_clip_lengths,
    clamp_min,
    frame_mask,
    unbiased_variance,
)
from knn_cli.networks.pooling.base import last_layer

__all__ = ["AdapterAbove", "StackedMel", "W2vBert"]

_FLOOR = torch.finfo(torch.float32).eps  # Kaldi's smallest energy, of waveforms of 16 bits
_FULL_SCALE = float(2**30)  # powers of waveforms of 16 bits against those of waveforms in [-1, 1]


class StackedMel(nn.Module):
    """SeamlessM4T's features: Kaldi's log-mel of 16-bit waveforms, each bin normalised over the clip, frames stacked.

    Each bin has mean 0 and variance 1 over the clip, unbiased, with 1e-7 added to the variance; `stack` frames in
    order make one, and frames at the end that do not fill one are left out after they were normalised with.

    Parameters
    ----------
    bins : int
        Mel bins F.
    stack : int
        Frames of the filter bank in one frame of the features.
    """

    def __init__(self, bins: int = 80, stack: int = 2) -> None:
        super().__init__()
        self.mel = MelPower(bins)
        self.bins, self.stack, self.stride = bins, stack, stack * self.mel.shift
        self.minimum = self.mel.length + (max(stack, 2) - 1) * self.mel.shift  # a variance needs two frames

    def frames(self, samples: Samples) -> Samples:
        """Number of frames of a clip of `samples`: int for int, int64 tensor for int64 tensor; 0 below `minimum`."""
        frames = self._mel_frames(samples) // self.stack
        if isinstance(samples, Tensor):
            return frames.masked_fill(samples < self.minimum, 0)
        return frames if samples >= self.minimum else 0

    def _mel_frames(self, samples: Samples) -> Samples:
        return clamp_min((samples - self.mel.length) // self.mel.shift + 1, 0)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, S) float32 in [-1, 1], clip lengths (B,) int64 or None -> (B, frames(S), stack F), 0 past the end."""
        with torch.autocast(waveforms.device.type, enabled=False):
            logs = (self.mel(waveforms) * _FULL_SCALE).clamp_min(_FLOOR).log()  # (B, N, F)
            mask = None if lengths is None else frame_mask(self._mel_frames(lengths), logs.shape[1])
            around = centred(logs, mask)
            normalised = around * torch.rsqrt(unbiased_variance(around, mask) + 1e-7)
            whole = self.frames(waveforms.shape[1])
            return normalised[:, : whole * self.stack].reshape(logs.shape[0], -1, self.stack * self.bins)


class AdapterAbove(nn.Module):
    """A layer above the blocks that takes `adapter_kernel` frames together: (B, T, C) -> (B, T', C).

    Two convolutions of its normalised input, one for the residual and one for the attention; then a feed-forward layer.
    """

    def __init__(self, sizes: W2vBertSizes) -> None:
        super().__init__()
        channels, kernel, self.stride = sizes.width, sizes.adapter_kernel, sizes.adapter_stride
        self.kernel, self.reach = kernel, self.stride // 2
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.convolutions = nn.ModuleList(
            nn.Conv1d(channels, 2 * channels, kernel, self.stride, self.reach) for _ in range(2)
        )  # of the residual, and of what the attention gets
        self.attention = SelfAttention(channels, sizes.heads)
        self.output_norm = nn.LayerNorm(channels)
        self.output = FeedForward(channels, sizes.inner, sizes.adapter_activation)

    def frames(self, frames: Samples) -> Samples:
        """Number of frames that come of `frames`; 0 of 0."""
        count = (frames + 2 * self.reach - self.kernel) // self.stride + 1
        return count.masked_fill(frames < 1, 0) if isinstance(frames, Tensor) else count * (frames > 0)

    def forward(self, x: Tensor, counts: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Frames (B, T, C), of which the first `counts` (B,) are real -> the same of the frames that come of them."""
        real = None if counts is None else frame_mask(counts, x.shape[1]).unsqueeze(2)
        residual, y = self._strided(0, x, real), self._strided(1, x, real)
        after = None if counts is None else self.frames(counts)
        padding = None if after is None else ~frame_mask(after, y.shape[1])
        x = residual + self.attention(y, None, padding)
        return x + self.output(self.output_norm(x)), after

    def _strided(self, number: int, x: Tensor, real: Tensor | None) -> Tensor:
        """Frames (B, T, C) -> (B, T', C) by one of the convolutions, which finds zeros past the end of a clip."""
        x = self.norms[number](x)
        x = x if real is None else x * real
        return F.glu(self.convolutions[number](x.transpose(1, 2)), dim=1).transpose(1, 2)


@ENCODERS.register("w2v-bert")
class W2vBert(Encoder):
    """Waveforms to the layers of a w2v-BERT 2.0.

    Layer 0 is the input of the first block, layer i the output of block i: the `hidden_states` of transformers. With
    layers above the blocks (`adapters_above`) there is one layer, their output.

    Parameters
    ----------
    size : str
        Release whose sizes are the defaults of `sizes`: "2.0".
    adapters : mapping, optional
        `bottleneck` and `kind` of new adapters in the blocks (see `adapters.insert`), None for none.
    sizes
        Fields of `W2vBertSizes`.

    Examples
    --------
    >>> import torch
    >>> encoder = W2vBert(channels=16, blocks=2, heads=2, inner=24)
    >>> [tuple(layer.shape) for layer in encoder(torch.zeros(1, 16000))]
    [(1, 49, 16), (1, 49, 16), (1, 49, 16)]
    """

    __signature__ = signature_of(W2vBertSizes, "2.0")
    mask_kind = "frames"
    longest_seconds = 120.0

    def __init__(self, size: str = "2.0", adapters: Mapping[str, Any] | None = None, **sizes: Any) -> None:
        super().__init__()
        self.sizes: W2vBertSizes = chosen_sizes("w2v-bert", size, W2V_BERT_SIZES, sizes)
        chosen = self.sizes
        self.front = StackedMel(chosen.bins, chosen.stack)
        self.norm = nn.LayerNorm(chosen.bins * chosen.stack)
        self.projection = nn.Linear(chosen.bins * chosen.stack, chosen.channels)
        self.blocks = nn.ModuleList(ConformerBlock(chosen) for _ in range(chosen.blocks))
        self.between = FeedForward(chosen.channels, chosen.inner, "relu") if chosen.between else None
        narrows = chosen.adapters_above and chosen.width != chosen.channels
        self.narrow = (
            nn.Sequential(nn.Linear(chosen.channels, chosen.width), nn.LayerNorm(chosen.width)) if narrows else None
        )
        self.above = nn.ModuleList(AdapterAbove(chosen) for _ in range(chosen.adapters_above))
        self.layers = 1 if chosen.adapters_above else chosen.blocks + 1
        self.channels = chosen.width
        self.stride = self.front.stride * chosen.adapter_stride**chosen.adapters_above
        self.minimum = self.front.minimum
        if adapters is not None:
            check_arguments("The insertion of adapters", insert, self.blocks, chosen.channels, **adapters)
            insert(self.blocks, chosen.channels, **adapters)

    def block_list(self) -> list[nn.Module]:
        """As `Encoder.block_list`."""
        return list(self.blocks)

    def mask_features(self, mask: Callable[[Tensor], Tensor]) -> None:
        """As `Encoder.mask_features`."""
        self.projection.register_forward_hook(lambda module, args, features: mask(features))

    def frames(self, samples: Samples) -> Samples:
        """Number of frames of a clip of `samples`: int for int, int64 tensor for int64 tensor; 0 below `minimum`."""
        count = self.front.frames(samples)
        for layer in self.above:
            count = cast(AdapterAbove, layer).frames(count)
        return count

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Iterator[Tensor]:
        """(B, S) float32 in [-1, 1] at 16 kHz, clip lengths (B,) int64 or None -> layers (B, frames(S), C).

        With `lengths`, a clip's frames equal those of the clip on its own; frames past its end are finite but
        undefined. Each layer is computed when it is requested.

        Raises
        ------
        AudioError
            A clip is shorter than `minimum` samples.
        ValueError
            `lengths` do not fit `waveforms`.
        """
        check_clip_lengths(waveforms, lengths, self.minimum, self.sizes.network)
        if lengths is not None:
            waveforms = waveforms.masked_fill(~frame_mask(lengths, waveforms.shape[1]), 0.0)
        layers = self._block_layers(waveforms, lengths)
        return self._above(layers, lengths) if self.above else layers

    def _block_layers(self, waveforms: Tensor, lengths: Tensor | None) -> Iterator[Tensor]:
        x = self.projection(self.norm(self.front(waveforms, lengths)))
        padding = None
        if lengths is not None:
            padding = ~frame_mask(self.front.frames(lengths), x.shape[1])  # (B, T)
            x = x.masked_fill(padding.unsqueeze(2), 0.0)
        free_memory(x)
        free_memory_on_backward(x)
        yield x
        bias = self._bias(x)
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, bias, padding)
            if number % 2 == 0:  # the call takes time, so only for every second block
                free_memory_on_backward(x)
            yield x

    def _bias(self, x: Tensor) -> Tensor | None:
        """What the attention of every block takes besides its frames (B, T, C)."""
        if self.sizes.positions == "relative":
            return distance_sinusoids(x.shape[1], self.sizes.channels, x.device)
        if self.sizes.positions == "rotary":
            width = self.sizes.channels // self.sizes.heads
            return rotations(x.shape[1], width, self.sizes.rotary_base, x.device)
        return None

    def _above(self, layers: Iterator[Tensor], lengths: Tensor | None) -> Iterator[Tensor]:
        x = last_layer(layers, self.sizes.blocks + 1)  # the others are free by then
        counts = None if lengths is None else self.front.frames(lengths)
        if self.between is not None:
            x = x + 0.5 * self.between(x)
        if self.narrow is not None:
            x = self.narrow(x)
        for layer in self.above:
            x, counts = layer(x, counts)
        yield x
