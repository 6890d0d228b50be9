"""WavLM: one network for every size, its layers yielded one after the other.

Chen et al., "WavLM: large-scale self-supervised pre-training for full stack speech processing", IEEE JSTSP 2022
(arXiv:2110.13900). Written for long clips and padded batches:

- a clip gives the same frames in a padded batch as alone, also where the first convolution is normalised over time;
- the relative position bias is a Toeplitz matrix a head, kept as one row of 2 T - 1 values; rows of queries are
  attended in blocks, so that nothing of size (B, heads, T, T) is made;
- without gradients, and in training on a CPU, the convolutions run over blocks of the clip: their output at full rate
  is never held whole;
- training keeps for the way back what is dear to make, and makes the rest again (`recompute`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from math import log, prod
from typing import Any, cast, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from knn_cli.core.errors import AudioError, KnnError
from knn_cli.core.registry import ENCODERS, check_arguments
from knn_cli.networks.contracts import Encoder, Samples
from knn_cli.networks.encoders.adapters import insert
from knn_cli.networks.encoders.recompute import (
    ConvolutionOfActivation,
    NormalizedConvolution,
    gated_attention,
    release,
    release_on_the_way_back,
)

__all__ = ["SIZES", "WavLM", "WavLMSizes"]

# (frames whose convolutions are held at once, attention scores held at once): on a CPU 5 s of sound and 16 MB, what
# its cache likes; elsewhere enough to keep the device busy.
_AT_ONCE = {"cpu": (250, 2**22)}
_AT_ONCE_ELSEWHERE = (5000, 2**26)
_FRAMES_ON_THE_WAY_BACK = 30  # whose convolutions are held at once in training on a CPU; fewer are slower


@dataclass(frozen=True)
class WavLMSizes:
    """Everything that tells one WavLM from another.

    Attributes
    ----------
        convolutions: (channels, kernel, stride) of each convolution over the waveform.
        convolution_bias: whether the convolutions have a bias.
        convolution_norm: "group" normalises the first convolution, each channel over time (Base, Base+);
            "layer" normalises every convolution, each frame over channels (Large).
        channels: width of the transformer.
        blocks: number of transformer blocks.
        heads: attention heads of a block.
        inner: width of the feed-forward layer.
        position_kernel: kernel, in frames, of the convolutional position embedding.
        position_groups: its groups.
        buckets: number of learnt relative positions, both directions together.
        distance: frames from which on all distances share the last bucket.
        norm_first: pre-LN blocks (Large) instead of post-LN (Base, Base+).
        normalize: each clip is brought to mean 0 and variance 1 first (Large).
    """

    convolutions: tuple[tuple[int, int, int], ...] = ((512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2)
    convolution_bias: bool = False
    convolution_norm: str = "group"
    channels: int = 768
    blocks: int = 12
    heads: int = 12
    inner: int = 3072
    position_kernel: int = 128
    position_groups: int = 16
    buckets: int = 320
    distance: int = 800
    norm_first: bool = False
    normalize: bool = False

    def __post_init__(self) -> None:
        """Take lists (as JSON has them) for tuples and refuse sizes that make no network."""
        object.__setattr__(self, "convolutions", tuple(tuple(shape) for shape in self.convolutions))
        numbers = [value for field in fields(self) if type(value := getattr(self, field.name)) is int]
        for wrong, why in (
            (min(numbers) < 1, "every size must be at least 1"),
            (not self.convolutions, "there must be a convolution"),
            (any(len(shape) != 3 or min(shape) < 1 for shape in self.convolutions), "a convolution is 3 sizes"),
            (self.convolution_norm not in ("group", "layer"), 'convolution_norm must be "group" or "layer"'),
            (self.channels % self.heads > 0, "heads must divide channels"),
            (self.channels % self.position_groups > 0, "position_groups must divide channels"),
            (self.buckets % 4 > 0, "buckets must be a multiple of 4"),
            (self.distance <= self.buckets // 4, "distance must be above a quarter of buckets"),
        ):
            if wrong:
                raise KnnError(f"These sizes make no WavLM: {why}.", f"They are {self}.")

    @property
    def stride(self) -> int:
        """Samples from one frame to the next."""
        return prod(stride for _, _, stride in self.convolutions)

    @property
    def minimum(self) -> int:
        """Samples that one frame sees."""
        samples = 1
        for _, kernel, stride in reversed(self.convolutions):
            samples = (samples - 1) * stride + kernel
        return samples


SIZES = {
    "base": WavLMSizes(),
    "base-plus": WavLMSizes(),  # the same network, trained on more
    "large": WavLMSizes(
        convolution_norm="layer", channels=1024, blocks=24, heads=16, inner=4096, norm_first=True, normalize=True
    ),
}


def _signature() -> inspect.Signature:
    """The signature of `WavLM` with the fields of `WavLMSizes` in place of `**sizes`, which recipes are checked by."""
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

    Layer 0 is what enters the first block: the projected convolution output with the position embedding added
    (and normalised, for post-LN sizes). Layer i is the output of block i. The last one is normalised for pre-LN
    sizes too, which makes it `last_hidden_state` in transformers; layers before it equal `hidden_states[i]` there.

    Args:
        size: named sizes that fill in what `sizes` leaves out: "base", "base-plus" or "large".
        adapters: `bottleneck` and `kind` of adapters in the blocks (see `adapters.insert`), None for none.
        sizes: fields of `WavLMSizes`.
    """

    __signature__ = _signature()

    mask_kind = "frames"

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
        self.front = FrontEnd(self.sizes)
        self.position = PositionConvolution(self.channels, self.sizes.position_kernel, self.sizes.position_groups)
        self.norm = nn.LayerNorm(self.channels)
        self.distances = RelativePositions(self.sizes.heads, self.sizes.buckets, self.sizes.distance)
        self.blocks = nn.ModuleList(Block(self.sizes) for _ in range(self.sizes.blocks))
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
        count = (samples - self.minimum) // self.stride + 1  # floors of floors are one floor
        return count.clamp(min=0) if isinstance(count, Tensor) else max(count, 0)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Iterator[Tensor]:
        """Yield the layers of `waveforms` (B, S) float in [-1, 1] at 16 kHz, each (B, frames(S), channels).

        `lengths` (B,) int64 are the real samples of each clip; what lies behind them is not looked at, and frames
        from `frames(length)` on hold anything finite. Each layer is computed when it is asked for, under the
        gradient mode of that moment; without gradients no earlier layer is kept.

        Raises
        ------
            AudioError: a clip is shorter than `minimum` samples.
            ValueError: `lengths` do not fit `waveforms`.
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
        if self.sizes.normalize and torch.onnx.is_in_onnx_export():  # layer_norm wants a number for the length
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
            x = x.masked_fill(padding.unsqueeze(-1), 0.0)  # as the position embedding pads a clip that is alone
        x = x + self.position(x)
        if not self.sizes.norm_first:
            x = self.norm(x)
        release(x)
        release_on_the_way_back(x)
        yield x
        bias = self.distances(x.shape[1])  # (H, 2 T - 1)
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, bias, padding)
            if number == len(self.blocks) and self.sizes.norm_first:
                x = self.norm(x)
            if number % 2 == 0:  # it is not free either
                release_on_the_way_back(x)
            yield x


def _lean(x: Tensor) -> bool:
    """Whether convolutions of `x` are to be those of `recompute`: for training on a CPU.

    Half precision and other devices have convolutions that are better than products of matrices.
    """
    return torch.is_grad_enabled() and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


class FrontEnd(nn.Module):
    """Waveforms (B, S) to projected frames (B, T, C): the convolutions, their norms, the projection.

    A norm over time ("group") needs the mean and variance of what the first convolution puts out. Both follow from
    the mean and the covariance of the kernel-long windows of the clip, so the norm is folded into one kernel a clip:
    exact for a padded clip, and local, so that the clip can be taken in blocks.
    """

    def __init__(self, sizes: WavLMSizes) -> None:
        super().__init__()
        widths = [1, *(channels for channels, _, _ in sizes.convolutions)]
        convolutions = [
            nn.Conv1d(before, after, kernel, stride, bias=sizes.convolution_bias)
            for before, (after, kernel, stride) in zip(widths, sizes.convolutions, strict=False)
        ]
        for convolution in convolutions:
            nn.init.kaiming_normal_(convolution.weight)
        self.convolutions = nn.ModuleList(convolutions)
        self.folds = sizes.convolution_norm == "group"
        self.norms = nn.ModuleList(
            [nn.GroupNorm(widths[1], widths[1])] if self.folds else [nn.LayerNorm(width) for width in widths[1:]]
        )
        self.norm = nn.LayerNorm(widths[-1])
        self.projection = nn.Linear(widths[-1], sizes.channels)
        self.stride, self.minimum = sizes.stride, sizes.minimum

    def forward(self, waveforms: Tensor, ends: list[int]) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return self._convolve(waveforms, None)  # a graph has neither loops nor clips of unequal lengths
        count = (waveforms.shape[1] - self.minimum) // self.stride + 1
        at_once, _ = _AT_ONCE.get(waveforms.device.type, _AT_ONCE_ELSEWHERE)
        convolve = self._convolve
        if _lean(waveforms):
            at_once = min(at_once, _FRAMES_ON_THE_WAY_BACK)
            convolve = partial(self._convolve_lean, self._matrices())
        elif torch.is_grad_enabled():
            at_once = count * len(waveforms)  # all of it is kept for the way back anyway
        clips = max(1, at_once // count)
        rows = []
        for first in range(0, len(waveforms), clips):
            some = slice(first, first + clips)
            kernels = self._folded_kernels(waveforms[some], ends[some]) if self.folds else None
            parts = []
            for start in range(0, count, at_once):
                stop = min(start + at_once, count)
                block = waveforms[some, start * self.stride : (stop - 1) * self.stride + self.minimum]
                parts.append(convolve(block, kernels))  # (clips, stop - start, C)
            rows.append(torch.cat(parts, dim=1))  # (clips, T, C)
        return torch.cat(rows)

    def _folded_kernels(self, waveforms: Tensor, ends: list[int]) -> tuple[Tensor, Tensor]:
        """First convolution with its norm: kernels (B * channels, 1, kernel) and biases (B * channels,).

        In float64: a kernel that passes little of the clip has a variance far below the covariances it comes from.
        The bias of the convolution is missing because the norm takes it away again.
        """
        convolution, norm = cast(nn.Conv1d, self.convolutions[0]), cast(nn.GroupNorm, self.norms[0])
        device = torch.device("cpu") if waveforms.device.type == "mps" else waveforms.device  # no float64 there
        weight = convolution.weight.squeeze(1).to(device, torch.float64)  # (channels, kernel)
        gain, shift = norm.weight.to(device, torch.float64), norm.bias.to(device, torch.float64)
        kernels, biases = [], []
        for clip, end in zip(waveforms, ends, strict=True):
            windows = clip[:end].to(device, torch.float64)
            windows = windows.unfold(0, convolution.kernel_size[0], convolution.stride[0])  # (N, kernel)
            mean = windows.mean(dim=0)
            centred = windows - mean
            covariance = centred.T @ centred / len(centred)  # (kernel, kernel)
            variance = ((weight @ covariance) * weight).sum(dim=1)  # (channels,)
            kernel = weight * (gain / (variance + norm.eps).sqrt()).unsqueeze(1)
            kernels.append(kernel)
            biases.append(shift - kernel @ mean)
        return (
            torch.cat(kernels).unsqueeze(1).to(waveforms.device, convolution.weight.dtype),
            torch.cat(biases).to(waveforms.device, convolution.weight.dtype),
        )

    def _convolve(self, waveforms: Tensor, kernels: tuple[Tensor, Tensor] | None) -> Tensor:
        """Projected frames (B, T, C) of `waveforms` (B, S)."""
        x = waveforms.unsqueeze(1)  # (B, 1, S)
        if kernels is not None:
            stride = cast(nn.Conv1d, self.convolutions[0]).stride
            x = F.conv1d(waveforms.unsqueeze(0), *kernels, stride=stride, groups=len(waveforms))
            x = F.gelu(x.view(len(waveforms), -1, x.shape[2]))  # (1, B * channels, T) -> (B, channels, T)
            for convolution in self.convolutions[1:]:
                x = F.gelu(convolution(x))
        elif self.folds:
            x = F.gelu(self.norms[0](self.convolutions[0](x)))
            for convolution in self.convolutions[1:]:
                x = F.gelu(convolution(x))
        else:
            for convolution, norm in zip(self.convolutions, self.norms, strict=True):
                x = F.gelu(norm(convolution(x).transpose(1, 2)).transpose(1, 2))  # (B, channels, T)
        projected: Tensor = self.projection(self.norm(x.transpose(1, 2)))
        return projected

    def _matrices(self) -> list[Tensor]:
        """Kernels (taps * C, O) of all convolutions but the first."""
        others = cast(list[nn.Conv1d], list(self.convolutions)[1:])
        return [one.weight.permute(2, 1, 0).flatten(0, 1) for one in others]

    def _convolve_lean(
        self, matrices: list[Tensor], waveforms: Tensor, kernels: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """`_convolve` for training on a CPU: no activation is kept, and not what the first convolution puts out."""
        first, *others = cast(list[nn.Conv1d], list(self.convolutions))
        taps, stride = first.kernel_size[0], first.stride[0]
        norms: list[list[Tensor]] = [[]] * len(self.convolutions)
        if kernels is None:
            norms = [[norm.weight, norm.bias] for norm in cast(list[nn.LayerNorm], list(self.norms))]

        def begin(waveforms: Tensor, kernel: Tensor, shift: Tensor | None, *norm: Tensor) -> Tensor:
            x = waveforms.unfold(1, taps, stride) @ kernel  # (B, T, taps) @ (B or 1, taps, C)
            return activate(x if shift is None else x + shift, *norm)

        def activate(x: Tensor, *norm: Tensor) -> Tensor:
            return F.gelu(F.layer_norm(x, x.shape[2:], norm[0], norm[1]) if norm else x)  # (B, T, C)

        kernel, shift = first.weight.view(1, -1, taps), first.bias
        if kernels is not None:
            kernel, shift = kernels[0].view(len(waveforms), -1, taps), kernels[1].view(len(waveforms), 1, -1)
        activation: Callable[..., Tensor] = begin
        tensors = [waveforms, kernel.transpose(1, 2), shift, *norms[0]]
        for convolution, matrix, norm in zip(others, matrices, norms[1:], strict=True):
            shape = convolution.kernel_size[0], convolution.stride[0]
            x: Tensor = cast(Any, ConvolutionOfActivation).apply(activation, matrix, convolution.bias, *shape, *tensors)
            activation, tensors = activate, [x, *norm]
        projected: Tensor = self.projection(self.norm(activation(*tensors)))
        return projected


class PositionConvolution(nn.Module):
    """Position embedding (B, T, C) of frames (B, T, C): a grouped convolution with weight norm over its taps.

    Salimans and Kingma 2016 (arXiv:1602.07868), equation 2, a tap k at a time: w_k = g_k v_k / |v_k|.
    """

    def __init__(self, channels: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.groups, self.kernel = groups, kernel
        direction = torch.randn(channels, channels // groups, kernel) * 2 / (kernel * channels) ** 0.5
        self.direction = nn.Parameter(direction)
        self.magnitude = nn.Parameter(direction.norm(dim=(0, 1), keepdim=True))  # (1, 1, kernel)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if _lean(x):
            near: Tensor = cast(Any, NormalizedConvolution).apply(x, self.direction, self.magnitude)
            return F.gelu(near + self.bias)
        if torch.onnx.is_in_onnx_export():  # the exporter makes one weight of norm(), and keeps two of the other
            size = self.direction.norm(dim=(0, 1), keepdim=True)
        else:
            size = self.direction.square().sum(dim=(0, 1), keepdim=True).sqrt()  # 8 times as fast as norm() here
        weight = self.direction * (self.magnitude / size)
        y = F.conv1d(x.transpose(1, 2), weight, self.bias, padding=self.kernel // 2, groups=self.groups)
        return F.gelu(y[..., : x.shape[1]]).transpose(1, 2)  # an even kernel gives one frame too many


class RelativePositions(nn.Module):
    """One learnt value a head for each bucket of key position minus query position (WavLM, equation 5)."""

    def __init__(self, heads: int, buckets: int, distance: int) -> None:
        super().__init__()
        self.distance = distance
        self.values = nn.Embedding(buckets, heads)
        nn.init.normal_(self.values.weight, std=0.02)

    def forward(self, frames: int) -> Tensor:
        """Biases (H, 2 T - 1) of the positions 1 - T to T - 1."""
        offsets = torch.arange(1 - frames, frames, device=self.values.weight.device)
        values: Tensor = self.values(self.bucket(offsets))  # (2 T - 1, H)
        return values.T.contiguous()

    def bucket(self, offsets: Tensor) -> Tensor:
        """Bucket int64 of each offset: half of them a direction, half of those exact, the rest logarithmic."""
        half = self.values.num_embeddings // 2
        exact = half // 2
        steps = offsets.abs()
        far = torch.log(steps.clamp(min=exact).float() / exact) / log(self.distance / exact) * (half - exact)
        near_or_far = torch.where(steps < exact, steps, (exact + far.long()).clamp(max=half - 1))
        return near_or_far + (offsets > 0) * half


class Attention(nn.Module):
    """Self-attention with a relative position bias that each frame gates for itself (WavLM, equations 4 to 6)."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(channels, channels) for _ in range(4))
        self.gate = nn.Linear(channels // heads, 8)
        self.gate_scale = nn.Parameter(torch.ones(1, heads, 1, 1))

    def forward(self, x: Tensor, bias: Tensor, padding: Tensor | None) -> Tensor:
        """Frames (B, T, C) attended; `bias` (H, 2 T - 1) as of `RelativePositions`, `padding` (B, T) True there."""
        batch, frames, channels = x.shape

        def by_head(y: Tensor) -> Tensor:
            return y.view(batch, frames, self.heads, -1).transpose(1, 2)  # (B, H, T, D)

        gates = self.gate(x.reshape(batch, frames, self.heads, -1)).unflatten(-1, (2, 4)).sum(-1)  # (B, T, H, 2)
        update, reset = gates.sigmoid().transpose(1, 2).chunk(2, dim=-1)  # (B, H, T, 1)
        gate = update * (reset * self.gate_scale - 1.0) + 2.0  # (B, H, T, 1)
        query, key, value = by_head(self.query(x)), by_head(self.key(x)), by_head(self.value(x))
        _, scores = _AT_ONCE.get(x.device.type, _AT_ONCE_ELSEWHERE)
        y = gated_attention(query, key, value, gate, bias, padding, scores)
        y = y.transpose(1, 2).reshape(batch, frames, channels)
        attended: Tensor = self.output(y)
        return attended


class Block(nn.Module):
    """One transformer block, post-LN or pre-LN."""

    def __init__(self, sizes: WavLMSizes) -> None:
        super().__init__()
        self.norm_first = sizes.norm_first
        self.attention = Attention(sizes.channels, sizes.heads)
        self.attention_norm = nn.LayerNorm(sizes.channels)
        self.widen = nn.Linear(sizes.channels, sizes.inner)
        self.narrow = nn.Linear(sizes.inner, sizes.channels)
        self.output_norm = nn.LayerNorm(sizes.channels)
        self.attention_adapter: nn.Module = nn.Identity()  # places for `adapters.insert`
        self.output_adapter: nn.Module = nn.Identity()

    def forward(self, x: Tensor, bias: Tensor, padding: Tensor | None) -> Tensor:
        if self.norm_first:
            x = x + self.attention_adapter(self.attention(self.attention_norm(x), bias, padding))
            return x + self._feed_forward(self.output_norm(x))
        x = self.attention_norm(x + self.attention_adapter(self.attention(x, bias, padding)))
        y: Tensor = self.output_norm(x + self._feed_forward(x))
        return y

    def _feed_forward(self, x: Tensor) -> Tensor:
        wide = self.widen(x)
        if torch.is_grad_enabled():  # its activation is made again on the way back, the linear layer is not run again
            y: Tensor = checkpoint(
                lambda wide: self.narrow(F.gelu(wide)), wide, use_reentrant=False, preserve_rng_state=False
            )
        else:
            y = self.narrow(F.gelu(wide))
        adapted: Tensor = self.output_adapter(y)
        return adapted
