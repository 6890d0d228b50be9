"""Classification heads with softmax: plain, and with a margin on the cosine or on the angle."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import HEADS
from knn_cli.networks.heads.base import ClassificationHead
from knn_cli.networks.heads.margins import away, is_target, towards, turned

__all__ = ["AAMSoftmax", "AMSoftmax", "CosineHead", "Softmax"]

# The margin at which inter-top-k penalties are stated; at another margin they are smaller or larger in proportion.
_PENALTY_STATED_AT = 0.2


@HEADS.register("softmax")
class Softmax(ClassificationHead):
    """Plain scores: a linear layer, behind batch normalisation and ReLU as in wespeaker's `Linear`, or alone.

    Args:
        dimension: width E of the embeddings.
        classes: number of classes C.
        normalize: whether batch normalisation and ReLU come first.
        class_weights: see `ClassificationHead`.
        label_smoothing: see `ClassificationHead`.
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


class CosineHead(ClassificationHead):
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
        class_weights: see `ClassificationHead`.
        label_smoothing: see `ClassificationHead`.
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
        class_weights: see `ClassificationHead`.
        label_smoothing: see `ClassificationHead`.
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
