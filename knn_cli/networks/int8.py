"""Linear layers and convolutions with products of 8-bit integers, and weights in 8 bits.

A weight is stored as int8 with one scale for each output. Inputs are rounded when a product is computed, every row (a
frame) with a scale of its own, so that no frame depends on the others. Of their 8 bits 7 are used: the sums of two
products, which processors with AVX2 hold in 16 bits, then never overflow, and all processors compute the same integers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SCALE", "Int8Linear", "dequantised", "int8_product_names", "linears", "quantised", "with_int8_products"]

SCALE = "_scale"  # what follows a weight's name in the name of its scales
_WEIGHT_LEVELS = 127
_INPUT_LEVELS = 63
_INPUT_ZERO = 64
_FEWEST_INPUTS = 32  # of a weight; smaller ones, such as a convolution over the waveform, stay float
_SMALLEST = 1e-12  # scale of a row of zeros
_ENGINE = "fbgemm"


class Int8Linear(nn.Module):
    """A linear layer whose weight is int8; on a CPU that torch's fbgemm supports it multiplies integers.

    Elsewhere it computes with the weight as float.

    Parameters
    ----------
    weight : Tensor, (out, in) int8
    scale : Tensor, (out,) float32
        Factor on the rows of `weight`.
    bias : Tensor, (out,) float, optional
    """

    integers: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("integers", weight)
        self.register_buffer("scale", scale.float())
        self.register_buffer("bias", bias)
        self._packed = _packed(weight, self.scale)

    @property
    def weight(self) -> Tensor:
        """The weight as float, (out, in)."""
        return self.integers * self.scale[:, None]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) float -> (..., out)."""
        return linears(x, self)[0]

    def of_rows(self, rows: Tensor, scales: Tensor) -> Tensor:
        """Rows (..., in) of integers from -63 to 63 before rounding, and their scales (..., 1) -> (..., out) float."""
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            rows, 1.0, _INPUT_ZERO, self._packed
        )
        return product.mul_(scales) if self.bias is None else torch.addcmul(self.bias, product, scales)


class Int8Convolution(nn.Module):
    """A convolution over time as an `Int8Linear` of the frames that its kernel covers.

    Parameters
    ----------
    layer : Conv1d
        Without groups and dilation, padded with zeros; its bias is kept.
    weight : Tensor, (out, in, kernel) int8
    scale : Tensor, (out,) float32
    """

    def __init__(self, layer: nn.Conv1d, weight: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
        self.product = Int8Linear(weight.transpose(1, 2).flatten(1), scale, _bias_of(layer))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, T) float -> (B, out, T')."""
        frames = F.pad(x.transpose(1, 2), (0, 0, self.padding, self.padding))  # (B, T + 2 padding, in)
        channels = frames.shape[2]
        rows = frames.flatten(1).unfold(1, self.kernel * channels, self.stride * channels)  # (B, T', kernel in)
        result: Tensor = self.product(rows)
        return result.transpose(1, 2)


def linears(x: Tensor, *layers: nn.Module) -> list[Tensor]:
    """The outputs of linear layers for one input (..., in), which is rounded once if all of them have int8 products."""
    if not all(isinstance(layer, Int8Linear) for layer in layers):
        return [layer(x) for layer in layers]
    ours = cast(tuple[Int8Linear, ...], layers)
    if x.device.type != "cpu" or any(layer._packed is None for layer in ours):
        return [F.linear(x, layer.weight.to(x.dtype), layer.bias) for layer in ours]
    largest = torch.maximum(x.amax(-1, keepdim=True), -x.amin(-1, keepdim=True))
    scales = largest.clamp_min_(_SMALLEST).div_(_INPUT_LEVELS)
    rows = x / scales
    return [layer.of_rows(rows, scales) for layer in ours]


def quantised(state: Mapping[str, Tensor], prefixes: tuple[str, ...] = ("encoder.", "pooling.")) -> dict[str, Tensor]:
    """Weights of a network with its matrices and convolutions in 8 bits.

    Parameters
    ----------
    state : mapping of str to Tensor
        Weights by name; the float tensors X.weight of two and more dimensions, and at least 32 inputs for each output,
        become int8 with scales X.weight_scale.
    prefixes : tuple of str
        Only names that begin with one of these.

    Returns
    -------
    dict of str to Tensor
        The same names, and the scales, (out,) float32 each.

    Examples
    --------
    >>> import torch
    >>> weight = torch.zeros(2, 32)
    >>> weight[:, :2] = torch.tensor([[0.5, -1.27], [0.0, 2.54]])
    >>> state = quantised({"encoder.out.weight": weight})
    >>> state["encoder.out.weight"][:, :2].tolist()
    [[50, -127], [0, 127]]
    """
    result: dict[str, Tensor] = {}
    for key, value in state.items():
        matrix = key.startswith(prefixes) and key.endswith(".weight") and value.ndim > 1
        if not (matrix and value.is_floating_point() and value[0].numel() >= _FEWEST_INPUTS):
            result[key] = value
            continue
        rows = value.float().flatten(1)
        scale = rows.abs().amax(1).clamp_min(_SMALLEST) / _WEIGHT_LEVELS
        result[key] = (rows / scale[:, None]).round().to(torch.int8).view(value.shape)
        result[key + SCALE] = scale
    return result


def dequantised(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a bundle as float; an int8 weight without scales of its size, and scales without one, stay as is."""
    names = int8_names(state)
    result = {key: value for key, value in state.items() if key.removesuffix(SCALE) not in names}
    for key in names:
        scale = state[key + SCALE].float()
        result[key] = state[key] * scale.view(-1, *[1] * (state[key].ndim - 1))
    return result


def int8_names(state: Mapping[str, Tensor]) -> set[str]:
    """Names of the int8 weights that have their scales."""
    return {
        key
        for key, value in state.items()
        if value.dtype == torch.int8 and key + SCALE in state and state[key + SCALE].shape == value.shape[:1]
    }


def int8_product_names(network: nn.Module, state: Mapping[str, Tensor]) -> set[str]:
    """Names of the int8 weights of linear layers and plain `Conv1d`s of a network.

    Subclasses of these are left out, and so are weights of another shape than the layer's.
    """
    names = set()
    for key in int8_names(state):
        name, _, last = key.rpartition(".")
        with suppress(AttributeError):  # no module of this name
            layer = network.get_submodule(name)
            plain = type(layer) is nn.Linear or (type(layer) is nn.Conv1d and _is_plain(layer))
            if plain and last == "weight" and layer.weight.shape == state[key].shape:
                names.add(key)
    return names


def with_int8_products(network: nn.Module, state: Mapping[str, Tensor], names: Iterable[str] | None = None) -> None:
    """Let layers of `network` multiply integers.

    Parameters
    ----------
    network : Module
        Its biases are kept.
    state : mapping of str to Tensor
        Int8 weights and their scales by name.
    names : iterable of str, optional
        Weights of these layers; all of `int8_product_names` where None.
    """
    for key in sorted(int8_product_names(network, state) if names is None else names):
        name = key.removesuffix(".weight")
        layer, weight, scale = network.get_submodule(name), state[key], state[key + SCALE]
        if isinstance(layer, nn.Conv1d):
            network.set_submodule(name, Int8Convolution(layer, weight, scale))
        else:
            assert isinstance(layer, nn.Linear)
            network.set_submodule(name, Int8Linear(weight, scale, _bias_of(layer)))


def _is_plain(layer: nn.Conv1d) -> bool:
    """Whether a convolution has no groups and no dilation, and is padded with zeros of a given number."""
    zeros = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return zeros and layer.groups == 1 and layer.dilation == (1,)


def _bias_of(layer: nn.Linear | nn.Conv1d) -> Tensor | None:
    return None if layer.bias is None else layer.bias.detach()


def _packed(weight: Tensor, scale: Tensor) -> Any:
    """The weight in fbgemm's layout; None where torch has no fbgemm."""
    if _ENGINE not in torch.backends.quantized.supported_engines:
        return None
    zeros = torch.zeros(len(scale), dtype=torch.int64)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = _ENGINE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch 2.13, that a later one will have other quantised tensors
            whole = torch._make_per_channel_quantized_tensor(weight.contiguous(), scale.double(), zeros, 0)
        return torch.ops.quantized.linear_prepack(whole, None)
    finally:
        torch.backends.quantized.engine = before
