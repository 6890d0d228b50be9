"""Accuracy of the network on held-out rows, and the result of an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from knn_cli.networks.network import Network
from knn_cli.training.corpus_split import TrainingSplit
from knn_cli.training.distributed import ProcessGroup
from knn_cli.training.recipe import Recipe

__all__ = ["EpochResult", "evaluate_held_out"]


@dataclass(frozen=True)
class EpochResult:
    """The result of an epoch.

    Attributes
    ----------
    number, step : int
        Epochs and steps done.
    loss : float
        Mean over the epoch.
    accuracy, row_accuracy : float
        Fraction of held-out rows that are right, the mean over labels and over rows; NaN without such rows.
    best : bool
        Whether the accuracy is the best so far.
    """

    number: int
    step: int
    loss: float
    accuracy: float
    row_accuracy: float
    best: bool

    @property
    def line(self) -> str:
        """The same as a line of text."""
        if math.isnan(self.accuracy):
            return f"Epoch {self.number}: loss {self.loss:.4f}."
        return (
            f"Epoch {self.number}: loss {self.loss:.4f}, held-out accuracy {self.accuracy:.1%}{' (best)' * self.best}."
        )


@torch.no_grad()
def evaluate_held_out(
    network: Network,
    split: TrainingSplit,
    recipe: Recipe,
    scale: float,
    group: ProcessGroup,
    at_once: int,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> tuple[float, float]:
    """Fraction of held-out rows that the head gets right: the mean over labels, and over rows; NaN without rows.

    The middle `evaluate_seconds` of each row are used. The rows are shared among the processes, `at_once` of like
    lengths go through the network together, and all processes get the same answer.
    """
    seconds, count = recipe.data.evaluate_seconds, len(split.labels)
    counts = torch.zeros(2, count, dtype=torch.float64)  # right, all
    rows_here = split.held_out_rows[group.rank :: group.size]
    lengths = split.corpus.columns.seconds
    rows_here = rows_here[np.argsort(lengths[rows_here], kind="stable")]
    network.eval()
    for first in range(0, len(rows_here), at_once):
        rows = rows_here[first : first + at_once]
        clips = [split.corpus.samples(int(row), max(0.0, (lengths[row] - seconds) / 2), seconds) for row in rows]
        sizes = [max(len(clip), network.minimum) for clip in clips]
        padded = np.stack([np.pad(clip, (0, max(sizes) - len(clip))) for clip in clips])  # (B, S)
        sound = torch.from_numpy(padded).to(group.device) * scale
        unequal = None if min(sizes) == max(sizes) else torch.tensor(sizes, device=group.device)
        with autocast():
            scores = network.scores(network(sound, unequal))[:, :count]  # (B, C)
        predicted, truth = scores.argmax(dim=1).cpu(), torch.from_numpy(split.classes[rows])
        counts[0] += torch.bincount(truth[predicted == truth], minlength=count)
        counts[1] += torch.bincount(truth, minlength=count)
    right, every = group.sum(counts)
    seen = every > 0
    if not seen.any():
        return math.nan, math.nan
    return float((right[seen] / every[seen]).mean()), float(right.sum() / every.sum())
