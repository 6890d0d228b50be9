"""An evaluation as a folder: report.html, which stands alone, figures/, and the numbers behind them in data/."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from knn_cli.core.atomic import replacing_folder
from knn_cli.core.errors import KnnError
from knn_cli.core.tables import Table, finite_or_none
from knn_cli.core.values import EmbeddingSet
from knn_cli.evaluation.results import DurationPoint
from knn_cli.formats.drawing import FORMATS, render
from knn_cli.reports.figures import plots
from knn_cli.reports.page import Clip, page
from knn_cli.reports.score_figures import maps
from knn_cli.reports.tables import (
    Named,
    class_table,
    error_table,
    headline,
    open_set_table,
    unlike,
    worst_errors,
)

PAGE, FIGURES, DATA, LIST = "report.html", "figures", "data", "report.json"
_CLIPS = 12


def check(folder: str | Path, *, sources: Iterable[str | Path] = (), force: bool = False) -> None:
    """KnnError when no report can go to `folder`: call it before hours of work.

    Only a folder that holds nothing but what a report of ours lists in data/report.json is ever replaced, and only
    with `force`; never one that holds a source.
    """
    target = Path(folder)
    for source in map(Path, sources):
        if source.resolve() == target.resolve() or target.resolve() in source.resolve().parents:
            raise KnnError(f"{folder} holds {source.name}, one of the sources.", "Name another folder.")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    foreign = [target.name] if not target.is_dir() else _foreign(target)
    if foreign:
        hint = "Name another folder; this one will not be replaced."
        raise KnnError(f"{folder} exists and is no evaluation report: it holds {foreign[0]}.", hint)
    if not force:
        raise KnnError(f"The evaluation report {folder} exists already.", "Name another folder, or use --force.")


def write(
    folder: str | Path,
    models: Sequence[Named],
    *,
    curves: Mapping[str, Sequence[DurationPoint]] | None = None,
    embeddings: EmbeddingSet | None = None,
    level: str = "group",
    clip: Clip | None = None,
    cards: Mapping[str, str] | None = None,
    command: str = "",
    version: str = "",
    date: str = "",
    sources: Iterable[str | Path] = (),
    force: bool = False,
) -> Path:
    """Write the report of one model, or of several side by side; gives the page's path.

    curves     : model's name -> accuracy against length
    embeddings : what the map shows, coloured by their label `level`
    clip       : recording, start, end -> a FLAC or WAV file, or None
    cards      : heading -> text
    command, version, date : shown as they are; nothing here looks at the clock, so the same input gives the same bytes

    Nothing of the folder is there until all of it is. Raises KnnError as `check` does, and for what cannot be written.
    """
    if not models or len({one.name for one in models}) != len(models):
        raise ValueError("a report is of one or more models of different names")
    for one in models:
        if not len(one.evaluation.table):
            hint = "Give rows with labels that the model knows."
            raise KnnError(f"There is nothing to report of {one.name}: no row was evaluated.", hint)
    check(folder, sources=sources, force=force)
    drawn = plots(models, curves) + (maps(embeddings, level) if embeddings is not None else [])
    errors = [error for one in models for error in worst_errors(one, max(_CLIPS // len(models), 3))]
    tables = {
        "headline": headline(models),
        "labels": class_table(models),
        "unknown": open_set_table(models),
        "errors": error_table(errors),
        **{plot.name: plot.table for plot in drawn},
    }
    if grouped := [Named(one.name, one.evaluation.groups) for one in models if one.evaluation.groups]:
        tables["groups"] = class_table(grouped, "Figures of every group")
    text = page(
        models,
        drawn,
        errors=errors,
        clip=clip,
        cards=cards,
        command=command,
        version=version,
        date=date,
        most_clips=_CLIPS,
    )
    with replacing_folder(folder) as new:
        (new / FIGURES).mkdir()
        (new / DATA).mkdir()
        (new / PAGE).write_text(text, encoding="utf-8", newline="")
        for plot in drawn:
            for kind in FORMATS:
                (new / FIGURES / f"{plot.name}.{kind}").write_bytes(render(plot, kind))
        for name, table in tables.items():
            _write_table(new / DATA / name, table)
        _write_list(new, models, command, version, date)
    return Path(folder) / PAGE


def _write_table(stem: Path, table: Table) -> None:
    with stem.with_name(f"{stem.name}.tsv").open("w", encoding="utf-8", newline="") as file:
        table.write_tsv(file)
    with stem.with_name(f"{stem.name}.json").open("w", encoding="utf-8", newline="") as file:
        table.write_json(file)


def _write_list(new: Path, models: Sequence[Named], command: str, version: str, date: str) -> None:
    """data/report.json: what the report says in short, and every file of the folder, so that it is known as ours."""
    described = [
        {
            "name": one.name,
            "rows": one.rows,
            "recordings": one.recordings,
            "figures": {
                name: {
                    "value": finite_or_none(figure.value),
                    "low": finite_or_none(figure.low),
                    "high": finite_or_none(figure.high),
                }
                for name, figure in one.evaluation.metrics.items()
            },
            "priors": dict(zip(one.evaluation.table.labels, one.evaluation.priors, strict=True))
            if one.evaluation.priors
            else None,
            "absent": one.evaluation.absent,
            "strangers": one.evaluation.out_of_set,
            "unlabelled": one.evaluation.unlabelled,
        }
        for one in models
    ]
    note = unlike(models)
    made = {"schema": 1, "kind": "evaluation report", "command": command, "version": version, "date": date}
    files = sorted([*_files(new), f"{DATA}/{LIST}"])
    text = json.dumps(
        {**made, "notes": [note] if note else [], "models": described, "files": files},
        ensure_ascii=False,
        allow_nan=False,
        indent=1,
    )
    (new / DATA / LIST).write_text(text + "\n", encoding="utf-8", newline="")


def _foreign(folder: Path) -> list[str]:
    """What the folder holds that no report of ours wrote there."""
    try:
        found = json.loads((folder / DATA / LIST).read_text(encoding="utf-8"))
        ours = set(found["files"]) if found["kind"] == "evaluation report" else set()
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    return sorted(name for name in _files(folder) if name not in ours)


def _files(folder: Path) -> list[str]:
    return [one.relative_to(folder).as_posix() for one in folder.rglob("*") if not one.is_dir() or one.is_symlink()]
