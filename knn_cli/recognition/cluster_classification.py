"""Scores of recordings by the workers of a cluster: the same as by one process, in the same order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from knn_cli.core.cluster import Cluster
from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.file_digests import file_sha256
from knn_cli.core.values import ScoreTable
from knn_cli.embedding.options import EmbeddingOptions
from knn_cli.networks.bundle import Bundle
from knn_cli.recognition.classifier import Classifier
from knn_cli.recognition.classify_files import CAUGHT, score_source
from knn_cli.store.corpora.recording_map import by_workers
from knn_cli.store.corpora.recordings import CorpusRecording

__all__ = ["ClassifierPlace", "score_on_cluster"]


@dataclass(frozen=True)
class ClassifierPlace:
    """A classifier, by which workers find it.

    Attributes
    ----------
    folder : Path
        Absolute, of the bundle.
    digest : str
        Of all that its scores follow from.
    settings : tuple
        Further arguments of `Classifier`, with their names.
    """

    folder: Path
    digest: str
    settings: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, classifier: Classifier, settings: Mapping[str, Any]) -> ClassifierPlace:
        """The place of a classifier that was made here with these settings."""
        hashable = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        return cls(classifier.bundle.folder.resolve(), _digest(classifier.bundle), tuple(hashable.items()))

    def load(self) -> Classifier:
        """The classifier, kept for the units that follow; BundleError where there is another one in the folder."""
        return _loaded(self)


def _digest(bundle: Bundle) -> str:
    classifier = "" if bundle.classifier is None else file_sha256(bundle.classifier)
    facts = json.dumps([bundle.fingerprint, dict(bundle.config), classifier], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()


@lru_cache(maxsize=2)
def _loaded(place: ClassifierPlace) -> Classifier:
    torch.set_num_threads(1)  # a worker has as many units in hand as it has processors
    classifier = Classifier(place.folder, **dict(place.settings))
    if _digest(classifier.bundle) != place.digest:
        raise BundleError(f"A worker has another model in {place.folder}.", "Put the same one there on all machines.")
    return classifier


def _prepared(place: ClassifierPlace, options: EmbeddingOptions) -> Callable[[Path | CorpusRecording], ScoreTable]:
    """In a worker: what scores a recording."""
    return partial(score_source, classifier=place.load(), options=options)


def score_on_cluster(
    cluster: Cluster, place: ClassifierPlace, options: EmbeddingOptions, sources: Sequence[Path | CorpusRecording]
) -> Iterator[ScoreTable | KnnError]:
    """Score recordings in the workers of a cluster; see `classify_files`, whose `score` this can be.

    Parameters
    ----------
    cluster : Cluster
    place : ClassifierPlace
    options : EmbeddingOptions
    sources : sequence of Path or CorpusRecording
        Audio files, which workers read under their absolute paths, and recordings of lists.

    Yields
    ------
    ScoreTable or KnnError

    Raises
    ------
    KnnError
        The scheduler is gone, or workers lack the model.
    """
    results = by_workers(cluster)(partial(_prepared, place, options), sources, CAUGHT)
    for source, result in zip(sources, results, strict=True):
        if isinstance(source, Path) and not isinstance(result, KnnError):
            yield replace(result, name=np.full(len(result), str(source)))
        else:
            yield result
