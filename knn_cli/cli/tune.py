"""`knn tune`: settings of the diarizer, chosen on recordings with reference turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from knn_cli.cli.console import console, failed, leave
from knn_cli.cli.diarization_options import (
    MaxSpeakersOption,
    MinSpeakersOption,
    SegmentationOption,
    UemOption,
)
from knn_cli.cli.limits import MOST_COUNT, MOST_SECONDS, within
from knn_cli.cli.options import (
    INPUT,
    OUTPUT,
    SAMPLING,
    SPEAKERS,
    BackupOption,
    BatchOption,
    ChannelOption,
    Device,
    DeviceOption,
    ForceOption,
    ModelOption,
    NumSpeakersOption,
    QuietOption,
    SeedOption,
    TrackOption,
    VerboseOption,
    check_text_output,
    epilog,
    note_model,
    sound_channel,
    switch,
    valued,
)
from knn_cli.cli.own_outputs import check_own_outputs
from knn_cli.cli.tunable_settings import TunableSettings, default_grid, file_text, read_grid, segmenter_of
from knn_cli.core.errors import Failure, KnnError

if TYPE_CHECKING:
    from pyannote.core import Annotation, Timeline

    from knn_cli.diarization.options import DiarizationOptions
    from knn_cli.diarization.tuning import AnalysisFolder, AnalysisSource, Scoring
    from knn_cli.embedding.embedder import Embedder
    from knn_cli.evaluation.diarization_error import DiarizationError
    from knn_cli.networks.bundle import Bundle

MOST_LISTED = 5  # names in a note

EPILOG = epilog(
    "knn tune meetings/ --reference rttm/ -o mine.toml",
    "knn tune kept/ --reference rttm/ -o mine.toml --grid clusterer=ahc --grid distance_threshold=0.6,0.7",
)


def tune(
    ctx: typer.Context,
    sources: Annotated[
        list[Path], typer.Argument(metavar="SOURCE", help="Audio files, folders, or kept analyses of diarize.")
    ],
    reference: Annotated[
        Path, valued("--reference", metavar="PATH", panel=INPUT, help="Score against these reference turns.")
    ],
    out: Annotated[
        Path, valued("-o", "--out", metavar="FILE", panel=OUTPUT, help="Settings (.toml) to write; a .tsv beside them.")
    ],
    force: ForceOption = False,
    backup: BackupOption = False,
    uem: UemOption = None,
    channel: ChannelOption = "mix",
    track: TrackOption = None,
    grid: Annotated[
        list[str] | None,
        valued("--grid", metavar="NAME=VALUES", panel=SAMPLING, help="Try these values, such as margin=0,0.2."),
    ] = None,
    folds: Annotated[
        int,
        valued("--folds", metavar="N", callback=within(2, MOST_COUNT), panel=SAMPLING, help="Draw this many folds."),
    ] = 5,
    seed: SeedOption = 0,
    collar: Annotated[
        float,
        valued(
            "--collar",
            metavar="SECONDS",
            callback=within(0, MOST_SECONDS),
            panel=SPEAKERS,
            help="Leave out this much on each side of boundaries.",
        ),
    ] = 0.0,
    skip_overlap: Annotated[
        bool, switch("--skip-overlap", panel=SPEAKERS, help="Leave out overlapped reference speech.")
    ] = False,
    num_speakers: NumSpeakersOption = None,
    min_speakers: MinSpeakersOption = None,
    max_speakers: MaxSpeakersOption = None,
    model: ModelOption = None,
    segmentation: SegmentationOption = None,
    device: DeviceOption = Device.auto,
    batch_seconds: BatchOption = 120.0,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Choose settings of diarize on recordings with reference turns.

    Settings are compared by their diarization error rate, in folds of recordings. The default stays unless the gain
    on recordings that settings were not chosen on is beyond chance. Analyses of the sound are kept in FILE.analyses.

    --grid takes clusterer, linkage, distance_threshold, min_cluster_size, min_turn, max_gap and margin, and preset
    and segmentation, which take an analysis of the sound for each value.
    """
    from knn_cli.cli import diarization_sources, tune_results
    from knn_cli.core.atomic import replacing_text
    from knn_cli.core.locks import locked_files
    from knn_cli.diarization import recordings
    from knn_cli.diarization.options import check_speakers
    from knn_cli.diarization.tuning import Scoring, kept_source, windows_key
    from knn_cli.evaluation.setting_selection import draw_folds, select_setting

    check_speakers(num_speakers, min_speakers, max_speakers)
    asked = None if grid is None else read_grid(grid)
    if segmentation is not None and asked and any(each.segmentation for each in asked):
        raise KnnError("--segmentation and --grid segmentation cannot be combined.", "Choose one of them.")
    found = diarization_sources.find(ctx, sources)
    called = {path: path.stem if found.kept else found.names[path] for path in found.paths}
    by_name = recordings.read_references(found.paths, reference, uem, called)
    truths = {path: by_name[name] for path, name in called.items()}
    draw_folds(len(found.paths), folds, seed)  # too few are refused before any sound is read
    _note_unused(reference, truths)
    table = _check_outputs(out, [*found.paths, *found.sounds.values(), reference, *([] if uem is None else [uem])])
    ctx.with_resource(locked_files([table]))
    task = check_own_outputs(ctx, out, table)
    scoring = Scoring(collar, skip_overlap, num_speakers, min_speakers, max_speakers)
    if found.kept:
        voice = found.model()
        settings, kinds = asked or _default_grid(voice), 0
        opened: Callable[[Path], AnalysisSource] = kept_source
    else:
        from knn_cli.embedding.embedder import Embedder

        embedder = Embedder(model, device=device.value, batch_seconds=batch_seconds)
        voice = embedder.bundle
        settings = asked or _default_grid(voice)
        settings = [replace(each, segmentation=segmentation or each.segmentation) for each in settings]
        folder = _analysis_folder(settings, embedder, out, sound_channel(channel, track))
        kinds = len({windows_key(each.options) for each in settings})
        opened = partial(partial, folder.opened)
        ctx.with_resource(locked_files([folder.path(path, each.options) for each in settings for path in found.paths]))
        note_model(model, voice, f"on {embedder.device}")
    errors, failures = _score(found.paths, opened, kinds, [each.options for each in settings], voice, truths, scoring)
    if len(errors) < 2:
        leave(failures)
    by_setting = list(zip(*errors.values(), strict=True))  # of each setting, one error for each recording
    fold = draw_folds(len(errors), folds, seed)
    selection = select_setting(by_setting, fold, seed=seed)
    lines = list(tune_results.summary_lines(selection, settings, len(errors)))
    with replacing_text(table, task=task) as stream:
        stream.writelines(tune_results.table_lines(by_setting, fold.tolist(), settings, selection))
    with replacing_text(out, task=task) as stream:
        stream.write(file_text(settings[selection.chosen], [f"knn tune, model {voice.fingerprint}", *lines]))
    console.note(tune_results.few_note(by_setting[0]))
    typer.echo("\n".join([*lines, f"settings    {out}", f"table       {table}"]))
    leave(failures)


def _check_outputs(out: Path, read: Sequence[Path]) -> Path:
    """The table beside the settings; KnnError where one of the two would replace what is read, or the other."""
    from knn_cli.cli import tune_results
    from knn_cli.core.output_paths import check_outputs

    table = out.with_suffix(".tsv")
    if table == out:
        raise KnnError(f"{out} is the name of the table.", "Name the settings .toml; the table stands beside them.")
    check_text_output(out, read)
    check_outputs([out, table], read)
    if table.exists() and not table.read_bytes().startswith("\t".join(tune_results.COLUMNS).encode()):
        raise KnnError(f"{table} would be replaced, and is no table of `knn tune`.", "Name other settings.")
    return table


def _note_unused(reference: Path, truths: Mapping[Path, tuple[Annotation, Timeline | None]]) -> None:
    """Note the recordings of the reference that are not tuned on."""
    from knn_cli.formats import turn_readers

    used = {str(truth.uri) for truth, _ in truths.values()}
    if unused := [name for name in turn_readers.read_references(reference) if name not in used]:
        more = f" and {len(unused) - MOST_LISTED} others" if len(unused) > MOST_LISTED else ""
        console.note(
            f"{reference} has turns of recordings that are not there: {', '.join(unused[:MOST_LISTED])}{more}."
        )


def _default_grid(voice: Bundle) -> list[TunableSettings]:
    from knn_cli.diarization.clustering import plda

    return default_grid(with_plda=(voice.folder / plda.FILE).is_file())


def _analysis_folder(
    settings: Sequence[TunableSettings], embedder: Embedder, out: Path, channel: str
) -> AnalysisFolder:
    """The folder of analyses beside the output, made where it is not there."""
    from knn_cli.core.output_paths import make_output_folder
    from knn_cli.diarization.tuning import AnalysisFolder, segmentation_name

    folder = out.with_name(f"{out.name}.analyses")
    make_output_folder(folder, [], [])
    options = {segmentation_name(each.options): each.options for each in settings}
    loaded = {name: segmenter_of(each, embedder) for name, each in options.items()}
    return AnalysisFolder(folder, embedder, loaded, channel)


def _score(
    paths: Sequence[Path],
    opened: Callable[[Path], AnalysisSource],
    kinds: int,
    options: Sequence[DiarizationOptions],
    voice: Bundle,
    truths: Mapping[Path, tuple[Annotation, Timeline | None]],
    scoring: Scoring,
) -> tuple[dict[Path, list[DiarizationError]], list[Failure]]:
    """The errors of each recording under each of the options; recordings that fail are reported, and left out.

    opened : gives the source of a recording's analyses
    kinds : how many kinds of windows are made of the sound
    """
    from knn_cli.cli import progress
    from knn_cli.diarization import tuning
    from knn_cli.diarization.pipeline import build_clusterer

    for each in options:  # impossible settings are refused before any file
        build_clusterer(each.clusterer, each.clusterer_settings, voice)
    errors: dict[Path, list[DiarizationError]] = {}
    failures: list[Failure] = []
    passes = [progress.SEGMENTATION_PASS, progress.EMBEDDING_PASS] * kinds
    with progress.over_files("Tuning", len(paths), lambda _: passes) as finished:
        for path in paths:
            try:
                errors[path] = tuning.score_settings(options, opened(path), voice, truths[path], scoring)
            except KnnError as error:
                failures.append(failed(str(path), error))
            finished()
    return errors, failures
