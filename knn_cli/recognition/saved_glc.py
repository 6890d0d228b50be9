"""Gaussian linear classifiers that KNN-proj saved (`GLC.save`), as bundles.

Its HDF5 file holds `WC`, the covariance within classes (D, D), `means` (D, C) and `classes` (C,), and nothing about the
embeddings that it was fitted on.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from knn_cli.core.errors import KnnError
from knn_cli.core.texts import tidy
from knn_cli.networks import bundle
from knn_cli.networks.bundle import Bundle
from knn_cli.recognition.calibrated_classifier import CalibratedClassifier
from knn_cli.recognition.calibration import Calibration
from knn_cli.recognition.classifier_file import write_classifier
from knn_cli.recognition.glc import GaussianLinearClassifier
from knn_cli.store import hdf5_reading

__all__ = ["convert_saved_glc", "is_saved_glc"]

_ARRAYS = {"WC", "means", "classes"}
_HINT = "It is written by GLC().fit(...).save(FILE) of KNN-proj."


def is_saved_glc(path: Path) -> bool:
    """Whether a file holds the three arrays of a saved classifier; StoreError if it is HDF5 and cannot be read."""
    import h5py

    if not path.is_file() or not h5py.is_hdf5(path):
        return False
    with hdf5_reading.opened(path) as file:
        return set(file) == _ARRAYS


def convert_saved_glc(path: Path, out: Path, *, force: bool = False) -> Bundle:
    """Write a bundle that classifies stores of embeddings as the saved classifier does.

    Parameters
    ----------
    path : Path
        The file.
    out : Path
        Folder of the new bundle.
    force : bool
        Replace an existing bundle.

    Returns
    -------
    Bundle
        With equal priors, as there; its log-likelihoods differ from those there by the same number for all classes.

    Raises
    ------
    KnnError
        The arrays do not go together, are not finite, or the covariance has no inverse; or `out` must not be replaced.
    """
    bundle.check_free(out, force)
    with hdf5_reading.opened(path) as file, hdf5_reading.reading(path):
        covariance, means = (np.asarray(file[name], dtype=np.float64) for name in ("WC", "means"))
        classes = [_label(value) for value in np.asarray(file["classes"]).ravel().tolist()]
    shape = (len(covariance), len(classes))
    if covariance.shape != (shape[0], shape[0]) or means.shape != shape or len(classes) < 2:
        sizes = f"WC {covariance.shape}, means {means.shape}, {len(classes)} classes"
        raise KnnError(f"{path} is no saved classifier: its arrays do not go together ({sizes}).", _HINT)
    if not (np.isfinite(covariance).all() and np.isfinite(means).all()):
        raise KnnError(f"{path} holds NaN or infinite values.", _HINT)
    if len(set(classes)) < len(classes):
        raise KnnError(f"{path} names a class twice: {', '.join(sorted(classes))}.", _HINT)
    order = np.argsort(classes)
    labels = np.asarray(classes, dtype=np.str_)[order]
    classifier = GaussianLinearClassifier.restored(
        classes=labels,
        counts=np.zeros(len(labels), dtype=np.int64),  # the file does not say
        means=means.T[order],
        covariance=(covariance + covariance.T) / 2,
        priors=np.full(len(labels), 1 / len(labels)),
        balanced=False,
        shrinkage=0.0,
    )
    level = "subgroup" if all(len(label) == 3 and label[1] == "-" for label in labels) else "group"
    meta: dict[str, Any] = {"label": level, "imported": f"KNN-proj: {path.name}", "view": ""}
    model = CalibratedClassifier(classifier, Calibration.identity(len(labels)), meta)
    config = {"name": out.name, "kind": "classifier", "embedder": "", "labels": labels.tolist(), "training": meta}
    card = (
        f"# {out.name}\n\nGaussian linear classifier of {len(labels)} labels on {len(covariance)} values, "
        f"imported from {path.name} of KNN-proj. The file does not say which model computed the embeddings, nor what "
        "the classifier was fitted on; it is not calibrated.\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        file_path = Path(folder) / bundle.CLASSIFIER
        write_classifier(file_path, model)
        return bundle.write(out, config, classifier=file_path, card=card, force=force)


def _label(value: Any) -> str:
    return tidy(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))
