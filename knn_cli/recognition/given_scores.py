"""Stores whose rows are scores of all labels, such as `scores.h5` of KNN-proj, as what a classifier has said."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from knn_cli.core.errors import KnnError
from knn_cli.networks import bundle
from knn_cli.recognition.calibrated_classifier import CalibratedClassifier
from knn_cli.recognition.calibration import Calibration
from knn_cli.recognition.classifier import Classifier
from knn_cli.recognition.classifier_file import write_classifier
from knn_cli.recognition.glc import GaussianLinearClassifier
from knn_cli.store.hdf5 import Store

__all__ = ["scores_as_classifier"]

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
    size = len(labels)
    identity = GaussianLinearClassifier.restored(  # log N(x; e_c, I) is x_c and what is the same for all classes
        classes=np.asarray(labels, dtype=np.str_),
        counts=np.zeros(size, dtype=np.int64),
        means=np.eye(size),
        covariance=np.eye(size),
        priors=np.full(size, 1 / size),
        balanced=False,
        shrinkage=0.0,
    )
    meta: dict[str, Any] = {"label": level, "view": ""}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / bundle.CLASSIFIER
        write_classifier(path, CalibratedClassifier(identity, Calibration.identity(size), meta))
        config = {"name": "scores", "kind": "classifier", "embedder": "", "labels": list(labels), "training": meta}
        yield Classifier(bundle.write(Path(folder) / "scores", config, classifier=path).folder)


def _labels(sources: Sequence[Path]) -> tuple[str, tuple[str, ...]]:
    """The level of the labels, and the labels in the order of the columns."""
    from knn_cli.networks.importers.wespeaker_heads import CZECH_DIALECTS, VOXLINGUA107

    found: dict[str, set[str]] = {level: set() for level in _LEVELS}
    sizes: set[int] = set()
    for source in sources:
        with Store(source, "embeddings") as store:
            sizes.add(store.dimension)
            rows = store.labels()
        for level in _LEVELS:
            found[level] |= set(rows.label(level).tolist()) - {""}
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
