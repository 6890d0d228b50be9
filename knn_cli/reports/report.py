"""An evaluation report as a folder: report.html, which stands alone, figures/, and the numbers behind them in data/."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from knn_cli.core.atomic import replacing_folder
from knn_cli.core.errors import KnnError
from knn_cli.core.output_paths import check_folder, files_in
from knn_cli.core.tables import Table, finite_or_none
from knn_cli.core.visible_text import json_text
from knn_cli.formats.drawing import FORMATS, Plot, render
from knn_cli.reports.contents import ReportContents
from knn_cli.reports.data_figures import data_histograms, layer_shares
from knn_cli.reports.embedding_maps import embedding_maps
from knn_cli.reports.figures import evaluation_figures
from knn_cli.reports.html_page import render_page
from knn_cli.reports.notes import different_labels_note
from knn_cli.reports.tables import (
    Error,
    NamedEvaluation,
    class_table,
    error_table,
    headline_table,
    open_set_table,
    worst_errors,
)

PAGE, FIGURE_FOLDER, DATA_FOLDER, CONTENTS_LIST = "report.html", "figures", "data", "report.json"
MIN_ERRORS_PER_MODEL = 3


def check_report_folder(folder: str | Path, *, sources: Iterable[str | Path] = (), force: bool = False) -> None:
    """Raise an error if a report cannot be written to a folder; call it before hours of work.

    Parameters
    ----------
    folder : path
        Only a folder that holds nothing but the files of a report, as its data/report.json lists them, is ever
        replaced, and only with `force`; never one that holds a source.
    sources : iterable of path
        Files that the evaluation reads.
    force : bool
        Whether a report that is there already may be replaced.

    Raises
    ------
    KnnError
    """
    target = Path(folder)
    for source in map(Path, sources):
        if source.resolve() == target.resolve() or target.resolve() in source.resolve().parents:
            raise KnnError(f"{folder} holds {source.name}, one of the sources.", "Name another folder.")
    check_folder(target, "evaluation report", _listed_files, force)


def write_report(
    contents: ReportContents, folder: str | Path, *, sources: Iterable[str | Path] = (), force: bool = False
) -> Path:
    """Write a report; the folder appears only once it is complete.

    Parameters
    ----------
    contents : ReportContents
    folder, sources, force
        As of `check_report_folder`.

    Returns
    -------
    Path
        The page, report.html.

    Raises
    ------
    KnnError
        As `check_report_folder`, for a model without rows, and for what cannot be written.
    """
    models = contents.models
    for model in models:
        if not model.rows:
            hint = "Give rows with labels that the model knows."
            raise KnnError(f"There is nothing to report of {model.name}: no row was evaluated.", hint)
    check_report_folder(folder, sources=sources, force=force)
    plots = evaluation_figures(models, contents.curves)
    plots.append(data_histograms(models[0]))
    if any(contents.layer_weights.values()):
        plots.append(layer_shares(contents.layer_weights))
    if contents.embeddings is not None:
        plots += embedding_maps(contents.embeddings, contents.level, names=models[0].label_names)
    max_errors = max(contents.max_clips // len(models), MIN_ERRORS_PER_MODEL)
    errors = [error for model in models for error in worst_errors(model, max_errors)]
    page = render_page(contents, plots, errors)
    with replacing_folder(folder, check=lambda: check_report_folder(folder, force=force)) as new:
        (new / FIGURE_FOLDER).mkdir()
        (new / DATA_FOLDER).mkdir()
        (new / PAGE).write_text(page, encoding="utf-8", newline="")
        for plot in plots:
            for suffix in FORMATS:
                (new / FIGURE_FOLDER / f"{plot.name}.{suffix}").write_bytes(render(plot, suffix))
        for name, table in _tables(models, plots, errors).items():
            _write_table(new / DATA_FOLDER / name, table)
        _write_contents_list(new, contents)
    return Path(folder) / PAGE


def _tables(models: Sequence[NamedEvaluation], plots: Sequence[Plot], errors: Sequence[Error]) -> dict[str, Table]:
    """File name's stem -> table."""
    tables = {
        "headline": headline_table(models),
        "labels": class_table(models),
        "unknown": open_set_table(models),
        "errors": error_table(errors),
        **{plot.name: plot.table for plot in plots},
    }
    grouped = [grouped for model in models if (grouped := model.grouped)]
    if grouped:
        tables["groups"] = class_table(grouped, "Figures of every group")
    return tables


def _write_table(stem: Path, table: Table) -> None:
    with stem.with_name(f"{stem.name}.tsv").open("w", encoding="utf-8", newline="") as file:
        table.write_tsv(file)
    with stem.with_name(f"{stem.name}.json").open("w", encoding="utf-8", newline="") as file:
        table.write_json(file)


def _write_contents_list(new: Path, contents: ReportContents) -> None:
    """Write data/report.json: the report in short, and every file of the folder, which shows that it is a report."""
    note = different_labels_note(contents.models)
    value = {
        "schema": 1,
        "kind": "evaluation report",
        "command": contents.command,
        "version": contents.version,
        "date": contents.date,
        "notes": [note] if note else [],
        "models": [_described(model) for model in contents.models],
        "files": sorted([*files_in(new), f"{DATA_FOLDER}/{CONTENTS_LIST}"]),
    }
    text = json_text(value, indent=1)
    (new / DATA_FOLDER / CONTENTS_LIST).write_text(text + "\n", encoding="utf-8", newline="")


def _described(model: NamedEvaluation) -> dict[str, Any]:
    """A model's entry in data/report.json."""
    evaluation = model.evaluation
    priors = dict(zip(evaluation.table.labels, evaluation.priors, strict=True)) if evaluation.priors else None
    return {
        "name": model.name,
        "rows": model.rows,
        "recordings": model.recordings,
        "figures": {
            name: {end: finite_or_none(getattr(metric, end)) for end in ("value", "low", "high")}
            for name, metric in evaluation.metrics.items()
        },
        "priors": priors,
        "absent": evaluation.absent,
        "strangers": evaluation.out_of_set,
        "unlabelled": evaluation.unlabelled,
    }


def _listed_files(folder: Path) -> Collection[str]:
    """The files of a report, as its data/report.json lists them; none in a folder without such a list."""
    try:
        value = json.loads((folder / DATA_FOLDER / CONTENTS_LIST).read_text(encoding="utf-8"))
        return {str(name) for name in value["files"]} if value["kind"] == "evaluation report" else ()
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ()
