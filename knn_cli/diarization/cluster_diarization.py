"""Diarization of recordings by the workers of a cluster: the same turns as by one process, in the same order.

Each recording is analysed and clustered in a worker; names and labels over recordings are the business of the command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from knn_cli.core.cluster import Cluster
from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.values import Diarization
from knn_cli.diarization.recordings import AnalysisUser, DiarizedRecording, diarize_recording
from knn_cli.diarization.segmentation import Segmenter
from knn_cli.embedding.cluster_embedding import EmbedderPlace
from knn_cli.networks import bundle
from knn_cli.store.corpora.recording_map import as_named, by_workers

__all__ = ["DiarizerPlace", "diarize_on_cluster"]


@dataclass(frozen=True)
class DiarizerPlace:
    """The networks of a diarizer, by which workers find them.

    Attributes
    ----------
    embedder : EmbedderPlace
    segmentation : str
        Fingerprint of the segmentation network, "" where there is none.
    folder : Path
        Absolute, of its bundle.
    """

    embedder: EmbedderPlace
    segmentation: str = ""
    folder: Path = Path()

    @classmethod
    def of(cls, embedder: EmbedderPlace, segmenter: Segmenter | None) -> DiarizerPlace:
        """The place of networks that are loaded here."""
        if segmenter is None:
            return cls(embedder)
        return cls(embedder, segmenter.bundle.fingerprint, segmenter.bundle.folder.resolve())


@lru_cache(maxsize=2)
def _segmenter(place: DiarizerPlace) -> Segmenter | None:
    """In a worker: the segmentation network, kept for the units that follow."""
    if not place.segmentation:
        return None
    found = bundle.find(place.folder, segmenter=True)
    if found.fingerprint != place.segmentation:
        raise BundleError(
            f"A worker has {found.fingerprint} in {place.folder}, not {place.segmentation}.",
            "Put the same model there on all machines.",
        )
    return Segmenter(found, embedder=place.embedder.load())


def _prepared(place: DiarizerPlace, settings: Mapping[str, Any], keeps: bool) -> Callable[[Path], DiarizedRecording]:
    """In a worker: what diarizes a recording."""
    options = replace(settings["options"], segmentation=_segmenter(place))
    return partial(diarize_recording, embedder=place.embedder.load(), keeps=keeps, **{**settings, "options": options})


def diarize_on_cluster(
    cluster: Cluster, files: Sequence[Path], place: DiarizerPlace, *, analysed: AnalysisUser | None = None, **more: Any
) -> Iterator[tuple[Path, Diarization | KnnError]]:
    """Diarize files in the workers of a cluster, as `recordings.diarize_recordings` does it here.

    Parameters
    ----------
    cluster : Cluster
    files : sequence of Path
        Workers read them under their absolute paths.
    place : DiarizerPlace
        The networks; those in `options` are not sent.
    analysed : callable, optional
        As of `diarize_recordings`; it is called here.
    **more
        Further arguments of `diarize_recordings`.

    Yields
    ------
    tuple of Path and (Diarization or KnnError)

    Raises
    ------
    KnnError
        The scheduler is gone, or workers lack a model.
    """
    settings = {**more, "options": replace(more["options"], segmentation=None)}
    prepare = partial(_prepared, place, settings, analysed is not None)
    for path, found in zip(files, by_workers(cluster)(prepare, files, KnnError), strict=True):
        result = found if isinstance(found, KnnError) else found.used(path, analysed)
        yield path, as_named(result, path) if isinstance(result, KnnError) else result
