"""The command line: each command parses, calls plain functions of the rooms below, and writes what they return.

stdout is data, stderr is talk. Exit 0: all done; 1: something failed, said on stderr, the rest is done; 2: usage.
Nothing heavy is imported before a command runs, so that `knn --help` answers at once.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from knn_cli import __version__
from knn_cli.errors import KnnError
from knn_cli.terminal import Commands, failed, leave, talk

if TYPE_CHECKING:
    from knn_cli.bundle import Bundle
    from knn_cli.types import ScoreTable


app = typer.Typer(
    name="knn",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Spoken language and dialect identification, and speaker diarization. Offline; a CPU will do.",
)


class Device(str, Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Level(str, Enum):
    group = "group"
    subgroup = "subgroup"
    speaker = "speaker"
    name = "name"


class Linkage(str, Enum):
    average = "average"
    centroid = "centroid"


class Clusterer(str, Enum):
    ahc = "ahc"
    spectral = "spectral"


def _quieter(value: bool) -> None:
    talk.quiet = talk.quiet or value


def _louder(value: bool) -> None:
    talk.verbose = talk.verbose or value


QuietOption = Annotated[bool, typer.Option("-q", "--quiet", callback=_quieter, help="Only errors on stderr.")]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", callback=_louder, help="More on stderr.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="Model by name or folder; `knn info` lists them.")]
DeviceOption = Annotated[Device, typer.Option("--device", help="Where the network runs.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what exists.")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON lines.")]
ChannelOption = Annotated[str, typer.Option("--channel", help="mix, left, right, or a number from 1.")]
VadOption = Annotated[bool, typer.Option("--vad/--no-vad", help="Use speech only, or all of the sound.")]
BatchOption = Annotated[float, typer.Option("--batch-seconds", help="Sound that goes through the network at once.")]
SegmentOption = Annotated[
    float | None, typer.Option("--segment", help="A result every so many seconds instead of one a file.")
]


def _version(show: bool) -> None:
    if show:
        typer.echo(f"knn {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="And leave.")] = False,
) -> None:
    pass


@app.command()
def convert(
    src: Annotated[Path, typer.Argument(help="Folder of audio or .gz embeddings, file, store, checkpoint, or model.")],
    out: Annotated[Path, typer.Argument(help="Store (.h5), .npz, .ark, .scp, .csv, .parquet, a folder, or .onnx.")],
    labels: Annotated[
        str,
        typer.Option(
            "--labels",
            help="folder, group/speaker/file, a regular expression, or a table.csv; for a checkpoint of a training, "
            "its classes a,b,c or a file of them.",
        ),
    ] = "folder",
    segment: Annotated[float, typer.Option("--segment", help="Seconds a segment of sound.")] = 40.0,
    minimum: Annotated[float, typer.Option("--min-segment", help="Shorter rests are dropped.")] = 1.0,
    channel: ChannelOption = "mix",
    rate: Annotated[
        int, typer.Option("--rate", min=4000, max=192000, help="Samples a second of an audio store.")
    ] = 16000,
    recursive: Annotated[bool, typer.Option("-r", "--recursive", help="Find .gz embeddings at any depth.")] = False,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML of the training that wrote the checkpoint.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="8-bit weights in an .onnx file.")] = False,
    force: ForceOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Turn sound into a store, others' embeddings into a store and back, a checkpoint into a model, a model to ONNX."""
    from knn_cli import convert as room

    with talk.progress("Converting") as progress:
        made = room.convert(
            src,
            out,
            label_rule=labels,
            segment=segment,
            minimum=minimum,
            channel=channel,
            rate=rate,
            recursive=recursive,
            config=config,
            int8=int8,
            force=force,
            progress=progress,
        )
    if made.kind == "audio":
        done = f"{made.sources} recordings, {made.rows} segments, {_duration(made.seconds)}"
        again = f" ({made.earlier} recordings done before)" if made.earlier else ""
        talk.note(f"{made.out}: {done}{again}.")
        if made.dropped:
            talk.note(f"Dropped {made.dropped} rests under {minimum:g} s, {made.dropped_seconds:.1f} s in all.")
    elif made.kind == "bundle":
        talk.note(f"{made.out}: a model of {made.rows / 1e6:.1f} M parameters; name it with --model.")
    elif made.export is not None:
        was = f", {made.export.float_size / 1e6:.1f} MB without --int8" if int8 else ""
        talk.note(f"{made.out}: {made.rows / 1e6:.1f} M parameters, {made.export.size / 1e6:.1f} MB{was}.")
        near = f"within {made.export.difference:.1e}, cosine at least {made.export.cosine:.6f}"
        talk.note(f"onnxruntime agrees with torch on {made.export.clips} random clips: {near}.")
    else:
        talk.note(f"{made.out}: {made.rows} rows of {made.sources} recordings.")
    leave(made.failures, unsaid=True)


@app.command()
def embed(
    src: Annotated[list[Path], typer.Argument(help="Audio files, folders of audio, or one audio store.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Embedding store (.h5) to write.")] = None,
    model: ModelOption = None,
    segment: SegmentOption = None,
    vad: VadOption = True,
    channel: ChannelOption = "mix",
    labels: Annotated[
        str, typer.Option("--labels", help="As for convert, for audio that goes into a store.")
    ] = "folder",
    device: DeviceOption = Device.auto,
    batch_seconds: BatchOption = 120.0,
    as_json: JsonOption = False,
    force: ForceOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Embeddings of sound: into a store, or as Kaldi text vectors or JSON lines on stdout."""
    from knn_cli import pipeline, present, store
    from knn_cli.embedder import Embedder

    if out is not None:
        if as_json:
            raise KnnError("--json is for stdout, -o writes a store.", "Choose one of the two.")
        store.check_free(out, force)
    options = pipeline.EmbedOptions(segment=segment, use_vad=vad, channel=channel)
    stores = [path for path in src if pipeline.is_store(path)]
    if stores and len(src) > 1:
        raise KnnError("A store is embedded by itself.", "Name one store, or audio files and folders.")
    files = [] if stores else pipeline.audio_files(src, labels)
    embedder = Embedder(model, device=device.value, batch_seconds=batch_seconds)
    _say_model(model, embedder.bundle, f"on {embedder.device}")
    with talk.progress("Embedding") as progress:
        if out is not None:
            source: Any = stores[0] if stores else files
            made = pipeline.embed_into(source, out, embedder, options, force=force, progress=progress)
            with store.Store(out) as written:
                whole = len(written)
            new = "" if whole == made.rows else f" ({made.rows} new, the rest from before)"
            talk.note(
                f"{out}: {whole} embeddings{new} of {embedder.dimension} values by {embedder.bundle.fingerprint}."
            )
            _say_silent(made.silent)
            leave(made.failures, unsaid=True)
            return
        if stores:
            for rows in pipeline.embed_store(stores[0], embedder, options):
                if isinstance(rows, pipeline.Silent):
                    _say_silent(rows.rows)
                else:
                    present.embeddings(sys.stdout, rows, as_json)
            return
        failures = []
        results = zip(pipeline.line_names(files), pipeline.embed(files, embedder, options), strict=True)
        for done, (key, (file, found)) in enumerate(results, start=1):
            progress(done, len(files))
            if isinstance(found, KnnError):
                failures.append(failed(file, found))
            else:
                present.embeddings(sys.stdout, found, as_json, key=key, file=file)
    leave(failures)


def _say_model(asked: str | None, found: Bundle, more: str) -> None:
    """Which model is at work: said of one that the user did not name, else only where details are wanted."""
    (talk.detail if asked else talk.note)(f"Model {found.fingerprint}, {more}.")


@app.command()
def train(
    ctx: typer.Context,
    src: Annotated[
        Path,
        typer.Argument(
            help="Embedding store, or audio store (embedded first); a folder of audio or .tar for --recipe."
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the model to write.")],
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="TOML file: train a network on sound (docs/training.md).")
    ] = None,
    label: Annotated[Level, typer.Option("--label", help="What the classes are.")] = Level.subgroup,
    ignore: Annotated[str, typer.Option("--ignore", help="Labels to leave out, such as 5,7.")] = "",
    balanced: Annotated[
        bool, typer.Option("--balanced", help="Average the covariance over classes, not rows.")
    ] = False,
    held_out: Annotated[float, typer.Option("--held-out", help="Share of recordings kept for the figures.")] = 0.2,
    seed: Annotated[int, typer.Option("--seed", help="Of the split.")] = 0,
    view: Annotated[str, typer.Option("--view", help="Part of the embedding, such as language; default all.")] = "",
    model: Annotated[str | None, typer.Option("--model", help="Model that embeds an audio store.")] = None,
    vad: VadOption = True,
    device: DeviceOption = Device.auto,
    batch_seconds: BatchOption = 120.0,
    force: ForceOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train a classifier of languages, dialects or speakers on a store, minutes on a CPU; or a network by a recipe."""
    if recipe is not None:
        given = {one for one in ctx.params if getattr(ctx.get_parameter_source(one), "name", "") == "COMMANDLINE"}
        return _train_network(src, out, recipe, given, device=device.value, use_vad=vad, force=force)
    from knn_cli import bundle, classification, pipeline
    from knn_cli.atomic import check_output

    bundle.check_free(out, force)
    check_output(out, [src])
    with talk.progress("Embedding") as progress:
        rows = pipeline.training_rows(
            src, model, device.value, batch_seconds, label=label.value, use_vad=vad, progress=progress
        )
    if model is None:
        talk.note(f"Embeddings of {rows.embedder or 'an unknown model'}.")
    ignored = [one.strip() for one in ignore.split(",") if one.strip()]
    done = classification.train(
        rows,
        out,
        label=label.value,
        ignore=ignored,
        balanced=balanced,
        fraction=held_out,
        seed=seed,
        view=view,
        force=force,
    )
    if done.not_found:
        talk.note(f"No row has the ignored label {', '.join(done.not_found)}.")
    if not done.bundle.has_network:
        talk.note("The model that made these embeddings is not here, so the new one classifies embeddings only.")
    if done.left_out:
        talk.note(f"Left out {done.left_out} rows that are ignored or have no {label.value}.")
    if not done.calibrated:
        talk.note("A class has too few recordings to calibrate the measured classifier; its costs are uncalibrated.")
    held = sum(kept for _, kept in done.counts.values())
    typer.echo(f"labels      {len(done.counts)}: {', '.join(done.counts)}")
    typer.echo(
        f"held out    {held} rows, {done.units} disjoint from the {sum(n for n, _ in done.counts.values())} fitted"
    )
    typer.echo(f"accuracy    {done.accuracy:.1%}")
    typer.echo(f"Cprimary    {done.cprimary:.3f} (minimum {done.min_cprimary:.3f})")
    typer.echo(f"model       {out}")


def _train_network(src: Path, out: Path, recipe: Path, given: set[str], **options: Any) -> None:
    from knn_cli import recipe_reader, training

    asked = recipe_reader.read(recipe, given)
    with talk.progress("Training") as progress:
        done = training.train(src, out, asked, progress=progress, report=lambda one: talk.note(one.line), **options)
    if done.finished is not None:  # only the main process of a training has the word
        talk.note(done.finished.note)
        typer.echo("\n".join(done.lines))


@app.command()
def classify(
    src: Annotated[list[Path], typer.Argument(help="Audio files, folders of audio, or stores.")],
    model: ModelOption = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Labels to show, best first.")] = 3,
    segment: SegmentOption = None,
    vad: VadOption = True,
    channel: ChannelOption = "mix",
    device: DeviceOption = Device.auto,
    batch_seconds: BatchOption = 120.0,
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="File to write instead of stdout.")] = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Language or dialect of files or of a store's rows, with calibrated probabilities."""
    from knn_cli import pipeline, present
    from knn_cli.atomic import replacing_text
    from knn_cli.classification import Classifier

    sources = pipeline.expand(src)
    pipeline.check_text_output(out, sources)
    classifier = Classifier(model, device=device.value, batch_seconds=batch_seconds)
    _say_model(model, classifier.bundle, f"which knows {len(classifier.labels)} labels")
    options = pipeline.EmbedOptions(segment=segment, use_vad=vad, channel=channel)
    failures = []
    tables: list[ScoreTable] = []
    with (
        nullcontext(sys.stdout) if out is None else replacing_text(out) as stream,
        talk.progress("Classifying") as progress,
    ):
        table_wanted = out is None and sys.stdout.isatty() and not as_json
        first, done_any, counts = True, False, (0, 0)
        for done, (name, result) in enumerate(pipeline.classify(sources, classifier, options), start=1):
            progress(done, len(sources))
            if isinstance(result, KnnError):
                failures.append(failed(name, result))
                continue
            if isinstance(result, pipeline.Silent):
                _say_silent(result.rows)
                continue
            right, known = present.right_of(result)
            counts = (counts[0] + right, counts[1] + known)
            done_any = True
            if table_wanted:
                tables.append(result)
            elif as_json:
                present.score_lines(stream, result)
            else:
                present.score_rows(stream, result, top, header=first)
                first = False
        if not done_any:
            leave(failures)  # before an empty file takes the place of an older result
    if table_wanted and tables:
        present.score_table(tables, top, classifier.bundle.name)
    _say_accuracy(counts)
    leave(failures)


@app.command()
def diarize(
    files: Annotated[list[Path], typer.Argument(help="Audio files or folders of audio.")],
    rttm: Annotated[Path | None, typer.Option("--rttm", help="RTTM file to write; default stdout.")] = None,
    out_dir: Annotated[Path | None, typer.Option("--out-dir", help="Folder for one output a file.")] = None,
    as_json: JsonOption = False,
    num_speakers: Annotated[int | None, typer.Option("--num-speakers", help="How many there are.")] = None,
    min_speakers: Annotated[int | None, typer.Option("--min-speakers", help="How many at least.")] = None,
    max_speakers: Annotated[int | None, typer.Option("--max-speakers", help="How many at most.")] = None,
    clusterer: Annotated[
        Clusterer, typer.Option("--clusterer", help="How voices are told apart.")
    ] = Clusterer.spectral,
    linkage: Annotated[Linkage | None, typer.Option("--linkage", help="Of ahc.")] = None,
    threshold: Annotated[float | None, typer.Option("--threshold", help="Of ahc: cosine distance, 0 to 2.")] = None,
    min_cluster: Annotated[int | None, typer.Option("--min-cluster-size", help="Of ahc: windows a speaker.")] = None,
    model: ModelOption = None,
    channel: ChannelOption = "mix",
    device: DeviceOption = Device.auto,
    batch_seconds: BatchOption = 120.0,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Who spoke when: turns of each speaker as RTTM or JSON."""
    from knn_cli import pipeline, report
    from knn_cli.atomic import replacing_text
    from knn_cli.diarization import check_speakers
    from knn_cli.embedder import Embedder

    if rttm is not None and (out_dir is not None or as_json):
        raise KnnError("--rttm goes with neither --out-dir nor --json.", "Choose one way out.")
    check_speakers(num_speakers, min_speakers, max_speakers)
    of_ahc = {"linkage": linkage and linkage.value, "threshold": threshold, "minimum_size": min_cluster}
    settings = {key: value for key, value in of_ahc.items() if value is not None}
    sources = pipeline.expand(files)
    ending = "json" if as_json else "rttm"
    pipeline.check_text_output(rttm, sources)
    embedder = Embedder(model, device=device.value, batch_seconds=batch_seconds)
    _say_model(model, embedder.bundle, f"on {embedder.device}")
    if out_dir is not None:
        out_dir.mkdir(parents=True, exist_ok=True)
    speakers = {"num_speakers": num_speakers, "min_speakers": min_speakers, "max_speakers": max_speakers}
    write = report.DIARIZATION_WRITERS[ending]
    failures, done = [], 0
    turns = pipeline.diarize(sources, embedder, clusterer.value, settings, channel, **speakers)
    with nullcontext(sys.stdout) if rttm is None else replacing_text(rttm) as stream:
        for path, found in turns:
            if isinstance(found, KnnError):
                failures.append(failed(str(path), found))
                continue
            done += 1
            if not found:
                talk.note(f"{path} holds no speech; its {ending.upper()} is empty.")
            else:
                talk.detail(f"{path}: {len(found.labels())} speakers, {len(found)} turns.")
            if out_dir is None:
                write(found, stream)
            else:
                with replacing_text(out_dir / f"{path.stem}.{ending}") as own:
                    write(found, own)
        if rttm is not None and not done:
            leave(failures)  # before an empty file takes the place of an older result
    leave(failures)


@app.command()
def info(
    what: Annotated[list[str] | None, typer.Argument(help="Stores, models, audio; none lists the models.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """What a store, a model or an audio file is."""
    from knn_cli import describe, present

    facts = [describe.describe(one) for one in what] if what else describe.models()
    for number, one in enumerate(facts):
        if as_json:
            present.json_line(sys.stdout, one)
            continue
        if number:
            typer.echo()
        width = max(map(len, one))
        for key, value in one.items():
            typer.echo(f"{key:<{width}}  {_plain(value)}")


def _say_accuracy(counts: tuple[int, int]) -> None:
    right, known = counts
    if known:
        talk.note(f"Of {known} rows with a label that the model knows, {right} are right ({right / known:.1%}).")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {count}" for key, count in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.1f} s"
        if seconds < 120
        else f"{seconds / 60:.1f} min"
        if seconds < 7200
        else f"{seconds / 3600:.2f} h"
    )


def _say_silent(rows: int) -> None:
    if rows:
        talk.note(f"Left out {rows} segments without enough speech.")


def main() -> NoReturn:
    """The `knn` command."""
    app()
    raise SystemExit(0)
