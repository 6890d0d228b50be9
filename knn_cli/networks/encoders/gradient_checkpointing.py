"""Gradient checkpointing for WavLM: the backward pass recomputes cheap intermediate values instead of storing them.

Chen et al., "Training deep nets with sublinear memory cost", 2016 (arXiv:1604.06174), section 4.1.

- `ConvolutionOfActivation`: a strided convolution of an activation stores the activation's input only;
- `NormalizedConvolution`: a grouped convolution with weight norm stores its parameters, but not the normalised kernels;
- `gated_attention`: attention with WavLM's gated position bias stores queries, keys, values and gates, but nothing of
  size (B, heads, T, T);
- `free_memory`: returns freed memory to the operating system.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from knn_cli.networks.onnx_state import is_in_onnx_export

__all__ = [
    "ConvolutionOfActivation",
    "NormalizedConvolution",
    "apply_function",
    "free_memory",
    "free_memory_on_backward",
    "gated_attention",
    "trains_on_cpu",
]


def apply_function(function: type[Function], *arguments: Any) -> Tensor:
    """`function.apply(*arguments)`, which torch does not annotate, for a function that returns one tensor."""
    result = function.apply(*arguments)  # type: ignore[no-untyped-call]
    assert isinstance(result, Tensor)
    return result


def trains_on_cpu(x: Tensor) -> bool:
    """Whether to use this module's convolutions for `x`, which is the case in training on a CPU.

    In half precision and on other devices, PyTorch's convolutions are faster than matrix products.
    """
    return torch.is_grad_enabled() and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


class ConvolutionOfActivation(Function):
    """Convolution (B, T', O) over time of `activation(*tensors)` (B, T, C).

    Frames are contiguous in memory, so `stride` neighbouring frames are one row of a matrix product, without a copy: on
    a CPU the backward pass takes half as long as that of a channels-first convolution. The parameters are those of
    `apply`.

    Parameters
    ----------
    activation : callable
        Computes a contiguous (B, T, C) tensor from `tensors`, differentiably, and uses no other tensor that requires a
        gradient.
    matrix : Tensor
        The kernels (taps * C, O); taps are the slowest axis.
    bias : Tensor, optional
        (O,) or None.
    taps : int
        Length of a kernel.
    stride : int
        Frames from one output to the next.
    tensors : Tensor, optional
        Stored for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        activation: Callable[..., Tensor],
        matrix: Tensor,
        bias: Tensor | None,
        taps: int,
        stride: int,
        *tensors: Tensor | None,
    ) -> Tensor:
        ctx.activation, ctx.shape = activation, (taps, stride)
        ctx.save_for_backward(matrix, *tensors)
        x = activation(*tensors)
        y = x.new_empty(len(x), (x.shape[1] - taps) // stride + 1, matrix.shape[1])
        for rows, columns in _rows(x, y.shape[1], taps, stride):
            for source, target in zip(rows, y, strict=True):
                _product(source, matrix[columns], target, first=not columns.start)
        return y if bias is None else y.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        matrix, *saved = ctx.saved_tensors
        needs_gradient = ctx.needs_input_grad[5:]
        with torch.enable_grad():
            tensors = [
                None if tensor is None else tensor.detach().requires_grad_(needed)
                for tensor, needed in zip(saved, needs_gradient, strict=True)
            ]
            x = ctx.activation(*tensors)
        frames, of_matrix = gradient.shape[1], None
        if ctx.needs_input_grad[1]:
            of_matrix = torch.empty_like(matrix)
            for rows, columns in _rows(x.detach(), frames, *ctx.shape):
                for clip, (source, clip_gradient) in enumerate(zip(rows, gradient, strict=True)):
                    _product(source.T, clip_gradient, of_matrix[columns], first=not clip)
        of_tensors: list[Tensor | None] = [None] * len(tensors)
        if any(needs_gradient):
            taps, stride = ctx.shape
            of_x = torch.empty_like(x)
            of_x[:, 0 if taps < stride else frames * stride :] = 0.0  # not written by the first views below
            for rows, columns in _rows(of_x, frames, taps, stride):
                for target, clip_gradient in zip(rows, gradient, strict=True):
                    _product(clip_gradient, matrix[columns].T, target, first=not columns.start)
            inputs = {
                index: tensor for index, tensor in enumerate(tensors) if tensor is not None and tensor.requires_grad
            }
            for index, of_input in zip(inputs, torch.autograd.grad(x, list(inputs.values()), of_x), strict=True):
                of_tensors[index] = of_input
        of_bias = gradient.sum(dim=(0, 1)) if ctx.needs_input_grad[2] else None
        return None, of_matrix, of_bias, None, None, *of_tensors


def _product(left: Tensor, right: Tensor, target: Tensor, first: bool) -> None:
    """Write the product of two matrices to `target`, or add it to `target`."""
    if first:
        torch.mm(left, right, out=target)
    else:
        target.addmm_(left, right)


def _rows(x: Tensor, frames: int, taps: int, stride: int) -> Iterator[tuple[Tensor, slice]]:
    """Views (B, frames, up to stride * C) of contiguous `x` (B, T, C), each with its rows of the kernel matrix.

    Row t of the first view holds the inputs of the first `stride` taps at output t, and so on.
    """
    batch, _, channels = x.shape
    for first in range(0, taps, stride):
        columns = slice(first * channels, min(first + stride, taps) * channels)
        size = (batch, frames, columns.stop - columns.start)
        yield x.as_strided(size, (x.stride(0), stride * channels, 1), x.storage_offset() + columns.start), columns


class NormalizedConvolution(Function):
    """Grouped convolution (B, T, C) over time of `x` (B, T, C), its kernels normalised tap by tap: w = g v / |v|.

    Output t depends on inputs t - K // 2 to t - K // 2 + K - 1, zeros outside. The kernels are computed group by group,
    and the inputs of a few neighbouring taps are concatenated, which gives matrix products of an efficient size.
    The parameters are those of `apply`.

    Parameters
    ----------
    x : Tensor
        (B, T, C).
    direction : Tensor
        v (C, C / groups, K).
    magnitude : Tensor
        g (1, 1, K).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, direction: Tensor, magnitude: Tensor) -> Tensor:
        ctx.save_for_backward(x, direction, magnitude)
        y, taps = torch.empty_like(x), direction.shape[2]
        scale = magnitude / _size(direction)
        for group in _groups(direction):
            matrix = (direction[group] * scale).permute(2, 1, 0).flatten(0, 1)  # (K * D, D)
            y[..., group] = _slide(_neighbours(x[..., group], taps // 2, taps), matrix, x.shape[1])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, direction, magnitude = ctx.saved_tensors
        taps, frames = direction.shape[2], x.shape[1]
        size = _size(direction)
        scale = magnitude / size
        of_x, of_direction, dot = torch.empty_like(x), torch.empty_like(direction), torch.zeros_like(magnitude)
        for group in _groups(direction):
            group_gradient = gradient[..., group]
            matrix = (direction[group] * scale).flip(2).permute(2, 0, 1).flatten(0, 1)  # (K * D, D), in for out
            of_x[..., group] = _slide(_neighbours(group_gradient, taps - 1 - taps // 2, taps), matrix, frames)
            of_matrix = _slide_gradient(_neighbours(x[..., group], taps // 2, taps), group_gradient, taps)  # (K * D, D)
            of_direction[group] = of_matrix.view(taps, -1, of_matrix.shape[1]).permute(2, 1, 0)
            dot += (of_direction[group] * direction[group]).sum(dim=(0, 1), keepdim=True)
        of_direction.mul_(scale).addcmul_(direction, dot * scale / size.square(), value=-1)
        return of_x, of_direction, dot / size


_TAPS_PER_PRODUCT = 8  # taps of a kernel in one matrix product


def _size(direction: Tensor) -> Tensor:
    """Norm (1, 1, K) of each tap of kernels (C, D, K)."""
    squares = [direction[group].square().sum(dim=(0, 1), keepdim=True) for group in _groups(direction)]
    return torch.stack(squares).sum(dim=0).sqrt()


def _groups(direction: Tensor) -> Iterator[slice]:
    """The channels of each group of kernels (C, D, K) with C output channels and D input channels per group."""
    width = direction.shape[1]
    return (slice(first, first + width) for first in range(0, direction.shape[0], width))


def _neighbours(x: Tensor, before: int, taps: int) -> Tensor:
    """Frames (B, T + taps - 1, 8 * D) of `x` (B, T, D) padded: each frame with the seven that follow it."""
    x = F.pad(x, (0, 0, before, taps + _TAPS_PER_PRODUCT - 2 - before))
    batch, frames, width = x.shape
    size = (batch, frames - _TAPS_PER_PRODUCT + 1, _TAPS_PER_PRODUCT * width)
    return x.as_strided(size, (x.stride(0), width, 1)).contiguous()


def _slide(near: Tensor, matrix: Tensor, frames: int) -> Tensor:
    """Convolution (B, T, O) of `_neighbours` with kernels (taps * D, O)."""
    y = near.new_zeros(len(near), frames, matrix.shape[1])
    width = near.shape[2]
    for place, first in enumerate(range(0, len(matrix), width)):
        part = matrix[first : first + width]
        rows = near[:, place * _TAPS_PER_PRODUCT :][:, :frames, : len(part)]
        y.baddbmm_(rows, part.expand(len(near), -1, -1))
    return y


def _slide_gradient(near: Tensor, gradient: Tensor, taps: int) -> Tensor:
    """Gradient (taps * D, O) with respect to `_slide`'s kernels, given `gradient` (B, T, O) of its output."""
    width, frames = near.shape[2], gradient.shape[1]
    parts = [
        (near[:, first : first + frames].transpose(1, 2) @ gradient).sum(dim=0)  # (8 * D, O)
        for first in range(0, taps, _TAPS_PER_PRODUCT)
    ]
    return torch.cat(parts)[: taps * width // _TAPS_PER_PRODUCT]


def gated_attention(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor, bias: Tensor, padding: Tensor | None, max_scores: int
) -> Tensor:
    """Attention (B, H, T, D) with a gated bias of relative positions (WavLM, equations 4 to 6).

    Parameters
    ----------
    query : Tensor
        (B, H, T, D).
    key : Tensor
        (B, H, T, D).
    value : Tensor
        (B, H, T, D).
    gate : Tensor
        (B, H, T, 1), factors on the biases of each query.
    bias : Tensor
        (H, 2 T - 1), for key position minus query position from 1 - T to T - 1.
    padding : Tensor, optional
        (B, T) bool, True at keys that are ignored.
    max_scores : int
        Number of scores that may be held at a time; at least one query of each clip and head is always processed.
    """
    if torch.is_grad_enabled():
        return apply_function(_GatedAttention, query, key, value, gate, bias, padding, max_scores)
    return _attend(query, key, value, gate, bias, padding, max_scores)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor, bias: Tensor, padding: Tensor | None, max_scores: int
) -> Tensor:
    gate, query = gate.flip(2), query.flip(2)
    parts = []
    for block, rows in _positions(query, bias, max_scores):
        gated = gate[:, :, block] * rows  # (B, H, block, T)
        if padding is not None:
            gated = gated.masked_fill(padding[:, None, None, :], float("-inf"))
        parts.append(F.scaled_dot_product_attention(query[:, :, block], key, value, attn_mask=gated))
    return torch.cat(parts, dim=2).flip(2)


def _positions(query: Tensor, bias: Tensor, max_scores: int) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of queries, the last query first, each with its biases (H, block, T), a view."""
    batch, heads, frames, _ = query.shape
    # Row r is a view that starts at position r - (T - 1): the bias of query T - 1 - r.
    if is_in_onnx_export():  # ONNX has neither unfold nor loops
        steps = torch.arange(frames, device=bias.device)
        rows, size = bias[:, steps[:, None] + steps], frames  # (H, T, T)
    else:
        rows, size = bias.unfold(1, frames, 1), max(1, max_scores // (batch * heads * frames))
    for start in range(0, frames, size):
        block = slice(start, start + size)
        yield block, rows[:, block]


class _GatedAttention(Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        gate: Tensor,
        bias: Tensor,
        padding: Tensor | None,
        max_scores: int,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, gate, bias, padding)
        ctx.max_scores = max_scores
        return _attend(query, key, value, gate, bias, padding, max_scores)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, gate, bias, padding = ctx.saved_tensors
        dtype, scale = query.dtype, query.shape[-1] ** -0.5
        query, gate, gradient = query.flip(2), gate.flip(2), gradient.flip(2)
        key, value = key.contiguous(), value.contiguous()
        of_query, of_gate = torch.empty_like(query), torch.empty_like(gate)
        of_key, of_value = torch.zeros_like(key), torch.zeros_like(value)
        of_bias = torch.zeros_like(bias)
        frames = query.shape[2]
        for block, rows in _positions(query, bias, ctx.max_scores):
            scores = (query[:, :, block] @ key.transpose(2, 3)) * scale + gate[:, :, block] * rows  # (B, H, block, T)
            if padding is not None:
                scores = scores.masked_fill_(padding[:, None, None, :], float("-inf"))
            weights = scores.softmax(dim=-1)
            of_value += weights.to(dtype).transpose(2, 3) @ gradient[:, :, block]
            of_scores = (gradient[:, :, block] @ value.transpose(2, 3)).to(weights.dtype)
            of_scores = of_scores.sub_((of_scores * weights).sum(dim=-1, keepdim=True)).mul_(weights)
            of_gate[:, :, block] = (of_scores * rows).sum(dim=-1, keepdim=True)
            of_rows = (of_scores * gate[:, :, block]).sum(dim=0)  # (H, block, T)
            of_bias[:, block.start : block.start + of_rows.shape[1] + frames - 1] += _diagonal_sums(of_rows)
            of_scores = of_scores.to(dtype)
            of_query[:, :, block] = (of_scores @ key) * scale
            of_key += (of_scores.transpose(2, 3) @ query[:, :, block]) * scale
        return of_query.flip(2), of_key, of_value, of_gate.flip(2), of_bias, None, None


def _diagonal_sums(rows: Tensor) -> Tensor:
    """Sums (H, R + T - 1) of `rows` (H, R, T) over places with the same row + column."""
    heads, count, frames = rows.shape
    width = count + frames - 1
    padded = F.pad(rows, (0, count)).flatten(1)  # row r begins at r (T + R), one more than r rows of `width`
    return padded[:, : count * width].view(heads, count, width).sum(dim=1)


MIN_BYTES = 2**20  # of a layer; freeing smaller ones is not worth the time


def free_memory(layer: Tensor) -> None:
    """Return free memory to the operating system if `layer` is a large tensor of a training on a CPU.

    The GNU allocator keeps freed blocks, and gradients seldom fit into the blocks of activations, or activations into
    those of gradients (before glibc 2.38 an aligned block does not even fit into a freed one of equal size). Without
    this, a training step of WavLM-Base holds half as much memory again as it uses.
    """
    if layer.requires_grad and layer.device.type == "cpu" and layer.nbytes >= MIN_BYTES and _malloc_trim() is not None:
        _trim_heap()


def free_memory_on_backward(layer: Tensor) -> None:
    """As `free_memory`, once the gradient of `layer` has been computed."""
    if layer.requires_grad and layer.device.type == "cpu" and layer.nbytes >= MIN_BYTES and _malloc_trim() is not None:
        layer.register_hook(_trim_heap)  # type: ignore[no-untyped-call]


def _trim_heap(gradient: Tensor | None = None) -> None:
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
