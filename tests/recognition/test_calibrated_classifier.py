"""Fitting a calibrated classifier to rows in memory: what it is fitted to, and on which rows it is calibrated."""

from __future__ import annotations

import numpy as np
import pytest

from knn_cli.core.errors import KnnError
from knn_cli.recognition import splitters
from knn_cli.recognition.calibrated_classifier import fit_calibrated
from knn_cli.recognition.calibration import Calibration, smoothing_of
from knn_cli.recognition.glc import GaussianLinearClassifier, cross_validated_log_likelihood


def rows(seed: int = 0, recordings: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three classes, 5 rows a recording: embeddings, labels, recordings."""
    rng = np.random.default_rng(seed)
    y = np.repeat(["a", "b", "c"], 5 * recordings)
    X = 1.5 * np.eye(3, 6)[np.unique(y, return_inverse=True)[1]] + rng.normal(size=(len(y), 6))
    names = np.array([f"{label}{row // 5 % recordings}" for row, label in enumerate(y)])
    return X.astype(np.float32), y, names


def test_calibration_by_cross_validation() -> None:
    """Worked out step by step: five folds of whole recordings, then a classifier of all rows."""
    X, y, names = rows()
    model = fit_calibrated(X, y, names, seed=3)
    plain = GaussianLinearClassifier(shrinkage="auto")
    unseen = cross_validated_log_likelihood(plain, X, y, splitters.folds(names, y, count=5, seed=3))
    units = [len(np.unique(names[y == label])) for label in "abc"]
    calibration = Calibration.fit(unseen, y, ["a", "b", "c"], smoothing=smoothing_of(units))
    plain.fit(X, y)
    assert model.is_calibrated and model.labels == ("a", "b", "c") and model.calibration.scale == calibration.scale
    np.testing.assert_array_equal(model.calibration.offsets, calibration.offsets)
    np.testing.assert_array_equal(model.classifier.coef_, plain.coef_)
    np.testing.assert_array_equal(model.score_unbounded(X), calibration.apply(plain.log_likelihood(X)))
    np.testing.assert_array_equal(model.score(X), calibration.bounded(model.score_unbounded(X)))


def test_calibration_on_other_rows() -> None:
    X, y, names = rows()
    others, truth, _ = rows(seed=1)
    model = fit_calibrated(X, y, names, calibration_rows=(others, truth))
    plain = GaussianLinearClassifier(shrinkage="auto").fit(X, y)
    expected = Calibration.fit(plain.log_likelihood(others), truth, plain.classes_)
    assert model.calibration.scale == expected.scale
    np.testing.assert_array_equal(model.calibration.offsets, expected.offsets)


def test_a_class_of_one_recording_is_not_calibrated() -> None:
    X, y, names = rows()
    model = fit_calibrated(X, y, np.where(y == "a", "a0", names))
    assert model.calibration.scale == 1 and not model.calibration.offsets.any()
    np.testing.assert_array_equal(model.score_unbounded(X), model.classifier.log_likelihood(X))
    assert model.calibration.smoothing > 0  # and so little is known that the scores are bounded all the same
    with pytest.raises(KnnError, match="at least two classes"):
        fit_calibrated(X[y == "a"], y[y == "a"], names[y == "a"])
