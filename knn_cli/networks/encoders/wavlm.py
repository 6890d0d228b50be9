"""WavLM of every size, which yields its layers one after the other.

Chen et al., "WavLM: large-scale self-supervised pre-training for full stack speech processing", IEEE JSTSP 2022
(arXiv:2110.13900). Written for long clips and padded batches:

- a clip has the same frames in a padded batch as on its own, also if the first convolution is normalised over time;
- the relative position bias is a Toeplitz matrix per head, stored as one row of 2 T - 1 values; attention is
  computed for blocks of queries, so that nothing of size (B, heads, T, T) is allocated;
- without gradients, and in training on a CPU, the convolutions run over blocks of the clip: their output at
  the full rate is never held in memory as a whole;
- training stores only expensive values for the backward pass and recomputes the others (`gradient_checkpointing`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import AudioError, KnnError
from knn_cli.core.registry import ENCODERS, check_arguments
from knn_cli.networks.contracts import Encoder, Samples
from knn_cli.networks.encoders.adapters import insert
from knn_cli.networks.encoders.gradient_checkpointing import free_memory, free_memory_on_backward
from knn_cli.networks.encoders.wavlm_blocks import PositionConvolution, RelativePositions, WavLMBlock
from knn_cli.networks.encoders.wavlm_front_end import ConvolutionalFrontEnd
from knn_cli.networks.encoders.wavlm_sizes import SIZES, WavLMSizes

__all__ = ["WavLM"]


def _signature() -> inspect.Signature:
    """The signature of `WavLM` with the fields of `WavLMSizes` instead of `**sizes`, to check recipes against."""
    named: list[tuple[str, Any, Any]] = [("size", str, "base"), ("adapters", Mapping[str, Any] | None, None)]
    hints = get_type_hints(WavLMSizes)
    named += [(field.name, hints[field.name], field.default) for field in fields(WavLMSizes)]
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        [inspect.Parameter(name, keyword, default=default, annotation=hint) for name, hint, default in named]
    )


@ENCODERS.register("wavlm")
class WavLM(Encoder):
    """Waveforms to the layers of WavLM.

    Layer 0 is the input of the first block: the projected convolution output plus the position embedding (normalised
    for post-LN sizes). Layer i is the output of block i. The last layer is normalised for pre-LN sizes too, so that it
    equals `last_hidden_state` in transformers; the layers before it equal `hidden_states[i]` there.

    Parameters
    ----------
    size : str
        Release whose sizes are the defaults of `sizes`: "base", "base-plus" or "large".
    adapters : mapping, optional
        `bottleneck` and `kind` of adapters in the blocks (see `adapters.insert`), None for none.
    sizes
        Fields of `WavLMSizes`.
    """

    __signature__ = _signature()

    mask_kind = "frames"
    longest_seconds = 120.0  # memory grows with the square: Base takes 2.5 GB for these

    def __init__(self, size: str = "base", adapters: Mapping[str, Any] | None = None, **sizes: Any) -> None:
        super().__init__()
        if size not in SIZES:
            raise KnnError(f"There is no WavLM of size {size!r}.", f"Known: {', '.join(SIZES)}.")
        every = vars(SIZES[size]) | sizes
        check_arguments("The encoder 'wavlm'", WavLMSizes, **every)
        self.sizes = WavLMSizes(**every)
        self.layers = self.sizes.blocks + 1
        self.norm_after_blocks = self.sizes.norm_first
        self.channels = self.sizes.channels
        self.stride, self.minimum = self.sizes.stride, self.sizes.minimum
        self.front = ConvolutionalFrontEnd(self.sizes)
        self.position = PositionConvolution(self.channels, self.sizes.position_kernel, self.sizes.position_groups)
        ends_raw = self.sizes.norm_first and not self.sizes.final_norm
        self.norm = nn.Identity() if ends_raw else nn.LayerNorm(self.channels)
        self.distances = RelativePositions(self.sizes.heads, self.sizes.buckets, self.sizes.distance)
        self.blocks = nn.ModuleList(WavLMBlock(self.sizes) for _ in range(self.sizes.blocks))
        if adapters is not None:
            check_arguments("The insertion of adapters", insert, self.blocks, self.channels, **adapters)
            insert(self.blocks, self.channels, **adapters)

    def block_list(self) -> list[nn.Module]:
        """As `Encoder.block_list`."""
        return list(self.blocks)

    def mask_features(self, mask: Callable[[Tensor], Tensor]) -> None:
        """As `Encoder.mask_features`."""
        self.front.register_forward_hook(lambda module, args, features: mask(features))

    def convolution_weights(self) -> list[nn.Parameter]:
        """As `Encoder.convolution_weights`: of the convolutions and of their norms."""
        return [*self.front.convolutions.parameters(), *self.front.norms.parameters()]

    def frames(self, samples: Samples) -> Samples:
        """Number of frames of a clip of `samples` samples: int, or int64 tensor of any shape; 0 below `minimum`."""
        count = (samples - self.minimum) // self.stride + 1  # nested floor divisions equal a single one
        return count.clamp(min=0) if isinstance(count, Tensor) else max(count, 0)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Iterator[Tensor]:
        """Yield the layers of `waveforms` (B, S) float in [-1, 1] at 16 kHz, each (B, frames(S), channels).

        `lengths` (B,) int64 are the samples of each clip; samples past its end are ignored, and frames from
        `frames(length)` on are finite but undefined. Each layer is computed when it is requested, under the gradient
        mode of that moment; without gradients no earlier layer is kept.

        Raises
        ------
        AudioError
            A clip is shorter than `minimum` samples.
        ValueError
            `lengths` do not fit `waveforms`.
        """
        ends = [waveforms.shape[1]] * len(waveforms) if lengths is None else lengths.tolist()
        if len(ends) != len(waveforms) or max(ends) > waveforms.shape[1]:
            raise ValueError(f"lengths {ends} do not fit waveforms of shape {tuple(waveforms.shape)}")
        if min(ends) < self.minimum:
            raise AudioError(
                f"A clip of {min(ends)} samples is too short for WavLM.", f"It needs at least {self.minimum}."
            )
        return self._layers(waveforms, ends)

    def _layers(self, waveforms: Tensor, ends: list[int]) -> Iterator[Tensor]:
        if self.sizes.normalize and torch.onnx.is_in_onnx_export():  # layer_norm needs the length as a number
            centred = waveforms - waveforms.mean(dim=1, keepdim=True)
            waveforms = centred * torch.rsqrt(centred.square().mean(dim=1, keepdim=True) + 1e-5)
        elif self.sizes.normalize:
            clips = [F.layer_norm(clip[:end], (end,)) for clip, end in zip(waveforms, ends, strict=True)]
            size = waveforms.shape[1]
            waveforms = torch.stack([F.pad(clip, (0, size - len(clip))) for clip in clips])  # (B, S)
        x = self.front(waveforms, ends)  # (B, T, C)
        padding = None
        if self.frames(min(ends)) < x.shape[1]:
            frames = torch.tensor([self.frames(end) for end in ends], device=x.device)
            padding = torch.arange(x.shape[1], device=x.device) >= frames[:, None]  # (B, T)
            x = x.masked_fill(padding.unsqueeze(-1), 0.0)  # as the position embedding pads a single clip
        x = x + self.position(x)
        if not self.sizes.norm_first:
            x = self.norm(x)
        free_memory(x)
        free_memory_on_backward(x)
        yield x
        bias = self.distances(x.shape[1])  # (H, 2 T - 1)
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, bias, padding)
            if number == len(self.blocks) and self.sizes.norm_first and self.sizes.final_norm:
                x = self.norm(x)
            if number % 2 == 0:  # the call takes time, so only for every second block
                free_memory_on_backward(x)
            yield x
