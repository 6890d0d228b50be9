"""Sentences of a report: what cannot be compared."""

from __future__ import annotations

from knn_cli.reports.notes import different_labels_note
from knn_cli.reports.tables import NamedEvaluation
from tests.helpers import evaluations


def test_models_of_different_labels_are_named() -> None:
    one, two = evaluations.named("one", ("a", "b", "c"), 60), evaluations.named("two", ("a", "b"), 40)
    assert (
        different_labels_note([one])
        == different_labels_note([one, evaluations.named("other", ("a", "b", "c"), 30)])
        == ""
    )
    words = different_labels_note([one, two])
    assert "one knows 3 labels, of which 3 occur (c not in all); two knows 2 labels, of which 2 occur." in words
    rival = NamedEvaluation("rival", evaluations.evaluation(evaluations.scores(("a", "b", "z"), 40, skip=("z",))))
    assert "rival knows 3 labels, of which 2 occur (z not in all)" in different_labels_note([two, rival])
