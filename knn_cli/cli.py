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

from knn_cli import __version__, cli_classify, cli_recognition
from knn_cli.errors import KnnError
from knn_cli.options import (
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
from knn_cli.terminal import Commands, failed, leave, talk

if TYPE_CHECKING:
    pass


app = typer.Typer(
    name="knn",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Spoken language and dialect identification, and speaker diarization. Offline; a CPU will do.",
)


class Linkage(str, Enum):
    average = "average"
    centroid = "centroid"


class TurnForm(str, Enum):
    rttm = "rttm"
    csv = "csv"
    json = "json"
    textgrid = "textgrid"
    audacity = "audacity"
    srt = "srt"
    vtt = "vtt"
    eaf = "eaf"
    png = "png"
    html = "html"


class Clusterer(str, Enum):
    ahc = "ahc"
    spectral = "spectral"


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
    say_model(model, embedder.bundle, f"on {embedder.device}")
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
            say_silent(made.silent)
            leave(made.failures, unsaid=True)
            return
        if stores:
            for rows in pipeline.embed_store(stores[0], embedder, options):
                if isinstance(rows, pipeline.Silent):
                    say_silent(rows.rows)
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


app.command()(cli_recognition.split)
app.command()(cli_recognition.train)
app.command()(cli_classify.classify)


@app.command()
def diarize(
    files: Annotated[list[Path], typer.Argument(help="Audio files or folders of audio.")],
    rttm: Annotated[Path | None, typer.Option("--rttm", help="RTTM file to write; default stdout.")] = None,
    out_dir: Annotated[Path | None, typer.Option("--out-dir", help="Folder for one output a file.")] = None,
    form: Annotated[TurnForm | None, typer.Option("--format", help="Of the turns; default rttm.")] = None,
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
    reference: Annotated[
        Path | None, typer.Option("--reference", help="Truth, an RTTM file or a folder of them: prints error rates.")
    ] = None,
    uem: Annotated[Path | None, typer.Option("--uem", help="What of each file is scored.")] = None,
    model: ModelOption = None,
    channel: ChannelOption = "mix",
    device: DeviceOption = Device.auto,
    batch_seconds: BatchOption = 120.0,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Who spoke when: turns of each speaker as RTTM, CSV, JSON, TextGrid, EAF, labels, subtitles, picture or player."""
    from knn_cli import audio, der, pipeline, present, report
    from knn_cli.atomic import replacing_text
    from knn_cli.diarization import check_speakers
    from knn_cli.embedder import Embedder
    from knn_cli.types import Diarization

    if rttm is not None and (out_dir is not None or as_json or form is not None):
        raise KnnError("--rttm goes with neither --out-dir nor --json nor --format.", "Choose one way out.")
    if as_json and form is not None:
        raise KnnError("--json and --format do not go together.", "Choose one of them.")
    check_speakers(num_speakers, min_speakers, max_speakers)
    of_ahc = {"linkage": linkage and linkage.value, "threshold": threshold, "minimum_size": min_cluster}
    settings = {key: value for key, value in of_ahc.items() if value is not None}
    if uem is not None and reference is None:
        raise KnnError("--uem goes with --reference.", "Add it.")
    sources = pipeline.expand(files)
    wanted = "json" if as_json else "rttm" if form is None else form.value
    if len(sources) > 1 and out_dir is None and wanted not in report.TOGETHER:
        raise KnnError(f"Several recordings in one {wanted} file could not be told apart.", "Give --out-dir.")
    if wanted in report.FILES_ONLY and out_dir is None:
        raise KnnError(f"A {wanted} file is not for stdout.", "Give --out-dir.")
    truths = pipeline.references(sources, reference, uem)
    known = [one for one in (reference, uem) if one is not None]
    pipeline.check_text_output(rttm, [*sources, *known])
    targets: dict[Path, Path] = {}
    if out_dir is not None:
        targets = {path: out_dir / f"{path.stem}{report.suffix(wanted)}" for path in sources}
        read = sorted(reference.glob("*.rttm")) if reference is not None and reference.is_dir() else []
        pipeline.check_folder_output(out_dir, [*targets.values()], [*sources, *known, *read])
    embedder = Embedder(model, device=device.value, batch_seconds=batch_seconds)
    say_model(model, embedder.bundle, f"on {embedder.device}")
    speakers = {"num_speakers": num_speakers, "min_speakers": min_speakers, "max_speakers": max_speakers}
    failures, done = [], 0
    scores = {}
    turns = pipeline.diarize(sources, embedder, clusterer.value, settings, channel, **speakers)
    with nullcontext(sys.stdout) if rttm is None else replacing_text(rttm) as stream:
        for path, found in turns:
            if isinstance(found, KnnError):
                failures.append(failed(str(path), found))
                continue
            done += 1
            if truths:
                truth, scored = truths[path.stem]
                scores[path.stem] = der.score(truth, found, uem=scored)
            if not found:
                talk.note(f"{path} holds no speech; nothing is in its {wanted}.")
            else:
                talk.detail(f"{path}: {len(found.labels())} speakers, {len(found)} turns.")
            known_turns = Diarization(found, seconds=audio.info(path).seconds)
            if path in targets:
                report.write(known_turns, targets[path], wanted, audio_path=path, channel=channel)
            else:
                report.write_turns(known_turns, stream, wanted, audio_path=path)
        if rttm is not None and not done:
            leave(failures)  # before an empty file takes the place of an older result
    if scores:  # where turns do not go to stdout, this is the data
        present.diarization_scores(sys.stderr if rttm is None and out_dir is None else sys.stdout, scores)
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
    app()
    raise SystemExit(0)
