"""Scores of all labels, in tables or in stores such as `scores.h5` of KNN-proj, as what classifiers have said."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from knn_cli.core.errors import KnnError
from knn_cli.core.values import EmbeddingSet, ScoreTable
from knn_cli.networks import bundle
from knn_cli.recognition.calibrated_classifier import CalibratedClassifier
from knn_cli.recognition.calibration import Calibration
from knn_cli.recognition.classifier import Classifier
from knn_cli.recognition.classifier_file import write_classifier
from knn_cli.recognition.glc import GaussianLinearClassifier
from knn_cli.recognition.system_scores import SystemScores
from knn_cli.store.hdf5 import Store
from knn_cli.store.writer import write_store

__all__ = ["scores_as_classifier", "tables_as_classifiers"]

_LEVELS = ("subgroup", "group")


@contextmanager
def scores_as_classifier(sources: Sequence[Path]) -> Iterator[Classifier]:
    """A classifier for stores of scores, which gives the scores themselves up to a number for each row.

    Rows (N, C) are log-likelihoods or logits of C classes in the sorted order of their names, which are the labels of
    the stores, or the 13 dialects or 107 languages of the ancestor's trainings where not all of these occur.

    Parameters
    ----------
    sources : sequence of Path
        Stores of the kind "embeddings".

    Yields
    ------
    Classifier
        While the block runs.

    Raises
    ------
    KnnError
        A store holds sound, or the numbers of scores and of labels differ.
    """
    level, labels = _labels(sources)
    with tempfile.TemporaryDirectory() as folder:
        yield _classifier(Path(folder) / "scores", "scores", labels, level, slice(0, len(labels)), len(labels))


@contextmanager
def tables_as_classifiers(systems: SystemScores) -> Iterator[tuple[Path, list[Classifier]]]:
    """A store of the scores of several systems, and for each a classifier that gives its own.

    Parameters
    ----------
    systems : SystemScores
        Of labels, some of which are known to be true.

    Yields
    ------
    store : Path
        Of rows (N, S C), whose labels are those of the level group.
    classifiers : list of S Classifier

    Raises
    ------
    KnnError
        The scores are of trials, or no true label is known.
    """
    if systems.are_trials:
        raise KnnError("These are scores of speaker trials, not of labels.", "`knn fuse` evaluates them.")
    known = systems.take(systems.truth != "")
    if not len(known):
        raise KnnError("The scores have no true labels.", "Give them with `keys`: a table with columns name and label.")
    assert isinstance(known.rows, ScoreTable)
    best = known.scores - known.scores.max(axis=2, keepdims=True)  # (S, N, C), with digits to spare in 32 bits
    data = np.concatenate(list(best), axis=1)
    rows = EmbeddingSet.from_columns(
        data, known.rows.name.tolist(), group=known.truth.tolist(), start=known.rows.start, end=known.rows.end
    )
    size = len(known.labels)
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "scores.h5"
        write_store(store, rows)
        yield (
            store,
            [
                _classifier(
                    Path(folder) / f"{place}",
                    name,
                    known.labels,
                    "group",
                    slice(place * size, (place + 1) * size),
                    len(data.T),
                )
                for place, name in enumerate(systems.systems)
            ],
        )


def _classifier(
    folder: Path, name: str, labels: Sequence[str], level: str, columns: slice, dimension: int
) -> Classifier:
    """A classifier in a new folder: log-likelihoods are columns of rows (N, dimension), up to a number for each row."""
    size = len(labels)
    order = np.argsort(np.asarray(labels, dtype=np.str_))
    identity = GaussianLinearClassifier.restored(  # log N(x; e_c, I) is x_c and what is the same for all classes
        classes=np.asarray(labels, dtype=np.str_)[order],
        counts=np.zeros(size, dtype=np.int64),
        means=np.eye(dimension)[columns][order],
        covariance=np.eye(dimension),
        priors=np.full(size, 1 / size),
        balanced=False,
        shrinkage=0.0,
    )
    meta: dict[str, Any] = {"label": level, "view": ""}
    folder.mkdir()
    path = folder / bundle.CLASSIFIER
    write_classifier(path, CalibratedClassifier(identity, Calibration.identity(size), meta))
    config = {
        **{"name": name, "kind": "classifier", "embedder": ""},
        **{"labels": identity.classes_.tolist(), "training": meta},
    }
    return Classifier(bundle.write(folder / "model", config, classifier=path).folder)


def _labels(sources: Sequence[Path]) -> tuple[str, tuple[str, ...]]:
    """The level of the labels, and the labels in the order of the columns."""
    from knn_cli.networks.importers.wespeaker_heads import CZECH_DIALECTS, VOXLINGUA107

    found: dict[str, set[str]] = {level: set() for level in _LEVELS}
    sizes: set[int] = set()
    for source in sources:
        with Store(source, "embeddings") as store:
            sizes.add(store.dimension)
            for level in _LEVELS:
                found[level] |= {*store.encoded(level).values.tolist()} - {""}
    size = max(sizes)
    for level in _LEVELS:
        if len(sizes) == 1 and len(found[level]) == size:
            return level, tuple(sorted(found[level]))
    for level, known in zip(_LEVELS, (CZECH_DIALECTS, VOXLINGUA107), strict=True):
        if sizes == {len(known)} and found[level] and found[level] <= set(known):
            return level, known
    counts = ", ".join(f"{len(found[level])} {level}s" for level in _LEVELS)
    raise KnnError(
        f"{', '.join(map(str, sources))} cannot be scores: rows have {', '.join(map(str, sorted(sizes)))} values, for "
        f"{counts}.",
        "Scores have a column for each label, in sorted order. Are they embeddings?",
    )
