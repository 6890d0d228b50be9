"""`knn fuse`: fuse the scores of several systems, and calibrate them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import typer

from knn_cli.cli.console import console
from knn_cli.cli.label_lists import listed, parse_priors
from knn_cli.cli.limits import within
from knn_cli.cli.options import (
    INPUT,
    MODEL,
    OUTPUT,
    SAMPLING,
    BackupOption,
    ForceOption,
    JsonOption,
    PriorsOption,
    QuietOption,
    SeedOption,
    SplitOption,
    VerboseOption,
    check_text_output,
    counted,
    epilog,
    note_left_out,
    refuse_together,
    refuse_without,
    valued,
)
from knn_cli.cli.own_outputs import check_own_outputs
from knn_cli.core.errors import KnnError

if TYPE_CHECKING:
    from knn_cli.core.output_records import OutputTask
    from knn_cli.core.values import Doubles
    from knn_cli.recognition.fuse_scores import FusedScores, TrainedFusion
    from knn_cli.recognition.system_scores import SystemScores

EPILOG = epilog(
    "knn fuse dev_a.tsv dev_b.tsv -o fusion.json",
    "knn fuse test_a.tsv test_b.tsv --fusion fusion.json -o fused.tsv",
    "knn fuse dev_a.jsonl dev_b.jsonl --keys labels.tsv --quality seconds -o fusion.json",
)


def fuse(
    ctx: typer.Context,
    tables: Annotated[
        list[Path], typer.Argument(metavar="SCORES", help="Scores of each system: tables, or trials of `knn verify`.")
    ],
    keys: Annotated[
        Path | None,
        valued(
            "--keys",
            metavar="FILE",
            panel=INPUT,
            help="Take true labels from this table, or keys from this list of trials.",
        ),
    ] = None,
    quality: Annotated[
        str,
        valued(
            "--quality", metavar="NAMES", panel=INPUT, help="Let weights depend on these measures: seconds, or columns."
        ),
    ] = "",
    measures: Annotated[
        Path | None,
        valued("--measures", metavar="FILE", panel=INPUT, help="Take quality measures of rows from this table."),
    ] = None,
    out: Annotated[
        Path | None,
        valued("-o", "--out", metavar="FILE", panel=OUTPUT, help="Write the fusion, or fused scores, here."),
    ] = None,
    as_json: JsonOption = False,
    force: ForceOption = False,
    backup: BackupOption = False,
    fusion: Annotated[
        Path | None,
        valued("--fusion", metavar="FILE", panel=MODEL, help="Fuse by this fusion, trained before."),
    ] = None,
    priors: PriorsOption = "",
    folds: Annotated[
        int,
        valued(
            "--folds",
            metavar="N",
            callback=within(0, 1000),
            panel=SAMPLING,
            help="Measure on this many held-out folds of recordings (5); 0: do not.",
            show_default=False,
        ),
    ] = 5,
    split: SplitOption = None,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Fuse scores of several systems of languages, dialects or speakers, and calibrate them.

    A fusion is trained by logistic regression on recordings that no system was trained on, and written to -o. Figures
    of each system and of the fusion, on folds that it was not trained on, and the weights are written to stdout. With
    --fusion scores are fused, as a table that `knn evaluate` takes. One system alone is calibrated.
    """
    from knn_cli.recognition.system_scores import read_systems

    refuse_together(ctx, [("fusion", name) for name in ("priors", "folds", "split", "seed", "quality")])
    refuse_together(ctx, [("split", "folds"), ("split", "seed")])
    refuse_without(ctx, {"force": ("out",), "backup": ("out",)})
    if fusion is None:
        refuse_without(ctx, {"measures": ("quality",)})
        if out is None:
            raise KnnError("The fusion needs a file.", "Give -o FILE, or --fusion FILE with one to fuse by.")
    if folds == 1:
        raise KnnError("One fold leaves nothing to train on.", "Take two or more folds, or 0 for none.")
    check_text_output(out, [*tables, *(path for path in (keys, measures, split, fusion) if path)])
    task = check_own_outputs(ctx, out)
    systems = read_systems(tables, keys)
    note_left_out(systems, needs_truth=fusion is None)
    if fusion is not None:
        _apply(systems, fusion, measures, out, as_json, task)
    elif out is not None:
        quality_of_rows = _quality(systems, listed(quality), measures)
        weights: dict[str, float] | Literal["empirical"] | None = "empirical"
        if priors != "empirical":
            weights = parse_priors(priors)
        _train(systems, quality_of_rows, weights, split or folds, seed, out, as_json, task)


def _quality(systems: SystemScores, names: list[str], measures: Path | None) -> tuple[list[str], Doubles] | None:
    from knn_cli.recognition.quality_measures import quality_of

    return (names, quality_of(systems, names, measures)) if names else None


def _train(
    systems: SystemScores,
    quality: tuple[list[str], Doubles] | None,
    priors: dict[str, float] | Literal["empirical"] | None,
    folds: Path | int,
    seed: int,
    out: Path,
    as_json: bool,
    task: OutputTask,
) -> None:
    """Train and write a fusion, and show its figures."""
    from knn_cli.recognition.fuse_scores import train_fusion
    from knn_cli.recognition.fusion_file import write_fusion
    from knn_cli.recognition.split_file import read_split

    by = read_split(folds) if isinstance(folds, Path) else folds
    trained = train_fusion(systems, quality=quality, priors=priors, folds=by, seed=seed)
    write_fusion(out, trained.model, task=task)
    _write_figures(trained, as_json)
    noun = "trial" if systems.are_trials else "row"
    rows = counted(trained.model.measured["rows"], noun)
    if trained.tested:
        console.note(f"{out}: fusion of {rows}; figures of {counted(trained.tested, noun)} that it was not trained on.")
        _note_loss(trained, rows, priors is None)
    else:
        console.note(f"{out}: fusion of {rows}, none of which were held out to measure it.")


def _note_loss(trained: TrainedFusion, rows: str, equal_priors: bool) -> None:
    """Say so if the fusion is worse than the best of its systems is without it, on what was held out."""
    if not all("cllr" in row.figures for row in trained.figures):
        console.note("What was held out is all of one kind, which has no figures.")
        return
    (given, name), (fused, _) = (
        min((row.figures["cllr"], row.name) for row in trained.figures if row.scores == scores)
        for scores in ("as given", "fused")
    )
    if given < fused:
        reason = f"{rows} are too few" if equal_priors else "it is trained for other priors than equal ones"
        console.note(f"{name} as given has a lower Cllr, {given:.3f}, than the fusion, {fused:.3f}: {reason}.")


def _apply(
    systems: SystemScores, path: Path, measures: Path | None, out: Path | None, as_json: bool, task: OutputTask
) -> None:
    """Fuse scores by a fusion, write them, and say how good they are where true labels are known."""
    from knn_cli.cli import result_files
    from knn_cli.recognition.fuse_scores import fuse, fused_figures
    from knn_cli.recognition.fusion_file import read_fusion

    form = result_files.form_of(out, as_json)
    fusion = read_fusion(path)
    quality = _quality(systems, list(fusion.quality), measures)
    fused = fuse(fusion, systems, None if quality is None else quality[1])
    for trained, given in zip(fusion.systems, systems.systems, strict=True):
        console.detail(f"{given} is taken for {trained}.")
    with result_files.writing(out, form, task) as stream:
        _write_fused(stream, fused, result_files.is_json(form))
    for name, value in fused_figures(fused).items():
        console.note(f"{name:<14}{value:.4f}")


def _write_figures(trained: TrainedFusion, as_json: bool) -> None:
    """Write a line for each system as given and calibrated, and for the fusion: weight and figures of held-out rows."""
    from knn_cli.cli.output import json_line
    from knn_cli.core.tables import Table

    lines = [{"system": row.name, "scores": row.scores, "weight": row.weight, **row.figures} for row in trained.figures]
    if not lines:
        weights = trained.model.fusion.weights[:, 0].tolist()
        lines = [{"system": name, "weight": value} for name, value in zip(trained.model.systems, weights, strict=True)]
    if as_json:
        for line in lines:
            json_line(sys.stdout, line)
    else:
        Table("fusion", tuple(lines[0]), tuple(tuple(line.values()) for line in lines)).write_tsv(sys.stdout)


def _write_fused(stream: TextIO, fused: FusedScores, as_json: bool) -> None:
    """Write fused scores: a table or lines as `knn classify` writes them, or a list of scored trials."""
    from knn_cli.cli.output import json_line, score_lines
    from knn_cli.core.values import ScoreTable
    from knn_cli.recognition.predictions import predict
    from knn_cli.recognition.score_tables import write_score_table
    from knn_cli.recognition.trials import scored_trials, write_trial_scores

    if isinstance(fused, ScoreTable):
        if as_json:
            score_lines(stream, fused, predict(fused))
        else:
            write_score_table(fused, stream)
    elif as_json:
        for trial in scored_trials(*fused, None):
            json_line(stream, trial)
    else:
        write_trial_scores(*fused, stream)
