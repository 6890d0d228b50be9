"""Hidden Markov model of labels that seldom change: the most likely sequence, and the posterior of every label.

All changes from one label to another are equally likely, so a step costs one maximum or one sum over the labels instead
of a matrix of them: time and memory are O(N C), not O(N C^2).

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


def viterbi(log_likelihood: Doubles, switch: Doubles) -> NDArray[np.int64]:
    """The most likely sequence of labels; among equals the one that stays, then the first label.

    Parameters
    ----------
    log_likelihood : (N, C) float64
        Of each window under each label, up to a constant per row.
    switch : (N - 1,) float64
        Probability of another label from each window to the next, at most (C - 1) / C.

    Returns
    -------
    (N,) int64
    """
    rows, labels = log_likelihood.shape
    path = np.zeros(rows, dtype=np.int64)
    if labels == 1 or rows == 0:
        return path
    stay, move = np.log1p(-switch), np.log(switch / (labels - 1))
    stayed = np.zeros((rows, labels), dtype=bool)
    best = np.zeros(rows, dtype=np.int64)  # label of the best path up to the window before
    score = log_likelihood[0].copy()
    for row in range(1, rows):
        best[row] = score.argmax()
        moved = score[best[row]] + move[row - 1]
        score += stay[row - 1]
        np.greater_equal(score, moved, out=stayed[row])
        np.maximum(score, moved, out=score)
        score += log_likelihood[row]
    path[-1] = score.argmax()
    for row in range(rows - 1, 0, -1):
        path[row - 1] = path[row] if stayed[row, path[row]] else best[row]
    return path


def forward_backward(log_likelihood: Doubles, switch: Doubles) -> Doubles:
    """The posterior of each label at each window given all windows, with equal priors at the first.

    Parameters
    ----------
    log_likelihood : (N, C) float64
    switch : (N - 1,) float64
        As for `viterbi`, above 0.

    Returns
    -------
    (N, C) float64
        Rows sum to 1.
    """
    rows, labels = log_likelihood.shape
    if labels == 1 or rows == 0:
        return np.ones((rows, labels))
    likelihood = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))  # (N, C)
    move = switch / (labels - 1)  # to one other label
    stay = 1 - switch - move  # a transition is `move` to every label, the same one too, and `stay` more to the same
    forward: Doubles = np.empty((rows, labels))
    forward[0] = likelihood[0] / likelihood[0].sum()
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
        backward *= stay[row]
        backward += move[row]
        forward[row] *= backward
        forward[row] /= forward[row].sum()
    return forward
