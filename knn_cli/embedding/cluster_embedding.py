"""Embeddings by the workers of a cluster: the same as by one process, in the same order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch

from knn_cli.audio import reading_notes
from knn_cli.core.cluster import Cluster
from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.values import EmbeddingSet
from knn_cli.embedding.embedder import Embedder
from knn_cli.embedding.files import embed_recording
from knn_cli.embedding.options import EmbeddingOptions
from knn_cli.embedding.row_groups import EmbeddedRows, RowGroup, embed_group, row_groups
from knn_cli.networks import bundle
from knn_cli.networks.precision import without_suffix
from knn_cli.store.corpora.recording_map import by_workers
from knn_cli.store.corpora.recordings import CorpusRecording
from knn_cli.store.hdf5 import Store

__all__ = ["EmbedderPlace", "embed_on_cluster", "embed_rows_on_cluster"]


@dataclass(frozen=True)
class EmbedderPlace:
    """An embedder by its fingerprint and the folder in which it is looked for first.

    Attributes
    ----------
    fingerprint : str
        Of the bundle, see `Bundle.fingerprint`.
    folder : Path
        Absolute, of the bundle; where it is not there, the search path is gone through.
    device : str
        As of `Embedder`; "auto" takes what each worker has.
    batch_seconds : float
    """

    fingerprint: str
    folder: Path
    device: str
    batch_seconds: float

    @classmethod
    def of(cls, embedder: Embedder, device: str) -> EmbedderPlace:
        """The place of an embedder that is loaded here, for workers that choose their devices as `device` says."""
        folder = embedder.bundle.folder.resolve()
        return cls(embedder.bundle.fingerprint, folder, device, embedder.batch_seconds)

    def load(self) -> Embedder:
        """The embedder, kept for the units that follow; BundleError where there is none of the fingerprint."""
        return _loaded(self)


@lru_cache(maxsize=2)
def _loaded(place: EmbedderPlace) -> Embedder:
    torch.set_num_threads(1)  # a worker has as many units in hand as it has processors
    _, chunk, precision = without_suffix(place.fingerprint)
    found = None
    with suppress(BundleError):
        found = bundle.find(place.folder).with_settings(chunk=chunk, precision=precision)
    if found is None or not bundle.same_embedder(found.fingerprint, place.fingerprint):
        found = bundle.find_embedder(place.fingerprint)
    return Embedder(found, device=place.device, batch_seconds=place.batch_seconds)


def _prepared(place: EmbedderPlace, options: EmbeddingOptions) -> Callable[[CorpusRecording], EmbeddingSet]:
    """In a worker: what embeds a recording."""
    return partial(embed_recording, embedder=place.load(), options=options)


def embed_on_cluster(
    cluster: Cluster, recordings: Sequence[CorpusRecording], embedder: EmbedderPlace, options: EmbeddingOptions
) -> Iterator[tuple[str, EmbeddingSet | KnnError]]:
    """Embed recordings in the workers of a cluster, as `files.embed_recordings` does it here.

    Parameters
    ----------
    cluster : Cluster
    recordings : sequence of CorpusRecording
        Workers read the files under their absolute paths.
    embedder : EmbedderPlace
    options : EmbeddingOptions

    Yields
    ------
    str
        Where a recording is.
    EmbeddingSet or KnnError
        Its embeddings; the error of a recording that has none, or at which several workers ended.

    Raises
    ------
    KnnError
        The scheduler is gone, or workers lack the model.
    """
    results = by_workers(cluster)(partial(_prepared, embedder, options), recordings)
    for recording, result in zip(recordings, results, strict=True):
        yield str(recording.sound), result


@dataclass(frozen=True)
class _RowUnit:
    """Rows of an audio store for a worker."""

    store: Path
    group: RowGroup
    embedder: EmbedderPlace
    use_vad: bool


def _embed_rows(unit: _RowUnit) -> tuple[EmbeddedRows, list[tuple[Path, str, bool]]]:
    """In a worker: the embeddings of rows, and what is to be said of them."""
    notes: list[tuple[Path, str, bool]] = []
    with reading_notes.listening(lambda *note: notes.append(note)), Store(unit.store, "audio") as store:
        return embed_group(store, unit.group, unit.embedder.load(), unit.use_vad), notes


def embed_rows_on_cluster(
    cluster: Cluster,
    device: str,
    store: Store,
    embedder: Embedder,
    *,
    use_vad: bool = True,
    skip: Collection[str] = (),
) -> Iterator[EmbeddedRows]:
    """Embed the rows of an open audio store in the workers of a cluster, as `stores.embed_rows` does it here.

    Parameters
    ----------
    cluster : Cluster
    device : str
        As of `Embedder`, for the workers.
    store : Store
        Workers open it under its absolute path.
    embedder, use_vad, skip
        As of `stores.embed_rows`.

    Yields
    ------
    EmbeddedRows
        With an error for a group at which several workers ended.

    Raises
    ------
    KnnError
        As `stores.embed_rows`; and the scheduler is gone, or workers lack the model.
    """
    place, path = EmbedderPlace.of(embedder, device), store.path.absolute()
    units = (_RowUnit(path, group, place, use_vad) for group in row_groups(store, embedder, skip))
    for unit, found in cluster.ordered(_embed_rows, units):
        result = cluster.alone(_embed_rows, unit) if isinstance(found, KnnError) else found
        if isinstance(result, KnnError):
            none = embedder.embedding_set({}, [], [])
            yield EmbeddedRows(unit.group.key, none, 0, unit.group.rows.stop, result)
            continue
        rows, notes = result
        for _, clause, loss in notes:
            reading_notes.note(store.path, clause, loss=loss)
        cluster.sound_seconds += unit.group.seconds
        yield rows
