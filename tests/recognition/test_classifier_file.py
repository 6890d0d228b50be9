"""classifier.h5: all that it holds comes back, older files are read, damaged ones are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from knn_cli.core.errors import BundleError
from knn_cli.recognition.calibrated_classifier import CalibratedClassifier
from knn_cli.recognition.calibration import Calibration
from knn_cli.recognition.classifier_file import read_classifier, write_classifier
from knn_cli.recognition.glc import GaussianLinearClassifier
from knn_cli.recognition.open_set_threshold import OpenSetThreshold
from knn_cli.recognition.plda import PLDA
from knn_cli.recognition.transforms import TransformChain, fit_transforms

LABELS = ["a/b\udcff\n'\"", "čeština", "日本語 🗾"]
GROUPS = dict(zip(LABELS, ["x", "y", "y"], strict=True))
OPEN_SET = OpenSetThreshold(1.25, float("nan"), 0.05, 200, 0, "false reject at most 0.05")


def rows(count: int = 90) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    rng = np.random.default_rng(0)
    X = 2 + np.repeat(rng.normal(size=(3, 6)), count // 3, axis=0) + rng.normal(size=(count, 6))
    return X.astype(np.float32), np.repeat(LABELS, count // 3)


def parts() -> tuple[GaussianLinearClassifier, Calibration, TransformChain, PLDA]:
    X, y = rows()
    chain = fit_transforms("center,whiten,lda:2,length", lambda: [(X, y)], y)
    Z = chain.apply(X)
    fitted = GaussianLinearClassifier(shrinkage=0.1).fit(Z, y)
    return fitted, Calibration(0.25, np.asarray([0.5, -1.0, 0.5]), 0.3, 4.0), chain, PLDA.fit(Z, y)


def saved(path: Path, **changed: Any) -> None:
    fitted, calibration, chain, plda = parts()
    options: dict[str, Any] = {"transforms": chain, "plda": plda, "groups": GROUPS, "open_set": OPEN_SET}
    write_classifier(path, CalibratedClassifier(fitted, calibration, {"label": "group"}, **{**options, **changed}))


def test_everything_comes_back(tmp_path: Path) -> None:
    saved(tmp_path / "classifier.h5")
    again = read_classifier(tmp_path / "classifier.h5")
    fitted, calibration, chain, plda = parts()
    X, _ = rows()
    seconds = np.linspace(1, 20, len(X))
    expected = calibration.apply(fitted.log_likelihood(chain.apply(X)), seconds)
    np.testing.assert_array_equal(again.score(X, seconds), expected)
    assert not np.allclose(again.score(X), expected)  # without lengths: those of the reference
    assert (again.calibration.exponent, again.calibration.reference) == (0.3, 4.0)
    assert again.transforms.spec == "center,whiten,lda:2,length" and again.meta == {"label": "group"}
    assert again.plda is not None
    np.testing.assert_array_equal(
        again.plda.llr(chain.apply(X), chain.apply(X[:4])), plda.llr(chain.apply(X), chain.apply(X[:4]))
    )
    assert again.groups == GROUPS and again.labels == tuple(LABELS) and again.label_groups == ("x", "y", "y")
    assert again.threshold == 1.25 and str(again.open_set) == str(OPEN_SET)  # NaN equals none but itself in print


def test_what_was_not_given_is_absent(tmp_path: Path) -> None:
    X, y = rows()
    fitted, calibration, *_ = parts()
    fitted.fit(X, y)
    write_classifier(tmp_path / "classifier.h5", CalibratedClassifier(fitted, calibration))
    with h5py.File(tmp_path / "classifier.h5") as file:
        assert set(file) == {"meta", "classifier", "calibration"} and file.attrs["schema"] == 3
    again = read_classifier(tmp_path / "classifier.h5")
    assert again.transforms.steps == () and again.plda is again.open_set is again.threshold is None
    assert again.groups == {} and again.label_groups == ()
    np.testing.assert_array_equal(again.score(X), calibration.apply(fitted.log_likelihood(X)))


def test_schema_2_had_no_smoothing(tmp_path: Path) -> None:
    fitted, calibration, *_ = parts()
    smoothed = replace(calibration, smoothing=0.25)
    write_classifier(tmp_path / "classifier.h5", CalibratedClassifier(fitted, smoothed))
    assert read_classifier(tmp_path / "classifier.h5").calibration.smoothing == 0.25
    with h5py.File(tmp_path / "classifier.h5", "a") as file:
        file.attrs["schema"] = 2
        del file["calibration/smoothing"]
    again = read_classifier(tmp_path / "classifier.h5")
    X = np.ones((3, fitted.means_.shape[1]))
    assert again.calibration.smoothing == 0
    np.testing.assert_array_equal(again.score(X), calibration.apply(fitted.log_likelihood(X)))


def test_schema_1_is_read_as_it_was(tmp_path: Path) -> None:
    saved(tmp_path / "classifier.h5", transforms=TransformChain(), plda=None, groups={}, open_set=None)
    with h5py.File(tmp_path / "classifier.h5", "a") as file:
        file.attrs["schema"] = 1
        del file["calibration/exponent"], file["calibration/reference"], file["calibration/smoothing"]
    again = read_classifier(tmp_path / "classifier.h5")
    fitted, calibration, chain, _ = parts()
    Z = chain.apply(rows()[0])
    plain = Calibration(calibration.scale, calibration.offsets)
    np.testing.assert_array_equal(again.score(Z, np.full(len(Z), 9.0)), plain.apply(fitted.log_likelihood(Z)))
    with h5py.File(tmp_path / "classifier.h5", "a") as file:
        file["groups"] = "{}"  # which schema 1 did not have
    with pytest.raises(BundleError, match="unknown groups"):
        read_classifier(tmp_path / "classifier.h5")


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        ("extra", 1, "unknown extra"),
        ("transforms/0-center", np.zeros(4), "takes 6 dimensions, it gets 4"),
        ("transforms/0-center", np.full(6, np.nan), "NaN"),
        ("transforms/0-center", None, "do not make a chain"),
        ("transforms/2-lda", None, "do not make a chain"),
        ("transforms/3-length", np.zeros(2), "length"),
        ("transforms/4-zca", np.zeros(2), "zca"),
        ("transforms/4-lda", np.ones((2, 1)), "transforms to 1 dimensions, classifier of 2"),
        ("transforms", np.zeros(2), "no classifier file"),
        ("plda/mean", None, "do not make a PLDA"),
        ("plda/mean", np.zeros(5), "do not match"),
        ("plda/within", np.zeros((2, 2)), "covariances"),
        ("plda/within", np.full((2, 2), np.inf), "NaN or infinite"),
        ("groups", "[]", "no map"),
        ("groups", '{"čeština": 1}', "no map"),
        ("groups", '{"čeština": "y"}', "groups and the classes differ"),
        ("groups", "{", "no classifier file"),
        ("open_set/chosen", None, "open_set lacks chosen"),
        ("open_set/more", 1.0, "open_set has the unknown more"),
        ("open_set/threshold", np.nan, "open set makes no sense"),
        ("open_set/false_reject", 1.5, "open set makes no sense"),
        ("open_set/known", -1, "open set makes no sense"),
        ("calibration/exponent", None, "calibration lacks exponent"),
        ("calibration/exponent", np.nan, "NaN"),
        ("calibration/reference", 0.0, "damaged|reference"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, place: str, value: Any, match: str) -> None:
    path = tmp_path / "classifier.h5"
    saved(path)
    with h5py.File(path, "a") as file:
        if place in file:
            del file[place]
        if value is not None:
            file[place] = value
    with pytest.raises(BundleError, match=match):
        read_classifier(path)


def test_parts_that_do_not_go_together_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "classifier.h5"
    fitted, calibration, chain, plda = parts()
    X, y = rows()
    wide = PLDA.fit(X, y)
    for changed, match in [
        ({"plda": wide}, "PLDA of 6 dimensions, classifier of 2"),
        ({"transforms": TransformChain(chain.steps[:2])}, "transforms to 6 dimensions, classifier of 2"),
        ({"groups": {LABELS[0]: "x"}}, "groups and the classes differ"),
        ({"groups": {**GROUPS, "z": "x"}}, "differ in 'z'"),
    ]:
        with pytest.raises(ValueError, match=match):
            saved(path, **changed)
    with pytest.raises(ValueError, match="3 classes, calibration of 2"):
        CalibratedClassifier(fitted, Calibration.identity(2), {})
    assert list(tmp_path.iterdir()) == []
    assert plda.mean.shape == calibration.offsets[:2].shape
