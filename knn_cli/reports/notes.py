"""Notes of a report: metrics that cannot be compared, rows that are left out, priors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from knn_cli.evaluation.open_set import UNKNOWN
from knn_cli.evaluation.results import Evaluation
from knn_cli.reports.tables import NamedEvaluation, counted


def different_labels_note(models: Sequence[NamedEvaluation]) -> str:
    """Return a warning if the models' metrics are of different labels, else ""."""
    known = [set(model.evaluation.table.labels) for model in models]
    occurring = [{row.label for row in model.evaluation.classes} for model in models]
    if all(labels == known[0] for labels in known) and all(labels == occurring[0] for labels in occurring):
        return ""
    shared, scored = set.intersection(*known), set.intersection(*occurring)
    clauses = []
    for model, labels, present in zip(models, known, occurring, strict=True):
        additional = sorted(present - scored) or sorted(labels - shared)
        words = f" ({', '.join(additional)} not in all)" if additional else ""
        clauses.append(f"{model.name} knows {counted(len(labels), 'label')}, of which {len(present)} occur{words}")
    return (
        "These figures are means over different labels, or against different competing labels, so costs, "
        f"error rates and shares cannot be compared as they stand: {'; '.join(clauses)}."
    )


def priors_note(model: NamedEvaluation, max_labels: int = 12) -> str:
    """Return a note on priors that are not equal, else ""."""
    evaluation = model.evaluation
    if not evaluation.priors:
        return ""
    order = np.argsort(-np.array(evaluation.priors), kind="stable")
    labels = evaluation.table.labels
    priors = [f"{labels[column]} {100 * evaluation.priors[column]:.3g}\u00a0%" for column in order[:max_labels]]
    others = f" and {len(order) - max_labels} others" if len(order) > max_labels else ""
    return (
        f"{model.name}: label priors are {', '.join(priors)}{others}. Answers, calibration error and "
        "detection costs are under these priors; Cllr and the threshold of `unknown` assume equal priors."
    )


def left_out_note(evaluation: Evaluation) -> str:
    """Return sentences on the labels and rows that the metrics leave out."""
    out_of_set = ", ".join(f"{label} ({rows:,})" for label, rows in evaluation.out_of_set.items())
    outside = "that the model does not know" if evaluation.table.rivals is None else "outside the declared set"
    sentences = [
        f"{counted(len(evaluation.absent), 'label')} of the model without a test row, so in no mean: "
        f"{', '.join(evaluation.absent)}."
        if evaluation.absent
        else "Every label of the model occurs.",
        f"{counted(sum(evaluation.out_of_set.values()), 'row')} of labels {outside}: {out_of_set}; "
        "only the figures of labels outside the model count them."
        if evaluation.out_of_set
        else f"No row has a label {outside}.",
        f"{counted(evaluation.unlabelled, 'row')} without a label."
        if evaluation.unlabelled
        else "Every row has a label.",
    ]
    if evaluation.single_recording:
        labels = ", ".join(evaluation.single_recording)
        sentences.append(f"Intervals are too narrow for labels with one recording: {labels}.")
    return " ".join(sentences)


def rejection_rule(evaluation: Evaluation) -> str:
    """Return the rule by which rows are rejected as unknown, without the full stop."""
    has_label = UNKNOWN in evaluation.table.labels
    if evaluation.open_set is not None and not math.isnan(evaluation.open_set.threshold):
        words = "A row is called unknown below the threshold on its largest detection log-likelihood ratio"
        return words + (f", or where the label {UNKNOWN} is the likeliest" if has_label else "")
    if has_label:
        return f"No threshold: a row is called unknown where the label {UNKNOWN} is the likeliest"
    return "No threshold: no row is called unknown"
