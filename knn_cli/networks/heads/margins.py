"""Margins of classification heads: their schedule over training, and the angles that they change."""

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

    "exponential" approaches `end` as 1 - 0.001^x does 1, x being the part of the way that is done; "linear" as x. Both
    are wespeaker's, whose margins after given epochs come from `delay` and `steps` of as many epochs.

    Attributes
    ----------
        start: margin at first.
        end: margin at last.
        steps: number of steps on the way.
        delay: number of steps before the way begins.
        kind: "exponential" or "linear".
    """

    start: float
    end: float
    steps: int
    delay: int = 0
    kind: Literal["exponential", "linear"] = "exponential"

    def __post_init__(self) -> None:
        """Refuse what is no schedule."""
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
    """(B, C) bool, True in each clip's own class, for labels (B,) and scores (B, C)."""
    return torch.arange(scores.shape[1], device=scores.device) == labels.unsqueeze(1)


def turned(cosines: Tensor, angle: float) -> Tensor:
    """cos(θ + angle) for cos θ in [-1, 1]."""
    # The floor keeps the gradient finite at ±1, where the sine's is infinite; it changes the sine by at most 1e-6.
    sines = (1 - cosines.square()).clamp(min=1e-12).sqrt()
    return cosines * math.cos(angle) - sines * math.sin(angle)


def away(cosines: Tensor, angle: float) -> Tensor:
    """cos(θ + angle), continued beyond θ = π - angle by a falling curve without a step."""
    return torch.where(cosines > -math.cos(angle), turned(cosines, angle), cosines - (1 - math.cos(angle)))


def towards(cosines: Tensor, angle: float) -> Tensor:
    """cos(θ - angle), continued below θ = angle by a falling curve without a step."""
    return torch.where(cosines < math.cos(angle), turned(cosines, -angle), cosines + (1 - math.cos(angle)))
