"""Scores of recordings and stores by the workers of a cluster: the same as by one process, in the same order."""

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

from knn_cli.audio import reading_notes
from knn_cli.core.cluster import Cluster
from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.file_digests import file_sha256
from knn_cli.core.values import ScoreTable
from knn_cli.embedding.options import EmbeddingOptions
from knn_cli.embedding.row_groups import RowGroup, embed_group, row_groups
from knn_cli.networks.bundle import Bundle
from knn_cli.recognition import classifier as classifiers
from knn_cli.recognition.classifier import Classifier
from knn_cli.recognition.classify_files import CAUGHT, score_source
from knn_cli.store.corpora.recording_map import as_named, by_workers
from knn_cli.store.corpora.recordings import CorpusRecording
from knn_cli.store.hdf5 import Store

__all__ = ["ClassifierPlace", "score_on_cluster", "score_store_on_cluster"]


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


@dataclass(frozen=True)
class _StoreUnit:
    """Rows of a store for a worker."""

    store: Path
    group: RowGroup
    classifier: ClassifierPlace
    use_vad: bool


def _score_unit(unit: _StoreUnit) -> tuple[ScoreTable | None, list[tuple[Path, str, bool]]]:
    """In a worker: the scores of rows, None where none of them holds speech, and what is to be said of the sound."""
    notes: list[tuple[Path, str, bool]] = []
    model, rows = unit.classifier.load(), unit.group.rows
    with reading_notes.listening(lambda *note: notes.append(note)), Store(unit.store) as store:
        if store.kind == "embeddings":
            labels = store.labels(rows.start, rows.stop)
            embeddings = replace(labels, data=store.data(rows.start, rows.stop))
        else:
            embeddings = embed_group(store, unit.group, model.embedder, unit.use_vad).embeddings
        return model.score(embeddings, str(unit.store)) if len(embeddings) else None, notes


def score_store_on_cluster(
    cluster: Cluster, place: ClassifierPlace, classifier: Classifier, path: Path, use_vad: bool
) -> Iterator[ScoreTable | KnnError]:
    """Score a store in the workers of a cluster, as `Classifier.score_store` does it here.

    Parameters
    ----------
    cluster : Cluster
    place : ClassifierPlace
    classifier : Classifier
        The one of the place.
    path : Path
        Of a store of embeddings or of sound; workers open it under its absolute path.
    use_vad : bool
        Score speech only.

    Yields
    ------
    ScoreTable or KnnError
        An error for rows at which several workers ended.

    Raises
    ------
    KnnError
        As `Classifier.score_store`; and the scheduler is gone, or workers lack the model.
    """
    try:
        with Store(path) as store:
            if store.kind == "embeddings":
                size, count = classifiers.ROWS_AT_ONCE, len(store)
                spans = [range(first, min(first + size, count)) for first in range(0, count, size)]
                groups = iter([RowGroup(str(number), rows, 0.0) for number, rows in enumerate(spans)])
            else:
                groups = row_groups(store, classifier.embedder)
            units = (_StoreUnit(path.absolute(), group, place, use_vad) for group in groups)
            for unit, found in cluster.ordered(_score_unit, units):
                result = cluster.alone(_score_unit, unit) if isinstance(found, KnnError) else found
                if isinstance(result, KnnError):
                    rows = f"rows {unit.group.rows.start} to {unit.group.rows.stop - 1} have no scores"
                    yield KnnError(f"{path}: {rows}. {result.message}", result.hint)
                    continue
                table, notes = result
                for _, clause, loss in notes:
                    reading_notes.note(path, clause, loss=loss)
                cluster.sound_seconds += unit.group.seconds
                if table is not None:
                    yield table
    except KnnError as error:
        raise as_named(error, path) from error
