"""The command line: each command parses, calls plain functions of the rooms below, and writes what they return.

stdout is data, stderr is console. Exit 0: all done; 1: something failed, said on stderr, the rest is done; 2: usage.
Nothing heavy is imported before a command runs, so that `knn --help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from knn_cli import __version__
from knn_cli.cli import classify, diarize, train
from knn_cli.cli.console import Commands, console, failed, leave
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
    say_model,
    say_silent,
)
from knn_cli.core.errors import KnnError

app = typer.Typer(
    name="knn",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Spoken language and dialect identification, and speaker diarization. Offline; a CPU will do.",
)


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
    from knn_cli.networks import bundle
    from knn_cli.networks import conversion as room

    with console.progress("Converting") as progress:
        made = room.convert(
            src,
            out,
            label_rule=labels,
            segment=segment,
            min_segment=minimum,
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
        console.note(f"{made.out}: {done}{again}.")
        if made.dropped:
            console.note(f"Dropped {made.dropped} remainders under {minimum:g} s, {made.dropped_seconds:.1f} s in all.")
    elif made.kind == "bundle":
        option = "--segmentation" if bundle.find(made.out, segmenter=None).is_segmenter else "--model"
        console.note(f"{made.out}: a model of {made.rows / 1e6:.1f} M parameters; name it with {option}.")
    elif isinstance(made, room.OnnxConversion):
        was = f", {made.export.float_size / 1e6:.1f} MB without --int8" if int8 else ""
        console.note(f"{made.out}: {made.rows / 1e6:.1f} M parameters, {made.export.size / 1e6:.1f} MB{was}.")
        near = f"within {made.export.difference:.1e}, cosine at least {made.export.cosine:.6f}"
        console.note(f"onnxruntime agrees with torch on {made.export.clips} random clips: {near}.")
    else:
        console.note(f"{made.out}: {made.rows} rows of {made.sources} recordings.")
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
    from knn_cli.cli import output, pipeline
    from knn_cli.embedding import stores as embedding_stores
    from knn_cli.embedding.embedder import Embedder
    from knn_cli.embedding.files import embed_files, labelled_files
    from knn_cli.embedding.options import EmbeddingOptions, RowsWithoutSpeech
    from knn_cli.store import hdf5
    from knn_cli.store.writer import check_free

    if out is not None:
        if as_json:
            raise KnnError("--json is for stdout, -o writes a store.", "Choose one of the two.")
        check_free(out, force)
    options = EmbeddingOptions(segment=segment, use_vad=vad, channel=channel)
    stores = [path for path in src if hdf5.is_store(path)]
    if stores and len(src) > 1:
        raise KnnError("A store is embedded by itself.", "Name one store, or audio files and folders.")
    files = [] if stores else labelled_files(src, labels)
    embedder = Embedder(model, device=device.value, batch_seconds=batch_seconds)
    say_model(model, embedder.bundle, f"on {embedder.device}")
    with console.progress("Embedding") as progress:
        if out is not None:
            if stores:
                made = embedding_stores.embed_store_into(
                    stores[0], out, embedder, options, force=force, progress=progress
                )
            else:
                made = embedding_stores.embed_files_into(files, out, embedder, options, force=force, progress=progress)
            with hdf5.Store(out) as written:
                whole = len(written)
            new = "" if whole == made.rows else f" ({made.rows} new, the rest from before)"
            console.note(
                f"{out}: {whole} embeddings{new} of {embedder.dimension} values by {embedder.bundle.fingerprint}."
            )
            say_silent(made.without_speech)
            leave(made.failures, unsaid=True)
            return
        if stores:
            for rows in embedding_stores.embed_store(stores[0], embedder, options):
                if isinstance(rows, RowsWithoutSpeech):
                    say_silent(rows.rows)
                else:
                    output.embeddings(sys.stdout, rows, as_json)
            return
        failures = []
        results = zip(pipeline.line_names(files), embed_files(files, embedder, options), strict=True)
        for done, (key, (file, found)) in enumerate(results, start=1):
            progress(done, len(files))
            if isinstance(found, KnnError):
                failures.append(failed(file, found))
            else:
                output.embeddings(sys.stdout, found, as_json, key=key, file=file)
    leave(failures)


app.command()(train.split)
app.command()(train.train)
app.command()(classify.classify)
app.command()(diarize.diarize)


@app.command()
def info(
    what: Annotated[list[str] | None, typer.Argument(help="Stores, models, audio; none lists the models.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """What a store, a model or an audio file is."""
    from knn_cli.cli import info as describe
    from knn_cli.cli import output

    facts = [describe.describe(one) for one in what] if what else describe.models()
    for number, one in enumerate(facts):
        if as_json:
            output.json_line(sys.stdout, one)
            continue
        if number:
            typer.echo()
        width = max(map(len, one))
        for key, value in one.items():
            typer.echo(f"{key:<{width}}  {_plain(value)}")


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


def main() -> NoReturn:
    """The `knn` command."""
    # For pictures in notebooks pyannote.core imports pyplot, most of a second; without that part it does all the rest.
    sys.modules.setdefault("pyannote.core.notebook", None)  # type: ignore[arg-type]
    app()
    raise SystemExit(0)
