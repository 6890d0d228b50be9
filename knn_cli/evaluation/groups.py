"""Scores of groups of labels, such as dialect regions, from the scores of their labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy

from knn_cli.core.values import ScoreTable


def sum_by_group(table: ScoreTable, priors: tuple[float, ...] = ()) -> tuple[ScoreTable, tuple[float, ...]]:
    """Scores of the groups of a table's labels: the logarithm of the *summed* posteriors of each group's labels.

    A label without a group (`""`) is a group of its own name. Groups are in the order of their first labels. Rows of
    labels outside the model keep their truth.

    Parameters
    ----------
    table : ScoreTable
        Scores of labels; `table.groups` says to which group each belongs.
    priors : tuple of C floats
        Priors that the table's scores include, summing to 1. () stands for equal priors, so that a group of n of C
        labels has the prior n / C.

    Returns
    -------
    table : ScoreTable
        Its labels are the groups.
    priors : tuple of float
        Of the groups, which their posteriors include: the sums of the priors of their labels.
    """
    group = [name or label for name, label in zip(table.groups or table.labels, table.labels, strict=True)]
    names = tuple(dict.fromkeys(group))
    column = np.array([names.index(name) for name in group])
    logs = table.log_likelihood - scipy.special.logsumexp(table.log_likelihood, axis=1, keepdims=True)
    summed = np.stack(
        [scipy.special.logsumexp(logs[:, column == number], axis=1) for number in range(len(names))], axis=1
    )
    group_of = dict(zip(table.labels, group, strict=True))
    truth = np.array([group_of.get(label, label) for label in table.truth.tolist()], dtype=np.str_)
    summed_priors = np.bincount(column, weights=priors) if priors else np.bincount(column) / len(column)
    result = replace(table, labels=names, log_likelihood=summed, truth=truth, threshold=None, groups=(), rivals=None)
    return result, tuple(summed_priors.tolist())
