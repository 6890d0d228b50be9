"""Fold a within-speaker whitening of a voice network's embeddings into its last linear layer.

The mean over training speakers is taken off, and directions in which crops of one speaker differ are shrunk
(within-class covariance normalisation, Hatch et al. 2006), so that a plain cosine afterwards scores as if that had been
done to every embedding. Only crops that training heard are used, clean and through rooms, noise and lines.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from knn_cli.network import Network
from training.voice import Material, embed

BATCH, PASSES, SHRINKAGE = 32, 2, 0.4


def whitening(x: NDArray[np.float64], who: NDArray[np.int64], shrinkage: float) -> NDArray[np.float64]:
    """Inverse square root (D, D) of the shrunk covariance within speakers, every speaker counting the same.

    x (N, D) embeddings, who (N,) speakers, each with two rows or more.
    """
    names, which, counts = np.unique(who, return_inverse=True, return_counts=True)
    means = np.stack([x[which == k].mean(0) for k in range(len(names))])
    rest = (x - means[which]) / np.sqrt(counts[which] - 1)[:, None]
    within = rest.T @ rest / len(names)
    within = (1 - shrinkage) * within + shrinkage * np.trace(within) / len(within) * np.eye(len(within))
    values, vectors = np.linalg.eigh(within)
    result: NDArray[np.float64] = vectors @ np.diag(values**-0.5) @ vectors.T
    return result


def whiten(network: Network, material: Material, shrinkage: float = SHRINKAGE) -> None:
    """Change the network's last layer in place."""
    known = np.flatnonzero(material.who.numpy() >= 0)
    rng = np.random.default_rng(3)
    rows, who = [], []
    for _ in range(PASSES):
        order = rng.permutation(known)
        for first in range(0, len(order), BATCH):
            logs, _, _, speakers = material.batch(rng, order[first : first + BATCH])
            with torch.inference_mode():
                rows.append(embed(network, logs).double().numpy())
            who.append(speakers.numpy())
    x, speakers_of = np.concatenate(rows), np.concatenate(who)
    several = np.isin(speakers_of, np.flatnonzero(np.bincount(speakers_of) > 1))
    x, speakers_of = x[several], speakers_of[several]
    matrix = torch.from_numpy(whitening(x, speakers_of, shrinkage))
    centre = torch.from_numpy(np.stack([x[speakers_of == k].mean(0) for k in np.unique(speakers_of)]).mean(0))
    matrix /= matrix.diagonal().mean()  # embeddings stay about as long as they were
    layer = network.pooling.pooling_fc
    with torch.no_grad():
        layer.weight.copy_((matrix @ layer.weight.double()).float())
        layer.bias.copy_((matrix @ (layer.bias.double() - centre)).float())
