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

# Margin for which inter-top-k penalties are given; at other margins they are scaled in proportion.
_PENALTY_STATED_AT = 0.2


@HEADS.register("softmax")
class Softmax(ClassificationHead):
    """A linear layer without margin: alone, after ReLU, or after batch normalisation and ReLU as wespeaker's `Linear`.

    Parameters
    ----------
    dimension : int
        Width E of the embeddings.
    classes : int
        Number of classes C.
    normalize : bool
        Whether batch normalisation and ReLU come first.
    class_weights : sequence of float, optional
        See `ClassificationHead`.
    label_smoothing : float
        See `ClassificationHead`.
    rectify : bool
        Whether ReLU comes first where nothing is normalised.
    """

    has_margin = False

    def __init__(
        self,
        dimension: int,
        classes: int,
        normalize: bool = True,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        rectify: bool = False,
    ) -> None:
        super().__init__(dimension, classes, 0.0, class_weights, label_smoothing)
        before = [nn.BatchNorm1d(dimension), nn.ReLU()] if normalize else [nn.ReLU()] * rectify
        self.trans = nn.Sequential(*before, nn.Linear(dimension, classes))

    def logits(self, embeddings: Tensor) -> Tensor:
        """Scores (B, C) float32 of embeddings (B, E)."""
        scores: Tensor = self.trans(embeddings)
        return scores.float()

    def forward(self, embeddings: Tensor, labels: Tensor, *, margin: float | None = None) -> Tensor:
        """The same scores as `logits`, because this head has no margin."""
        self._checked(margin)
        return self.logits(embeddings)


class CosineHead(ClassificationHead):
    """Scores from cosines between an embedding and the centres of the classes, K centres per class.

    Rows c K to c K + K - 1 of `weight` (C K, E) are the sub-centres of class c, the nearest of which is used (Deng et
    al., "Sub-center ArcFace", ECCV 2020, section 3.2).
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
    """Additive margin, subtracted from the target's cosine (Wang et al. 2018, arXiv:1801.05599, equation 6).

    Parameters
    ----------
    dimension : int
        Width E of the embeddings.
    classes : int
        Number of classes C.
    margin : float
        Subtracted from the target's cosine.
    scale : float
        Factor on the cosines.
    subcenters : int
        Number of centres K per class.
    class_weights : sequence of float, optional
        See `ClassificationHead`.
    label_smoothing : float
        See `ClassificationHead`.
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
        """`scale` times the cosines, after the margin is subtracted from the target's: (B, C) float32."""
        margin = self._checked(margin)
        cosines = self.cosines(embeddings)
        return self.scale * torch.where(is_target(labels, cosines), cosines - margin, cosines)


@HEADS.register("aam-softmax")
class AAMSoftmax(CosineHead):
    """Additive angular margin, added to the target's angle (ArcFace, arXiv:1801.07698, equation 3).

    For an angle θ within the margin of π, where cos(θ + m) would rise again, the score is cos θ - (1 - cos m), which
    continues it without a step; with `easy_margin`, there is no margin for angles above π / 2.

    With `top_k`, the angles of the k classes nearest to the embedding, except the target, are reduced by the penalty
    (Zhao et al., "Multi-query multi-head attention pooling and inter-topK penalty for speaker verification", ICASSP
    2022, arXiv:2110.05042). `penalty` applies at a margin of 0.2 and is scaled with the margin, as in
    wespeaker, so that a margin schedule covers both.

    Parameters
    ----------
    dimension : int
        Width E of the embeddings.
    classes : int
        Number of classes C.
    margin : float
        Added to the target's angle, in radians, below π.
    scale : float
        Factor on the cosines.
    easy_margin : bool
        Whether the margin applies only to angles below π / 2.
    subcenters : int
        Number of centres K per class.
    top_k : int
        Number of classes with the penalty, limited to C - 1; 0 for no penalty.
    penalty : float
        Angle subtracted by the penalty, in radians, at a margin of 0.2.
    class_weights : sequence of float, optional
        See `ClassificationHead`.
    label_smoothing : float
        See `ClassificationHead`.
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
            raise KnnError(
                f"An inter-top-k penalty of {penalty} on {top_k} classes is not possible.", "Give 0 or more."
            )
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
