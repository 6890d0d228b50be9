"""Output of commands on stdout: JSON lines, tab-separated rows, a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.display_names import display_names, is_uncertain, named
from knn_cli.core.tables import Table, tsv_field
from knn_cli.core.values import Doubles, EmbeddingSet, ScoreTable
from knn_cli.core.visible_text import json_text, visible
from knn_cli.evaluation.metrics import detection_llr, prior_weights
from knn_cli.evaluation.open_set import possible_answers
from knn_cli.recognition.predictions import Predictions, filled
from knn_cli.recognition.trials import scored_trials
from knn_cli.reports.tables import METRICS, counted
from knn_cli.store.embedding_writers import write_text

if TYPE_CHECKING:
    from knn_cli.evaluation.results import MetricValue
    from knn_cli.evaluation.verification_metrics import VerificationMetrics
    from knn_cli.recognition.evaluate_test_sets import EvaluatedModel, TestSetResult
    from knn_cli.recognition.make_split import SplitCount
    from knn_cli.recognition.trials import Trials
    from knn_cli.recognition.verify_trials import VerificationResult


MOST_NAMED = 5  # labels of a recording in a note


def embeddings(
    stream: TextIO, rows: EmbeddingSet, as_json: bool, *, key: str | None = None, file: str | None = None
) -> None:
    """Write embeddings as JSON lines or as Kaldi text vectors.

    The rows of a file are named by its path in JSON and by `key` in Kaldi's text, those of a store by their recordings.
    """
    if not as_json:
        write_text(stream, rows if key is None else replace(rows, name=np.full(len(rows), key)))
        return
    for vector, name, start, end in zip(rows.data, rows.name, rows.start, rows.end, strict=True):
        line = {"file": file or str(name), "model": rows.embedder, "start": _seconds(start), "end": _seconds(end)}
        json_line(stream, {**line, "embedding": [float(f"{value:.7g}") for value in vector]})


def answers_in_words(
    table: ScoreTable, predictions: Predictions, given: Mapping[str, str] = MappingProxyType({})
) -> str:
    """What the rows of a recording are: the label of one with its probability, or how many rows have which labels."""
    names = display_names(table.labels, given)
    if len(table) == 1:
        ((label, probability),) = predictions.ranked(table.labels, 0, 1)
        guess = "uncertain, perhaps " if is_uncertain(probability) else ""
        return guess + named(label, names) + ("" if probability is None else f", {probability:.1%}")
    labels, counts = np.unique(predictions.label, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shown = [f"{named(str(labels[place]), names)} {counts[place]}" for place in order[:MOST_NAMED].tolist()]
    more = [f"{len(order) - MOST_NAMED} more labels"] if len(order) > MOST_NAMED else []
    guesses = int(uncertain(table, predictions).sum())
    return f"{counted(len(table), 'row')}: {', '.join(shown + more)}" + (f"; {guesses} uncertain" if guesses else "")


def uncertain(table: ScoreTable, predictions: Predictions) -> NDArray[np.bool_]:
    """(N,) whether the answer of a row is a guess, see `display_names.is_uncertain`."""
    best = (predictions.ranked(table.labels, row, 1)[0][1] for row in range(len(table)))
    return np.fromiter(map(is_uncertain, best), dtype=np.bool_, count=len(table))


def score_lines(
    stream: TextIO,
    table: ScoreTable,
    predictions: Predictions,
    priors: Mapping[str, float] | None = None,
    given: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write a JSON line for each row; labels have the names that are `given`, or those of languages."""
    answers = possible_answers(filled(table))
    llr = detection_llr(answers.log_likelihood, None if priors is None else prior_weights(priors, table.labels))
    names = display_names(table.labels, given)

    def by_label(labels: Sequence[str], values: Doubles, row: int, digits: int) -> dict[str, float] | None:
        if predictions.silent[row]:
            return None
        return {label: round(float(value), digits) for label, value in zip(labels, values[row], strict=True)}

    for row in range(len(table)):
        ((label, probability),) = predictions.ranked(table.labels, row, 1)
        line = {
            "file": str(table.name[row]),
            "start": _seconds(table.start[row]),
            "end": _seconds(table.end[row]),
            "label": label,
            **({"name": names.get(label)} if names else {}),
            "probability": None if probability is None else round(probability, 6),
            "uncertain": is_uncertain(probability),
            "probabilities": by_label(table.labels, predictions.posteriors, row, 6),
            "llr": by_label(table.labels, llr, row, 4),
        }
        if predictions.groups:
            group = predictions.group(row)
            line["group"] = None if group is None else group[0]
            line["groups"] = by_label(predictions.groups, predictions.group_posteriors, row, 6)
        json_line(stream, line)


def score_rows(
    stream: TextIO,
    table: ScoreTable,
    predictions: Predictions,
    top: int,
    *,
    header: bool,
    given: Mapping[str, str] = MappingProxyType({}),
) -> None:
    names = display_names(table.labels, given)
    words = ["label", "name", "probability"] if names else ["label", "probability"]
    columns = [*words, *(f"{word}_{rank}" for rank in range(2, min(top, len(table.labels)) + 1) for word in words)]
    if header:
        more = ["group", "group_probability"] if predictions.groups else []
        stream.write("\t".join(["file", "start", "end", *columns, *more]) + "\n")
    for row in range(len(table)):
        ranked = [
            text
            for label, probability in predictions.ranked(table.labels, row, top)
            for text in (
                label,
                *([names.get(label, "")] if names else []),
                "" if probability is None else f"{probability:.4f}",
            )
        ]
        ranked += [""] * (len(columns) - len(ranked))
        if predictions.groups:
            group = predictions.group(row)
            ranked += ["", ""] if group is None else [group[0], f"{group[1]:.4f}"]
        times = [
            "" if (value := _seconds(time)) is None else f"{value:g}" for time in (table.start[row], table.end[row])
        ]
        stream.write("\t".join(map(tsv_field, [str(table.name[row]), *times, *ranked])) + "\n")


def score_table(tables: list[tuple[ScoreTable, Predictions]], top: int, model: str, given: Mapping[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=f"Labels by {model}")
    shown.add_column("file", overflow="fold")
    shown.add_column("seconds", justify="right")
    for rank in range(1, min(top, len(tables[0][0].labels)) + 1):
        shown.add_column(f"{rank}.")
    if tables[0][0].groups:
        shown.add_column("group")
    names = display_names(tables[0][0].labels, given)
    for table, predictions in tables:
        for row in range(len(table)):
            span = f"{table.start[row]:.1f}-{table.end[row]:.1f}" if _seconds(table.start[row]) is not None else ""
            ranked = [
                named(label, names)
                + ("" if probability is None else f" {probability:.1%}")
                + ("?" if rank == 0 and is_uncertain(probability) else "")
                for rank, (label, probability) in enumerate(predictions.ranked(table.labels, row, top))
            ]
            ranked += [""] * (min(top, len(table.labels)) - len(ranked))
            if predictions.groups:
                group = predictions.group(row)
                ranked.append("" if group is None else f"{named(group[0], given)} {group[1]:.1%}")
            cells = map(visible, [table.name[row], span, *ranked])
            shown.add_row(*map(Text, cells))  # Text: a name may hold rich's markup
    Console().print(shown)


def split_counts(stream: TextIO, counts: Sequence[SplitCount], as_json: bool) -> None:
    """Write the rows, recordings and seconds of each class on each side or in each fold."""
    if not as_json:
        stream.write("class\tpart\trows\trecordings\tseconds\n")
    for count in counts:
        if as_json:
            json_line(stream, {**count._asdict(), "seconds": _seconds(count.seconds)})
            continue
        seconds = "" if (value := _seconds(count.seconds)) is None else f"{value:g}"
        cells = [count.label, count.part, str(count.rows), str(count.recordings), seconds]
        stream.write("\t".join(map(tsv_field, cells)) + "\n")


def test_set_figures(stream: TextIO, result: TestSetResult, *, as_json: bool, as_table: bool = False) -> None:
    """Write the figures of each model: a JSON line, or a line per figure with its interval, then the curve.

    As a table they are rows of model, figure, value, and low and high of its interval.
    """
    if as_table:
        rows = tuple(
            (model.name, name, figure.value, figure.low, figure.high)
            for model in result.models
            for name, figure in model.evaluation.metrics.items()
        )
        Table("figures", ("model", "figure", "value", "low", "high"), rows).write_tsv(stream)
        return
    for model in result.models:
        if as_json:
            json_line(stream, _figures(model))
        else:
            _write_figures(stream, model)


def _figures(model: EvaluatedModel) -> dict[str, Any]:
    evaluation = model.evaluation
    line: dict[str, Any] = {"model": model.name, "rows": model.rows, "recordings": model.recordings}
    line["figures"] = {
        name: [_number(value) for value in (figure.value, figure.low, figure.high)]
        for name, figure in evaluation.metrics.items()
    }
    if evaluation.groups is not None:
        line["groups"] = {name: _number(figure.value) for name, figure in evaluation.groups.metrics.items()}
    if (open_set := evaluation.open_set) is not None:
        line["open_set"] = {
            "threshold": _number(open_set.threshold),
            "false_reject": _number(open_set.false_reject.value),
            "false_accept": _number(open_set.false_accept.value),
            "eer": _number(open_set.eer),
        }
    line["curve"] = [
        {
            "segments": point.segments,
            "seconds": _number(point.seconds),
            "rows": point.rows,
            "accuracy": _number(point.accuracy.value),
            "cprimary": _number(point.cprimary),
            "min_cprimary": _number(point.min_cprimary),
        }
        for point in model.curve
    ]
    return line


def _write_figures(stream: TextIO, model: EvaluatedModel) -> None:
    evaluation = model.evaluation
    stream.write(f"{model.name}: {counted(model.rows, 'row')} of {counted(model.recordings, 'recording')}\n")
    for name, figure in evaluation.metrics.items():
        stream.write(f"  {name:<22}{_with_interval(figure, name in METRICS and METRICS[name].is_share)}\n")
    if evaluation.groups is not None:
        accuracy = evaluation.groups.metrics["accuracy"]
        stream.write(f"  {'accuracy of groups':<22}{_with_interval(accuracy, True)}\n")
    if (open_set := evaluation.open_set) is not None:
        rates = {"false reject": open_set.false_reject, "false accept": open_set.false_accept}
        known = [f"{name} {_with_interval(rate, True)}" for name, rate in rates.items() if rate.value == rate.value]
        equal = [f"equal error {open_set.eer:.1%}"] if open_set.eer == open_set.eer else []
        stream.write(f"  {'open set':<22}{', '.join(known + equal)}\n")
    if model.curve:
        stream.write("  segments\tseconds\trows\taccuracy\tcprimary\tmin_cprimary\n")
    for point in model.curve:
        costs = f"{point.cprimary:.4f}\t{point.min_cprimary:.4f}"
        stream.write(f"  {point.segments}\t{point.seconds:.1f}\t{point.rows}\t")
        stream.write(f"{_with_interval(point.accuracy, True)}\t{costs}\n")


def _with_interval(figure: MetricValue, share: bool) -> str:
    template = "{:.1%}" if share else "{:.4f}"
    low, high = template.format(figure.low), template.format(figure.high)
    return template.format(figure.value) + (f" ({low} to {high})" if figure.low == figure.low else "")


def trials(stream: TextIO, listed: Trials, result: VerificationResult) -> None:
    """Write a JSON line per trial: its score with what it means, or why that is not known."""
    decision = result.decision
    common = {"scorer": result.scorer, "decision": None if decision is None else decision.facts()}
    for trial in scored_trials(listed, result.scores, decision):
        if decision is None:
            trial |= {"llr": None, "probability": None, "verdict": None, "reason": result.undecided}
        json_line(stream, {**trial, "score": round(trial["score"], 6), **common})


def trial_lines(metrics: VerificationMetrics) -> Iterator[tuple[str, str]]:
    """Yield name and value of each metric of labelled trials."""
    yield "trials", f"{metrics.targets} of one speaker, {metrics.nontargets} of two"
    yield "EER", f"{metrics.eer:.2%}"
    for prior, minimum in metrics.min_dcf.items():
        actual = f", actual {metrics.dcf[prior]:.3f}" if prior in metrics.dcf else ""
        yield f"minDCF {prior:g}", f"{minimum:.3f}{actual}"
    if metrics.cllr is not None:
        yield "Cllr", f"{metrics.cllr:.3f} bits"


def _number(value: float) -> float | None:
    return None if value != value else round(float(value), 6)


def correct(table: ScoreTable, predictions: Predictions) -> tuple[int, int]:
    """Return (correct, all) of the rows whose true label the model knows; a rejected row is not correct."""
    if not len(table.truth):
        return 0, 0
    known = np.isin(table.truth, table.labels)
    return int((known & (predictions.label == table.truth)).sum()), int(known.sum())


def _seconds(value: float) -> float | None:
    return None if value != value else round(float(value), 3)  # NaN is unequal to itself


def json_line(stream: TextIO, value: Any) -> None:
    stream.write(json_text(value) + "\n")
