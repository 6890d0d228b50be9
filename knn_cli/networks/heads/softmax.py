"""Classification heads: embeddings and labels to the loss that trains them, and to scores without margin.

Every head is built as `HEADS.build(name, dimension=E, classes=C, **args)`. `logits(embeddings)` gives the scores
(B, C) of inference; `forward(embeddings, labels)` those of training, where the target's score is made worse by the
margin; `loss(embeddings, labels)` the mean loss. Cosines are taken in float32, also under autocast.

Weights have wespeaker's names (`weight`, or `trans` of `softmax`), so its projections load. `heads_sphere` holds
SphereFace and SphereFace2.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import HEADS

__all__ = [
    "HEADS",
    "AAMSoftmax",
    "AMSoftmax",
    "CosineHead",
    "Head",
    "MarginSchedule",
    "Softmax",
]

# The margin at which inter-top-k penalties are stated; at another margin they are smaller or larger in proportion.
_PENALTY_STATED_AT = 0.2


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


class Head(nn.Module, ABC):
    """What all heads share: sizes, the margin, and cross-entropy with class weights and label smoothing.

    Args:
        dimension: width E of the embeddings.
        classes: number of classes C, 2 or more.
        margin: margin of training; `plain_margin` is none.
        class_weights: weight of each class in the loss, which is the weighted mean over clips; None is all alike.
        label_smoothing: share of the target spread evenly over all classes, from 0 to below 1.
    """

    plain_margin: ClassVar[float] = 0.0  # the margin that changes nothing
    margin_limit: ClassVar[float] = math.inf  # all margins are below
    has_margin: ClassVar[bool] = True
    class_weights: Tensor | None

    def __init__(
        self,
        dimension: int,
        classes: int,
        margin: float = 0.0,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if dimension < 1 or classes < 2:
            raise KnnError(f"A head needs 1 dimension and 2 classes or more, not {dimension} and {classes}.")
        if not 0 <= label_smoothing < 1:
            raise KnnError(f"Label smoothing goes from 0 to below 1; {label_smoothing} does not.")
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        if weights is not None and (weights.shape != (classes,) or not 0 < weights.min() <= weights.max() < math.inf):
            raise KnnError(
                f"These {weights.numel()} class weights do not fit {classes} classes.",
                "Give each class one finite weight above 0.",
            )
        self.dimension, self.classes, self.label_smoothing = dimension, classes, label_smoothing
        # From the recipe, as the margin is: neither belongs to the weights that a checkpoint stores.
        self.register_buffer("class_weights", weights, persistent=False)
        self.set_margin(margin)

    def set_margin(self, margin: float) -> None:
        """Set the margin of training from here on; KnnError for one that the head cannot have."""
        self.margin = self._checked(margin)

    @abstractmethod
    def logits(self, embeddings: Tensor) -> Tensor:
        """Scores (B, C) float32 of embeddings (B, E), without margin."""

    @abstractmethod
    def forward(self, embeddings: Tensor, labels: Tensor, *, margin: float | None = None) -> Tensor:
        """Training scores (B, C) float32 of embeddings (B, E) and labels (B,) int64.

        `margin` stands in for the head's own this once.
        """

    def loss(self, embeddings: Tensor, labels: Tensor, *, margin: float | None = None) -> Tensor:
        """Mean loss, a float32 scalar, of embeddings (B, E) and labels (B,) int64."""
        scores = self(embeddings, labels, margin=margin)
        return F.cross_entropy(scores, labels, weight=self.class_weights, label_smoothing=self.label_smoothing)

    def extra_repr(self) -> str:
        """Sizes and margin, for the printed module."""
        return f"dimension={self.dimension}, classes={self.classes}, margin={self.margin}"

    def _checked(self, margin: float | None) -> float:
        """`margin`, or the head's own for None, if the head can have it."""
        if margin is None:
            return self.margin
        if not self.has_margin and margin != self.plain_margin:
            raise KnnError("The softmax head has no margin.", "Choose another head, such as aam-softmax.")
        if not self.plain_margin <= margin < self.margin_limit:
            raise KnnError(
                f"This head cannot have a margin of {margin}.",
                f"Its margin is {self.plain_margin:g} or more, and below {self.margin_limit:.6g}.",
            )
        return float(margin)


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


@HEADS.register("softmax")
class Softmax(Head):
    """Plain scores: a linear layer, behind batch normalisation and ReLU as in wespeaker's `Linear`, or alone.

    Args:
        dimension: width E of the embeddings.
        classes: number of classes C.
        normalize: whether batch normalisation and ReLU come first.
        class_weights: see `Head`.
        label_smoothing: see `Head`.
    """

    has_margin = False

    def __init__(
        self,
        dimension: int,
        classes: int,
        normalize: bool = True,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(dimension, classes, 0.0, class_weights, label_smoothing)
        before = [nn.BatchNorm1d(dimension), nn.ReLU()] if normalize else []
        self.trans = nn.Sequential(*before, nn.Linear(dimension, classes))

    def logits(self, embeddings: Tensor) -> Tensor:
        """Scores (B, C) float32 of embeddings (B, E)."""
        scores: Tensor = self.trans(embeddings)
        return scores.float()

    def forward(self, embeddings: Tensor, labels: Tensor, *, margin: float | None = None) -> Tensor:
        """The scores of inference: this head has no margin."""
        self._checked(margin)
        return self.logits(embeddings)


class CosineHead(Head):
    """Scores from cosines between an embedding and the classes' centres, of which each class has K.

    Rows c K to c K + K - 1 of `weight` (C K, E) are the sub-centres of class c; the nearest one counts (Deng et al.,
    "Sub-center ArcFace", ECCV 2020, section 3.2).
    """

    def __init__(
        self,
        dimension: int,
        classes: int,
        margin: float,
        scale: float,
        subcenters: int,
        class_weights: Sequence[float] | None,
        label_smoothing: float,
    ) -> None:
        super().__init__(dimension, classes, margin, class_weights, label_smoothing)
        if subcenters < 1:
            raise KnnError(f"A class needs at least 1 sub-center, not {subcenters}.")
        if not 0 < scale < math.inf:
            raise KnnError(f"The scale of a head is above 0, not {scale}.")
        self.scale, self.subcenters = scale, subcenters
        self.weight = nn.Parameter(torch.empty(classes * subcenters, dimension))
        nn.init.xavier_uniform_(self.weight)

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Cosines (B, C) float32 in [-1, 1] of embeddings (B, E) to each class's nearest centre."""
        with torch.autocast(embeddings.device.type, enabled=False):
            cosines = F.linear(F.normalize(embeddings.float()), F.normalize(self.weight.float()))
        if self.subcenters > 1:
            cosines = cosines.view(-1, self.classes, self.subcenters).amax(dim=2)  # (B, C)
        return cosines.clamp(-1, 1)

    def logits(self, embeddings: Tensor) -> Tensor:
        """`scale` times the cosines: (B, C) float32 of embeddings (B, E)."""
        return self.scale * self.cosines(embeddings)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scale}, subcenters={self.subcenters}"


@HEADS.register("am-softmax")
class AMSoftmax(CosineHead):
    """Additive margin: the target's cosine less the margin (Wang et al. 2018, arXiv:1801.05599, equation 6).

    Args:
        dimension: width E of the embeddings.
        classes: number of classes C.
        margin: what the target's cosine loses.
        scale: what cosines are multiplied by.
        subcenters: centres K of a class.
        class_weights: see `Head`.
        label_smoothing: see `Head`.
    """

    def __init__(
        self,
        dimension: int,
        classes: int,
        margin: float = 0.2,
        scale: float = 32.0,
        subcenters: int = 1,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(dimension, classes, margin, scale, subcenters, class_weights, label_smoothing)

    def forward(self, embeddings: Tensor, labels: Tensor, *, margin: float | None = None) -> Tensor:
        """`scale` times the cosines, the target's less the margin: (B, C) float32."""
        margin = self._checked(margin)
        cosines = self.cosines(embeddings)
        return self.scale * torch.where(is_target(labels, cosines), cosines - margin, cosines)


@HEADS.register("aam-softmax")
class AAMSoftmax(CosineHead):
    """Additive angular margin: the target's angle plus the margin (ArcFace, arXiv:1801.07698, equation 3).

    An angle θ within the margin of π, where cos(θ + m) would rise again, goes on as cos θ - (1 - cos m), which joins
    it without a step; with `easy_margin`, an angle above π / 2 has no margin.

    With `top_k` the k classes nearest to the embedding, the target aside, have their angles lessened by the penalty
    (Zhao et al., "Multi-query multi-head attention pooling and inter-topK penalty for speaker verification", ICASSP
    2022, arXiv:2110.05042). The penalty is the given one at a margin of 0.2 and goes with the margin, as
    in wespeaker, so that a margin schedule covers both.

    Args:
        dimension: width E of the embeddings.
        classes: number of classes C.
        margin: what is added to the target's angle, in radians, below π.
        scale: what cosines are multiplied by.
        easy_margin: whether only angles below π / 2 have the margin.
        subcenters: centres K of a class.
        top_k: number of classes with the penalty; all others where it is above C - 1; 0 for none.
        penalty: angle that the penalty takes off, in radians, at a margin of 0.2.
        class_weights: see `Head`.
        label_smoothing: see `Head`.
    """

    margin_limit = math.pi

    def __init__(
        self,
        dimension: int,
        classes: int,
        margin: float = 0.2,
        scale: float = 32.0,
        easy_margin: bool = False,
        subcenters: int = 1,
        top_k: int = 0,
        penalty: float = 0.06,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(dimension, classes, margin, scale, subcenters, class_weights, label_smoothing)
        if top_k < 0 or not 0 <= penalty < math.inf:
            raise KnnError(f"An inter-top-k penalty of {penalty} on {top_k} classes cannot be.", "Give 0 or more.")
        self.easy_margin, self.top_k, self.penalty = easy_margin, min(top_k, classes - 1), penalty

    def forward(self, embeddings: Tensor, labels: Tensor, *, margin: float | None = None) -> Tensor:
        """`scale` times the cosines, changed where margin and penalty apply: (B, C) float32."""
        margin = self._checked(margin)
        cosines = self.cosines(embeddings)
        target = is_target(labels, cosines)
        if self.easy_margin:
            nearer = torch.where(cosines > 0, turned(cosines, margin), cosines)
        else:
            nearer = away(cosines, margin)
        scores = torch.where(target, nearer, cosines)
        if self.top_k and self.penalty and margin:
            hardest = cosines.detach().masked_fill(target, -math.inf).topk(self.top_k, dim=1).indices  # (B, k)
            hard = torch.zeros_like(target).scatter(1, hardest, True)
            scores = torch.where(hard, towards(cosines, self.penalty * margin / _PENALTY_STATED_AT), scores)
        return self.scale * scores
