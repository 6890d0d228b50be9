"""Gaussian linear classifier against scikit-learn, scipy's densities and written-out arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from knn_cli.core.errors import BundleError, KnnError
from knn_cli.recognition.calibrated_classifier import CalibratedClassifier
from knn_cli.recognition.calibration import Calibration
from knn_cli.recognition.classifier_file import read_classifier, write_classifier
from knn_cli.recognition.gaussian_statistics import GaussianStatistics
from knn_cli.recognition.glc import GaussianLinearClassifier, cross_validated_log_likelihood
from knn_cli.recognition.row_checks import class_codes
from knn_cli.recognition.splitters import folds
from tests.helpers.gaussian_classes import overlapping


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("shrinkage", [None, 0.2])
def test_posteriors_are_those_of_scikit_learn(classes: int, shrinkage: float | None) -> None:
    X, y = overlapping(classes=classes)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", store_covariance=True, shrinkage=shrinkage).fit(X, y)
    ours = GaussianLinearClassifier(priors="empirical", shrinkage=shrinkage or 0.0).fit(X, y)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=0, atol=1e-10)
    np.testing.assert_allclose(ours.means_, theirs.means_, atol=1e-12)
    np.testing.assert_array_equal(ours.classes_, theirs.classes_)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    if shrinkage is None:
        np.testing.assert_allclose(ours.covariance_, theirs.covariance_, atol=1e-12)
    # the confident rows do not make the test: many posteriors are far from 0 and 1
    assert np.mean(ours.predict_proba(X).max(axis=1) < 0.9) > 0.3


def test_balanced_covariance_is_the_mean_of_the_classes_covariances() -> None:
    X, y = overlapping()
    ours = GaussianLinearClassifier(balanced=True).fit(X, y)
    expected = np.mean([np.cov(X[y == label].T, bias=True) for label in np.unique(y)], axis=0)
    np.testing.assert_allclose(ours.covariance_, expected, atol=1e-12)
    assert not np.allclose(ours.covariance_, GaussianLinearClassifier().fit(X, y).covariance_, rtol=0.05)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", priors=np.full(5, 0.2)).fit(X, y)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=0, atol=1e-10)


def test_log_likelihood_is_the_whole_density() -> None:
    X, y = overlapping(rows=200, dimension=4, classes=3)
    ours = GaussianLinearClassifier(priors="empirical").fit(X, y)
    expected = np.stack([stats.multivariate_normal(mean, ours.covariance_).logpdf(X) for mean in ours.means_], axis=1)
    np.testing.assert_allclose(ours.log_likelihood(X), expected, atol=1e-10)
    joint = expected + np.log(ours.counts_ / 200)
    np.testing.assert_allclose(ours.predict_proba(X), np.exp(joint - np.logaddexp.reduce(joint, axis=1)[:, None]))
    linear = X @ ours.coef_.T + ours.intercept_
    np.testing.assert_allclose(linear, ours.decision_function(X), atol=1e-9)
    np.testing.assert_allclose(np.ptp(linear - joint, axis=1), 0, atol=1e-9)  # same up to a constant a row


def test_two_classes_by_hand() -> None:
    X = [[0.0], [2.0], [4.0], [6.0]]  # means 1 and 5, variance 1
    ours = GaussianLinearClassifier().fit(X, ["a", "a", "b", "b"])
    np.testing.assert_allclose(ours.covariance_, [[1.0]])
    np.testing.assert_allclose(ours.log_likelihood([[1.0]]), [[-0.5 * np.log(2 * np.pi), -0.5 * np.log(2 * np.pi) - 8]])
    np.testing.assert_allclose(ours.predict_proba([[3.0]]), [[0.5, 0.5]])
    skewed = GaussianLinearClassifier(priors=[3, 1]).fit(X, ["a", "a", "b", "b"])
    np.testing.assert_allclose(skewed.predict_proba([[3.0]]), [[0.75, 0.25]])


def test_a_large_offset_costs_no_digits() -> None:
    X, y = overlapping(rows=300, dimension=4, classes=3)
    near = GaussianLinearClassifier().fit(X, y)
    far = GaussianLinearClassifier().fit(X + 1e6, y)
    np.testing.assert_allclose(far.log_likelihood(X + 1e6), near.log_likelihood(X), rtol=1e-7)


@pytest.mark.parametrize("balanced", [False, True])
def test_classes_far_apart_cost_no_digits(balanced: bool) -> None:
    X, y = overlapping(rows=300, dimension=4, classes=3)
    far = X + 1e5 * class_codes(y, np.unique(y))[:, None]  # the spread about any one point is all offset
    near = GaussianLinearClassifier(balanced=balanced).fit(X, y).covariance_
    ours = GaussianLinearClassifier(balanced=balanced).fit(far, y)
    np.testing.assert_allclose(ours.covariance_, near, rtol=1e-8, atol=1e-8)
    assert (ours.predict(far) == y).all()


@pytest.mark.parametrize(("scale", "offset"), [(1, 1e4), (60, 0), (-60, 0), (1e-3, 0)])
def test_posteriors_of_any_scores(scale: float, offset: float) -> None:
    X, y = overlapping(rows=300, dimension=4, classes=3)
    fitted = GaussianLinearClassifier(priors="empirical").fit(X + offset, y)
    rows = scale * (X - X.mean(axis=0)) + X.mean(axis=0) + offset
    joint = fitted.log_likelihood(rows) + np.log(fitted.priors_)
    expected = np.exp(joint - np.logaddexp.reduce(joint, axis=1)[:, None])
    np.testing.assert_allclose(fitted.predict_proba(rows), expected, rtol=0, atol=1e-8)
    assert fitted.predict_proba(rows[:0]).shape == (0, 3) and len(fitted.predict(rows[:0])) == 0


def test_float32_rows_are_accumulated_in_float64() -> None:
    X, y = overlapping()
    single = X.astype(np.float32)
    ours, same = GaussianLinearClassifier().fit(single, y), GaussianLinearClassifier().fit(single.astype(np.float64), y)
    assert ours.log_likelihood(single).dtype == np.float64
    np.testing.assert_array_equal(ours.log_likelihood(single), same.log_likelihood(single))


def test_automatic_shrinkage_helps_where_rows_are_few_and_vanishes_where_they_are_many() -> None:
    X, y = overlapping(rows=4000, dimension=30)
    few = slice(0, 90)

    def loss(**options: Any) -> float:
        fitted = GaussianLinearClassifier(**options).fit(X[few], y[few])
        columns = class_codes(y[90:], fitted.classes_)
        return -float(np.mean(np.log(fitted.predict_proba(X[90:])[np.arange(len(columns)), columns])))

    assert loss(shrinkage="auto") < 0.8 * loss()
    assert GaussianLinearClassifier(shrinkage="auto").fit(X, y).shrinkage_ < 0.02
    assert GaussianLinearClassifier(shrinkage="auto").fit(X[:20], y[:20]).predict(X[:5]).shape == (5,)  # N < D
    balanced = GaussianLinearClassifier(shrinkage="auto", balanced=True).fit(X[few], y[few])
    assert balanced.shrinkage_ > GaussianLinearClassifier(shrinkage="auto").fit(X[few], y[few]).shrinkage_
    spherical = GaussianLinearClassifier(shrinkage=1).fit(X, y).covariance_
    np.testing.assert_allclose(spherical, np.eye(30) * spherical[0, 0])


def test_cross_scores_come_from_classifiers_that_never_saw_the_recording() -> None:
    X, y = overlapping(rows=120, dimension=4, classes=3)
    recording = np.asarray([f"{label}-{row % 6}" for row, label in enumerate(y)])
    masks = folds(recording, y, count=3)
    scores = cross_validated_log_likelihood(GaussianLinearClassifier(balanced=True), X, y, masks)
    train, test = masks[1]
    alone = GaussianLinearClassifier(balanced=True).fit(X[train], y[train])
    np.testing.assert_array_equal(scores[test], alone.log_likelihood(X[test]))
    with pytest.raises(ValueError, match="cover"):
        cross_validated_log_likelihood(GaussianLinearClassifier(), X, y, masks[:2])
    only = y == "c0"
    with pytest.raises(KnnError, match="all rows of a class"):
        cross_validated_log_likelihood(GaussianLinearClassifier(), X, y, [(~only, only)])


def _rows(rows: int = 40, dimension: int = 3) -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(size=(rows, dimension))


def test_mistakes_are_named() -> None:
    X, y = _rows(), np.repeat(["a", "b"], 20)
    fit = GaussianLinearClassifier().fit
    with pytest.raises(KnnError, match="at least two classes, there are: 'a'"):
        fit(X, np.repeat("a", 40))
    with pytest.raises(KnnError, match="at least two classes, there are: none"):
        fit(X[:0], y[:0])
    with pytest.raises(KnnError, match="'c' have no rows"):
        GaussianLinearClassifier().fit_statistics(GaussianStatistics.empty([*y, "c"], 3).add(X, y))
    for bad in ([np.nan, np.nan], [np.inf, -np.inf]):
        broken = X.copy()
        broken[[3, 7], 1] = bad
        with pytest.raises(KnnError, match="NaN or infinite values in 2 of 40"):
            fit(broken, y)
        with pytest.raises(KnnError, match="NaN or infinite values in 2 of 40"):
            fit(X, y).log_likelihood(broken)
    with pytest.raises(KnnError, match=r"takes rows of 3 dimensions, these have 5"):
        fit(X, y).predict(_rows(2, 5))
    with pytest.raises(KnnError, match="do not go together"):
        fit(X, y[:-1])
    with pytest.raises(KnnError, match="do not go together"):
        GaussianStatistics.empty(y, 3).add(X, y[:-1])
    with pytest.raises(KnnError, match="'z' is none of the 2 classes"):
        GaussianStatistics.empty(y, 3).add(X[:1], ["z"])
    for priors in ([1.0, 2.0, 3.0], [0.0, 1.0], "flat"):
        with pytest.raises(KnnError, match="priors"):
            GaussianLinearClassifier(priors=priors).fit(X, y)  # type: ignore[arg-type]
    for shrinkage in (-0.1, 1.1, float("nan"), "ledoit"):
        with pytest.raises(KnnError, match="shrinkage"):
            GaussianLinearClassifier(shrinkage=shrinkage).fit(X, y)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="not fitted"):
        GaussianLinearClassifier().predict(X)
    with pytest.raises(ValueError, match="same classes"):
        GaussianStatistics.from_rows(X, y) + GaussianStatistics.from_rows(X, np.repeat(["a", "c"], 20))
    with pytest.raises(ValueError, match="class weights"):
        GaussianLinearClassifier(balanced=True).fit_statistics(GaussianStatistics.from_rows(X[:30], y[:30]))


@pytest.mark.parametrize(
    "X",
    [
        _rows(20, 30),
        np.concatenate([_rows(), np.ones((40, 1))], axis=1),
        np.concatenate([_rows(), _rows()[:, :1] + _rows()[:, 1:2]], axis=1),
        1e-9 * np.concatenate([_rows(), 2 * _rows()[:, :1]], axis=1),
    ],
    ids=["fewer rows than dimensions", "constant", "sum of two", "tiny and twice"],
)
def test_singular_covariance(X: NDArray[np.float64]) -> None:
    y = np.arange(len(X)) % 2
    with pytest.raises(KnnError, match=r"no inverse\. Give more rows than dimensions"):
        GaussianLinearClassifier().fit(X, y)
    assert np.isfinite(GaussianLinearClassifier(shrinkage="auto").fit(X, y).log_likelihood(X)).all()


def test_uneven_scales_are_not_singular() -> None:
    X = _rows() * [1e-6, 1, 1e6]
    y = np.arange(40) % 2
    np.testing.assert_allclose(
        GaussianLinearClassifier().fit(X, y).predict_proba(X),
        GaussianLinearClassifier().fit(_rows(), y).predict_proba(_rows()),
    )


# ------------------------------------------------------------------------------------------------------ classifier.h5


def _saved(path: Path, **options: Any) -> tuple[GaussianLinearClassifier, Calibration]:
    X, y = overlapping(rows=100, dimension=4, classes=3)
    names = np.asarray(["čeština", "日本語 🗾", "a/b\udcff\n'\""])
    fitted = GaussianLinearClassifier(**options).fit(X, names[class_codes(y, np.unique(y))])
    calibration = Calibration(0.25, np.asarray([0.5, -1.0, 0.5]))
    write_classifier(
        path, CalibratedClassifier(fitted, calibration, {"embedder": "abc", "level": "group", "größe": [1, 2]})
    )
    return fitted, calibration


@pytest.mark.parametrize("options", [{}, {"balanced": True, "shrinkage": "auto", "priors": "empirical"}])
def test_classifier_file_round_trip(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "classifier.h5"
    fitted, calibration = _saved(path, **options)
    again = read_classifier(path)
    X = _rows(10, 4)
    np.testing.assert_array_equal(again.classifier.log_likelihood(X), fitted.log_likelihood(X))
    np.testing.assert_allclose(again.classifier.predict_proba(X), fitted.predict_proba(X), rtol=1e-12)
    assert again.classifier.classes_.tolist() == fitted.classes_.tolist()
    assert (again.classifier.balanced, again.classifier.shrinkage_) == (fitted.balanced, fitted.shrinkage_)
    assert again.calibration.scale == calibration.scale
    np.testing.assert_array_equal(again.calibration.offsets, calibration.offsets)
    assert again.meta == {"embedder": "abc", "level": "group", "größe": [1, 2]}
    assert [one.name for one in tmp_path.iterdir()] == ["classifier.h5"]


@pytest.mark.parametrize("lost", ["meta", "classifier", "calibration/scale", "classifier/means", "classifier/classes"])
def test_classifier_file_is_strict(tmp_path: Path, lost: str) -> None:
    path = tmp_path / "classifier.h5"
    _saved(path)
    with h5py.File(path, "a") as file:
        del file[lost]
    with pytest.raises(BundleError, match=lost.split("/")[-1]):
        read_classifier(path)


def test_damaged_classifier_files(tmp_path: Path) -> None:
    path = tmp_path / "classifier.h5"

    def refused(match: str) -> None:
        with pytest.raises(BundleError, match=match):
            read_classifier(path)

    refused("does not exist")
    path.write_text("not HDF5")
    refused("no classifier file")
    _saved(path)
    path.write_bytes(path.read_bytes()[:-400])
    refused("no classifier file")
    for place, value, match in [
        ("extra", 1, "unknown extra"),
        ("classifier/priors", np.ones(2), "do not go together"),
        ("classifier/means", np.full((3, 4), np.nan), "NaN"),
        ("classifier/covariance", np.zeros((4, 4)), "no inverse"),
        ("calibration/scale", -1.0, "positive"),
        ("meta", "{", "no classifier file"),
    ]:
        _saved(path)
        with h5py.File(path, "a") as file:
            if place in file:
                del file[place]
            file[place] = value
        refused(match)
    for name, text, match in [
        ("schema", 99, "schema 99, this program reads up to 3"),
        ("kind", "audio", "kind is 'audio'"),
    ]:
        _saved(path)
        with h5py.File(path, "a") as file:
            file.attrs[name] = text
        refused(match)


def test_writing_leaves_the_old_file_or_the_whole_new_one(tmp_path: Path) -> None:
    path = tmp_path / "classifier.h5"
    fitted, calibration = _saved(path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_classifier(path, CalibratedClassifier(fitted, calibration, {"not JSON": object()}))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(KnnError, match="cannot be written: No such file or directory"):
        write_classifier(tmp_path / "none" / "classifier.h5", CalibratedClassifier(fitted, calibration))
    with pytest.raises(ValueError, match="3 classes, calibration of 2"):
        write_classifier(path, CalibratedClassifier(fitted, Calibration.identity(2)))
