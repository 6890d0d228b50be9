"""A hidden Markov model of one label at a time that seldom changes: the best path and the chance of every label.

All changes from one label to another are alike, so a step costs one maximum or one sum over the labels instead of a
matrix of them: time and memory are (N, C), never (N, C, C).

L. Rabiner, "A tutorial on hidden Markov models and selected applications in speech recognition", Proc. IEEE 1989:
Viterbi (section III B), forward-backward (III A), with the forward variable scaled to sum to 1 (V A).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles


def switch_probabilities(per_second: float, seconds: Doubles, labels: int) -> Doubles:
    """Probability that the label is another one after each of `seconds` (N,), when it is `per_second` after one.

    p(t) = (C - 1) / C * (1 - (1 - per_second * C / (C - 1)) ** t), the Markov chain in continuous time whose changes
    to the C - 1 other labels are alike: two steps of half a second are one step of a second, so the spacing of the
    windows changes nothing. Long after, every label is as likely as any other.

    Raises KnnError for `per_second` outside the range that such a chain can have, 0 and (C - 1) / C, both left out.
    """
    if labels == 1:
        return np.zeros(len(seconds))
    ceiling = (labels - 1) / labels
    if not 0 < per_second < ceiling:
        raise KnnError(
            f"The probability of another label after a second is {per_second:g}; with {labels} labels it lies between "
            f"0 and {ceiling:.3g}.",
            "Take a small one, such as 0.1.",
        )
    found: Doubles = -ceiling * np.expm1(seconds * np.log1p(-per_second / ceiling))
    return found


def viterbi(log_likelihood: Doubles, switch: Doubles) -> NDArray[np.int64]:
    """(N,) the most likely sequence of labels; of equals the one that stays, and then the first label.

    log_likelihood : (N, C) of each window under each label, any constant a row
    switch         : (N - 1,) probability of another label from each window to the next, at most (C - 1) / C
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


def chances(log_likelihood: Doubles, switch: Doubles) -> Doubles:
    """(N, C) probability of each label at each window given all windows, before which all labels are alike.

    Arguments as for `viterbi`; `switch` above 0. Rows sum to 1.
    """
    rows, labels = log_likelihood.shape
    if labels == 1 or rows == 0:
        return np.ones((rows, labels))
    likelihood = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))  # (N, C)
    move = switch / (labels - 1)  # to one other label
    keep = 1 - switch - move  # a transition is `move` to every label, its own too, and `keep` more to its own
    forward: Doubles = np.empty((rows, labels))
    forward[0] = likelihood[0] / likelihood[0].sum()
    for row in range(1, rows):
        here = forward[row]
        np.multiply(forward[row - 1], keep[row - 1], out=here)
        here += move[row - 1]
        here *= likelihood[row]
        here /= here.sum()
    backward = np.ones(labels)
    for row in range(rows - 2, -1, -1):
        backward *= likelihood[row + 1]
        backward /= backward.sum()
        backward *= keep[row]
        backward += move[row]
        forward[row] *= backward
        forward[row] /= forward[row].sum()
    return forward
