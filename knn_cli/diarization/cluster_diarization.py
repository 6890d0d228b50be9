"""Diarization of recordings by the workers of a cluster: the same turns as by one process, in the same order.

Each recording is analysed and clustered in a worker; names and labels over recordings are the business of the command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from knn_cli.core.cluster import Cluster
from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.values import Diarization
from knn_cli.diarization.kept_analysis import KeptAnalysis
from knn_cli.diarization.recordings import AnalysisUser, diarize_recordings
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


class _Diarized(NamedTuple):
    """What a worker has of a recording."""

    result: Diarization | KnnError
    analysis: KeptAnalysis | None


def _prepared(place: DiarizerPlace, settings: Mapping[str, Any], keeps: bool) -> Callable[[Path], _Diarized]:
    """In a worker: what diarizes a recording."""
    options = replace(settings["options"], segmentation=_segmenter(place))
    return partial(_diarize, place.embedder, {**settings, "options": options}, keeps)


def _diarize(place: EmbedderPlace, settings: Mapping[str, Any], keeps: bool, path: Path) -> _Diarized:
    kept: list[KeptAnalysis] = []
    analysed = (lambda _, analysis: kept.append(analysis)) if keeps else None
    ((_, result),) = diarize_recordings([path], place.load(), analysed=analysed, **settings)
    return _Diarized(result, kept[0] if kept else None)


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
    for path, found in zip(files, by_workers(cluster)(prepare, files), strict=True):
        if isinstance(found, KnnError):
            yield path, found
            continue
        try:
            if analysed is not None and found.analysis is not None:
                analysed(path, found.analysis)
        except KnnError as error:
            yield path, error
            continue
        yield path, as_named(found.result, path) if isinstance(found.result, KnnError) else found.result
