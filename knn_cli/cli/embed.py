"""`knn embed`: compute embeddings of recordings, to a store or to stdout."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from knn_cli.cli import stdin
from knn_cli.cli.console import console, failed, leave
from knn_cli.cli.options import (
    OUTPUT,
    AgainOption,
    BackupOption,
    BatchOption,
    ChannelOption,
    ChunkOption,
    ClusterOption,
    Device,
    DeviceOption,
    ForceOption,
    JobsOption,
    JsonOption,
    LabelsOption,
    ModelOption,
    NoVadOption,
    PrecisionName,
    PrecisionOption,
    QuietOption,
    SegmentOption,
    SpeechOption,
    TrackOption,
    VerboseOption,
    counted,
    epilog,
    note_model,
    note_silent_rows,
    refuse_together,
    refuse_without,
    sound_channel,
    valued,
)
from knn_cli.cli.own_outputs import check_own_outputs
from knn_cli.cli.repeated_stores import note_finished, noting, store_repetition
from knn_cli.cli.skipped import note_skipped
from knn_cli.core.errors import KnnError

if TYPE_CHECKING:
    from knn_cli.core.cluster import Cluster
    from knn_cli.core.values import EmbeddingSet
    from knn_cli.embedding.embedder import Embedder
    from knn_cli.embedding.options import EmbeddingOptions, RowsWithoutSpeech
    from knn_cli.store.corpora.recordings import CorpusRecording

EPILOG = epilog(
    "knn embed corpus.h5 -o embeddings.h5",
    "knn embed recordings/ -o embeddings.h5 --labels group/speaker/file",
    "knn embed talk.mp3 --model language --json",
)


def embed(
    ctx: typer.Context,
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE", help="Audio files, URLs, folders and lists of them, one audio store, or -."),
    ],
    labels: LabelsOption = "folder",
    segment: SegmentOption = None,
    channel: ChannelOption = "mix",
    track: TrackOption = None,
    no_vad: NoVadOption = False,
    speech: SpeechOption = None,
    out: Annotated[
        Path | None,
        valued("-o", "--out", metavar="STORE", panel=OUTPUT, help="Write an embedding store (.h5), not to stdout."),
    ] = None,
    as_json: JsonOption = False,
    force: ForceOption = False,
    backup: BackupOption = False,
    again: AgainOption = False,
    model: ModelOption = None,
    device: DeviceOption = Device.auto,
    batch_seconds: BatchOption = 120.0,
    chunk: ChunkOption = None,
    precision: PrecisionOption = PrecisionName.auto,
    jobs: JobsOption = None,
    cluster: ClusterOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Compute embeddings of recordings.

    They are written to a store, where an interrupted command can be continued, or to stdout as Kaldi text vectors or
    JSON lines. The default model computes speaker embeddings; --model language computes embeddings of languages.
    """
    from knn_cli.cli.workers import on_cluster
    from knn_cli.embedding.embedder import Embedder
    from knn_cli.embedding.files import embed_recordings
    from knn_cli.embedding.options import EmbeddingOptions
    from knn_cli.embedding.stores import embed_rows, embed_store
    from knn_cli.formats.speech_lists import restricted
    from knn_cli.networks.chunk_setting import parse_chunk
    from knn_cli.networks.precision import check_precision
    from knn_cli.store import hdf5
    from knn_cli.store.corpora.registry import read_corpora
    from knn_cli.store.writer import check_free

    refuse_together(ctx, [("as_json", "out"), ("jobs", "cluster")])
    refuse_without(
        ctx, {"labels": ("out",), "cluster": ("out",), **dict.fromkeys(("force", "backup", "again"), ("out",))}
    )
    if out is not None:
        check_free(out, force=True)
        check_own_outputs(ctx, out)
    options = EmbeddingOptions(segment=segment, use_vad=not no_vad, channel=sound_channel(channel, track))
    received = stdin.open_sources(ctx, sources)
    received.receive()
    sources = received.paths
    stores = [path for path in sources if hdf5.is_store(path)]
    if stores and len(sources) > 1:
        raise KnnError(
            "A store cannot be embedded together with other sources.", "Name one store, or audio files and folders."
        )
    recordings = [] if stores else read_corpora(sources, labels)
    note_skipped(sources)
    if speech is not None:
        if stores:
            raise KnnError(f"{stores[0]} is a store, whose rows are cut already.", "Leave --speech out.")
        recordings = restricted(recordings, speech)
    embedder = Embedder(
        model,
        device=device.value,
        batch_seconds=batch_seconds,
        chunk=parse_chunk(chunk),
        precision=check_precision(precision.value),
    )
    note_model(model, embedder.bundle, f"on {embedder.device}")
    if out is not None:
        with nullcontext() if cluster is None else on_cluster(cluster) as workers:
            here = partial(embed_rows if stores else embed_recordings, jobs=jobs)
            embed = here if workers is None else _by_workers(workers, device, of_rows=bool(stores))
            _into_store(ctx, stores[0] if stores else recordings, out, embedder, options, embed)
    elif stores:
        _store_to_stdout(embed_store(stores[0], embedder, options, jobs=jobs), as_json)
    else:
        results = embed_recordings(recordings, embedder, options, jobs=jobs)
        _recordings_to_stdout(recordings, results, as_json, received.temporary)


def _by_workers(workers: Cluster, device: Device, *, of_rows: bool) -> Callable[..., Iterator[Any]]:
    """What embeds recordings, or the rows of a store, in the workers of a cluster."""
    from knn_cli.embedding.cluster_embedding import EmbedderPlace, embed_on_cluster, embed_rows_on_cluster

    if of_rows:
        return partial(embed_rows_on_cluster, workers, device.value)

    def embed(recordings: Sequence[CorpusRecording], embedder: Embedder, options: EmbeddingOptions) -> Iterator[Any]:
        return embed_on_cluster(workers, recordings, EmbedderPlace.of(embedder, device.value), options)

    return embed


def _into_store(
    ctx: typer.Context,
    source: Path | list[CorpusRecording],
    out: Path,
    embedder: Embedder,
    options: EmbeddingOptions,
    embed: Callable[..., Iterator[Any]],
) -> None:
    from knn_cli.embedding import stores
    from knn_cli.store import hdf5

    begun = time.monotonic()
    with console.progress("Embedding") as progress:
        more: dict[str, Any] = {"force": ctx.params["force"], "progress": noting(progress), "embed": embed}
        more["repetition"] = store_repetition(ctx)
        if isinstance(source, Path):
            result = stores.embed_store_into(source, out, embedder, options, **more)
        else:
            result = stores.embed_recordings_into(source, out, embedder, options, **more)
    if result.was_finished:
        note_finished(out)
        return
    with hdf5.Store(out) as written:
        rows = len(written)
    new = "" if rows == result.rows else f" ({result.rows} new, the rest from before)"
    of = f"of {embedder.dimension} values by {embedder.bundle.fingerprint}"
    console.note(f"{out}: {counted(rows, 'embedding')}{new} {of}.")
    if result.seconds:
        rate = result.seconds / (time.monotonic() - begun)
        console.detail(f"{result.seconds / 3600:.2f} h of sound, {rate:,.0f} s of it a second.")
    note_silent_rows(result.without_speech)
    leave(
        result.failures, report_errors=True, done=0 if isinstance(source, Path) else len(source) - len(result.failures)
    )


def _store_to_stdout(groups: Iterator[EmbeddingSet | RowsWithoutSpeech], as_json: bool) -> None:
    from knn_cli.cli import output
    from knn_cli.embedding.options import RowsWithoutSpeech

    for rows in groups:
        if isinstance(rows, RowsWithoutSpeech):
            note_silent_rows(rows.rows)
        else:
            output.embeddings(sys.stdout, rows, as_json)


def _recordings_to_stdout(
    recordings: list[CorpusRecording],
    embedded: Iterator[tuple[str, EmbeddingSet | KnnError]],
    as_json: bool,
    temporary: bool,
) -> None:
    from knn_cli.cli import output
    from knn_cli.store import labels
    from knn_cli.store.row_labels import KeyPath

    failures = []
    # Keys of Kaldi's lines: stems, so that pieces of one recording differ, with folders where they do not.
    stems = [KeyPath(entry.sound.member or entry.sound.path).stem for entry in recordings]
    keys = labels.distinct(stems, [entry.sound.path.parent for entry in recordings])
    results = zip(keys, embedded, strict=True)
    with console.progress("Embedding") as progress:
        for done, (key, (file, rows)) in enumerate(results, start=1):
            progress(done, len(recordings))
            if isinstance(rows, KnnError):
                failures.append(failed(file, rows))
            else:
                output.embeddings(sys.stdout, rows, as_json, key=key, file=stdin.TITLE if temporary else file)
    leave(failures, done=len(recordings) - len(failures))
