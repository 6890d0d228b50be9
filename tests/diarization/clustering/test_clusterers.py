"""Clustering: the tree against scipy's, and what must hold for every method in the table."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.core import Annotation, Segment
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist
from sklearn.metrics import adjusted_rand_score

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import CLUSTERERS
from knn_cli.diarization.clustering.ahc import AgglomerativeClustering, condense, merge_order
from knn_cli.diarization.clustering.plda import EmbeddingPLDA
from knn_cli.diarization.presets import PRESETS
from knn_cli.evaluation.diarization_error import diarization_error
from knn_cli.formats.rttm import read_rttm
from knn_cli.store.kaldi import read_ark

SETTINGS: list[tuple[str, Mapping[str, Any]]] = [
    *((name, {}) for name in CLUSTERERS.names()),
    ("ahc", {"linkage": "centroid"}),
    ("ahc", {"linkage": "ward"}),
    ("ahc", PRESETS["pyannote-3.1"].clusterer_settings),
]
every = pytest.mark.parametrize(("name", "given_settings"), SETTINGS)


def build(name: str, dimension: int = 16, **given_settings: Any) -> Any:
    """A method; VBx with the PLDA of `blobs`, whose speakers are directions and whose noise is alike in all of them."""
    if name == "vbx":
        zeros, eye = np.zeros(dimension), np.eye(dimension)
        between = np.full(dimension, 100 / dimension)
        given_settings["plda"] = EmbeddingPLDA(zeros, eye, zeros, zeros, 10 * eye, between)
    return CLUSTERERS.build(name, **given_settings)


def unit(points: np.ndarray) -> np.ndarray:
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def blobs(sizes: list[int], dimension: int = 16, noise: float = 0.3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points of len(sizes) directions at right angles, shuffled, lengths differing; and which is which."""
    generator = np.random.default_rng(seed)
    truth = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    points = np.eye(dimension)[truth] + noise / np.sqrt(dimension) * generator.normal(size=(len(truth), dimension))
    return points * generator.uniform(0.5, 20, (len(truth), 1)), truth


def in_order(labels: np.ndarray) -> bool:
    seen = list(dict.fromkeys(labels.tolist()))
    return seen == list(range(len(seen)))


# ---- every method ----


@every
@pytest.mark.parametrize("sizes", [[40, 40, 40], [60, 15], [25, 30, 20, 25, 20], [9, 9]])
def test_separate_speakers_are_found(name: str, given_settings: Mapping[str, Any], sizes: list[int]) -> None:
    points, truth = blobs(sizes)
    labels = build(name, **given_settings)(points)
    assert labels.dtype == np.int64 and labels.shape == truth.shape
    assert in_order(labels)
    assert adjusted_rand_score(truth, labels) == 1.0
    order = np.random.default_rng(1).permutation(len(points))
    moved = build(name, **given_settings)(points[order])
    assert adjusted_rand_score(labels[order], moved) == 1.0 and in_order(moved)


@every
def test_one_speaker(name: str, given_settings: Mapping[str, Any]) -> None:
    points, _ = blobs([80])
    assert set(build(name, **given_settings)(points)) == {0}


def sentences(speakers: int, repeats: int, words: int = 9, dimension: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Speakers who say a sentence each in turn, again and again: words have nearly equal embeddings; and who spoke."""
    generator = np.random.default_rng(0)
    who = np.repeat(np.arange(speakers), words)
    spoken = unit(np.eye(dimension)[who] + 0.15 * generator.normal(size=(len(who), dimension)))
    truth, points = np.tile(who, repeats), np.tile(spoken, (repeats, 1))
    return points + 0.01 * generator.normal(size=points.shape), truth


@pytest.mark.parametrize("name", CLUSTERERS.names())
@pytest.mark.parametrize("repeats", [2, 4])
@pytest.mark.parametrize("speakers", [1, 2, 3])
def test_repeated_sentences_make_no_speakers(name: str, speakers: int, repeats: int) -> None:
    points, truth = sentences(speakers, repeats)
    assert adjusted_rand_score(truth, build(name, 32)(points)) == 1.0
    asked = build(name, 32)(points, num_speakers=speakers + 1)
    assert len(set(asked)) == speakers + 1


@every
def test_nothing_and_one(name: str, given_settings: Mapping[str, Any]) -> None:
    method = build(name, 8, **given_settings)
    none = method(np.zeros((0, 8), np.float32), num_speakers=3)
    assert none.shape == (0,) and none.dtype == np.int64
    assert method(np.ones((1, 8), np.float32), num_speakers=3).tolist() == [0]
    assert method(np.zeros((4, 8), np.float32), num_speakers=2).max() == 1


@settings(max_examples=40, deadline=None)
@given(data=st.data())
@every
def test_number_of_speakers_is_obeyed(name: str, given_settings: Mapping[str, Any], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 30), "count")
    # Whole numbers in few dimensions: many points coincide, many distances tie, some points are zero.
    values = st.lists(st.integers(-1, 1), min_size=2, max_size=2)
    points = np.array(data.draw(st.lists(values, min_size=count, max_size=count)), dtype=np.float32)
    least = data.draw(st.none() | st.integers(1, 35), "least")
    most = data.draw(st.none() | st.integers(least or 1, 40), "most")
    number = data.draw(st.none() | st.integers(least or 1, most or 40), "number")
    limits = data.draw(st.sampled_from([{}, {"limit": 8}]), "limit")
    method = build(name, 2, **given_settings, **limits)
    ask = {"num_speakers": number, "min_speakers": least, "max_speakers": most}
    labels = method(points, **ask)
    found = len(set(labels.tolist()))
    assert len(labels) == count and in_order(labels)
    assert found >= min(count, number or least or 1)
    assert found <= (number or most or count)
    assert (method(points, **ask) == labels).all()


@every
def test_large_input_is_condensed(name: str, given_settings: Mapping[str, Any]) -> None:
    points, truth = blobs([2500, 1500, 500], noise=0.5)
    labels = build(name, **given_settings, limit=400)(points.astype(np.float32))
    assert labels.max() == 2
    assert adjusted_rand_score(truth, labels) == 1.0


@every
def test_impossible_wishes_are_refused(name: str, given_settings: Mapping[str, Any]) -> None:
    method = build(name, **given_settings)
    points, _ = blobs([5, 5])
    for wish in (
        {"num_speakers": 0},
        {"max_speakers": 0},
        {"min_speakers": 3, "max_speakers": 2},
        {"num_speakers": 4, "max_speakers": 3},
    ):
        with pytest.raises(KnnError):
            method(points, **wish)
    with pytest.raises(ValueError):
        method(np.array([[np.nan, 1.0]]))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("ahc", {"linkage": "single"}),
        ("ahc", {"threshold": 3.0}),
        ("ahc", {"minimum_size": 0}),
        ("spectral", {"neighbours": 0.0}),
        ("spectral", {"max_estimated": 0}),
        ("spectral", {"nonesuch": 1}),
        ("hdbscan", {"minimum_size": 1}),
        ("vbx", {}),
        ("vbx", {"plda": None}),
    ],
)
def test_wrong_settings_are_refused(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(KnnError):
        CLUSTERERS.build(name, **wrong)


@every
def test_embeddings_of_little_speech_shape_no_cluster(name: str, given_settings: Mapping[str, Any]) -> None:
    """Thirty short embeddings from nowhere, which would be a speaker of their own, join one of the two."""
    points, truth = blobs([40, 40])
    strays = unit(np.eye(16)[5] + 0.05 * np.random.default_rng(3).normal(size=(30, 16)) + 0.3 * np.eye(16)[0])
    everything = np.concatenate([unit(points), strays])
    weights = np.array([3.0] * 80 + [0.2] * 30)
    labels = build(name, reliable=1.0, **given_settings)(everything, weights=weights)
    assert adjusted_rand_score(truth, labels[:80]) == 1.0
    assert set(labels[80:]) == {labels[:80][truth == 0][0]}
    # With no more than one reliable embedding, or fewer than the speakers asked for, all have a say.
    alone = build(name, reliable=1.0, **given_settings)(everything, num_speakers=85, weights=weights)
    assert set(alone.tolist()) == set(range(85))


@every
def test_weights_that_are_none(name: str, given_settings: Mapping[str, Any]) -> None:
    method = build(name, **given_settings)
    points, _ = blobs([5, 5])
    for weights in (np.ones(9), np.full(10, -1.0), np.full(10, np.nan), np.ones((10, 1))):
        with pytest.raises(ValueError):
            method(points, weights=weights)


@every
@pytest.mark.parametrize("number", [1, 2, 10])
def test_ten_speakers_and_any_number_asked_for(name: str, given_settings: Mapping[str, Any], number: int) -> None:
    points, truth = blobs([12] * 10)
    labels = build(name, **given_settings)(points, num_speakers=number)
    assert set(labels.tolist()) == set(range(number))
    if number == 10:
        assert adjusted_rand_score(truth, labels) == 1.0


@every
def test_identical_embeddings_are_parted_when_asked(name: str, given_settings: Mapping[str, Any]) -> None:
    points = np.ones((25, 16))
    method = build(name, **given_settings)
    assert set(method(points).tolist()) == {0}
    assert set(method(points, min_speakers=3).tolist()) == {0, 1, 2}
    assert set(method(points, num_speakers=25).tolist()) == set(range(25))


def test_hdbscan_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(KnnError, match="scikit-learn") as refused:
        CLUSTERERS.build("hdbscan")
    assert "pip install" in (refused.value.hint or "")


def test_preset_is_what_scipy_gives() -> None:
    """pyannote's: centroid linkage of unit vectors, Euclidean distance 0.7046, clusters of 12, the rest adopted."""
    points, _ = blobs([30, 40, 3], dimension=32, noise=0.6)
    tree = linkage(unit(points), "centroid")
    found = fcluster(tree, 0.7045654963945799, "distance")
    sizes = np.bincount(found)
    size = min(12, round(0.1 * len(points)))
    large = np.flatnonzero(sizes >= size)
    middles = np.stack([unit(points)[found == k].mean(axis=0) for k in range(len(sizes)) if sizes[k]])
    middles = unit(middles)
    names = [k for k in range(len(sizes)) if sizes[k]]
    nearest = {k: large[(middles[names.index(k)] @ middles[[names.index(j) for j in large]].T).argmax()] for k in names}
    expected = [nearest[k] if k not in large else k for k in found]
    preset = PRESETS["pyannote-3.1"]
    labels = CLUSTERERS.build(preset.clusterer, **preset.clusterer_settings)(points)
    assert adjusted_rand_score(expected, labels) == 1.0


# ---- the tree ----


def test_tree_equals_scipy() -> None:
    points = unit(np.random.default_rng(2).normal(size=(200, 6)))
    ones = np.ones(len(points))
    average = linkage(pdist(points, "cosine"), "average")
    np.testing.assert_allclose(merge_order(points, ones, "average")[1], average[:, 2], atol=1e-12)
    centroid = linkage(points, "centroid")  # Euclidean; |a - b|^2 = 2 - 2 cos for unit vectors
    np.testing.assert_allclose(merge_order(points, ones, "centroid")[1], centroid[:, 2] ** 2 / 2, atol=1e-12)
    ward = linkage(points, "ward")
    np.testing.assert_allclose(merge_order(points, ones, "ward")[1], ward[:, 2] ** 2 / 2, atol=1e-12)
    for kind in (
        "average",
        "centroid",
        "ward",
    ):  # a tree grown in part is the beginning of the whole
        whole, begun = merge_order(points, ones, kind), merge_order(points, ones, kind, steps=150)
        assert np.array_equal(begun[0], whole[0][:150]) and np.array_equal(begun[1], whole[1][:150])


@pytest.mark.parametrize("kind", ["average", "centroid", "ward"])
@pytest.mark.parametrize("threshold", [0.01, 0.1, 0.2, 0.4])
def test_cut_equals_scipy(kind: str, threshold: float) -> None:
    points = unit(np.random.default_rng(3).normal(size=(120, 4)))
    tree = linkage(pdist(points, "cosine"), "average") if kind == "average" else linkage(points, kind)
    height = {"average": threshold, "centroid": np.sqrt(2 * threshold), "ward": np.sqrt(2 * 120 * threshold)}[kind]
    # scipy judges a merge by the highest one below it, which is what stopping at the first too high one does.
    expected = fcluster(tree, height, "distance")
    method = AgglomerativeClustering(linkage=kind, threshold=threshold, minimum_size=1)
    assert adjusted_rand_score(expected, method(points)) == 1.0


@pytest.mark.parametrize("kind", ["average", "centroid", "ward"])
def test_weighted_means_stand_for_their_members(kind: str) -> None:
    points, truth = blobs([30, 20, 10, 5], noise=0.05)
    points = unit(points)
    means = np.stack([points[truth == k].mean(axis=0) for k in range(4)])
    _, heights = merge_order(points, np.ones(len(points)), kind)
    _, of_means = merge_order(means, np.bincount(truth).astype(float), kind)
    np.testing.assert_allclose(heights[-3:], of_means, atol=1e-12)


def test_condensing_keeps_weight_and_mean() -> None:
    points = unit(np.random.default_rng(4).normal(size=(500, 5)))
    centroids, weights, member = condense(points, 40)
    assert len(centroids) <= 40 and weights.sum() == 500
    assert (np.bincount(member, minlength=len(centroids)) == weights).all()
    np.testing.assert_allclose(weights @ centroids, points.sum(axis=0), atol=1e-9)


def test_condensing_does_not_mix_noisy_speakers() -> None:
    """Cosines of about 0.4 within a speaker and 0 between: centroid linkage would mix them all."""
    points, truth = blobs([900, 600, 300], dimension=192, noise=1.2)
    _, _, member = condense(unit(points), 400)
    assert all(len(set(truth[member == k])) == 1 for k in range(member.max() + 1))


def test_few_windows_join_the_nearest_speaker() -> None:
    right, up = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    stray = np.array([np.cos(1.0), np.sin(1.0)])  # 57 degrees from right, 33 from up
    points = np.array([right] * 20 + [stray] * 2 + [up] * 20)
    at = {"threshold": 0.1}
    assert AgglomerativeClustering(minimum_size=1, **at)(points).tolist() == [0] * 20 + [1] * 2 + [2] * 20
    assert AgglomerativeClustering(minimum_size=3, **at)(points).tolist() == [0] * 20 + [1] * 22
    # Three speakers asked for: the minimum size gives way.
    got = AgglomerativeClustering(minimum_size=3, **at)(points, num_speakers=3)
    assert got.tolist() == [0] * 20 + [1] * 2 + [2] * 20


def test_a_number_asked_for_counts_speakers_of_the_minimum_size() -> None:
    # Two speakers and one far outlier: cutting the tree into two would give the outlier a cluster of its own.
    points = np.concatenate([np.tile(np.eye(3)[k], (15, 1)) for k in (0, 1)] + [-np.eye(3)[:1]])
    got = AgglomerativeClustering(minimum_size=3)(points, num_speakers=2)
    assert got[:15].tolist() == [0] * 15 and got[15:30].tolist() == [1] * 15


@pytest.mark.parametrize("name", ["ahc", "hdbscan", "spectral"])
def test_four_people_of_a_meeting(name: str, shared: Path) -> None:
    """VBx's x-vectors of AMI ES2005a; their own output, which was not told the number of speakers, has 7.06 % here."""
    h5py = pytest.importorskip("h5py")
    folder = shared / "reference" / "vbx"
    rows = [line.split() for line in (folder / "ES2005a.seg").read_text().splitlines()]
    vectors = dict(read_ark(folder / "ES2005a.ark"))
    with h5py.File(folder / "transform.h5") as file:
        first, second, lda = file["mean1"][:], file["mean2"][:], file["lda"][:]
    embeddings = np.array([vectors[row[0]] for row in rows])
    embeddings = np.sqrt(embeddings.shape[1]) * unit(embeddings - first) @ lda - second
    parts = [Segment(float(row[2]), float(row[3])) for row in rows]
    labels = CLUSTERERS.build(name)(embeddings, num_speakers=4)
    middles = [(one.middle + other.middle) / 2 for one, other in pairwise(parts)]
    found = Annotation()
    for number, (part, start, end, label) in enumerate(zip(parts, [0, *middles], [*middles, 1e9], labels, strict=True)):
        found[part & Segment(start, end), number] = label
    truth = read_rttm(folder / "ES2005a.ref.rttm")["ES2005a"]
    assert diarization_error(truth, found, collar=0.25, skip_overlap=True).rate < (0.1 if name == "hdbscan" else 0.04)
