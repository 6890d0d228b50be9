"""RepVGG's branches of training, merged into the one convolution that they amount to (arXiv:2101.03697)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["merge_branches"]

_EPSILON = 1e-5  # of batch norms
_NORM = ("weight", "bias", "running_mean", "running_var")
_BRANCHES = ("rbr_dense", "rbr_1x1", "rbr_dense_dilation", "rbr_identity")


def merge_branches(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same weights, with `X.rbr_reparam` in place of the branches of each block X that is whole; others stay."""
    blocks = [
        str(key).removesuffix("rbr_dense.conv.weight") for key in state if str(key).endswith(".rbr_dense.conv.weight")
    ]
    merged = dict(state)
    for block in blocks:
        parts = [name for name in _BRANCHES if any(str(key).startswith(f"{block}{name}.") for key in state)]
        size = 5 if "rbr_dense_dilation" in parts else 3
        found = [_branch(state, f"{block}{name}.", name, size) for name in parts]
        shapes = {each[0].shape for each in found if each is not None}
        if None in found or len(shapes) > 1:
            continue  # what is missing or mis-sized is told when weights are matched
        whole = [each for each in found if each is not None]
        pattern = re.compile(rf"{re.escape(block)}({'|'.join(_BRANCHES)})\..*")
        for key in [key for key in merged if pattern.fullmatch(str(key))]:
            del merged[key]
        merged[f"{block}rbr_reparam.weight"] = torch.stack([kernel for kernel, _ in whole]).sum(0).float()
        merged[f"{block}rbr_reparam.bias"] = torch.stack([bias for _, bias in whole]).sum(0).float()
    return merged


def _branch(state: Mapping[str, Any], prefix: str, name: str, size: int) -> tuple[Tensor, Tensor] | None:
    """Kernel (C', C, size, size) and bias (C',) of a branch in float64; None if it is not whole."""
    norm = prefix if name == "rbr_identity" else f"{prefix}bn."
    values = [state.get(f"{norm}{key}") for key in _NORM]
    dense = state.get(f"{prefix.removesuffix(f'{name}.')}rbr_dense.conv.weight")
    kernel = dense if name == "rbr_identity" else state.get(f"{prefix}conv.weight")
    norms = [value for value in values if isinstance(value, Tensor)]
    if not isinstance(kernel, Tensor) or kernel.ndim != 4 or len(norms) < len(values):
        return None
    if any(value.shape != (len(kernel),) for value in norms):
        return None
    if name == "rbr_identity":
        inner = kernel.shape[1]
        kernel = torch.zeros(len(kernel), inner, 1, 1)
        kernel[torch.arange(len(kernel)), torch.arange(len(kernel)) % inner] = 1.0
    kernel = kernel.double()
    if name == "rbr_dense_dilation":
        spread = torch.zeros(*kernel.shape[:2], 5, 5, dtype=kernel.dtype)
        spread[:, :, ::2, ::2] = kernel
        kernel = spread
    if (edge := (size - kernel.shape[3]) // 2) > 0:
        kernel = F.pad(kernel, (edge, edge, edge, edge))
    weight, bias, mean, variance = (value.double() for value in norms)
    factor = weight / (variance + _EPSILON).sqrt()
    return kernel * factor[:, None, None, None], bias - mean * factor
