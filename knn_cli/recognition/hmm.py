"""Hidden Markov model of labels that seldom change: the most likely sequence, and the posterior of every label.

A label stays or is drawn anew, and what is drawn does not depend on the label before: equally likely labels, or each by
its weight. So a step costs one maximum or one sum over the labels instead of a matrix of them: time and memory are
O(N C), not O(N C^2).

References
----------
L. Rabiner, "A tutorial on hidden Markov models and selected applications in speech recognition", Proc. IEEE 1989:
Viterbi (section III B), forward-backward (III A), with the forward variable scaled to sum to 1 (V A).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles


def switch_probabilities(per_second: float, seconds: Doubles, labels: int) -> Doubles:
    """The probability of another label after each of some times.

    p(t) = (C - 1) / C * (1 - (1 - per_second * C / (C - 1)) ** t), the Markov chain in continuous time in which changes
    to the C - 1 other labels are equally likely: two steps of half a second are one step of a second, so the spacing of
    the windows changes nothing. In the long run every label is as likely as any other.

    Parameters
    ----------
    per_second : float
        The probability of another label after one second.
    seconds : (N,) float64
    labels : int
        C.

    Returns
    -------
    (N,) float64

    Raises
    ------
    KnnError
        For `per_second` outside the range that such a chain can have, 0 and (C - 1) / C excluded.
    """
    if labels == 1:
        return np.zeros(len(seconds))
    limit = (labels - 1) / labels
    if not 0 < per_second < limit:
        raise KnnError(
            f"The probability of another label after a second is {per_second:g}; with {labels} labels it lies between "
            f"0 and {limit:.3g}.",
            "Take a small one, such as 0.1.",
        )
    probabilities: Doubles = -limit * np.expm1(seconds * np.log1p(-per_second / limit))
    return probabilities


def viterbi(log_likelihood: Doubles, switch: Doubles, weights: Doubles | None = None) -> NDArray[np.int64]:
    """The most likely sequence of labels; among equals the one that stays, then the first label.

    Parameters
    ----------
    log_likelihood : (N, C) float64
        Of each window under each label, up to a constant per row.
    switch : (N - 1,) float64
        Probability of another label from each window to the next, at most (C - 1) / C, if labels are equally likely.
    weights : (C,) float64, optional
        How likely each label is at the first window and wherever a label is drawn; above 0, sum 1. None: equally.

    Returns
    -------
    (N,) int64
    """
    rows, labels = log_likelihood.shape
    path = np.zeros(rows, dtype=np.int64)
    if labels == 1 or rows == 0:
        return path
    drawn, weights = _draws(switch, labels, weights)
    log_weights, move = np.log(weights), np.log(drawn)
    stay = np.log1p(-drawn[:, None] * (1 - weights))  # (N - 1, C), drawing the same label included
    stayed = np.zeros((rows, labels), dtype=bool)
    best = np.zeros(rows, dtype=np.int64)  # label of the best path up to the window before
    score = log_likelihood[0] + log_weights
    for row in range(1, rows):
        best[row] = score.argmax()
        moved = score[best[row]] + move[row - 1] + log_weights
        score += stay[row - 1]
        np.greater_equal(score, moved, out=stayed[row])
        np.maximum(score, moved, out=score)
        score += log_likelihood[row]
    path[-1] = score.argmax()
    for row in range(rows - 1, 0, -1):
        path[row - 1] = path[row] if stayed[row, path[row]] else best[row]
    return path


def forward_backward(log_likelihood: Doubles, switch: Doubles, weights: Doubles | None = None) -> Doubles:
    """The posterior of each label at each window given all windows.

    Parameters
    ----------
    log_likelihood : (N, C) float64
    switch : (N - 1,) float64
        As for `viterbi`, above 0.
    weights : (C,) float64, optional
        As for `viterbi`.

    Returns
    -------
    (N, C) float64
        Rows sum to 1.
    """
    rows, labels = log_likelihood.shape
    if labels == 1 or rows == 0:
        return np.ones((rows, labels))
    likelihood = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))  # (N, C)
    drawn, weights = _draws(switch, labels, weights)
    stay, move = 1 - drawn, drawn[:, None] * weights
    forward: Doubles = np.empty((rows, labels))
    forward[0] = weights * likelihood[0]
    forward[0] /= forward[0].sum()
    for row in range(1, rows):
        current = forward[row]
        np.multiply(forward[row - 1], stay[row - 1], out=current)
        current += move[row - 1]
        current *= likelihood[row]
        current /= current.sum()
    backward = np.ones(labels)
    for row in range(rows - 2, -1, -1):
        backward *= likelihood[row + 1]
        backward /= backward.sum()
        from_draw = move[row] @ backward
        backward *= stay[row]
        backward += from_draw
        forward[row] *= backward
        forward[row] /= forward[row].sum()
    return forward


def _draws(switch: Doubles, labels: int, weights: Doubles | None) -> tuple[Doubles, Doubles]:
    """The probability (N - 1,) that a label is drawn, maybe the same one, and the weights (C,) of what is drawn."""
    return switch * (labels / (labels - 1)), np.full(labels, 1 / labels) if weights is None else weights
