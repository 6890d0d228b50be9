"""Groups of neighbouring rows of an audio store, which are embedded together, here or by a worker of a cluster."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from knn_cli.audio import segments, speech_regions
from knn_cli.core.errors import KnnError
from knn_cli.core.values import EmbeddingSet, Segment
from knn_cli.embedding.chunks import rechunk
from knn_cli.embedding.embedder import Embedder
from knn_cli.store import labels
from knn_cli.store.hdf5 import Store
from knn_cli.store.labels import Labels

__all__ = ["EmbeddedRows", "RowGroup", "embed_group", "row_groups"]

UNKNOWN_SECONDS = 20.0  # for which a row counts whose start or end is not known


@dataclass(frozen=True)
class RowGroup:
    """Neighbouring rows of an audio store.

    Attributes
    ----------
    key : str
        Names the group; the same in every run with the same batch size.
    rows : range
    seconds : float
        From the start to the end of each.
    """

    key: str
    rows: range
    seconds: float


@dataclass(frozen=True)
class EmbeddedRows:
    """Embeddings of neighbouring rows of an audio store.

    Attributes
    ----------
    key : str
        See `RowGroup`.
    embeddings : EmbeddingSet
    without_speech : int
        Rows of the group that are left out because they hold too little speech.
    done : int
        Rows of the store up to the end of the group.
    error : KnnError or None
        Why the group has no embeddings.
    """

    key: str
    embeddings: EmbeddingSet
    without_speech: int
    done: int
    error: KnnError | None = None


def row_groups(store: Store, embedder: Embedder, skip: Collection[str] = ()) -> Iterator[RowGroup]:
    """Consecutive rows, each group of at least the seconds of a batch; those with a key in `skip` are left out.

    Raises
    ------
    KnnError
        The store's rate is not the model's.
    """
    if store.rate != embedder.rate:
        raise KnnError(
            f"{store.path} holds sound at {store.rate} Hz, {embedder.bundle.name} needs {embedder.rate} Hz.",
            f"Convert the recordings again with `rate={embedder.rate}`.",
        )
    start, end = store.times()
    lengths = np.where(np.isfinite(end - start), end - start, UNKNOWN_SECONDS).tolist()
    first, total, number = 0, 0.0, 0
    for row, seconds in enumerate(lengths):
        total += seconds
        if total >= embedder.batch_seconds or row + 1 == len(lengths):
            if str(number) not in skip:
                yield RowGroup(str(number), range(first, row + 1), total)
            first, total, number = row + 1, 0.0, number + 1


def embed_group(store: Store, group: RowGroup, embedder: Embedder, use_vad: bool) -> EmbeddedRows:
    """Embed a group of rows of an open audio store."""
    rows = [*store.segments(group.rows)]
    regions = speech_regions.of_clips([row.waveform for row in rows], use_vad=use_vad)
    kept = [index for index, found in enumerate(regions) if segments.total_seconds(found) >= embedder.minimum_seconds]
    embedder.note_parts(store.path, max((segments.total_seconds(regions[index]) for index in kept), default=0.0))
    speech = (
        (index, rows[index].waveform.crop(region.start, region.end).samples)
        for index in kept
        for region in regions[index]
    )
    vectors = embedder.averages(rechunk(speech, embedder.rate, embedder.chunk_seconds))
    spans = [Segment(rows[index].start, rows[index].end) for index in kept]
    known = [Labels(*(getattr(rows[index], name) for name in labels.FIELDS)) for index in kept]
    embeddings = embedder.embedding_set(vectors, spans, known)
    return EmbeddedRows(group.key, embeddings, len(rows) - len(kept), group.rows.stop)
