"""`knn classify`: labels of files and stores; and of test sets, long recordings and speaker trials."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knn_cli.cli.console import console, failed, leave
from knn_cli.cli.options import (
    BatchOption,
    ChannelOption,
    Device,
    DeviceOption,
    ForceOption,
    JsonOption,
    ModelOption,
    QuietOption,
    SegmentOption,
    VadOption,
    VerboseOption,
    given,
    parse_priors,
    say_model,
    say_silent,
)
from knn_cli.core.errors import KnnError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from knn_cli.cli.output import Said
    from knn_cli.core.values import ScoreTable
    from knn_cli.embedding.options import EmbeddingOptions
    from knn_cli.recognition.classifier import Classifier

TESTING, TIMELINE, TRIALS = "Test sets", "Long recordings", "Speaker trials"


class Scorer(str, Enum):
    auto = "auto"
    cosine = "cosine"
    plda = "plda"


def classify(
    ctx: typer.Context,
    src: Annotated[list[Path], typer.Argument(help="Audio files, folders of audio, or stores.")],
    model: ModelOption = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Labels to show, best first.")] = 3,
    priors: Annotated[str, typer.Option("--priors", help="How likely labels are: cs=3,de=1, or model: its own.")] = "",
    open_set: Annotated[
        bool, typer.Option("--open-set", help="Say unknown below the model's threshold, or from a class of its own.")
    ] = False,
    segment: SegmentOption = None,
    vad: VadOption = True,
    channel: ChannelOption = "mix",
    device: DeviceOption = Device.auto,
    batch_seconds: BatchOption = 120.0,
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write instead of stdout.")] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Folder for a page with all figures.", rich_help_panel=TESTING)
    ] = None,
    compare: Annotated[
        list[str] | None, typer.Option("--compare", help="Further model beside it.", rich_help_panel=TESTING)
    ] = None,
    curve: Annotated[
        int, typer.Option("--curve", min=0, help="Average 1 to N segments of a recording.", rich_help_panel=TESTING)
    ] = 0,
    split: Annotated[
        Path | None, typer.Option("--split", help="Only the test side of `knn split`.", rich_help_panel=TESTING)
    ] = None,
    part: Annotated[str, typer.Option("--part", help="Side or fold of it.", rich_help_panel=TESTING)] = "test",
    draws: Annotated[
        int, typer.Option("--draws", min=0, help="Of the bootstrap over recordings.", rich_help_panel=TESTING)
    ] = 1000,
    timeline: Annotated[
        bool, typer.Option("--timeline", help="The language of each stretch of speech.", rich_help_panel=TIMELINE)
    ] = False,
    rttm: Annotated[
        Path | None, typer.Option("--rttm", help="Turns of speakers, each labelled.", rich_help_panel=TIMELINE)
    ] = None,
    window: Annotated[float, typer.Option("--window", help="Seconds a score is from.", rich_help_panel=TIMELINE)] = 3.0,
    step: Annotated[float, typer.Option("--step", help="Seconds between windows.", rich_help_panel=TIMELINE)] = 1.0,
    switch: Annotated[
        float, typer.Option("--switch", help="Chance of another label a second later.", rich_help_panel=TIMELINE)
    ] = 0.1,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="table, json, textgrid, audacity, srt, vtt or rttm; else by the suffix of -o.",
            rich_help_panel=TIMELINE,
        ),
    ] = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out-dir", help="Folder for one file a recording.", rich_help_panel=TIMELINE)
    ] = None,
    trials: Annotated[
        Path | None, typer.Option("--trials", help="List of pairs of recordings to score.", rich_help_panel=TRIALS)
    ] = None,
    scorer: Annotated[
        Scorer, typer.Option("--scorer", help="auto: PLDA where the model has one.", rich_help_panel=TRIALS)
    ] = Scorer.auto,
    cohort: Annotated[
        Path | None,
        typer.Option("--cohort", help="Store of other speakers; their mean is taken off.", rich_help_panel=TRIALS),
    ] = None,
    as_norm: Annotated[
        int | None,
        typer.Option("--as-norm", help="Normalise by the N best scores with the cohort.", rich_help_panel=TRIALS),
    ] = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Language or dialect of files or of a store's rows, with calibrated probabilities."""
    from knn_cli.cli import pipeline
    from knn_cli.embedding.files import expand_folders
    from knn_cli.embedding.options import EmbeddingOptions
    from knn_cli.recognition.classifier import Classifier

    mode = _mode(given(ctx))
    if mode == "trials":
        assert trials is not None
        return _trials(src, trials, model, out, cohort, as_norm, scorer)
    sources = expand_folders(src)
    pipeline.check_text_output(out, [*sources, *filter(None, (rttm, split))])
    models = [
        Classifier(one, device=device.value, batch_seconds=batch_seconds, open_set=open_set or mode == "test")
        for one in (model, *(compare or []))
    ]
    for one in models:
        say_model(model, one.bundle, f"which knows {len(one.labels)} labels")
    if mode == "timeline":
        settings = {"window": window, "step": step, "switch": switch, "use_vad": vad, "channel": channel}
        return _timeline(sources, models[0], rttm, out, out_dir, _form(as_json, form, out), settings)
    if mode == "test":
        of_models = "model" if priors == "model" else parse_priors(priors)
        settings = {"split": split, "part": part, "most": curve, "draws": draws, "priors": of_models, "use_vad": vad}
        return _test(sources, models, report, settings, as_json, out, force)
    weights = models[0].priors if priors == "model" else parse_priors(priors)
    options = EmbeddingOptions(segment=segment, use_vad=vad, channel=channel)
    _files(sources, models[0], options, top, weights, as_json, out)


_LEADING = {"trials": ("trials",), "timeline": ("timeline",), "test": ("report", "compare", "curve")}
_OWN = {  # options of one kind of work, besides those that lead to it
    "trials": ("scorer", "cohort", "as_norm"),
    "timeline": ("rttm", "window", "step", "switch", "form", "out_dir"),
    "test": ("split", "part", "draws", "force"),
}
_SHARED = {  # options of several kinds of work
    "files": {"top", "priors", "open_set", "segment", "vad", "channel", "device", "batch_seconds", "as_json"},
    "test": {"priors", "open_set", "vad", "device", "batch_seconds", "as_json"},
    "timeline": {"open_set", "vad", "channel", "device", "batch_seconds", "as_json"},
    "trials": set[str](),
}
_NEEDS = {"part": "split", "force": "report"}
_FLAGS = {"as_json": "--json", "form": "--format", "vad": "--vad/--no-vad"}


def _flag(name: str) -> str:
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def _mode(given: set[str]) -> str:
    """What kind of work the options ask for; KnnError for those of several kinds, and for one that would do nothing."""
    asked = {mode: [one for one in names if one in given] for mode, names in _LEADING.items()}
    modes = [mode for mode, names in asked.items() if names]
    if len(modes) > 1:
        raise KnnError(f"--{asked[modes[0]][0]} and --{asked[modes[1]][0]} do not go together.", "Choose one of them.")
    mode = modes[0] if modes else "files"
    for other, names in _OWN.items():
        if other != mode and (idle := [name for name in names if name in given]):
            raise KnnError(f"{_flag(idle[0])} goes with {' or '.join(map(_flag, _LEADING[other]))}.", "Add it.")
    if idle := sorted(given & set.union(*_SHARED.values()) - _SHARED[mode]):
        raise KnnError(f"{_flag(idle[0])} does nothing with {_flag(asked[mode][0])}.", "Leave it out.")
    for name, needed in _NEEDS.items():
        if name in given and needed not in given:
            raise KnnError(f"{_flag(name)} goes with {_flag(needed)}.", "Add it.")
    return mode


def _form(as_json: bool, form: str | None, out: Path | None) -> str | None:
    """The form of a timeline that is asked for, None to go by the suffix; KnnError where two are."""
    from knn_cli.formats.span_formats import format_by_suffix

    if not as_json:
        return form
    by_suffix = None if out is None else format_by_suffix("timeline", out)
    for other, text in ((form, f"--format {form}"), (by_suffix and by_suffix.name, f"the suffix of {out}")):
        if other not in (None, "json"):
            raise KnnError(f"--json and {text} do not go together.", "Choose one of them.")
    return "json"


def _files(
    sources: list[Path],
    classifier: Classifier,
    options: EmbeddingOptions,
    top: int,
    priors: Mapping[str, float] | None,
    as_json: bool,
    out: Path | None,
) -> None:
    from knn_cli.cli import output
    from knn_cli.core.atomic import replacing_text
    from knn_cli.embedding.options import RowsWithoutSpeech
    from knn_cli.recognition.classify_files import classify_files

    failures = []
    tables: list[tuple[ScoreTable, Said]] = []
    with (
        nullcontext(sys.stdout) if out is None else replacing_text(out) as stream,
        console.progress("Classifying") as progress,
    ):
        table_wanted = out is None and sys.stdout.isatty() and not as_json
        first, done_any, counts = True, False, (0, 0)
        for done, (path, result) in enumerate(classify_files(sources, classifier, options), start=1):
            progress(done, len(sources))
            if isinstance(result, KnnError):
                failures.append(failed(str(path), result))
                continue
            if isinstance(result, RowsWithoutSpeech):
                say_silent(result.rows)
                continue
            said = output.said(result, priors)
            right, known = output.right_of(result, said)
            counts = (counts[0] + right, counts[1] + known)
            done_any = True
            if table_wanted:
                tables.append((result, said))
            elif as_json:
                output.score_lines(stream, result, said, priors)
            else:
                output.score_rows(stream, result, said, top, header=first)
                first = False
        if not done_any:
            leave(failures)  # before an empty file takes the place of an older result
    if table_wanted and tables:
        output.score_table(tables, top, classifier.bundle.name)
    right, known = counts
    if known:
        console.note(f"Of {known} rows with a label that the model knows, {right} are right ({right / known:.1%}).")
    leave(failures)


def _timeline(
    sources: list[Path],
    classifier: Classifier,
    rttm: Path | None,
    out: Path | None,
    out_dir: Path | None,
    form: str | None,
    settings: dict[str, Any],
) -> None:
    from knn_cli.core.output_paths import make_output_folder
    from knn_cli.formats import span_formats
    from knn_cli.recognition.classify_files import language_timelines
    from knn_cli.recognition.timeline import ALTERNATIVES
    from knn_cli.store import labels

    if out is not None and (out_dir is not None or len(sources) > 1):
        raise KnnError("-o is for one recording.", "Give --out-dir and --format for several.")
    if form is None and out is None:
        form = "table"
    wanted = span_formats.find_format("timeline", form, out)
    targets = dict.fromkeys(sources, out)
    several = len(sources) > 1 and out_dir is None
    if several and not wanted.multiple:
        raise KnnError(
            f"Several recordings in one {wanted.name} file could not be told apart.", "Give --out-dir for a file each."
        )
    if out_dir is not None:
        called = labels.recording_names(sources)
        targets = {path: out_dir / f"{name}{wanted.suffix}" for path, name in zip(sources, called, strict=True)}
        make_output_folder(out_dir, [*filter(None, targets.values())], [*sources, *([rttm] if rttm else [])])
    failures, first = [], True
    with console.progress("Listening") as progress:
        for done, (path, found) in enumerate(language_timelines(sources, classifier, rttm, **settings), start=1):
            progress(done, len(sources))
            if isinstance(found, KnnError):
                failures.append(failed(str(path), found))
                continue
            if (target := targets[path]) is None:
                if several and wanted.name == "table":
                    document = found.document()
                    span_formats.write_timeline_tsv(document, sys.stdout, header=first, alternatives=ALTERNATIVES)
                    first = False
                else:
                    wanted.write(found.document(), sys.stdout)
            else:
                span_formats.write(found.document(), target, wanted.name)
            parts = ", ".join(f"{label} {seconds:.0f} s" for label, seconds in found.durations.items())
            console.note(f"{path}: {parts or 'no speech'}.")
            for one in found.switches:
                of = f" ({one.speaker})" if one.speaker else ""
                console.note(f"{path}: at {one.time:.1f} s from {one.before} to {one.after}{of}.")
            for who in found.speakers:
                console.note(
                    f"{path}: {who.speaker} speaks {who.label} ({who.probability:.0%}, {who.heard:.0f} s heard)."
                )
    leave(failures)


def _test(
    sources: list[Path],
    models: list[Classifier],
    report: Path | None,
    settings: dict[str, Any],
    as_json: bool,
    out: Path | None,
    force: bool,
) -> None:
    from knn_cli.cli import output
    from knn_cli.core.atomic import replacing_text
    from knn_cli.reports import evaluation_report, test_sets

    if report is not None:
        listed = [] if settings["split"] is None else [settings["split"]]
        evaluation_report.check(report, sources=[*sources, *listed], force=force)
        if out is not None and report.resolve() in out.resolve().parents:
            raise KnnError(f"{out} is in the folder of the report, which is written whole.", "Name another file.")
    with console.progress("Classifying") as progress:
        tested = test_sets.test(sources, models, **settings, progress=progress)
    for one in tested.missing:
        console.note(one)
    with nullcontext(sys.stdout) if out is None else replacing_text(out) as stream:
        output.tested(stream, tested, as_json)
    if report is not None:
        page = test_sets.write(report, tested, command=shlex.join(["knn", *sys.argv[1:]]), force=force)
        console.note(f"{page}: open it in a browser.")


def _trials(
    sources: list[Path],
    path: Path,
    model: str | None,
    out: Path | None,
    cohort: Path | None,
    as_norm: int | None,
    scorer: Scorer,
) -> None:
    from knn_cli.cli import output, pipeline
    from knn_cli.core.atomic import replacing_text
    from knn_cli.recognition.trials import read_trials, write_trial_scores
    from knn_cli.reports import test_sets

    pipeline.check_text_output(out, [*sources, path, *([cohort] if cohort else [])])
    listed = read_trials(path)
    scores, figures, by = test_sets.trials_of(sources, listed, model, cohort=cohort, top=as_norm, scorer=scorer.value)
    with nullcontext(sys.stdout) if out is None else replacing_text(out) as stream:
        write_trial_scores(listed, scores, stream)
    console.note(f"{len(listed)} trials scored by {by}{'' if as_norm is None else ', normalised'}.")
    if figures is not None:
        for name, text in output.trial_lines(figures):
            console.note(f"{name:<14}{text}")
