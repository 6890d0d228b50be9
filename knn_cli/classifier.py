"""classifier.h5: a Gaussian linear classifier with its calibration, as a bundle keeps it.

/                attributes schema = 1, kind = "classifier"
/meta            text, JSON: whatever the bundle says of it (embedder's fingerprint, label level, figures)
/classifier      attributes balanced, shrinkage; classes (C,) JSON text each, counts (C,) int64, priors (C,),
                 means (C, D), covariance (D, D) float64
/calibration     scale, offsets (C,) float64
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from knn_cli.atomic import replacing
from knn_cli.calibration import Calibration
from knn_cli.errors import BundleError, KnnError
from knn_cli.glc import GaussianLinearClassifier

if TYPE_CHECKING:
    import h5py

SCHEMA = 1


class ClassifierFile(NamedTuple):
    """What classifier.h5 holds."""

    classifier: GaussianLinearClassifier
    calibration: Calibration
    meta: dict[str, Any]


_ARRAYS = {"classes", "counts", "means", "covariance", "priors"}


def write_classifier(
    path: Path, classifier: GaussianLinearClassifier, calibration: Calibration, meta: dict[str, Any]
) -> None:
    """Write a fitted classifier with its calibration as HDF5; `meta` is anything JSON can say.

    The file is complete or not there. Raises KnnError when it cannot be written; ValueError when the calibration is
    for another number of classes.
    """
    if len(calibration.offsets) != len(classifier.classes_):
        raise ValueError(f"{len(classifier.classes_)} classes, calibration of {len(calibration.offsets)}")
    import h5py

    text = h5py.string_dtype("utf-8")
    with replacing(Path(path)) as part, h5py.File(part, "w") as file:
        file.attrs["schema"], file.attrs["kind"] = SCHEMA, "classifier"
        file.create_dataset("meta", data=json.dumps(meta), dtype=text)
        group = file.create_group("classifier")
        group.attrs["balanced"], group.attrs["shrinkage"] = classifier.balanced, classifier.shrinkage_
        # JSON text: HDF5 strings end at NUL and hold no lone surrogates, which undecodable folder names bring along.
        group.create_dataset("classes", data=[json.dumps(label) for label in classifier.classes_.tolist()], dtype=text)
        group.create_dataset("counts", data=classifier.counts_)
        for name in ("means", "covariance", "priors"):
            group.create_dataset(name, data=getattr(classifier, f"{name}_"))
        group = file.create_group("calibration")
        group.create_dataset("scale", data=calibration.scale)
        group.create_dataset("offsets", data=calibration.offsets)


def read_classifier(path: Path) -> ClassifierFile:
    """Read what `write_classifier` wrote. Strict: BundleError for anything missing, extra, mis-sized or not finite."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return _parse(file)
    except FileNotFoundError as error:
        raise BundleError(
            f"{path} does not exist.", "The bundle has no classifier: train one with knn train."
        ) from error
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise BundleError(f"{path} is no classifier file: {error}.", "Train the bundle again.") from error
    except BundleError:
        raise
    except KnnError as error:
        raise BundleError(f"{path} is damaged: {error.message}", "Train the bundle again.") from error


def _parse(file: h5py.File) -> ClassifierFile:
    if (kind := file.attrs.get("kind")) != "classifier":
        raise ValueError(f"its kind is {kind!r}, not 'classifier'")
    if (schema := file.attrs.get("schema")) != SCHEMA:
        raise BundleError(f"{file.filename} has schema {schema}, this program reads {SCHEMA}.", "Update knn.")
    wanted = {"": {"meta", "classifier", "calibration"}, "classifier": _ARRAYS, "calibration": {"scale", "offsets"}}
    for place, names in wanted.items():
        found = set(file[place or "/"])
        if missing := names - found:
            raise ValueError(f"{place or 'the file'} lacks {', '.join(sorted(missing))}")
        if extra := found - names:
            raise ValueError(f"{place or 'the file'} has the unknown {', '.join(sorted(extra))}")
    group = file["classifier"]
    classes = np.asarray([json.loads(label) for label in group["classes"].asstr()[()]], dtype=np.str_)
    counts = np.asarray(group["counts"], dtype=np.int64)
    means, covariance, priors = (np.asarray(group[name], np.float64) for name in ("means", "covariance", "priors"))
    offsets, scale = np.asarray(file["calibration/offsets"], np.float64), float(file["calibration/scale"][()])
    size, dimension = means.shape
    shapes = (classes.shape, counts.shape, priors.shape, offsets.shape, covariance.shape)
    if shapes != ((size,), (size,), (size,), (size,), (dimension, dimension)):
        raise ValueError("the sizes of its arrays do not go together")
    if not np.array_equal(classes, np.unique(classes)):
        raise ValueError("its classes are not sorted and unique")
    if not all(np.isfinite(array).all() for array in (means, covariance, priors, offsets, scale)):
        raise ValueError("it holds NaN or infinite values")
    classifier = GaussianLinearClassifier.restored(
        classes=classes,
        counts=counts,
        means=means,
        covariance=covariance,
        priors=priors,
        balanced=bool(group.attrs["balanced"]),
        shrinkage=float(group.attrs["shrinkage"]),
    )
    return ClassifierFile(classifier, Calibration(scale, offsets), json.loads(file["meta"].asstr()[()]))
