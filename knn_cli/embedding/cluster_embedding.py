"""Embeddings by the workers of a cluster: the same as by one process, in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch

from knn_cli.core.cluster import Cluster
from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.values import EmbeddingSet
from knn_cli.embedding.embedder import Embedder
from knn_cli.embedding.files import embed_recording
from knn_cli.embedding.options import EmbeddingOptions
from knn_cli.networks import bundle
from knn_cli.networks.chunk_setting import without_suffix
from knn_cli.store.corpora.recording_map import by_workers
from knn_cli.store.corpora.recordings import CorpusRecording

__all__ = ["EmbedderPlace", "embed_on_cluster"]


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
    _, chunk = without_suffix(place.fingerprint)
    found = None
    with suppress(BundleError):
        found = bundle.find(place.folder).with_chunk(chunk)
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
