"""Powerset cross-entropy with the order of speakers that fits best: the loss of segmentation networks.

The speakers of a window have no names, so the loss is the least over all orders of the network's speakers (Plaquet and
Bredin, "Powerset multi-class cross entropy loss for neural speaker diarization", Interspeech 2023, arXiv:2310.13025,
section 2; the order is chosen on the cross-entropy itself, as in Fujita et al., "End-to-end neural speaker diarization
with permutation-free objectives", Interspeech 2019, eq. 2).
"""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor
from torch.nn import functional as F

from knn_cli.networks.segmenters.powerset import permuted_classes

IGNORED = -1  # class of a frame that has none


def permutation_invariant_loss(log_probabilities: Tensor, classes: Tensor, speakers: int, max_active: int) -> Tensor:
    """Mean over windows of the cross-entropy a frame, each window with its best order of speakers.

    Parameters
    ----------
    log_probabilities : (B, T, C) float tensor
        Of the powerset classes.
    classes : (B, T) int64 tensor
        The class of each frame; frames that are IGNORED do not count, nor do windows of such frames alone.
    speakers, max_active : int
        See `powerset.powerset`.

    Returns
    -------
    () tensor

    Examples
    --------
    >>> import torch
    >>> from knn_cli.networks.segmenters.permutation_loss import permutation_invariant_loss
    >>> sure = torch.full((1, 2, 4), 1e-9)  # classes (), (0), (1), (0, 1) of two speakers
    >>> sure[0, 0, 1] = sure[0, 1, 2] = 1.0
    >>> swapped = torch.tensor([[2, 1]])
    >>> permutation_invariant_loss(sure.log(), swapped, 2, 2).item()
    0.0
    """
    counted = classes != IGNORED
    target = F.one_hot(classes.clamp_min(0), log_probabilities.shape[-1]) * counted[..., None]  # (B, T, C)
    orders = [list(permuted_classes(order, max_active)) for order in permutations(range(speakers))]
    losses = torch.stack([-(target * log_probabilities[..., order]).sum((1, 2)) for order in orders])  # (orders, B)
    frames = counted.sum(1)
    return (losses.amin(0) / frames.clamp_min(1)).sum() / (frames > 0).sum().clamp_min(1)


def divergence(log_probabilities: Tensor, original: Tensor) -> Tensor:
    """Mean over frames of the Kullback-Leibler divergence of (B, T, C) log-probabilities from the original's."""
    return F.kl_div(log_probabilities, original, log_target=True, reduction="none").sum(-1).mean()
