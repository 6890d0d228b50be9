"""What a score table says of each row: probabilities, and the label that is the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.languages import NO_SPEECH
from knn_cli.core.values import Doubles, ScoreTable, Texts
from knn_cli.evaluation.groups import sum_by_group
from knn_cli.evaluation.metrics import weighted
from knn_cli.evaluation.open_set import UNKNOWN, best_llr, possible_answers
from knn_cli.recognition.classifier import posteriors

if TYPE_CHECKING:
    import pandas

__all__ = ["Predictions", "filled", "frame", "predict"]


class Predictions(NamedTuple):
    """Posterior probabilities and predicted labels of the rows of a score table.

    Attributes
    ----------
    posteriors
        (N, C) probabilities of the labels.
    ranks
        (N, C) columns of the labels, the most probable first.
    unknown
        (N,) whether the row is rejected as out-of-set; its most probable labels then follow `unknown`.
    silent
        (N,) whether the row holds no speech and has no probabilities.
    label
        (N,) the predicted label, `unknown` where the row is rejected, `zxx` where it holds no speech.
    groups
        (G,) names of the groups; () without groups.
    group_posteriors
        (N, G) sums of the labels' probabilities.
    """

    posteriors: Doubles
    ranks: NDArray[np.int64]
    unknown: NDArray[np.bool_]
    silent: NDArray[np.bool_]
    label: Texts
    groups: tuple[str, ...]
    group_posteriors: Doubles

    def ranked(self, labels: Sequence[str], row: int, top: int) -> list[tuple[str, float | None]]:
        """At most `top` labels of a row with their probabilities; `unknown` and a row without speech have none."""
        if self.silent[row]:
            return [(NO_SPEECH, None)]
        known = [(labels[column], float(self.posteriors[row, column])) for column in self.ranks[row]]
        return [*([(UNKNOWN, None)] if self.unknown[row] else []), *known][: min(top, len(labels))]

    def group(self, row: int) -> tuple[str, float] | None:
        """The most probable group of a row, None where the row is unknown or silent, or there are no groups."""
        if not self.groups or self.silent[row] or self.label[row] == UNKNOWN:
            return None
        best = int(self.group_posteriors[row].argmax())
        return self.groups[best], float(self.group_posteriors[row, best])


def predict(table: ScoreTable, priors: Mapping[str, float] | None = None) -> Predictions:
    """Labels, ranks and groups of each row, under `priors`."""
    silent = np.asarray(np.isnan(table.log_likelihood).any(axis=1))
    table = filled(table)
    with_priors = weighted(possible_answers(table), priors)
    label_posteriors = posteriors(with_priors)
    ranks = np.argsort(-label_posteriors, axis=1, kind="stable")
    best = np.asarray(table.labels, dtype=np.str_)[ranks[:, 0]]
    unknown = np.zeros(len(table), dtype=bool)
    if table.threshold is not None:  # chosen under equal priors
        unknown = (best_llr(table) < table.threshold) & (best != UNKNOWN) & ~silent
    groups: tuple[str, ...] = ()
    group_posteriors = np.zeros((len(table), 0))
    if table.groups:
        summed, _ = sum_by_group(with_priors)
        groups, group_posteriors = summed.labels, np.exp(summed.log_likelihood)
    label = np.where(silent, NO_SPEECH, np.where(unknown, UNKNOWN, best))
    return Predictions(label_posteriors, ranks, unknown, silent, label, groups, group_posteriors)


def filled(table: ScoreTable) -> ScoreTable:
    """The table with equal scores in rows without speech, which are not shown."""
    silent = np.isnan(table.log_likelihood).any(axis=1, keepdims=True)
    return replace(table, log_likelihood=np.where(silent, 0.0, table.log_likelihood))


def frame(table: ScoreTable) -> pandas.DataFrame:
    """See `ScoreTable.to_frame`."""
    import pandas

    columns: dict[str, Any] = {"name": table.name, "start": table.start, "end": table.end}
    if len(table.truth):
        columns["label"] = table.truth
    return pandas.DataFrame(columns | dict(zip(table.labels, table.probabilities.T, strict=True)))
