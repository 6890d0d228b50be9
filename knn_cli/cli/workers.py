"""Where a command's work is done: in its own process, or by the workers of a cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from knn_cli.cli.console import console

if TYPE_CHECKING:
    from knn_cli.core.cluster import Cluster
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
def recording_map(where: str | None) -> Iterator[RecordingMap]:
    """What goes through recordings: the process itself, or the workers of the cluster that is named."""
    from knn_cli.store.corpora.recording_map import by_workers, one_by_one

    if where is None:
        yield one_by_one
        return
    with on_cluster(where) as cluster:
        yield by_workers(cluster)
