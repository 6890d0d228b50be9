"""The report of models on test sets: notes, cards of the data, and the folder with its page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from types import MappingProxyType

import numpy as np

from knn_cli import __version__
from knn_cli.networks.layer_weights import layer_weights
from knn_cli.recognition.evaluate_test_sets import EvaluatedModel, TestSet, TestSetResult, numbered
from knn_cli.recognition.split_file import Split
from knn_cli.reports.contents import ReportContents
from knn_cli.reports.notes import different_labels_note, priors_note
from knn_cli.reports.report import write_report
from knn_cli.reports.tables import NamedEvaluation, counted
from knn_cli.store.hdf5 import Store, is_store


def result_notes(result: TestSetResult, max_segments: int = 0) -> tuple[str, ...]:
    """Sentences about what was left out, and what to know before the figures are trusted or compared.

    Parameters
    ----------
    result : TestSetResult
        What was evaluated.
    max_segments : int
        How long a curve was asked for.
    """
    notes = []
    for model in result.models:
        of_model = [*_left_out(model), *_fitted_rows(model, result.split is not None)]
        if len(model.curve) < max_segments:
            of_model.append(f"No recording has more than {counted(len(model.curve), 'segment')}: the curve ends there.")
        notes += [f"{model.name}: {note}" if len(result.models) > 1 else note for note in of_model]
    named = named_evaluations(result)
    return (*notes, *(sentence for sentence in (different_labels_note(named), *map(priors_note, named)) if sentence))


def write_test_set_report(
    folder: Path,
    result: TestSetResult,
    notes: Sequence[str],
    *,
    command: str,
    names: Mapping[str, str] = MappingProxyType({}),
    force: bool = False,
) -> Path:
    """Write the report as a folder; returns the path of its page.

    Parameters
    ----------
    folder : Path
        The folder to write.
    result : TestSetResult
        The evaluated models; rows of audio stores can be played on the page.
    notes : sequence of str
        As `result_notes` gives them.
    command : str
        The command that the page shows.
    names : mapping of str to str
        Names of labels, besides those that the models have.
    force : bool
        Replace a report that exists.

    Raises
    ------
    KnnError
        As `check_report_folder`.
    """
    paths = tuple(test_set.path for test_set in result.test_sets)
    with ExitStack() as stack:
        stores = [stack.enter_context(Store(path)) for path in paths if is_store(path)]  # others are tables of scores
        contents = ReportContents(
            named_evaluations(result, names),
            curves={model.name: model.curve for model in result.models if model.curve},
            layer_weights={model.name: layer_weights(model.classifier.bundle) for model in result.models},
            embeddings=result.sample,
            level=result.level,
            clip=_clips([store for store in stores if store.kind == "audio"]),
            cards=cards(result, notes),
            command=command,
            version=f"knn {__version__}",
            date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        )
        return write_report(contents, folder, sources=paths, force=force)


def cards(result: TestSetResult, notes: Sequence[str]) -> dict[str, str]:
    """Heading -> text: "Data: " and a store's name, "Notes", and each model's name with the card of its bundle."""
    side = "" if result.split is None else f"{result.part!r} of a split: {_rule_text(result.split)}"
    titles = numbered([test_set.path.name for test_set in result.test_sets])
    texts = {
        f"Data: {title}": _data_card(test_set, result.level, side)
        for title, test_set in zip(titles, result.test_sets, strict=True)
    }
    texts |= {"Notes": "\n".join(notes) + "\n"} if notes else {}
    return texts | {model.name: model.classifier.bundle.card for model in result.models}


def named_evaluations(result: TestSetResult, names: Mapping[str, str] = MappingProxyType({})) -> list[NamedEvaluation]:
    """Return the evaluation of each model with the names of its labels: `names`, and those that its bundle has."""
    return [
        NamedEvaluation(model.name, model.evaluation, {**model.classifier.bundle.config.get("names", {}), **names})
        for model in result.models
    ]


def _data_card(test_set: TestSet, level: str, side: str) -> str:
    """Lines of text: file, rows, recordings, hours, embedder and labels."""
    hours = "not known" if np.isnan(test_set.seconds) else f"{test_set.seconds / 3600:.2f}"
    lines = [
        f"file        {test_set.path.name}",
        f"rows        {test_set.labels.total():,}",
        f"recordings  {len(test_set.recordings):,}",
        f"hours       {hours}",
        f"embedder    {test_set.embedder or 'not known'}",
        *([f"side        {side}"] if side else []),
        f"labels      {level}, with their rows:",
        *(f"            {label or '(none)'}  {count:,}" for label, count in sorted(test_set.labels.items())),
    ]
    return "\n".join(lines) + "\n"


def _rule_text(split: Split) -> str:
    """How a split was drawn, in words."""
    words = (f"{key} {', '.join(value) if isinstance(value, list) else value}" for key, value in split.rule.items())
    return "; ".join(text for text in (*words, f"seed {split.seed}") if not text.endswith(" "))


def _fitted_rows(model: EvaluatedModel, has_split: bool) -> Iterator[str]:
    """Whether rows are of recordings that the model was fitted to, which flatters its figures."""
    if model.fitted_rows is None:
        if has_split and model.classifier.meta.get("refitted", True):
            yield "The model was fitted on all rows it was given; were rows of this side among them?"
    elif model.fitted_rows:
        yield (
            f"{model.fitted_rows:,} of {counted(model.rows, 'tested row')} are of recordings that the model was fitted "
            "on: its figures on others will be worse."
        )


def _left_out(model: EvaluatedModel) -> Iterator[str]:
    evaluation = model.evaluation
    if evaluation.absent:
        yield f"No test row is of {', '.join(evaluation.absent)}: left out of every mean."
    if evaluation.out_of_set:
        rows = ", ".join(f"{label} ({count})" for label, count in evaluation.out_of_set.items())
        outside = "The model does not know" if evaluation.table.rivals is None else "Outside the declared set are"
        yield f"{outside} {rows}: counted in the open set only."
    if evaluation.unlabelled:
        yield f"{evaluation.unlabelled} rows have no label."
    if evaluation.single_recording:
        yield f"One recording only of {', '.join(evaluation.single_recording)}: the intervals cannot see it vary."


def _clips(stores: Sequence[Store]) -> Callable[[str, float, float], bytes | None]:
    """A function that returns the row of an audio store with a name and start, as FLAC."""

    def clip(name: str, start: float, end: float) -> bytes | None:
        for store in stores:
            if (row := store.find(name, start)) is not None:
                return store.flac(row)
        return None

    return clip
