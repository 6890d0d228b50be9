"""The chain before a classifier: by hand, against scikit-learn, streamed, kept in arrays."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import linalg
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from knn_cli.core.errors import KnnError
from knn_cli.recognition import transforms
from knn_cli.recognition.glc import GaussianLinearClassifier
from knn_cli.recognition.transforms import (
    TransformChain,
    TransformSpec,
    TransformStep,
    fit_transforms,
    parse_transforms,
)

Rows = tuple[NDArray[np.float64], NDArray[np.str_]]


def classes(rows: int = 600, dimension: int = 8, count: int = 5, seed: int = 0) -> Rows:
    """Overlapping classes of unequal size, with correlated dimensions and far from the origin."""
    rng = np.random.default_rng(seed)
    codes = np.concatenate([np.arange(count), np.minimum(rng.geometric(0.35, rows - count) - 1, count - 1)])
    mix = 0.3 * rng.normal(size=(dimension, dimension)) + np.eye(dimension)
    X = (rng.normal(size=(count, dimension))[codes] + rng.normal(size=(rows, dimension))) @ mix + 7
    return X, np.asarray([f"c{code}" for code in codes])


def whole(rows: Rows) -> transforms.Blocks:
    return lambda: [rows]


def test_center_whiten_and_length_by_hand() -> None:
    X = np.asarray([[1.0, 2.0], [5.0, 2.0], [3.0, 1.0], [3.0, 3.0]])  # mean (3, 2), covariance diag(2, 1/2)
    y = np.asarray(["a", "b", "a", "b"])
    chain = fit_transforms("center,whiten,length", whole((X, y)), y)
    np.testing.assert_allclose(chain.steps[0].values, [3, 2])
    np.testing.assert_allclose(chain.steps[1].values, np.diag([2**-0.5, 2**0.5]), atol=1e-15)
    np.testing.assert_allclose(chain.apply([[7.0, 4.0]]), [np.asarray([4 * 2**-0.5, 2 * 2**0.5]) / 4 * 2**0.5])
    np.testing.assert_array_equal(chain.apply([[3.0, 2.0]]), [[0, 0]])  # no direction
    assert chain.spec == "center,whiten,length" and (chain.dimension, chain.output_dimension) == (2, 2)


def test_lda_of_two_classes_by_hand() -> None:
    X = np.asarray([[0.0, 0.0], [2.0, 0.0], [1.0, 4.0], [1.0, -4.0]])
    X = np.concatenate([X, X + np.asarray([3.0, 0.0])])  # within diag(1/2, 8): means differ along x alone
    y = np.repeat(["a", "b"], 4)
    np.testing.assert_allclose(fit_transforms("lda:1", whole((X, y)), y).steps[0].values, [[2**0.5], [0]], atol=1e-14)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_lda_is_scikit_learns(size: int) -> None:
    X, y = classes()
    chain = fit_transforms(f"center,lda:{size}", whole((X, y)), y)
    theirs = LinearDiscriminantAnalysis(solver="eigen", n_components=size).fit(X, y)
    ours, expected = chain.apply(X), theirs.transform(X - X.mean(axis=0))
    assert linalg.subspace_angles(chain.steps[1].values, theirs.scalings_[:, :size]).max() < 1e-7
    np.testing.assert_allclose(np.abs(ours), np.abs(expected), atol=1e-9)
    within = sum(np.cov(ours[y == one].T, bias=True) * np.mean(y == one) for one in np.unique(y))
    np.testing.assert_allclose(within, np.eye(size), atol=1e-10)


def test_posteriors_behind_the_whole_chain_are_scikit_learns() -> None:
    X, y = classes()
    chain = fit_transforms("center,whiten,lda:4", whole((X, y)), y)
    ours = GaussianLinearClassifier(priors="empirical").fit(chain.apply(X), y)
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(X, y)  # C - 1 dimensions hold all there is to know
    np.testing.assert_allclose(ours.predict_proba(chain.apply(X)), theirs.predict_proba(X), atol=1e-10)


def test_whitened_rows_are_white_and_each_class_may_count_alike() -> None:
    X, y = classes()
    white = fit_transforms("center,whiten", whole((X, y)), y).apply(X)
    np.testing.assert_allclose(white.T @ white / len(X), np.eye(8), atol=1e-10)
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-12)
    balanced = fit_transforms("center,whiten", whole((X, y)), y, balanced=True)
    means = [X[y == one].mean(axis=0) for one in np.unique(y)]
    np.testing.assert_allclose(balanced.steps[0].values, np.mean(means, axis=0))
    rows = balanced.apply(X)
    seconds = np.mean([rows[y == one].T @ rows[y == one] / np.sum(y == one) for one in np.unique(y)], axis=0)
    np.testing.assert_allclose(seconds, np.eye(8), atol=1e-10)


@given(
    st.integers(0, 10**6), st.integers(1, 200), st.sampled_from(["whiten,center,lda:2", "length,center,lda:3,length"])
)
@settings(max_examples=20, deadline=None)
def test_streams_give_what_the_whole_gives(seed: int, size: int, spec: str) -> None:
    X, y = classes(rows=200, seed=seed)
    passes = []

    def blocks() -> Iterable[tuple[NDArray[np.float64], NDArray[np.str_]]]:
        passes.append(0)
        return ((X[first : first + size], y[first : first + size]) for first in range(0, len(X), size))

    streamed, at_once = fit_transforms(spec, blocks, y), fit_transforms(spec, whole((X, y)), y)
    assert len(passes) == 1  # linear steps share one
    np.testing.assert_allclose(streamed.apply(X), at_once.apply(X), rtol=1e-8, atol=1e-8)


def test_a_length_between_linear_steps_costs_a_pass_and_none_at_the_end_does() -> None:
    X, y = classes()
    passes = []

    def blocks() -> list[Rows]:
        passes.append(0)
        return [(X, y)]

    fit_transforms("center,whiten,length", blocks, y)
    assert len(passes) == 1
    chain = fit_transforms("center,length,center", blocks, y)
    assert len(passes) == 3
    np.testing.assert_allclose(chain.apply(X).mean(axis=0), 0, atol=1e-14)
    fit_transforms("", blocks, y)
    fit_transforms("length", blocks, y)
    assert len(passes) == 3


@given(st.integers(0, 10**6), st.floats(1e-6, 1e6))
@settings(max_examples=25, deadline=None)
def test_length_keeps_directions_and_forgets_scales(seed: int, scale: float) -> None:
    rows = np.random.default_rng(seed).normal(size=(7, 5))
    length = TransformChain((TransformStep("length", np.zeros(0)),))
    out = length.apply(rows)
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 5**0.5)
    np.testing.assert_allclose(out / 5**0.5, rows / np.linalg.norm(rows, axis=1, keepdims=True))
    np.testing.assert_allclose(length.apply(scale * rows), out)


def test_a_large_offset_and_float32_rows_cost_no_digits() -> None:
    X, y = classes()
    near, far = (
        fit_transforms("center,whiten,lda:3", whole((X, y)), y),
        fit_transforms("center,whiten,lda:3", whole((X + 1e6, y)), y),
    )
    np.testing.assert_allclose(far.apply(X + 1e6), near.apply(X), atol=1e-6)
    single = X.astype(np.float32)
    ours = fit_transforms("center,whiten", whole((single, y)), y)
    assert ours.apply(single).dtype == np.float64
    np.testing.assert_array_equal(ours.apply(single), ours.apply(single.astype(np.float64)))


def test_singular_rows_are_shrunk() -> None:
    X, y = classes(rows=60, dimension=4, count=3)
    X = np.concatenate([X, X[:, :1], np.ones((60, 1))], axis=1)
    for spec in ("center,whiten", "center,lda:2"):
        out = fit_transforms(spec, whole((X, y)), y).apply(X)
        assert np.isfinite(out).all() and np.abs(out).max() < 1e3
    with pytest.raises(KnnError, match="total covariance of 60 rows is zero"):
        fit_transforms("whiten", whole((np.ones_like(X), y)), y)


def test_spec() -> None:
    assert parse_transforms("center, whiten,lda:14,length") == [
        TransformSpec("center"),
        TransformSpec("whiten"),
        TransformSpec("lda", 14),
        TransformSpec("length"),
    ]
    assert parse_transforms("") == [] == parse_transforms(" ,")
    for text, match in [
        ("zca", r"no transform 'zca'\. Known: center"),
        ("lda", "how many dimensions"),
        ("lda:0", "how many dimensions"),
        ("lda:-1", "how many dimensions"),
        ("lda:²", "how many dimensions"),
        ("center:2", "takes no number"),
    ]:
        with pytest.raises(KnnError, match=match):
            parse_transforms(text)


def test_mistakes_are_named() -> None:
    X, y = classes()
    with pytest.raises(KnnError, match=r"LDA of 5 classes in 8 dimensions keeps at most 4, not 5\. Write lda:4"):
        fit_transforms("lda:5", whole((X, y)), y)
    with pytest.raises(KnnError, match=r"LDA needs two classes"):
        fit_transforms("lda:1", whole((X, np.full(len(X), "a"))), ["a"])
    with pytest.raises(KnnError, match="no rows"):
        fit_transforms("center", lambda: [], y)
    with pytest.raises(KnnError, match="'c9' is none"):
        fit_transforms("center", whole((X[:1], np.asarray(["c9"]))), y)
    chain = fit_transforms("center,lda:2", whole((X, y)), y)
    with pytest.raises(KnnError, match="rows of 8 dimensions, these have 3"):
        chain.apply(X[:, :3])
    with pytest.raises(KnnError, match="NaN or infinite values in 1 of 2"):
        chain.apply(np.asarray([X[0], X[0] * np.nan]))
    assert chain.apply(X[:0]).shape == (0, 2)


def test_arrays_round_trip_and_are_strict() -> None:
    X, y = classes()
    chain = fit_transforms(
        "center,whiten,length,center,lda:2,length,center,center,center,center,center", whole((X, y)), y
    )
    arrays = chain.to_arrays()
    assert list(arrays)[:3] == ["0-center", "1-whiten", "2-length"]
    again = TransformChain.from_arrays(dict(sorted(arrays.items())))  # as HDF5 lists them: 10 before 2
    assert again.spec == chain.spec
    np.testing.assert_array_equal(again.apply(X), chain.apply(X))
    assert TransformChain.from_arrays({}).apply(X) is not X and TransformChain().spec == ""
    np.testing.assert_array_equal(TransformChain().apply(X), X)
    for broken in (
        {"1-center": np.zeros(2)},
        {"center": np.zeros(2)},
        {"0-center": np.zeros(2), "00-center": np.zeros(2)},
        {"0-zca": np.zeros(2)},
        {"0-center": np.zeros((2, 2))},
        {"0-whiten": np.zeros((2, 3))},
        {"0-center": np.zeros(0)},
        {"0-length": np.zeros(1)},
        {"0-center": np.asarray([np.nan])},
        {"0-lda": np.zeros((4, 2)), "1-length": np.zeros(0), "2-center": np.zeros(4)},
    ):
        with pytest.raises(ValueError):
            TransformChain.from_arrays(broken)
