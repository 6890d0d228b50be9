"""Embeddings of recordings by the workers of a cluster: the same as by one process, in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch

from knn_cli.audio import reading_notes
from knn_cli.core.cluster import Cluster
from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.values import EmbeddingSet
from knn_cli.embedding.embedder import Embedder
from knn_cli.embedding.files import embed_recordings
from knn_cli.embedding.options import EmbeddingOptions
from knn_cli.networks import bundle
from knn_cli.networks.chunk_setting import without_suffix
from knn_cli.store.corpora.recordings import CorpusRecording

__all__ = ["EmbedderPlace", "embed_on_cluster"]

UNIT_BYTES = 16_000_000  # of files with sound that go to a worker together
UNIT_RECORDINGS = 32

Note = tuple[Path, str, bool]  # as `reading_notes.Listener` takes them
Embedded = tuple[EmbeddingSet | KnnError, list[Note]]


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


@dataclass(frozen=True)
class _Unit:
    """Recordings for a worker."""

    recordings: tuple[CorpusRecording, ...]
    embedder: EmbedderPlace
    options: EmbeddingOptions


def _embed(unit: _Unit) -> list[Embedded]:
    """In a worker: what each recording of a unit gives, and what is to be said of its sound."""
    embedder, results = unit.embedder.load(), []
    for recording in unit.recordings:
        notes: list[Note] = []
        with reading_notes.listening(partial(_append, notes)):
            ((_, result),) = embed_recordings([recording], embedder, unit.options)
        results.append((result, notes))
    return results


def _append(notes: list[Note], path: Path, clause: str, loss: bool) -> None:
    notes.append((path, clause, loss))


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
    absolute = [replace(each, sound=replace(each.sound, path=each.sound.path.absolute())) for each in recordings]
    units = [_Unit(tuple(group), embedder, options) for group in _groups(absolute)]
    names = iter(recordings)
    for unit, results in cluster.ordered(_embed, units):
        for result, notes in _by_recording(cluster, unit, results):
            recording = next(names)
            path = recording.sound.path
            for _, clause, loss in notes:
                reading_notes.note(path, clause, loss=loss)
            if isinstance(result, KnnError):
                result = type(result)(result.message.replace(str(path.absolute()), str(path)), result.hint)
            yield str(recording.sound), result


def _by_recording(cluster: Cluster, unit: _Unit, results: list[Embedded] | KnnError) -> Iterator[Embedded]:
    """What each recording of a unit gives; of one that has ended workers, each recording is tried alone."""
    if not isinstance(results, KnnError):
        yield from results
        return
    alone = [replace(unit, recordings=(recording,)) for recording in unit.recordings]
    for _, found in cluster.ordered(_embed, alone) if len(alone) > 1 else [(unit, results)]:
        yield (found, []) if isinstance(found, KnnError) else found[0]


def _groups(recordings: Sequence[CorpusRecording]) -> Iterator[list[CorpusRecording]]:
    """Recordings that go to a worker together: one large file, or several small ones."""
    group: list[CorpusRecording] = []
    total = 0
    for recording in recordings:
        size = recording.sound.size or _size(recording.sound.path)
        if group and (total + size > UNIT_BYTES or len(group) == UNIT_RECORDINGS):
            yield group
            group, total = [], 0
        group.append(recording)
        total += size
    if group:
        yield group


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # the worker that reads it says why
        return 0
