"""`knn evaluate`: metrics of one or more models on labelled test sets, and an HTML report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from knn_cli.cli.console import console
from knn_cli.cli.label_lists import NamesOption, parse_languages, parse_priors
from knn_cli.cli.limits import MOST_COUNT, within
from knn_cli.cli.options import (
    INPUT,
    MODEL,
    OUTPUT,
    SAMPLING,
    BackupOption,
    BatchOption,
    ChunkOption,
    Device,
    DeviceOption,
    ForceOption,
    JsonOption,
    LanguagesOption,
    ModelOption,
    NoUnknownOption,
    NoVadOption,
    PriorsOption,
    QuietOption,
    SplitOption,
    TextOption,
    VerboseOption,
    check_text_output,
    complete_models,
    counted,
    epilog,
    flag,
    given,
    note_classifier,
    note_left_out,
    refuse_together,
    refuse_without,
    switch,
    valued,
)
from knn_cli.cli.own_outputs import check_own_outputs
from knn_cli.core.errors import KnnError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from knn_cli.recognition.evaluate_test_sets import TestSetOptions, TestSetResult

FIGURES = "Figures"
_TABLES = (".tsv", ".csv", ".txt", ".json", ".jsonl")

EPILOG = epilog(
    "knn evaluate test.h5 --model my-dialects",
    "knn evaluate emb.h5 --model my-dialects --split split.tsv --report report/",
    "knn evaluate scores.tsv other.tsv --keys labels.tsv",
)


def evaluate(
    ctx: typer.Context,
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE", help="Stores with true labels, or tables of scores, one of each system."),
    ],
    no_vad: NoVadOption = False,
    scores: Annotated[
        bool, switch("--scores", panel=INPUT, help="Take the rows of stores as scores of their sorted labels.")
    ] = False,
    keys: Annotated[
        Path | None,
        valued("--keys", metavar="FILE", panel=INPUT, help="Take true labels of tables of scores from this table."),
    ] = None,
    out: TextOption = None,
    as_json: JsonOption = False,
    names: NamesOption = None,
    report: Annotated[
        Path | None,
        valued("--report", metavar="FOLDER", panel=OUTPUT, help="Write an HTML page with all figures and tables."),
    ] = None,
    force: ForceOption = False,
    backup: BackupOption = False,
    model: ModelOption = None,
    compare: Annotated[
        list[str] | None,
        valued(
            "--compare",
            metavar="MODEL",
            panel=MODEL,
            autocompletion=complete_models,
            help="Evaluate this model too; repeatable.",
        ),
    ] = None,
    device: DeviceOption = Device.auto,
    batch_seconds: BatchOption = 120.0,
    chunk: ChunkOption = None,
    languages: LanguagesOption = "",
    no_unknown: NoUnknownOption = False,
    priors: PriorsOption = "",
    split: SplitOption = None,
    part: Annotated[
        str, valued("--part", metavar="NAME", panel=SAMPLING, help="Evaluate this side or fold of the split.")
    ] = "test",
    curve: Annotated[
        int,
        valued(
            "--curve",
            metavar="N",
            callback=within(0, 1000),
            panel=FIGURES,
            help="Also average 1 to N segments of each recording.",
        ),
    ] = 0,
    draws: Annotated[
        int,
        valued(
            "--draws",
            metavar="N",
            callback=within(0, MOST_COUNT),
            panel=FIGURES,
            help="Draw this many bootstrap samples of recordings.",
        ),
    ] = 1000,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Evaluate language or dialect recognition on labelled test sets.

    Accuracy, NIST LRE costs, calibration error and open-set rates are written to stdout, with confidence intervals by
    bootstrap over recordings. Audio stores are embedded first; tables of scores need no model. A file named .tex gets
    LaTeX tables.
    """
    from knn_cli.cli import output, result_files
    from knn_cli.core.atomic import replacing_text
    from knn_cli.core.display_names import read_names
    from knn_cli.networks.chunk_setting import parse_chunk
    from knn_cli.recognition.classifier import Classifier
    from knn_cli.recognition.evaluate_test_sets import TestSetOptions, evaluate_test_sets
    from knn_cli.recognition.given_scores import scores_as_classifier
    from knn_cli.reports.latex import write_latex
    from knn_cli.reports.report import check_report_folder
    from knn_cli.reports.test_set_report import named_evaluations, result_notes, write_test_set_report

    refuse_without(ctx, {"part": ("split",), "force": ("out", "report"), "backup": ("out",)})
    others = ("model", "compare", "device", "batch_seconds", "chunk", "languages", "no_unknown", "no_vad")
    refuse_together(ctx, [("scores", name) for name in others])
    weights: Literal["model"] | dict[str, float] | None = "model" if priors == "model" else parse_priors(priors)
    is_latex = out is not None and out.suffix.lower() == ".tex"
    if is_latex and as_json:
        raise KnnError(f"--json and the suffix of {out} cannot be combined.", "Choose one of them.")
    form = result_files.form_of(None if is_latex else out, as_json)
    tables = _is_table(sources[0])
    if tables or keys is not None:
        _check_tables(ctx, sources, others)
    label_names = {} if names is None else read_names(names)
    read = [*sources, *(path for path in (split, keys, names and Path(names)) if path)]
    check_text_output(out, read)
    task = check_own_outputs(ctx, out)
    if report is not None:
        check_report_folder(report, sources=read, force=force)
        if out is not None and report.resolve() in out.resolve().parents:
            raise KnnError(f"{out} is in the folder of the report, which is replaced as a whole.", "Name another file.")
    options = TestSetOptions(
        split=split, part=part, max_segments=curve, bootstrap=draws, priors=weights, use_vad=not no_vad
    )
    if tables:
        result = _evaluate_tables(sources, keys, options)
    elif scores:
        with scores_as_classifier(sources) as given_scores:
            result = evaluate_test_sets(sources, [given_scores], options)
    else:
        classifiers = [
            Classifier(
                name,
                device=device.value,
                batch_seconds=batch_seconds,
                chunk=parse_chunk(chunk),
                languages=parse_languages(languages),
                open_set=not no_unknown,
            )
            for name in (model, *(compare or []))
        ]
        for classifier in classifiers:
            note_classifier(model, classifier)
        with console.progress("Classifying") as progress:
            result = evaluate_test_sets(sources, classifiers, options, progress=progress)
    notes = result_notes(result, curve)
    for note in notes:
        console.note(note)
    if is_latex and out is not None:
        with replacing_text(out, task=task) as stream:
            write_latex(named_evaluations(result, label_names), stream)
    else:
        with result_files.writing(out, form, task) as stream:
            as_table = out is not None and out.suffix.lower() in (".tsv", ".csv")
            output.test_set_figures(stream, result, as_json=result_files.is_json(form), as_table=as_table)
    if report is not None:
        command = shlex.join(["knn", *sys.argv[1:]])
        page = write_test_set_report(report, result, notes, command=command, names=label_names, force=force)
        console.note(f"{page}: open it in a browser.")


def _is_table(path: Path) -> bool:
    """Whether a source is a table of scores, by its suffix or by how it begins."""
    from knn_cli.recognition.score_tables import is_score_table

    return path.suffix.lower() in _TABLES or is_score_table(path)


def _check_tables(ctx: typer.Context, sources: list[Path], others: Sequence[str]) -> None:
    """Raise KnnError for sources that are not all tables of scores, and for options that mean nothing to them."""
    if unlike := [path for path in sources if not _is_table(path)]:
        raise KnnError(
            f"{unlike[0]} is no table of scores.", "It is a text with a column name, and a column for each label."
        )
    if names := [name for name in ("scores", *others) if name in given(ctx)]:
        raise KnnError(f"{flag(ctx, names[0])} means nothing to tables of scores.", "Leave it out.")


def _evaluate_tables(sources: list[Path], keys: Path | None, options: TestSetOptions) -> TestSetResult:
    from knn_cli.recognition.evaluate_test_sets import evaluate_test_sets
    from knn_cli.recognition.given_scores import tables_as_classifiers
    from knn_cli.recognition.system_scores import read_systems

    systems = read_systems(sources, keys)
    for path, kind in zip(sources, systems.kinds, strict=False):
        console.note(f"{path}: {counted(len(systems), 'row')} of {kind}.")
    note_left_out(systems)
    with tables_as_classifiers(systems) as (store, classifiers):
        result = evaluate_test_sets([store], classifiers, options)
    result.test_sets[0].path = sources[0]
    return result
