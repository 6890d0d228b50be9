"""`knn convert`: convert recordings, embeddings, checkpoints and models from one format to another."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from knn_cli.cli import own_outputs, stdin
from knn_cli.cli.console import console, leave
from knn_cli.cli.diarization_options import TurnFormat
from knn_cli.cli.format_options import format_option
from knn_cli.cli.label_lists import parse_languages
from knn_cli.cli.limits import MOST_SECONDS, within
from knn_cli.cli.options import (
    INPUT,
    MODEL,
    OUTPUT,
    AgainOption,
    BackupOption,
    ChannelOption,
    ClusterOption,
    ForceOption,
    JobsOption,
    LabelsOption,
    LanguagesOption,
    QuietOption,
    SegmentOption,
    SpeechOption,
    TrackOption,
    VerboseOption,
    counted,
    epilog,
    flag,
    given,
    refuse_beside,
    refuse_together,
    refuse_without,
    sound_channel,
    switch,
    valued,
)
from knn_cli.cli.repeated_stores import note_finished, noting, store_repetition
from knn_cli.cli.skipped import note_skipped
from knn_cli.cli.turn_additions import AddToOption, TemplateOption, TurnAdditions, WordsOption
from knn_cli.cli.turn_conversion import AudioOption, convert_turns, is_of_turns
from knn_cli.core.errors import KnnError


class Adaptation(str, Enum):
    """How a PLDA is adapted."""

    kaldi = "kaldi"
    coral_plus = "coral-plus"


EPILOG = epilog(
    "knn convert recordings/ corpus.h5 --segment 4",
    "knn convert language models/central-europe --languages cs,sk,pl",
    "knn convert turns.rttm turns.html --audio talk.wav",
    formats=TurnFormat,
)


def convert(
    ctx: typer.Context,
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE",
            help="Audio, URL, folder or list of it, - (stdin), embeddings, stores, checkpoint, model, turns.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="TARGET",
            help="Store (.h5), .npz, .ark, .scp, .csv, .onnx, .parquet, folder (model, Kaldi), or turns.",
        ),
    ],
    labels: LabelsOption = "folder",
    segment: SegmentOption = 40.0,
    min_segment: Annotated[
        float,
        valued(
            "--min-segment",
            metavar="SECONDS",
            callback=within(0, MOST_SECONDS),
            panel=INPUT,
            help="Drop remainders shorter than this.",
        ),
    ] = 1.0,
    channel: ChannelOption = "mix",
    track: TrackOption = None,
    speech: SpeechOption = None,
    recursive: Annotated[
        bool, switch("-r", "--recursive", panel=INPUT, help="Find .gz embeddings at any depth.")
    ] = False,
    config: Annotated[
        Path | None,
        valued("--config", metavar="FILE", panel=INPUT, help="Checkpoint: its settings, as YAML."),
    ] = None,
    origin: Annotated[
        str | None,
        valued("--origin", metavar="NAME", panel=INPUT, help="Checkpoint: of wespeaker or 3d-speaker."),
    ] = None,
    average: Annotated[
        str | None,
        valued(
            "--average",
            metavar="WHICH",
            panel=INPUT,
            help="Mean of a training's last checkpoints (3), or of SOURCE and others (b.pt,c.pt).",
        ),
    ] = None,
    rate: Annotated[
        int,
        valued(
            "--rate",
            metavar="HZ",
            callback=within(4000, 192000),
            panel=OUTPUT,
            help="Store audio at this sampling rate.",
        ),
    ] = 16000,
    int8: Annotated[bool, switch("--int8", panel=OUTPUT, help="Make a model or .onnx file of 8-bit weights.")] = False,
    virtual: Annotated[
        bool, switch("--virtual", panel=OUTPUT, help="Refer to several stores, copying labels only.")
    ] = False,
    force: ForceOption = False,
    backup: BackupOption = False,
    again: AgainOption = False,
    languages: LanguagesOption = "",
    adapt: Annotated[
        Path | None,
        valued("--adapt", metavar="STORE", panel=MODEL, help="Adapt a model's PLDA to these embeddings."),
    ] = None,
    adaptation: Annotated[
        Adaptation,
        valued("--adaptation", metavar="METHOD", panel=MODEL, help="Adapt by kaldi or coral-plus.", show_default=False),
    ] = Adaptation.kaldi,
    audio: AudioOption = None,
    words: WordsOption = None,
    add_to: AddToOption = None,
    format: Annotated[str | None, format_option(TurnFormat)] = None,
    template: TemplateOption = False,
    jobs: JobsOption = None,
    cluster: ClusterOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Convert recordings, embeddings, checkpoints, models and turns.

    Recordings become an audio store, cut into segments and labelled from their paths. Embeddings of other programs
    become a store, a store becomes any of their formats, several stores become one. A checkpoint becomes a model
    (--labels gives its classes: a,b,c or a file), as does a saved classifier of KNN-proj; settings of wespeaker (.yaml)
    become a recipe (.toml). A model becomes ONNX, with --languages one of these labels, with --int8 one of 8 bits, with
    --adapt one whose PLDA fits other recordings. Turns go from any format to any other.
    """
    from knn_cli.cli.workers import recording_map
    from knn_cli.networks import bundle, conversion
    from knn_cli.networks.hub import HUB
    from knn_cli.store import embedding_writers, hdf5

    if stdin.STDIN in sources:
        received = stdin.open_sources(ctx, sources)
        received.receive()
        sources = received.paths
    if len(sources) > 1 or virtual:
        _merge_stores(ctx, sources, out, virtual)
        return
    src = stdin.known_urls(sources)[0]
    if is_of_turns(ctx, src, out):
        additions = TurnAdditions.given(words, add_to, template)
        convert_turns(ctx, src, out, additions, sound_channel(channel, track))
        return
    if (names := parse_languages(languages)) is not None:
        refuse_beside(ctx, "languages", ("sources", "out", "force", "quiet", "verbose"), "Convert in two steps.")
        _keep_labels(src, out, names, force)
        return
    refuse_without(ctx, {"adaptation": ("adapt",)})
    if adapt is not None:
        allowed = ("sources", "out", "force", "adaptation", "quiet", "verbose")
        refuse_beside(ctx, "adapt", allowed, "Convert in two steps.")
        _adapt_plda(src, out, adapt, adaptation, force)
        return
    if _converted_glc(ctx, src, out, force) or _converted_recipe(ctx, src, out, force):
        return
    assert segment is not None  # it has a default here
    refuse_together(ctx, [("jobs", "cluster")])
    for option, asked in (("--cluster", cluster), ("--jobs", jobs)):
        if asked is not None and not conversion.is_of_recordings(src):
            raise KnnError(f"{src} holds no recordings, which {option} is for.", f"Leave {option} out.")

    in_bytes = str(src).startswith(HUB)
    recordings = not in_bytes and conversion.is_of_recordings(src)
    files = [] if recordings or in_bytes or not out.suffix or out.is_dir() else embedding_writers.outputs(out)
    task = own_outputs.output_task(ctx, own_outputs.task_digest(ctx, [], [src]) if files else "")
    if out.is_file() and own_outputs.is_finished(ctx, task, files):
        note_finished(out)
        return
    force = own_outputs.may_replace(ctx, task, files) if files else force
    with (
        recording_map(cluster, jobs) as each,
        console.progress("Downloading" if in_bytes else "Converting", in_bytes=in_bytes) as progress,
    ):
        result = conversion.convert(
            src,
            out,
            label_rule=labels,
            segment=segment,
            min_segment=min_segment,
            channel=sound_channel(channel, track),
            rate=rate,
            speech=speech,
            recursive=recursive,
            config=config,
            origin=origin,
            average=average,
            int8=int8,
            force=force,
            progress=noting(progress) if recordings else progress,
            repetition=store_repetition(ctx),
            each=each,
        )
    own_outputs.note_outputs(task, files)
    if result.was_finished:
        note_finished(result.out)
        return
    if result.kind == "audio":
        counts = f"{counted(result.sources, 'recording')}, {counted(result.rows, 'segment')}"
        counts = f"{counts}, {_duration(result.seconds)}" if result.sources else "nothing new"
        earlier = f" ({counted(result.earlier, 'recording')} done before)" if result.earlier else ""
        console.note(f"{result.out}: {counts}{earlier}.")
        note_skipped([src])
        if result.dropped:
            lost = f"{result.dropped_seconds:.1f} s in total"
            console.note(f"Dropped {result.dropped} remainders under {min_segment:g} s, {lost}.")
        if result.too_short:
            _note_too_short(result.too_short, min_segment)
        if result.clipped:
            worst = max(result.clipped, key=lambda clipped: clipped.peak)
            more = f", and {counted(len(result.clipped) - 1, 'recording')} less loud" if len(result.clipped) > 1 else ""
            console.note(
                f"Clipped {worst.source}, whose samples go up to {worst.peak:.3g}, where 1 is full scale{more}."
            )
    elif result.kind == "bundle":
        option = "--segmentation" if bundle.find(result.out, segmenter=None).is_segmenter else "--model"
        console.note(f"{result.out}: a model of {result.rows / 1e6:.1f} M parameters; name it with {option}.")
    elif isinstance(result, conversion.OnnxConversion):
        before = f", {result.export.float_size / 1e6:.1f} MB without --int8" if int8 else ""
        size = f"{result.export.size / 1e6:.1f} MB"
        console.note(f"{result.out}: {result.rows / 1e6:.1f} M parameters, {size}{before}.")
        near = f"within {result.export.difference:.1e}, cosine at least {result.export.cosine:.6f}"
        console.note(f"onnxruntime agrees with torch on {result.export.clips} random clips: {near}.")
    else:
        console.note(f"{result.out}: {result.rows} rows of {result.sources} recordings.")
    if result.out.suffix.lower() in hdf5.SUFFIXES:
        _show_labels(result.out)
        if labels == "folder" and result.kind == "audio" and _has_folders_of_folders(src):
            console.note(
                "Labels are from the last folder of each path. Are the folders group/speaker? "
                "Then give --labels group/speaker/file."
            )
    if result.unlabelled:
        of = f"{counted(len(result.unlabelled), 'recording')} of {result.sources + result.earlier}"
        console.note(f"No label is known of {of}, such as {result.unlabelled[0]}; --labels says where labels stand.")
    leave(result.failures, report_errors=True, done=result.sources + result.earlier if result.failures else 0)


def _note_too_short(names: list[str], minimum: float) -> None:
    """Name the recordings of which nothing is in the store: all of them if verbose, else three."""
    shown = names if console.verbose else names[:3]
    more = f" and {len(names) - len(shown)} more (-v names all)" if len(names) > len(shown) else ""
    are = "is" if len(names) == 1 else "are"
    console.note(
        f"{counted(len(names), 'recording')} {are} shorter than {minimum:g} s, and not in the store: "
        f"{', '.join(shown)}{more}. A smaller --min-segment keeps such recordings."
    )


def _has_folders_of_folders(folder: Path) -> bool:
    """Whether recordings may lie two folders deep, as in dialect/speaker/file."""
    return folder.is_dir() and any(inner.is_dir() for inner in folder.glob("*/*"))


def _show_labels(store: Path) -> None:
    """Say what was read from paths and keys, so that a wrong guess is seen at once: counts, and three recordings."""
    import numpy as np

    from knn_cli.core.values import LABEL_LEVELS
    from knn_cli.store.hdf5 import Store

    levels = [level for level in LABEL_LEVELS if level != "name"]
    with Store(store) as opened:
        columns = {level: opened.encoded(level) for level in levels}
        counts = {level: len({*column.values.tolist()} - {""}) for level, column in columns.items()}
        found = [counted(count, level) if count else f"no {level}s" for level, count in counts.items()]
        console.note(f"Labels: {', '.join(found)}.")
        if not any(counts.values()):
            return
        finest = next(level for level in ("subgroup", "group", "speaker") if counts[level])
        names = opened.codes("name")
        first = np.sort(columns[finest].first_rows())  # a recording of each class, then others
        rows = np.concatenate([first, np.sort(np.unique(names, return_index=True)[1])])
        shown = rows[np.sort(np.unique(names[rows], return_index=True)[1])][:3]
        for row in shown.tolist():
            labels = opened.labels(row, row + 1)
            known = [f"{level} {labels.label(level)[0]}" for level in levels if labels.label(level)[0]]
            console.note(f"  {labels.name[0]}: {', '.join(known) or 'no label'}")


def _converted_glc(ctx: typer.Context, src: Path, out: Path, force: bool) -> bool:
    """Whether the source is a saved classifier of KNN-proj, which is then converted."""
    from knn_cli.store import hdf5

    if src.suffix.lower() not in hdf5.SUFFIXES:
        return False
    from knn_cli.recognition.saved_glc import convert_saved_glc, is_saved_glc

    if not is_saved_glc(src):
        return False
    _refuse_others(ctx, f"{src}, a saved classifier")
    labels = convert_saved_glc(src, out, force=force).config["labels"]
    console.note(f"{out}: a model of the labels {', '.join(labels)}; name it with `knn classify --model`.")
    console.note("It classifies stores of embeddings of whichever model it was fitted on: the file does not say which.")
    return True


def _converted_recipe(ctx: typer.Context, src: Path, out: Path, force: bool) -> bool:
    """Whether settings of a training are to become a recipe, which is then written."""
    if src.suffix.lower() not in (".yaml", ".yml") or out.suffix.lower() != ".toml":
        return False
    from knn_cli.core.atomic import replacing_text
    from knn_cli.core.output_paths import check_output
    from knn_cli.store.writer import check_free
    from knn_cli.training.wespeaker_recipe import recipe_of_wespeaker

    _refuse_others(ctx, f"{src}, settings of a training")
    check_output(out, [src])
    check_free(out, force)
    converted = recipe_of_wespeaker(src)
    with replacing_text(out) as file:
        file.write(converted.text)
    console.note(f"{out}: a recipe for `knn train --recipe`.")
    for key, why in converted.left.items():
        console.note(f"Not carried over, {key}: {why}.")
    return True


def _refuse_others(ctx: typer.Context, what: str, *allowed: str) -> None:
    """Refuse options that are for other sources."""
    if more := sorted(given(ctx) - {"sources", "out", "force", "quiet", "verbose", *allowed}):
        raise KnnError(f"{flag(ctx, more[0])} does not apply to {what}.", "Leave it out.")


def _merge_stores(ctx: typer.Context, sources: list[Path], out: Path, virtual: bool) -> None:
    """Write several stores to one, or one that refers to them."""
    from knn_cli.store.merging import check_stores, merge_stores

    _refuse_others(ctx, "several stores", "virtual", "backup", "again")
    check_stores(sources, out)
    task = own_outputs.output_task(ctx, own_outputs.task_digest(ctx, [], sources))
    if own_outputs.is_finished(ctx, task, [out]):
        note_finished(out)
        return
    force = own_outputs.may_replace(ctx, task, [out])
    with console.progress("Merging") as progress:
        result = merge_stores(sources, out, virtual=virtual, force=force, progress=progress)
    own_outputs.note_outputs(task, [out])
    rows, of = counted(result.rows, "row"), counted(result.sources, "recording")
    console.note(f"{out}: {rows} of {of}, of {len(sources)} stores.")


def _keep_labels(src: Path, out: Path, names: list[str], force: bool) -> None:
    """Write a bundle of some of a model's labels, and report what it knows."""
    from knn_cli.recognition.classifier import Classifier
    from knn_cli.recognition.label_sets import write_label_set

    labels = Classifier(write_label_set(src, out, names, force=force).folder).labels
    console.note(f"{out}: a model of the labels {', '.join(labels)}; name it with `knn classify --model`.")
    console.note("It has no threshold of unknown, and no measured figures: those of the source are of all its labels.")


def _adapt_plda(src: Path, out: Path, store: Path, method: Adaptation, force: bool) -> None:
    """Write a model with an adapted PLDA, and report how much it grew."""
    from knn_cli.diarization.adapted_models import write_adapted

    adapted = write_adapted(src, store, out, method=method.value, force=force)
    between, within = adapted.growth
    console.note(f"{out}: the PLDA of {src} adapted to {counted(adapted.rows, 'embedding')}.")
    console.note(f"Variance between speakers is {between:.2f} times as large, within speakers {within:.2f} times.")


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.2f} h"
