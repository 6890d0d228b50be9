"""Heads of the SphereFace family: a multiplicative angular margin, and binary classification per class.

Weights have wespeaker's names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import HEADS
from knn_cli.networks.heads.margins import away, is_target, towards
from knn_cli.networks.heads.softmax import CosineHead

__all__ = ["SphereFace", "SphereFace2"]


@HEADS.register("sphereface")
class SphereFace(CosineHead):
    """Multiplicative angular margin, A-Softmax (Liu et al., "SphereFace", CVPR 2017, arXiv:1704.08063, equation 7).

    The target's cosine becomes ψ(θ) = (-1)^k cos(m θ) - 2 k for θ in [k π / m, (k + 1) π / m], and is mixed with the
    cosine itself as (λ cos θ + ψ(θ)) / (1 + λ). Scores are multiplied by the embedding's length, not by a scale. The
    margin may be any number from 1 (no margin), so a schedule from 1 to 4 replaces the usual schedule of λ.

    Parameters
    ----------
    dimension : int
        Width E of the embeddings.
    classes : int
        Number of classes C.
    margin : float
        Factor on the target's angle.
    relaxation : float
        λ, the weight of the cosine.
    class_weights : sequence of float, optional
        See `ClassificationHead`.
    label_smoothing : float
        See `ClassificationHead`.
    """

    plain_margin = 1.0

    def __init__(
        self,
        dimension: int,
        classes: int,
        margin: float = 4.0,
        relaxation: float = 5.0,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(dimension, classes, margin, 1.0, 1, class_weights, label_smoothing)
        if not 0 <= relaxation < math.inf:
            raise KnnError(f"SphereFace needs a relaxation of 0 or more, not {relaxation}.")
        self.relaxation = relaxation

    def logits(self, embeddings: Tensor) -> Tensor:
        """The embeddings' lengths times the cosines: (B, C) float32 of embeddings (B, E)."""
        return _lengths(embeddings) * self.cosines(embeddings)

    def forward(self, embeddings: Tensor, labels: Tensor, *, margin: float | None = None) -> Tensor:
        """The embeddings' lengths times the cosines, with the margin for the target: (B, C) float32."""
        margin = self._checked(margin)
        cosines = self.cosines(embeddings)
        angles = cosines.clamp(-1 + 1e-7, 1 - 1e-7).acos()  # at ±1 the gradient of acos is infinite
        turns = (margin * angles / math.pi).floor().detach()
        folded = (1 - 2 * (turns % 2)) * torch.cos(margin * angles) - 2 * turns
        mixed = (self.relaxation * cosines + folded) / (1 + self.relaxation)
        scores = torch.where(is_target(labels, cosines), mixed, cosines)
        return _lengths(embeddings) * scores


@HEADS.register("sphereface2")
class SphereFace2(CosineHead):
    """A binary classifier for each class instead of a softmax over all.

    Wen et al., "SphereFace2: binary classification is all you need for deep face recognition", ICLR 2022
    (arXiv:2108.01513); for speaker verification Han et al., "Exploring binary classification loss for speaker
    verification", ICASSP 2023 (arXiv:2307.08205). Cosines z are mapped to g(z) = 2 ((z + 1) / 2)^t - 1. The loss of a
    clip is λ log(1 + e^-p) for its class plus (1 - λ) log(1 + e^n) for each other class, where p and n are s g + b with
    the margin. With "cosine" the margin is subtracted from g for the clip's class and added for the others; with
    "angle" it is added to the angle and subtracted from it. There is no label smoothing, because the targets are no
    distribution.

    Parameters
    ----------
    dimension : int
        Width E of the embeddings.
    classes : int
        Number of classes C.
    margin : float
        Margin in training.
    scale : float
        Factor s.
    balance : float
        λ, the weight of the clip's class in the loss.
    spread : float
        Exponent t.
    margin_on : {"cosine", "angle"}
        Quantity that has the margin (wespeaker's types C and A).
    class_weights : sequence of float, optional
        See `ClassificationHead`.
    """

    margin_limit = math.pi  # for an angle; larger margins are useless for a cosine too

    def __init__(
        self,
        dimension: int,
        classes: int,
        margin: float = 0.2,
        scale: float = 32.0,
        balance: float = 0.7,
        spread: float = 3.0,
        margin_on: Literal["cosine", "angle"] = "cosine",
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(dimension, classes, margin, scale, 1, class_weights, 0.0)
        if not 0 < balance < 1 or not 1 <= spread < math.inf:
            raise KnnError(
                f"SphereFace2 cannot have balance {balance} and spread {spread}.",
                "Balance lies between 0 and 1, spread is 1 or more.",
            )
        if margin_on not in ("cosine", "angle"):
            raise KnnError(f"SphereFace2 has no margin on {margin_on!r}.", "Known: cosine, angle.")
        self.balance, self.spread, self.margin_on = balance, spread, margin_on
        self.bias = nn.Parameter(torch.zeros(1, 1))

    def logits(self, embeddings: Tensor) -> Tensor:
        """Log-odds of each class, s g(cos θ) + b: (B, C) float32 of embeddings (B, E)."""
        return self.scale * self._spread(self.cosines(embeddings)) + self.bias

    def forward(self, embeddings: Tensor, labels: Tensor, *, margin: float | None = None) -> Tensor:
        """Log-odds (B, C) float32 with the margin, which lowers the target's and raises the others."""
        margin = self._checked(margin)
        cosines = self.cosines(embeddings)
        target = is_target(labels, cosines)
        if self.margin_on == "angle":
            spread = self._spread(torch.where(target, away(cosines, margin), towards(cosines, margin)))
        else:
            spread = self._spread(cosines) + margin * torch.where(target, -1.0, 1.0)
        return self.scale * spread + self.bias

    def loss(self, embeddings: Tensor, labels: Tensor, *, margin: float | None = None) -> Tensor:
        """Mean over clips, weighted by their classes, of the sum over all classes: a float32 scalar."""
        scores = self(embeddings, labels, margin=margin)
        target = is_target(labels, scores)
        losses = torch.where(target, self.balance * F.softplus(-scores), (1 - self.balance) * F.softplus(scores)).sum(1)
        if self.class_weights is None:
            return losses.mean()
        weights = self.class_weights[labels]  # (B,)
        return (weights * losses).sum() / weights.sum()

    def _spread(self, cosines: Tensor) -> Tensor:
        base = (cosines + 1) / 2  # negative with a margin on the angle; g keeps decreasing there
        return 2 * base.sign() * base.abs().pow(self.spread) - 1


def _lengths(embeddings: Tensor) -> Tensor:
    """Norms (B, 1) float32 of embeddings (B, E)."""
    lengths: Tensor = torch.linalg.vector_norm(embeddings.float(), dim=1, keepdim=True)
    return lengths
