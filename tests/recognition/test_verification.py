"""Scores of verification trials: names found in the store, scores against a loop over pairs, AS-norm by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, EmbeddingSet
from knn_cli.recognition import verification
from knn_cli.recognition.plda import PLDA
from knn_cli.recognition.trials import Trials
from knn_cli.recognition.verification import MeanEmbeddings, mean_embeddings, score_trials


def test_mean_embeddings_are_the_mean_over_all_blocks() -> None:
    first = EmbeddingSet.from_columns([[1.0, 0], [3, 0], [0, 5]], ["a", "a", "b"], speaker=["x", "x", ""], embedder="m")
    second = EmbeddingSet.from_columns([[2.0, 3], [7, 7]], ["a", "c"], speaker=["y", "x"], embedder="m")
    means = mean_embeddings(iter([first, second]))
    assert means.names == ("a", "b", "c") and means.embedder == "m"
    np.testing.assert_allclose(means.data, [[2, 1], [0, 5], [7, 7]])
    speakers = mean_embeddings([first, second], "speaker")
    assert speakers.names == ("x", "y")
    np.testing.assert_allclose(speakers.data, [[11 / 3, 7 / 3], [2, 3]])
    with pytest.raises(KnnError, match="do not mix"):
        mean_embeddings([first, EmbeddingSet.from_columns([[1.0, 0]], ["a"], embedder="n")])
    with pytest.raises(KnnError, match="no embeddings with a group"):
        mean_embeddings([first], "group")


def two(left: str, right: str) -> Trials:
    return Trials((left,), (right,), np.zeros((1, 2), dtype=np.int64))


def test_names_are_found_with_and_without_folders() -> None:
    store = MeanEmbeddings(("a", "x/b", "p,q", "v1.2"), np.array([[1.0, 0], [0, 1], [1, 1], [1, -1]]), "")
    for left, right, cosine in (
        ("a", "x/b", 0),
        ("a.wav", "data/x/b.flac", 0),
        ("some/where/a.wav", "p,q", math.sqrt(0.5)),
        ("p,q", "v1.2", 0),
        ("a,x/b.wav", "p,q", 1),  # an enrollment of two
    ):
        assert score_trials(two(left, right), store)[0] == pytest.approx(cosine)
    with pytest.raises(KnnError, match="2 recordings without an embedding, first z"):
        score_trials(two("a,z", "y"), store)
    with pytest.raises(KnnError, match=r"r/a and s/a of the trials are both a in the store"):
        score_trials(two("r/a.wav", "s/a.wav"), store)


# ---- scores ----


def drawn(seed: int, recordings: int = 9, dimension: int = 4) -> tuple[Trials, MeanEmbeddings, MeanEmbeddings]:
    """Trials of enrollments of one to three recordings, repeated and out of order, and a cohort off the origin."""
    rng = np.random.default_rng(seed)
    names = tuple(f"r{k}" for k in range(recordings))
    enroll = tuple(",".join(rng.choice(names, size=rng.integers(1, 4), replace=False)) + f",r{k}" for k in range(5))
    rows = np.stack([rng.integers(0, 5, size=40), rng.integers(0, recordings, size=40)], axis=1)
    data = rng.normal(size=(recordings, dimension)) + 1
    cohort = MeanEmbeddings(tuple(f"c{k}" for k in range(20)), rng.normal(size=(20, dimension)) + 0.5, "m")
    return Trials(enroll, names, rows), MeanEmbeddings(names, data, "m"), cohort


def looped(
    trials: Trials,
    recordings: MeanEmbeddings,
    cohort: MeanEmbeddings,
    plda: PLDA | None,
    subtract_mean: bool,
    top_n: int | None,
) -> list[float]:
    """One pair after the other, by the book."""
    book = dict(zip(recordings.names, recordings.data, strict=True))
    shift = (
        cohort.data.mean(axis=0) - (0 if plda is None else plda.mean)
        if subtract_mean
        else np.zeros(cohort.data.shape[1])
    )

    def vector(x: Doubles) -> Doubles:
        x = x - shift
        return x if plda is not None else x / np.sqrt((x**2).sum())

    def scored(enrolled: list[Doubles], tested: Doubles) -> float:
        mean = np.mean(enrolled, axis=0)
        if plda is None:
            return float(mean @ tested / np.sqrt((mean @ mean) * (tested @ tested)))
        return float(plda.llr(mean[None], tested[None], np.array([len(enrolled)]))[0, 0])

    scores = []
    others = [vector(x) for x in cohort.data]
    for a, b in trials.pairs:
        enrolled = [vector(book[name]) for name in trials.enroll[a].split(",")]
        tested = vector(book[trials.test[b]])
        s = scored(enrolled, tested)
        if top_n is not None:
            by_enroll = sorted(scored(enrolled, other) for other in others)[-top_n:]
            by_test = sorted(scored([other], tested) for other in others)[-top_n:]
            s = ((s - np.mean(by_enroll)) / np.std(by_enroll) + (s - np.mean(by_test)) / np.std(by_test)) / 2
        scores.append(s)
    return scores


@pytest.mark.parametrize("with_plda", [False, True])
@pytest.mark.parametrize("subtract_mean", [False, True])
@pytest.mark.parametrize("top_n", [None, 2, 7, 500])
def test_scores_against_a_loop(
    with_plda: bool, subtract_mean: bool, top_n: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials, recordings, cohort = drawn(3)
    rng = np.random.default_rng(1)
    root = rng.normal(size=(4, 4))
    plda = PLDA(rng.normal(size=4), root @ root.T, np.eye(4) + 0.1) if with_plda else None
    wanted = looped(trials, recordings, cohort, plda, subtract_mean, top_n)
    for enrollments, tests, rows in ((64, 8192, 512), (2, 3, 4)):  # blocks change nothing
        monkeypatch.setattr(verification, "ENROLLMENTS_PER_BLOCK", enrollments)
        monkeypatch.setattr(verification, "TESTS_PER_BLOCK", tests)
        monkeypatch.setattr(verification, "COHORT_ROWS_PER_BLOCK", rows)
        scores = score_trials(
            trials, recordings, plda=plda, cohort=cohort, subtract_mean=subtract_mean, as_norm_top_n=top_n
        )
        np.testing.assert_allclose(scores, wanted, rtol=1e-9, atol=1e-9)


def test_a_recording_is_one_embedding_to_a_plda_whatever_its_segments() -> None:
    """Of a mean of three segments it asks what it asks of one: they share their session."""
    plda = PLDA(np.zeros(2), np.diag([2.0, 1.0]), np.eye(2))
    once = EmbeddingSet.from_columns([[2.0, 1], [1, 1]], ["a", "b"])
    thrice = EmbeddingSet.from_columns([[3.0, 0], [1, 1], [2, 2], [1, 1]], ["a", "a", "a", "b"])
    trials = Trials(("a,b", "a"), ("b",), np.array([[0, 0], [1, 0]]))
    expected = plda.llr([[1.5, 1], [2, 1]], [[1, 1]], [2, 1])[:, 0]
    for rows in (once, thrice):
        np.testing.assert_allclose(score_trials(trials, mean_embeddings([rows]), plda=plda), expected)


def test_as_norm_by_hand() -> None:
    """Cosines of e = (1, 0) with the cohort: 1, 0, -1, of t = (0, 1): 0, 1, 0. Two largest: means 1/2, deviations 1/2.
    The score 0 becomes (-1 - 1) / 2.
    """
    recordings = MeanEmbeddings(("e", "t"), np.eye(2), "")
    cohort = MeanEmbeddings(("a", "b", "c"), np.array([[1.0, 0], [0, 1], [-1, 0]]), "")
    assert score_trials(two("e", "t"), recordings, cohort=cohort, as_norm_top_n=2)[0] == pytest.approx(-1)
    assert score_trials(two("e", "t"), recordings, cohort=cohort)[0] == 0  # a cohort alone changes nothing


def test_transform_comes_first() -> None:
    trials, recordings, cohort = drawn(5)
    matrix = np.random.default_rng(0).normal(size=(4, 3))
    moved = [MeanEmbeddings(one.names, one.data @ matrix, "m") for one in (recordings, cohort)]
    np.testing.assert_allclose(
        score_trials(
            trials, recordings, transform=lambda x: x @ matrix, cohort=cohort, subtract_mean=True, as_norm_top_n=5
        ),
        score_trials(trials, moved[0], cohort=moved[1], subtract_mean=True, as_norm_top_n=5),
    )


def test_cohorts_that_will_not_do() -> None:
    trials, recordings, cohort = drawn(0)
    for wrong in ({"subtract_mean": True}, {"as_norm_top_n": 3}):
        with pytest.raises(KnnError, match="cohort"):
            score_trials(trials, recordings, **wrong)  # type: ignore[arg-type]
    with pytest.raises(KnnError, match="The cohort is of"):
        score_trials(trials, recordings, cohort=MeanEmbeddings(cohort.names, cohort.data, "n"))
    with pytest.raises(KnnError, match="spread"):
        score_trials(trials, recordings, cohort=cohort, as_norm_top_n=1)
    with pytest.raises(KnnError, match="same against all"):
        score_trials(trials, recordings, cohort=MeanEmbeddings(cohort.names, np.ones((20, 4)), "m"), as_norm_top_n=5)
