"""Splits never cut a recording, keep every class on both sides, and do not depend on the order of the rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knn_cli.core.errors import KnnError
from knn_cli.recognition import splitters
from knn_cli.recognition.splitters import folds, held_out


@st.composite
def corpora(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """Recordings of one label each, two or more a label, one to four rows a recording, rows in any order."""
    rows = []
    for label in range(draw(st.integers(1, 5))):
        for recording in range(draw(st.integers(2, 9))):
            rows += [(f"r{recording}of{label}", f"l{label}")] * draw(st.integers(1, 4))
    rows = draw(st.permutations(rows))
    return [recording for recording, _ in rows], [label for _, label in rows]


@given(corpora(), st.floats(0.05, 0.95), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_held_out(corpus: tuple[list[str], list[str]], fraction: float, seed: int) -> None:
    recordings, labels = map(np.asarray, corpus)
    train, test = held_out(recordings, labels, fraction=fraction, seed=seed)
    assert (train ^ test).all() and len(train) == len(recordings)
    assert not set(recordings[train]) & set(recordings[test])
    for label in set(labels):
        own, held = (len(set(recordings[mask & (labels == label)])) for mask in (train | test, test))
        assert held == min(max(1, round(fraction * own)), own - 1)
    order = np.random.default_rng(seed).permutation(len(labels))
    np.testing.assert_array_equal(
        held_out(recordings[order], labels[order], fraction=fraction, seed=seed)[1], test[order]
    )


@given(corpora(), st.integers(2, 6), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_folds(corpus: tuple[list[str], list[str]], count: int, seed: int) -> None:
    recordings, labels = map(np.asarray, corpus)
    masks = folds(recordings, labels, count=count, seed=seed)
    assert 2 <= len(masks) <= count
    np.testing.assert_array_equal(np.sum([test for _, test in masks], axis=0), 1)  # every row is tested once
    for train, test in masks:
        assert (train ^ test).all() and test.any()
        assert not set(recordings[train]) & set(recordings[test])
        assert set(labels[train]) == set(labels)
    for label in set(labels):
        sizes = [len(set(recordings[test & (labels == label)])) for _, test in masks]
        assert max(sizes) - min(sizes) <= 1
    order = np.random.default_rng(seed).permutation(len(labels))
    again = folds(recordings[order], labels[order], count=count, seed=seed)
    assert all(np.array_equal(one[order], two) for (_, one), (_, two) in zip(masks, again, strict=True))


@given(st.data(), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_recordings_of_several_classes(data: st.DataObject, seed: int) -> None:
    """Conversations hold several speakers: either a split as promised, or an error that names a class."""
    pairs = data.draw(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("xyz")), min_size=1, max_size=25))
    recordings, labels = map(np.asarray, zip(*pairs, strict=True))
    splits = []
    try:
        train, test = held_out(recordings, labels, fraction=0.3, seed=seed)
        assert set(labels[test]) == set(labels)
        splits.append((train, test))
    except KnnError as error:
        assert any(f"{label!r}" in error.message for label in "xyz")
    try:
        splits += folds(recordings, labels, count=3, seed=seed)
    except KnnError as error:
        assert any(f"{label!r}" in error.message for label in "xyz")
    for train, test in splits:
        assert not set(recordings[train]) & set(recordings[test])
        assert set(labels[train]) == set(labels)


def test_seeds_differ_and_repeat() -> None:
    recordings = [f"r{number}" for number in range(40)]
    labels = ["a", "b"] * 20
    tests = [held_out(recordings, labels, seed=seed)[1] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(tests[0], tests[1])
    assert (tests[0] != tests[2]).any()
    assert tests[0].sum() == 8


def test_units_keep_speakers_whole_and_their_recordings_too() -> None:
    recordings = ["r1", "r2", "r3", "r3", "r4", "r5", "r6", "r7"]
    speakers = ["ann", "ann", "ann", "bob", "cat", "dan", "dan", "eve"]  # ann and bob talk in r3
    labels = ["x", "x", "x", "x", "x", "y", "y", "y"]
    for seed in range(10):
        train, test = held_out(recordings, labels, units=speakers, seed=seed, fraction=0.5)
        for values in (speakers, recordings):
            assert not set(np.asarray(values)[train]) & set(np.asarray(values)[test])
        assert test[:4].all() or not test[:4].any()
    alike = held_out(["1", "2", "3", "4"], ["x", "x", "y", "y"], units=["1", "2", "3", "4"])
    np.testing.assert_array_equal(alike, held_out(["1", "2", "3", "4"], ["x", "x", "y", "y"]))


def test_mistakes_are_named() -> None:
    with pytest.raises(KnnError, match=r"'b' has a single recording.*'r3'.*add recordings"):
        held_out(["r1", "r2", "r3", "r3"], ["a", "a", "b", "b"])
    with pytest.raises(KnnError, match="'b' has a single"):
        folds(["r1", "r2", "r3", "r3"], ["a", "a", "b", "b"])
    with pytest.raises(KnnError, match="single recording or other unit, 's'"):
        held_out(["r1", "r2"], ["a", "a"], units=["s", "s"])
    with pytest.raises(
        KnnError, match="cannot be put on both sides"
    ):  # three classes over three recordings, a triangle
        held_out(list("121323"), list("aacbbc"))
    with pytest.raises(KnnError, match="no rows"):
        held_out([], [])
    for fraction in (0.0, 1.0):
        with pytest.raises(KnnError, match="fraction"):
            held_out(["1", "2"], ["a", "a"], fraction=fraction)
    for draw in (held_out, folds):
        with pytest.raises(KnnError, match="seed -1 is negative"):
            draw(["1", "2"], ["a", "a"], seed=-1)
    with pytest.raises(KnnError, match="at least 2 folds"):
        folds(["1", "2"], ["a", "a"], count=1)
    with pytest.raises(ValueError, match="3 labels"):
        held_out(["1", "2"], ["a", "a", "a"])


def test_all_classes_that_cannot_be_split_are_named_at_once() -> None:
    names = [f"r{number}" for number in range(12)]
    labels = ["a"] * 4 + ["b"] * 4 + ["rare 1", "rare2", "rare3", "rare4"]
    for split in (
        lambda: splitters.held_out(names, labels, fraction=0.25),
        lambda: splitters.folds(names, labels, count=2),
        lambda: splitters.between_quartiles(names, labels, [1.0] * 12, number=2),
        lambda: splitters.leave_one_out(names, labels, ["u", "v"] * 4 + ["u"] * 4),
    ):
        with pytest.raises(KnnError, match="Each of the 4 classes has") as raised:
            split()
        assert "`ignore=rare 1,rare2,rare3,rare4`" in raised.value.hint
    with pytest.raises(KnnError, match="The class 'rare4' has a single recording or other unit, 'r11'"):
        splitters.held_out([*names[:8], names[11]], [*labels[:8], labels[11]], fraction=0.25)
