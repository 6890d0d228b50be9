"""The frame of encoders such as WavLM and wav2vec 2.0: convolutions over the waveform, then a transformer.

Written for long clips and padded batches:

- a clip has the same frames in a padded batch as on its own, also if the first convolution is normalised over time;
- without gradients, and in training on a CPU, the convolutions run over blocks of the clip: their output at
  the full rate is never held in memory as a whole;
- training stores only expensive values for the backward pass and recomputes the others (`gradient_checkpointing`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, ClassVar, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import AudioError, KnnError
from knn_cli.core.registry import check_arguments
from knn_cli.networks.contracts import Encoder, Samples
from knn_cli.networks.encoders.adapters import insert
from knn_cli.networks.encoders.gradient_checkpointing import free_memory, free_memory_on_backward
from knn_cli.networks.encoders.wavlm_blocks import PositionConvolution
from knn_cli.networks.encoders.wavlm_front_end import ConvolutionalFrontEnd
from knn_cli.networks.encoders.wavlm_sizes import TransformerSizes
from knn_cli.networks.onnx_state import is_in_onnx_export

__all__ = ["WaveformTransformer", "chosen_sizes", "signature_of"]


def signature_of(sizes: type[Any], size: str = "base") -> inspect.Signature:
    """The signature of an encoder with the fields of a dataclass instead of `**sizes`, to check recipes against."""
    named: list[tuple[str, Any, Any]] = [("size", str, size), ("adapters", Mapping[str, Any] | None, None)]
    hints = get_type_hints(sizes)
    named += [(field.name, hints[field.name], field.default) for field in fields(sizes)]
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Signature(
        [inspect.Parameter(name, keyword, default=default, annotation=hint) for name, hint, default in named]
    )


def chosen_sizes(encoder: str, size: str, releases: Mapping[str, Any], sizes: Mapping[str, Any]) -> Any:
    """The sizes of the release `size` with some changed. KnnError if there is no such release or no such field."""
    if size not in releases:
        kind = next(iter(releases.values()))
        raise KnnError(f"There is no {kind.network} of size {size!r}.", f"Known: {', '.join(releases)}.")
    kind = type(releases[size])
    every = vars(releases[size]) | dict(sizes)
    check_arguments(f"The encoder {encoder!r}", kind, **every)
    return kind(**every)


class WaveformTransformer(Encoder):
    """Waveforms to the layers of a transformer over the frames of convolutions.

    Layer 0 is the input of the first block: the projected convolution output plus the position embedding (normalised
    for post-LN sizes). Layer i is the output of block i. The last layer is normalised for pre-LN sizes too, so that it
    equals `last_hidden_state` in transformers; the layers before it equal `hidden_states[i]` there.

    Parameters
    ----------
    sizes : TransformerSizes
        Sizes of the network.
    blocks : iterable of Module
        Called with frames (B, T, C), the result of `_bias`, and (B, T) bool, True at padding, or None.
    adapters : mapping, optional
        `bottleneck` and `kind` of adapters in the blocks (see `adapters.insert`), None for none.
    projection_norm : bool
        Whether the output of the convolutions is normalised before its projection.
    """

    mask_kind = "frames"
    longest_seconds = 120.0  # memory grows with the square: a WavLM Base takes 2.5 GB for these
    epsilon: ClassVar[float] = 1e-5  # added to a clip's variance where clips are normalised

    def __init__(
        self,
        sizes: TransformerSizes,
        blocks: Iterable[nn.Module],
        adapters: Mapping[str, Any] | None,
        projection_norm: bool = True,
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.layers = sizes.blocks + 1
        self.norm_after_blocks = sizes.norm_first
        self.channels = sizes.channels
        self.stride, self.minimum = sizes.stride, sizes.minimum
        self.front = ConvolutionalFrontEnd(sizes, projection_norm)
        self.position = PositionConvolution(self.channels, sizes.position_kernel, sizes.position_groups)
        ends_raw = sizes.norm_first and not sizes.final_norm
        self.norm = nn.Identity() if ends_raw else nn.LayerNorm(self.channels)
        self._add_positions()
        self.blocks = nn.ModuleList(blocks)
        if adapters is not None:
            check_arguments("The insertion of adapters", insert, self.blocks, self.channels, **adapters)
            insert(self.blocks, self.channels, **adapters)

    def _add_positions(self) -> None:
        """Register what `_bias` needs."""

    def _bias(self, frames: int) -> Tensor | None:
        """What the attention of every block takes besides its frames."""
        return None

    def fold(self) -> None:
        """As `Encoder.fold`: of the position embedding."""
        self.position.fold()

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
                f"A clip of {min(ends)} samples is too short for {self.sizes.network}.",
                f"It needs at least {self.minimum}.",
            )
        return self._layers(waveforms, ends)

    def _layers(self, waveforms: Tensor, ends: list[int]) -> Iterator[Tensor]:
        if self.sizes.normalize and is_in_onnx_export():  # layer_norm needs the length as a number
            centred = waveforms - waveforms.mean(dim=1, keepdim=True)
            waveforms = centred * torch.rsqrt(centred.square().mean(dim=1, keepdim=True) + self.epsilon)
        elif self.sizes.normalize:
            clips = [
                F.layer_norm(clip[:end], (end,), eps=self.epsilon) for clip, end in zip(waveforms, ends, strict=True)
            ]
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
        bias = self._bias(x.shape[1])
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, bias, padding)
            if number == len(self.blocks) and self.sizes.norm_first and self.sizes.final_norm:
                x = self.norm(x)
            if number % 2 == 0:  # the call takes time, so only for every second block
                free_memory_on_backward(x)
            yield x
