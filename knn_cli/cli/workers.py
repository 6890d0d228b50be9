"""Where a command's work is done: in its own process, or by the workers of a cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from knn_cli.cli.console import console

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from knn_cli.cli.options import Device
    from knn_cli.core.cluster import Cluster
    from knn_cli.core.errors import KnnError
    from knn_cli.core.values import Diarization
    from knn_cli.diarization.options import DiarizationOptions
    from knn_cli.embedding.embedder import Embedder
    from knn_cli.store.corpora.recording_map import RecordingMap


@contextmanager
def on_cluster(where: str) -> Iterator[Cluster]:
    """Connect to a cluster (`core.cluster.opened_cluster`); say so, and at the end how much sound went through it."""
    from knn_cli.core.cluster import opened_cluster

    with opened_cluster(where) as cluster:
        shown = f", shown at {cluster.dashboard}" if cluster.dashboard else ""
        console.note(f"Cluster {where}: {cluster.threads} processors{shown}.")
        begun = time.monotonic()
        yield cluster
        if cluster.sound_seconds:
            rate = cluster.sound_seconds / (time.monotonic() - begun)
            console.detail(f"Cluster {where}: {cluster.sound_seconds / 3600:.2f} h of sound, {rate:,.0f} s a second.")


@contextmanager
def recording_map(where: str | None, jobs: int | None) -> Iterator[RecordingMap]:
    """What goes through recordings without networks: this process, or the workers of the cluster that is named."""
    from knn_cli.store.corpora.recording_map import at_once, by_workers

    if where is None:
        yield at_once(None, jobs)
        return
    with on_cluster(where) as cluster:
        yield by_workers(cluster)


@contextmanager
def recording_diarizer(where: str | None, device: Device, jobs: int | None) -> Iterator[Callable[..., Iterator[Any]]]:
    """What diarizes recordings, as `diarization.recordings.diarize_recordings`: it, or workers of the cluster named."""
    from knn_cli.diarization.recordings import diarize_recordings

    if where is None:
        yield partial(diarize_recordings, jobs=jobs)
        return
    from knn_cli.diarization.cluster_diarization import DiarizerPlace, diarize_on_cluster
    from knn_cli.diarization.segmentation import Segmenter
    from knn_cli.embedding.cluster_embedding import EmbedderPlace

    with on_cluster(where) as cluster:

        def diarize(
            files: Sequence[Path], embedder: Embedder, *, options: DiarizationOptions, **more: Any
        ) -> Iterator[tuple[Path, Diarization | KnnError]]:
            segmenter = options.segmentation if isinstance(options.segmentation, Segmenter) else None
            place = DiarizerPlace.of(EmbedderPlace.of(embedder, device.value), segmenter)
            return diarize_on_cluster(cluster, files, place, options=options, **more)

        yield diarize
