"""Open-set decisions: rows of none of the labels that a model knows, by their largest detection log-likelihood ratio.

A row is accepted if the detection LLR of its best label reaches the threshold, and is `unknown` otherwise. A model may
also have a label of that name, trained on out-of-set languages; the best label is then the best of the others.

Where only some of a model's labels are possible answers (`ScoreTable.restrict`), the best of these is compared with all
labels of the model, as when the threshold was chosen. So the threshold keeps its meaning, confusions between possible
labels make no row unknown, and speech in a language that the model knows but that is no answer does.

References
----------
NIST 2007 and 2009 Language Recognition Evaluation Plans ("open-set": trials of languages that are not targets).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.languages import NO_SPEECH
from knn_cli.core.values import Doubles, ScoreTable
from knn_cli.evaluation.metrics import detection_llr

UNKNOWN = "unknown"  # the label of rows of no known label, trained or not


def best_answer(table: ScoreTable) -> NDArray[np.int64]:
    """(N,) the column of each row's most likely possible answer but `unknown` (`possible_answers`)."""
    scores = possible_answers(table).log_likelihood.copy()
    scores[:, [column for column, label in enumerate(table.labels) if label == UNKNOWN]] = -np.inf
    return np.asarray(scores.argmax(axis=1))


def best_llr(table: ScoreTable) -> Doubles:
    """(N,) the detection LLR of each row's `best_answer` against all labels of the model.

    Without a declared set that is the largest of its labels but `unknown`. KnnError for fewer than two labels.
    """
    scores = table.log_likelihood
    if table.rivals is not None:
        scores = np.concatenate([scores, table.rivals], axis=1)
    return np.asarray(detection_llr(scores)[np.arange(len(scores)), best_answer(table)])


def possible_answers(table: ScoreTable) -> ScoreTable:
    """The scores with which possible answers compete, without rivals: `zxx` is as probable as among all labels.

    A declared set says which languages are possible, and nothing about whether there is speech. So the evidence for
    languages outside it counts for speech, and the languages of the set share it:

    P(zxx) = exp(l_zxx) / (exp(l_zxx) + sum over all languages of exp(l)), as without the set; and
    P(c) = (1 - P(zxx)) exp(l_c) / sum over the set of exp(l) for each language c of the set.

    Without that, speech in another language would mostly be "no speech".

    Parameters
    ----------
    table : ScoreTable
        (N, C); the same is returned where all labels of the model are possible.
    """
    if table.rivals is None:
        return table
    scores = table.log_likelihood
    languages = [column for column, label in enumerate(table.labels) if label not in (NO_SPEECH, UNKNOWN)]
    if NO_SPEECH in table.labels and languages:
        of_set = np.logaddexp.reduce(scores[:, languages], axis=1)
        of_all = np.logaddexp(of_set, np.logaddexp.reduce(table.rivals, axis=1))
        scores = scores.copy()
        scores[:, table.labels.index(NO_SPEECH)] -= of_all - of_set
    return replace(table, log_likelihood=scores, rivals=None)


def is_unknown(table: ScoreTable) -> NDArray[np.bool_]:
    """(N,) whether each row is called unknown: below `table.threshold`, or most likely of the label `unknown`."""
    unknown = np.zeros(len(table), dtype=bool)
    if UNKNOWN in table.labels:
        unknown |= table.log_likelihood.argmax(axis=1) == table.labels.index(UNKNOWN)
    if table.threshold is not None:
        unknown |= best_llr(table) < table.threshold
    return unknown
