"""The base of the classification heads: sizes, margin, and cross-entropy with class weights and label smoothing.

Cosines are computed in float32, also under autocast. Weights have wespeaker's names, so its projections can be loaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from knn_cli.core.errors import KnnError
from knn_cli.networks.contracts import Head

__all__ = ["ClassificationHead"]


class ClassificationHead(Head):
    """Base class of the heads here, with cross-entropy that supports class weights and label smoothing.

    Parameters
    ----------
    dimension : int
        Width E of the embeddings.
    classes : int
        Number of classes C, 2 or more.
    margin : float
        Margin in training; `plain_margin` stands for no margin.
    class_weights : sequence of float, optional
        Weight of each class in the loss, which is the weighted mean over clips; by default all are equal.
    label_smoothing : float
        Part of the target that is spread evenly over all classes, at least 0 and below 1.
    """

    plain_margin: ClassVar[float] = 0.0  # the margin that has no effect
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
            raise KnnError(f"Label smoothing must be at least 0 and below 1, not {label_smoothing}.")
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        if weights is not None and (weights.shape != (classes,) or not 0 < weights.min() <= weights.max() < math.inf):
            raise KnnError(
                f"These {weights.numel()} class weights do not fit {classes} classes.",
                "Give each class one finite weight above 0.",
            )
        self.dimension, self.classes, self.label_smoothing = dimension, classes, label_smoothing
        # Set by the recipe, like the margin, so a checkpoint does not store them.
        self.register_buffer("class_weights", weights, persistent=False)
        self.set_margin(margin)

    def set_margin(self, margin: float) -> None:
        """Set the margin for training from here on; raises KnnError if the head cannot have it."""
        self.margin = self._checked(margin)

    def loss(self, embeddings: Tensor, labels: Tensor, *, margin: float | None = None) -> Tensor:
        """Mean loss, a float32 scalar, of embeddings (B, E) and labels (B,) int64."""
        scores = self(embeddings, labels, margin=margin)
        return F.cross_entropy(scores, labels, weight=self.class_weights, label_smoothing=self.label_smoothing)

    def extra_repr(self) -> str:
        """Sizes and margin, for the printed module."""
        return f"dimension={self.dimension}, classes={self.classes}, margin={self.margin}"

    def _checked(self, margin: float | None) -> float:
        """`margin`, or the head's for None, after a check that the head can have it."""
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
