"""The format of classifier.h5, in which a bundle keeps a `CalibratedClassifier`.

/                attributes schema = 3, kind = "classifier"
/meta            text, JSON: whatever the bundle says of it (embedder's fingerprint, label level, figures)
/classifier      attributes balanced, shrinkage; classes (C,) JSON text each, counts (C,) int64, priors (C,),
                 means (C, D'), covariance (D', D') float64
/calibration     scale, offsets (C,), exponent, reference, smoothing float64
/transforms      optional: steps from embeddings (D,) to what is classified (D',) (`TransformChain.to_arrays`)
/plda            optional: mean, between, within of what is classified (`plda.PLDA.to_arrays`)
/groups          optional: text, JSON: label -> the group that it belongs to, of all labels
/open_set        optional: threshold, false_accept, false_reject, known, unknown, chosen (`OpenSetThreshold`)

Schema 1 had the first three alone, with the calibration's scale and offsets; schema 2 had a calibration without
smoothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.values import Doubles
from knn_cli.recognition.calibrated_classifier import CalibratedClassifier
from knn_cli.recognition.calibration import Calibration
from knn_cli.recognition.glc import GaussianLinearClassifier
from knn_cli.recognition.open_set_threshold import OpenSetThreshold
from knn_cli.recognition.plda import PLDA
from knn_cli.recognition.transforms import TransformChain

if TYPE_CHECKING:
    import h5py

SCHEMA = 3

_ARRAYS = {"classes", "counts", "means", "covariance", "priors"}
_CALIBRATION = {1: {"scale", "offsets"}, 2: {"scale", "offsets", "exponent", "reference"}}
_CALIBRATION[3] = _CALIBRATION[2] | {"smoothing"}
_OPTIONAL = {1: set[str](), 2: {"transforms", "plda", "groups", "open_set"}}
_OPTIONAL[3] = _OPTIONAL[2]
_OPEN_SET = {"threshold", "false_accept", "false_reject", "known", "unknown", "chosen"}


def write_classifier(path: Path, model: CalibratedClassifier) -> None:
    """Write a fitted classifier, its calibration and all that belongs to them as HDF5.

    Parameters
    ----------
    path : Path
        The file, which is complete afterwards or not there.
    model : CalibratedClassifier
        What is written.

    Raises
    ------
    KnnError
        The file cannot be written.
    """
    import h5py

    from knn_cli.store.hdf5_files import new_hdf5

    text = h5py.string_dtype("utf-8")
    with new_hdf5(path) as file:
        file.attrs["schema"], file.attrs["kind"] = SCHEMA, "classifier"
        file.create_dataset("meta", data=json.dumps(model.meta), dtype=text)
        group = file.create_group("classifier")
        classifier = model.classifier
        group.attrs["balanced"], group.attrs["shrinkage"] = classifier.balanced, classifier.shrinkage_
        # JSON text: HDF5 strings end at NUL and hold no lone surrogates, which undecodable folder names bring along.
        group.create_dataset("classes", data=[json.dumps(label) for label in classifier.classes_.tolist()], dtype=text)
        group.create_dataset("counts", data=classifier.counts_)
        for name in ("means", "covariance", "priors"):
            group.create_dataset(name, data=getattr(classifier, f"{name}_"), compression="gzip")
        _put(file, "calibration", {name: getattr(model.calibration, name) for name in _CALIBRATION[SCHEMA]})
        if model.transforms.steps:
            _put(file, "transforms", model.transforms.to_arrays())
        if model.plda is not None:
            _put(file, "plda", model.plda.to_arrays())
        if model.groups:
            file.create_dataset("groups", data=json.dumps(model.groups), dtype=text)
        if model.open_set is not None:
            numbers = asdict(model.open_set)
            chosen = numbers.pop("chosen")
            _put(file, "open_set", numbers)
            file.create_dataset("open_set/chosen", data=json.dumps(chosen), dtype=text)


def _put(file: h5py.File, place: str, arrays: Mapping[str, Any]) -> None:
    group = file.create_group(place)
    for name, values in arrays.items():
        group.create_dataset(name, data=values)


def read_classifier(path: Path) -> CalibratedClassifier:
    """Read what `write_classifier` wrote. Strict: BundleError for anything missing, extra, mis-sized or not finite."""
    if not Path(path).is_file():
        raise BundleError(f"{path} does not exist.", "The bundle has no classifier: train one with knn train.")
    from knn_cli.store import hdf5_reading

    try:
        with hdf5_reading.opened(path, "Train the bundle again.", "no classifier file") as file:
            return _parse(file)
    except BundleError:
        raise
    except hdf5_reading.LIBRARY_ERRORS as error:
        reason = str(error) if isinstance(error, ValueError) and len(str(error)) < 200 else "it is damaged"
        raise BundleError(f"{path} is no classifier file: {reason}.", "Train the bundle again.") from error
    except KnnError as error:
        raise BundleError(f"{path} is damaged: {error.message}", "Train the bundle again.") from error


def _parse(file: h5py.File) -> CalibratedClassifier:
    if (kind := file.attrs.get("kind")) != "classifier":
        raise ValueError(f"its kind is {kind!r}, not 'classifier'")
    schema = file.attrs.get("schema")
    if schema not in _OPTIONAL:
        raise BundleError(f"{file.filename} has schema {schema}, this program reads up to {SCHEMA}.", "Update knn.")
    optional = {name for name in _OPTIONAL[schema] if name in file}
    _check_names(file, "", {"meta", "classifier", "calibration"} | optional)
    _check_names(file, "classifier", _ARRAYS)
    _check_names(file, "calibration", _CALIBRATION[schema])
    if "open_set" in optional:
        _check_names(file, "open_set", _OPEN_SET)
    group = file["classifier"]
    classes = np.asarray([json.loads(label) for label in group["classes"].asstr()[()]], dtype=np.str_)
    counts = np.asarray(group["counts"], dtype=np.int64)
    means, covariance, priors = (np.asarray(group[name], np.float64) for name in ("means", "covariance", "priors"))
    offsets = np.asarray(file["calibration/offsets"], np.float64)
    size, dimension = means.shape
    shapes = (classes.shape, counts.shape, priors.shape, offsets.shape, covariance.shape)
    if shapes != ((size,), (size,), (size,), (size,), (dimension, dimension)):
        raise ValueError("the sizes of its arrays do not go together")
    if not np.array_equal(classes, np.unique(classes)):
        raise ValueError("its classes are not sorted and unique")
    numbers = {name: float(file["calibration"][name][()]) for name in _CALIBRATION[schema] - {"offsets"}}
    values = (means, covariance, priors, offsets, np.asarray(list(numbers.values())))
    if not all(np.isfinite(array).all() for array in values):
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
    return CalibratedClassifier(
        classifier,
        Calibration(offsets=offsets, **numbers),
        json.loads(file["meta"].asstr()[()]),
        TransformChain.from_arrays(_arrays(file, "transforms")) if "transforms" in optional else TransformChain(),
        PLDA.from_arrays(_arrays(file, "plda")) if "plda" in optional else None,
        _groups(json.loads(file["groups"].asstr()[()])) if "groups" in optional else {},
        _open_set(file["open_set"]) if "open_set" in optional else None,
    )


def _check_names(file: h5py.File, place: str, names: set[str]) -> None:
    present = set(file[place or "/"])
    if missing := names - present:
        raise ValueError(f"{place or 'the file'} lacks {', '.join(sorted(missing))}")
    if extra := present - names:
        raise ValueError(f"{place or 'the file'} has the unknown {', '.join(sorted(extra))}")


def _arrays(file: h5py.File, place: str) -> dict[str, Doubles]:
    return {name: np.asarray(values, dtype=np.float64) for name, values in file[place].items()}


def _groups(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(group, str) for group in value.values()):
        raise ValueError("its groups are no map from label to group")
    return value


def _open_set(group: h5py.Group) -> OpenSetThreshold:
    threshold, accepted, rejected = (float(group[name][()]) for name in ("threshold", "false_accept", "false_reject"))
    known, unknown = (int(group[name][()]) for name in ("known", "unknown"))
    return OpenSetThreshold(threshold, accepted, rejected, known, unknown, str(json.loads(group["chosen"].asstr()[()])))
