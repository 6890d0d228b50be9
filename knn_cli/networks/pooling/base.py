"""Functions that the poolings share: sums over layers, attention weights, and statistics over time of padded clips.

B clips, T frames, C channels of a layer, D channels after compression, H heads.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from knn_cli.core.errors import KnnError
from knn_cli.networks.features import clamp_min

__all__ = [
    "MIN_VARIANCE",
    "attended_statistics",
    "attention_weights",
    "check_sizes",
    "clamp_min",
    "last_layer",
    "layer_sums",
    "time_mean",
    "time_variance",
    "zero_padding",
]

# Lower bound of variances, so that the gradient of their square root stays finite.
MIN_VARIANCE = 1e-7


def check_sizes(pooling: str, **sizes: int) -> None:
    """Raise a KnnError that names the first size below 1."""
    for size, value in sizes.items():
        if value < 1:
            raise KnnError(f"{pooling} pooling needs {size} of at least 1, not {value}.")


def layer_sums(layers: Iterable[Tensor], *weights: Tensor) -> list[Tensor]:
    """Softmax-weighted sums over `layers`, one for each (L,) of `weights`, accumulated layer by layer.

    The layers have equal shapes, whatever they are.

    Raises
    ------
    ValueError
        There are not exactly L layers.
    """
    expected = len(weights[0])
    probabilities = [layer_weights.softmax(dim=0) for layer_weights in weights]
    source = iter(layers)
    first = next(source, None)
    if first is None:
        raise ValueError(f"there are no layers, {expected} expected")
    sums = [first * weight[0] for weight in probabilities]
    del first  # otherwise it would be kept until the loop ends
    count = 1
    for layer in source:
        if count < expected:
            # One at a time, so that at most one old sum is kept besides the new one.
            for number, weight in enumerate(probabilities):
                sums[number] = torch.addcmul(sums[number], layer, weight[count])
        count += 1
    if count != expected:
        raise ValueError(f"{count} layers came, {expected} expected")
    return sums


def last_layer(layers: Iterable[Tensor], expected: int) -> Tensor:
    """The last of `layers`.

    Raises
    ------
    ValueError
        There are not exactly `expected` layers.
    """
    count, last = 0, None
    for layer in layers:
        count, last = count + 1, layer
    if last is None or count != expected:
        raise ValueError(f"{count} layers came, {expected} expected")
    return last


def zero_padding(frames: Tensor, mask: Tensor | None) -> Tensor:
    """`frames` (B, T, D) with 0 outside `mask` (B, T): a weight of 0 times infinity would be NaN."""
    return frames if mask is None else frames.masked_fill(~mask.unsqueeze(-1), 0.0)


def attention_weights(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Logits (B, T, H) -> weights (B, H, T) that sum to 1 over the real frames."""
    if mask is not None:
        logits = logits.masked_fill(~mask.unsqueeze(-1), float("-inf"))
    return logits.softmax(dim=1).transpose(1, 2)


def time_mean(frames: Tensor, mask: Tensor | None) -> Tensor:
    """Mean (B, D) of the real frames of (B, T, D)."""
    if mask is None:
        return frames.mean(dim=1)
    return zero_padding(frames, mask).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def time_variance(frames: Tensor, mean: Tensor, mask: Tensor | None) -> Tensor:
    """Variance (B, D) of the real frames of (B, T, D) about `mean` (B, D), unbiased; 0 if there is only one frame."""
    squares = zero_padding(frames - mean.unsqueeze(1), mask).square().sum(dim=1)  # (B, D)
    if mask is None:
        return squares / clamp_min(frames.shape[1] - 1, 1)
    return squares / (mask.sum(dim=1, keepdim=True) - 1).clamp(min=1)


def attended_statistics(weights: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation, each (B, H, D), of values (B, T, D) under weights (B, H, T).

    The variance is E[v²] - E[v]² of values from which their unweighted mean has been subtracted, which leaves the
    variance unchanged and avoids cancellation.
    """
    centre = time_mean(values, mask).unsqueeze(1)  # (B, 1, D)
    values = zero_padding(values - centre, mask)
    mean = weights @ values  # (B, H, D)
    variance = weights @ values.square() - mean.square()
    return mean + centre, variance.clamp(min=MIN_VARIANCE).sqrt()
