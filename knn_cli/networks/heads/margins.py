"""Margins of classification heads: their schedule over training, and their effect on cosines."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from knn_cli.core.errors import KnnError

__all__ = ["MarginSchedule", "away", "is_target", "towards", "turned"]


@dataclass(frozen=True)
class MarginSchedule:
    """The margin at every step of training: `start`, then `steps` steps towards `end`, then `end`.

    After a fraction x of the steps the margin is start + (end - start) f(x), with f(x) = 1 - 0.001^x for "exponential"
    and f(x) = x for "linear". Both are wespeaker's, with `delay` and `steps` counted in steps instead of
    epochs.

    Attributes
    ----------
    start : float
        First margin.
    end : float
        Last margin.
    steps : int
        Number of steps from `start` to `end`.
    delay : int
        Number of steps with the margin `start` before that.
    kind : {"exponential", "linear"}
        Shape f of the schedule.
    """

    start: float
    end: float
    steps: int
    delay: int = 0
    kind: Literal["exponential", "linear"] = "exponential"

    def __post_init__(self) -> None:
        """Reject invalid schedules."""
        if self.kind not in ("exponential", "linear"):
            raise KnnError(f"There is no margin schedule of kind {self.kind!r}.", "Known: exponential, linear.")
        if min(self.steps, self.delay) < 0:
            raise KnnError(f"A margin schedule cannot take {self.steps} steps after {self.delay}.", "Give 0 or more.")
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise KnnError(f"A margin schedule cannot go from {self.start} to {self.end}.")

    def at(self, step: int) -> float:
        """The margin at `step`, counted from 0."""
        done = step - self.delay
        if done >= self.steps:
            return self.end
        if done < 0:
            return self.start
        part = done / self.steps
        if self.kind == "exponential":
            part = 1 - 0.001**part
        return self.start + (self.end - self.start) * part


def is_target(labels: Tensor, scores: Tensor) -> Tensor:
    """(B, C) bool, True at each clip's class, for labels (B,) and scores (B, C)."""
    return torch.arange(scores.shape[1], device=scores.device) == labels.unsqueeze(1)


def turned(cosines: Tensor, angle: float) -> Tensor:
    """cos(θ + angle) for cos θ in [-1, 1]."""
    # The bound keeps the sine's gradient finite at ±1; it changes the sine by at most 1e-6.
    sines = (1 - cosines.square()).clamp(min=1e-12).sqrt()
    return cosines * math.cos(angle) - sines * math.sin(angle)


def away(cosines: Tensor, angle: float) -> Tensor:
    """cos(θ + angle), continued beyond θ = π - angle by a decreasing continuous curve."""
    return torch.where(cosines > -math.cos(angle), turned(cosines, angle), cosines - (1 - math.cos(angle)))


def towards(cosines: Tensor, angle: float) -> Tensor:
    """cos(θ - angle), continued below θ = angle by a decreasing continuous curve."""
    return torch.where(cosines < math.cos(angle), turned(cosines, -angle), cosines + (1 - math.cos(angle)))
