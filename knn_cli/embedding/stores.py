"""Embeddings of audio stores, and embeddings written into stores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from knn_cli.audio import speech_regions
from knn_cli.core.errors import Failure, KnnError
from knn_cli.core.output_paths import check_output
from knn_cli.core.parallel import limited
from knn_cli.core.values import EmbeddingSet, Progress
from knn_cli.embedding.embedder import BATCH_SECONDS, Embedder
from knn_cli.embedding.files import embed_recordings
from knn_cli.embedding.options import EmbeddingOptions, RowsWithoutSpeech
from knn_cli.embedding.row_groups import EmbeddedRows, embed_group, row_groups
from knn_cli.networks import bundle
from knn_cli.networks.chunk_setting import Chunk
from knn_cli.store.corpora.recordings import CorpusRecording
from knn_cli.store.hdf5 import Store
from knn_cli.store.source_list import Repetition, source_facts, source_stamp
from knn_cli.store.writer import StoreWriter

__all__ = [
    "EmbeddedRows",
    "EmbeddingSummary",
    "embed_recordings_into",
    "embed_rows",
    "embed_store",
    "embed_store_into",
    "load_or_embed",
]


RecordingEmbedder = Callable[
    [Sequence[CorpusRecording], Embedder, EmbeddingOptions], Iterator[tuple[str, EmbeddingSet | KnnError]]
]


RowEmbedder = Callable[..., Iterator[EmbeddedRows]]  # as `embed_rows`


@dataclass
class EmbeddingSummary:
    """What was written into a store of embeddings.

    Attributes
    ----------
    rows : int
        Rows that this run wrote; those of an interrupted run before it are not counted.
    without_speech : int
        Rows of an audio store that were left out because they hold too little speech.
    seconds : float
        Of the recordings that this run embedded, from the start to the end of each row.
    failures : list of Failure
        Files that have no embeddings.
    was_finished : bool
        Whether all was finished before, and nothing was written.
    """

    rows: int = 0
    seconds: float = 0.0
    without_speech: int = 0
    failures: list[Failure] = field(default_factory=list)
    was_finished: bool = False


def embed_rows(
    store: Store,
    embedder: Embedder,
    *,
    use_vad: bool = True,
    skip: Collection[str] = (),
    jobs: int | None = None,
) -> Iterator[EmbeddedRows]:
    """Embed the rows of an open audio store, group of rows after group of rows.

    Parameters
    ----------
    store : Store
        Of the kind "audio".
    embedder : Embedder
    use_vad : bool
        Embed speech only.
    skip : collection of str
        Keys of groups that are not embedded again.
    jobs : int, optional
        Processors that are used on a CPU; by default those that are idle.

    Yields
    ------
    EmbeddedRows

    Raises
    ------
    KnnError
        The store's rate is not the model's.
    """
    for group in row_groups(store, embedder, skip):
        with limited(jobs):
            embedded = embed_group(store, group, embedder, use_vad)
        yield embedded


def embed_store(
    path: Path, embedder: Embedder, options: EmbeddingOptions, *, jobs: int | None = None
) -> Iterator[EmbeddingSet | RowsWithoutSpeech]:
    """Embed an audio store.

    Parameters
    ----------
    path : Path
    embedder : Embedder
    options : EmbeddingOptions
    jobs : int, optional
        See `embed_rows`.

    Yields
    ------
    EmbeddingSet or RowsWithoutSpeech
        Embeddings, group of rows after group of rows; last the number of rows that have none, unless it is 0.

    Raises
    ------
    SilenceError
        No row holds speech.
    KnnError
        `options` do not suit a store.
    """
    options.check_store()
    rows = without_speech = 0
    with Store(path, "audio") as store:
        for group in embed_rows(store, embedder, use_vad=options.use_vad, jobs=jobs):
            rows += len(group.embeddings)
            without_speech += group.without_speech
            yield group.embeddings
    if not rows:
        raise speech_regions.no_speech(str(path), options.use_vad)
    if without_speech:
        yield RowsWithoutSpeech(without_speech)


def embed_store_into(
    source: Path,
    out: Path,
    embedder: Embedder,
    options: EmbeddingOptions,
    *,
    force: bool = False,
    progress: Progress | None = None,
    repetition: Repetition | None = None,
    embed: RowEmbedder = embed_rows,
) -> EmbeddingSummary:
    """Write the embeddings of an audio store into a store of embeddings; an interrupted run is continued.

    Parameters
    ----------
    source, out : Path
    embedder : Embedder
    options : EmbeddingOptions
    force : bool
        Replace `out` if it exists.
    progress : Progress, optional
        Called with the number of rows that are done, and of all rows.
    repetition : Repetition, optional
        Goes on with a store that the same command has written; see `StoreWriter`. Its sources are groups of rows.
    embed : callable
        What computes them: `embed_rows`, or workers of a cluster in its place.

    Returns
    -------
    EmbeddingSummary

    Raises
    ------
    StoreError
        See `store.writer.StoreWriter`.
    KnnError
        No row could be embedded.
    """
    check_output(out, [source])
    summary = EmbeddingSummary()
    plan = {**_plan(embedder, options), "store": source_stamp(source), "groups": embedder.batch_seconds}
    options.check_store()
    attributes = {"embedder": embedder.bundle.fingerprint}
    more: dict[str, Any] = {"plan": plan, "force": force, "repetition": repetition}
    with Store(source, "audio") as store, StoreWriter(out, "embeddings", attributes, **more) as writer:
        if writer.is_finished:
            return EmbeddingSummary(was_finished=True)
        for group in embed(store, embedder, use_vad=options.use_vad, skip=writer.finished):
            if group.error is not None:
                summary.failures.append(Failure(f"{source} up to row {group.done}", group.error))
            summary.rows += len(group.embeddings) and writer.add(group.key, group.embeddings)
            summary.without_speech += group.without_speech
            if progress is not None:
                progress(group.done, len(store))
        if not summary.rows and not writer.finished:
            nothing = speech_regions.no_speech(str(source), options.use_vad)
            raise summary.failures[0].error if summary.failures else nothing
    return summary


def embed_recordings_into(
    recordings: Sequence[CorpusRecording],
    out: Path,
    embedder: Embedder,
    options: EmbeddingOptions,
    *,
    force: bool = False,
    progress: Progress | None = None,
    repetition: Repetition | None = None,
    embed: RecordingEmbedder = embed_recordings,
) -> EmbeddingSummary:
    """Write the embeddings of recordings into a store of embeddings; an interrupted run is continued.

    Parameters
    ----------
    recordings : sequence of CorpusRecording
        See `store.corpora.registry.read_corpora`.
    out, embedder, options, force, progress, repetition
        As of `embed_store_into`; progress counts recordings.
    embed : callable
        What computes them: `files.embed_recordings`, or workers of a cluster in its place.

    Returns
    -------
    EmbeddingSummary

    Raises
    ------
    StoreError
        See `store.writer.StoreWriter`.
    KnnError
        No recording could be embedded: the first one's error.
    """
    check_output(out, [recording.sound.path for recording in recordings])
    summary = EmbeddingSummary()
    attributes = {"embedder": embedder.bundle.fingerprint}
    more: dict[str, Any] = {"sources": source_facts(recordings), "force": force, "repetition": repetition}
    with StoreWriter(out, "embeddings", attributes, plan=_plan(embedder, options), **more) as writer:
        summary.was_finished = writer.is_finished
        left = [recording for recording in recordings if str(recording.sound) not in writer.finished]
        for done, (name, result) in enumerate(embed(left, embedder, options), start=1):
            if isinstance(result, KnnError):
                summary.failures.append(Failure(name, result))
            else:
                summary.rows += writer.add(name, result)
                summary.seconds += float((result.end - result.start).sum())
            if progress is not None:
                progress(done, len(left))
        if not summary.rows and not writer.finished:
            raise summary.failures[0].error
    return summary


def load_or_embed(
    path: Path,
    model: str | None = None,
    device: str = "auto",
    batch_seconds: float = BATCH_SECONDS,
    *,
    chunk: Chunk | None = None,
    label: str = "group",
    use_vad: bool = True,
    progress: Progress | None = None,
) -> EmbeddingSet | Path:
    """Embeddings to train a classifier on.

    Parameters
    ----------
    path : Path
        A store of embeddings or of audio.
    model : str, optional
        Name or path of the bundle that embeds an audio store; None takes the shipped model of speaker embeddings
        where `label` is "speaker", otherwise that of languages.
    device, batch_seconds, chunk
        See `Embedder`.
    label : str
        The label that will be learnt.
    use_vad : bool
        Embed speech only.
    progress : Progress, optional
        Called with the number of rows that are done, and of all rows.

    Returns
    -------
    EmbeddingSet or Path
        The path itself for a store of embeddings, which is then read in blocks.

    Raises
    ------
    KnnError
        A model or a chunk is given for a store of embeddings.
    SilenceError
        No row holds speech.
    """
    with Store(path) as store:
        if store.kind == "embeddings":
            if model is not None:
                raise KnnError(f"{path} holds embeddings already, so `model` has nothing to do.", "Leave it out.")
            if chunk is not None:
                raise KnnError(f"{path} holds embeddings already, so `chunk` has nothing to do.", "Leave it out.")
            return path
        shipped = bundle.VOICE if label == "speaker" else bundle.LANGUAGE
        named = shipped if model is None else model
        embedder = Embedder(named, device=device, batch_seconds=batch_seconds, chunk=chunk)
        parts = []
        for group in embed_rows(store, embedder, use_vad=use_vad):
            parts.append(group.embeddings)
            if progress is not None:
                progress(group.done, len(store))
    if not sum(map(len, parts)):
        raise speech_regions.no_speech(str(path), use_vad)
    return EmbeddingSet.concatenate(parts)


def _plan(embedder: Embedder, options: EmbeddingOptions) -> dict[str, Any]:
    """What an interrupted run must share with the one that continues it."""
    return {"embedder": embedder.bundle.fingerprint, "options": vars(options)}
