"""Trials: lists in every form, scores against a loop over pairs, figures by hand."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, EmbeddingSet
from knn_cli.recognition import verification as room
from knn_cli.recognition.plda import PLDA
from knn_cli.recognition.verification import Pool, Trials, figures, pool, read_trials, score, write_scores


def listed(tmp_path: Path, text: str) -> Trials:
    path = tmp_path / "list"
    path.write_text(text, encoding="utf-8")
    return read_trials(path)


def pairs(trials: Trials) -> list[tuple[str, str]]:
    return [(trials.enrol[a], trials.test[b]) for a, b in trials.rows.tolist()]


# ---- lists ----


@pytest.mark.parametrize(
    "text",
    [
        "1 a b\n0 a c\n1 b c\n",  # VoxCeleb
        "a b 1\na c 0\n\nb c 1",
        "a b target\na c nontarget\nb c target\n",
        "a\tb\ttgt\na\tc\timp\nb\tc\ttgt\n",
        "\ufeffTarget a b\r\nnontarget a c\r\ntarget b c\r\n",
    ],
)
def test_forms_with_keys(tmp_path: Path, text: str) -> None:
    found = listed(tmp_path, text)
    assert pairs(found) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found.target is not None and found.target.tolist() == [True, False, True]
    assert found.enrol == ("a", "b") and found.test == ("b", "c") and len(found) == 3


def test_forms_without_keys_and_with_spaces(tmp_path: Path) -> None:
    found = listed(tmp_path, "a b\na c\n")
    assert pairs(found) == [("a", "b"), ("a", "c")] and found.target is None
    assert pairs(listed(tmp_path, "my a\tmy b\n")) == [("my a", "my b")]


def test_names_that_look_like_keys(tmp_path: Path) -> None:
    """A later line settles what the first leaves open; when none does, nobody can know."""
    found = listed(tmp_path, "1 a 0\n0 a b\n")
    assert pairs(found) == [("a", "0"), ("a", "b")]
    assert found.target is not None and found.target.tolist() == [True, False]
    with pytest.raises(KnnError, match="before and after"):
        listed(tmp_path, "1 a 0\n0 b 1\n")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("1 a b\na b 1\n", 2),
        ("1 a b\n\na b\n", 3),
        ("a b\na b target\n", 2),
        ("a b target\na c 0\n", 2),
        ("1 a b\n2 a c\n", 2),
        ("a\n", 1),
        ("a b c\n", 1),
        ("a b c d\n", 1),
        ("a\t\t1\n", 1),
    ],
)
def test_mixtures_are_refused_by_line(tmp_path: Path, text: str, line: int) -> None:
    with pytest.raises(KnnError, match=f"Line {line} of"):
        listed(tmp_path, text)


def test_no_list(tmp_path: Path) -> None:
    with pytest.raises(KnnError, match="holds no trials"):
        listed(tmp_path, "\n \n")
    with pytest.raises(KnnError, match="cannot be read"):
        read_trials(tmp_path / "none")
    (tmp_path / "b").write_bytes(b"1 a \xff\n")
    with pytest.raises(KnnError, match="not a text file"):
        read_trials(tmp_path / "b")


# ---- embeddings of recordings ----


def test_pool_is_the_mean_over_all_blocks() -> None:
    first = EmbeddingSet.from_columns([[1.0, 0], [3, 0], [0, 5]], ["a", "a", "b"], speaker=["x", "x", ""], embedder="m")
    second = EmbeddingSet.from_columns([[2.0, 3], [7, 7]], ["a", "c"], speaker=["y", "x"], embedder="m")
    found = pool(iter([first, second]))
    assert found.names == ("a", "b", "c") and found.embedder == "m"
    np.testing.assert_allclose(found.data, [[2, 1], [0, 5], [7, 7]])
    speakers = pool([first, second], "speaker")
    assert speakers.names == ("x", "y")
    np.testing.assert_allclose(speakers.data, [[11 / 3, 7 / 3], [2, 3]])
    with pytest.raises(KnnError, match="do not mix"):
        pool([first, EmbeddingSet.from_columns([[1.0, 0]], ["a"], embedder="n")])
    with pytest.raises(KnnError, match="no embeddings with a group"):
        pool([first], "group")


def two(left: str, right: str) -> Trials:
    return Trials((left,), (right,), np.zeros((1, 2), dtype=np.int64))


def test_names_are_found_with_and_without_folders() -> None:
    store = Pool(("a", "x/b", "p,q", "v1.2"), np.array([[1.0, 0], [0, 1], [1, 1], [1, -1]]), "")
    for left, right, cosine in (
        ("a", "x/b", 0),
        ("a.wav", "data/x/b.flac", 0),
        ("some/where/a.wav", "p,q", math.sqrt(0.5)),
        ("p,q", "v1.2", 0),
        ("a,x/b.wav", "p,q", 1),  # an enrolment of two
    ):
        assert score(two(left, right), store)[0] == pytest.approx(cosine)
    with pytest.raises(KnnError, match="2 recordings without an embedding, first z"):
        score(two("a,z", "y"), store)
    with pytest.raises(KnnError, match=r"r/a and s/a of the trials are both a in the store"):
        score(two("r/a.wav", "s/a.wav"), store)


# ---- scores ----


def drawn(seed: int, recordings: int = 9, dimension: int = 4) -> tuple[Trials, Pool, Pool]:
    """Trials of enrolments of one to three recordings, repeated and out of order, and a cohort off the origin."""
    rng = np.random.default_rng(seed)
    names = tuple(f"r{k}" for k in range(recordings))
    enrol = tuple(",".join(rng.choice(names, size=rng.integers(1, 4), replace=False)) + f",r{k}" for k in range(5))
    rows = np.stack([rng.integers(0, 5, size=40), rng.integers(0, recordings, size=40)], axis=1)
    data = rng.normal(size=(recordings, dimension)) + 1
    cohort = Pool(tuple(f"c{k}" for k in range(20)), rng.normal(size=(20, dimension)) + 0.5, "m")
    return Trials(enrol, names, rows), Pool(names, data, "m"), cohort


def looped(
    trials: Trials, recordings: Pool, cohort: Pool, plda: PLDA | None, centre: bool, top: int | None
) -> list[float]:
    """One pair after the other, by the book."""
    book = dict(zip(recordings.names, recordings.data, strict=True))
    shift = cohort.data.mean(axis=0) - (0 if plda is None else plda.mean) if centre else np.zeros(cohort.data.shape[1])

    def vector(x: Doubles) -> Doubles:
        x = x - shift
        return x if plda is not None else x / np.sqrt((x**2).sum())

    def scored(enrolled: list[Doubles], tested: Doubles) -> float:
        mean = np.mean(enrolled, axis=0)
        if plda is None:
            return float(mean @ tested / np.sqrt((mean @ mean) * (tested @ tested)))
        return float(plda.llr(mean[None], tested[None], np.array([len(enrolled)]))[0, 0])

    found = []
    others = [vector(x) for x in cohort.data]
    for a, b in trials.rows:
        enrolled = [vector(book[name]) for name in trials.enrol[a].split(",")]
        tested = vector(book[trials.test[b]])
        s = scored(enrolled, tested)
        if top is not None:
            by_enrol = sorted(scored(enrolled, other) for other in others)[-top:]
            by_test = sorted(scored([other], tested) for other in others)[-top:]
            s = ((s - np.mean(by_enrol)) / np.std(by_enrol) + (s - np.mean(by_test)) / np.std(by_test)) / 2
        found.append(s)
    return found


@pytest.mark.parametrize("with_plda", [False, True])
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("top", [None, 2, 7, 500])
def test_scores_against_a_loop(with_plda: bool, centre: bool, top: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    trials, recordings, cohort = drawn(3)
    rng = np.random.default_rng(1)
    root = rng.normal(size=(4, 4))
    plda = PLDA(rng.normal(size=4), root @ root.T, np.eye(4) + 0.1) if with_plda else None
    wanted = looped(trials, recordings, cohort, plda, centre, top)
    for enrolments, tests, rows in ((64, 8192, 512), (2, 3, 4)):  # blocks change nothing
        monkeypatch.setattr(room, "ENROLMENTS", enrolments)
        monkeypatch.setattr(room, "TESTS", tests)
        monkeypatch.setattr(room, "COHORT_ROWS", rows)
        found = score(trials, recordings, plda=plda, cohort=cohort, centre=centre, top=top)
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


def test_a_recording_is_one_embedding_to_a_plda_whatever_its_segments() -> None:
    """Of a mean of three segments it asks what it asks of one: they share their session."""
    plda = PLDA(np.zeros(2), np.diag([2.0, 1.0]), np.eye(2))
    once = EmbeddingSet.from_columns([[2.0, 1], [1, 1]], ["a", "b"])
    thrice = EmbeddingSet.from_columns([[3.0, 0], [1, 1], [2, 2], [1, 1]], ["a", "a", "a", "b"])
    trials = Trials(("a,b", "a"), ("b",), np.array([[0, 0], [1, 0]]))
    expected = plda.llr([[1.5, 1], [2, 1]], [[1, 1]], [2, 1])[:, 0]
    for rows in (once, thrice):
        np.testing.assert_allclose(score(trials, pool([rows]), plda=plda), expected)


def test_as_norm_by_hand() -> None:
    """Cosines of e = (1, 0) with the cohort: 1, 0, -1, of t = (0, 1): 0, 1, 0. Two largest: means 1/2, deviations 1/2.
    The score 0 becomes (-1 - 1) / 2.
    """
    recordings = Pool(("e", "t"), np.eye(2), "")
    cohort = Pool(("a", "b", "c"), np.array([[1.0, 0], [0, 1], [-1, 0]]), "")
    assert score(two("e", "t"), recordings, cohort=cohort, top=2)[0] == pytest.approx(-1)
    assert score(two("e", "t"), recordings, cohort=cohort)[0] == 0  # a cohort alone changes nothing


def test_transform_comes_first() -> None:
    trials, recordings, cohort = drawn(5)
    matrix = np.random.default_rng(0).normal(size=(4, 3))
    moved = [Pool(one.names, one.data @ matrix, "m") for one in (recordings, cohort)]
    np.testing.assert_allclose(
        score(trials, recordings, transform=lambda x: x @ matrix, cohort=cohort, centre=True, top=5),
        score(trials, moved[0], cohort=moved[1], centre=True, top=5),
    )


def test_cohorts_that_will_not_do() -> None:
    trials, recordings, cohort = drawn(0)
    for wrong in ({"centre": True}, {"top": 3}):
        with pytest.raises(KnnError, match="cohort"):
            score(trials, recordings, **wrong)  # type: ignore[arg-type]
    with pytest.raises(KnnError, match="The cohort is of"):
        score(trials, recordings, cohort=Pool(cohort.names, cohort.data, "n"))
    with pytest.raises(KnnError, match="spread"):
        score(trials, recordings, cohort=cohort, top=1)
    with pytest.raises(KnnError, match="alike"):
        score(trials, recordings, cohort=Pool(cohort.names, np.ones((20, 4)), "m"), top=5)


# ---- figures ----


def test_figures_by_hand() -> None:
    """Targets 5, 1; nontargets 2, -3, -4, -5. Between 1 and 2, and between 2 and 5, a half or a quarter is wrong."""
    scores = np.array([5.0, 1.0, 2.0, -3.0, -4.0, -5.0])
    target = np.array([True, True, False, False, False, False])
    found = figures(scores, target, llr=True)
    assert (found.targets, found.nontargets) == (2, 4)
    assert found.eer == pytest.approx(0.25)  # from (miss 0, alarm 1/4) to (1/2, 1/4)
    # At P = 0.01 an alarm costs 99: best is no alarm and half of the targets missed; at 0.05 it costs 19.
    assert found.min_dcf == pytest.approx({0.01: 0.5, 0.05: 0.5})
    # The LLR's thresholds are log 99 = 4.6 and log 19 = 2.94: as good as the best.
    assert found.dcf == pytest.approx({0.01: 0.5, 0.05: 0.5})
    bits = (math.log2(1 + math.exp(-5)) + math.log2(1 + math.exp(-1))) / 2
    bits += sum(math.log2(1 + math.exp(x)) for x in (2, -3, -4, -5)) / 4
    assert found.cllr == pytest.approx(bits / 2)
    shifted = figures(scores + 3, target, llr=True)  # 8, 4 / 5, 0, -1, -2
    assert shifted.min_dcf == pytest.approx(found.min_dcf)
    assert shifted.dcf == pytest.approx({0.01: 0.5 + 99 / 4, 0.05: 19 / 4})
    assert shifted.cllr is not None and found.cllr is not None and shifted.cllr > found.cllr
    plain = figures(scores, target, llr=False)
    assert (plain.eer, plain.dcf, plain.cllr) == (found.eer, {}, None)
    # Scores that say nothing: all alike, an LLR of 0.
    nothing = figures(np.zeros(6), target, llr=True)
    assert nothing.cllr == pytest.approx(1) and nothing.min_dcf[0.01] == pytest.approx(1)
    assert nothing.eer == pytest.approx(0.5)


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_least_cost_against_every_threshold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, size=12).astype(float)  # with ties
    target = np.arange(12) < rng.integers(1, 12)
    for p, value in figures(scores, target, llr=False).min_dcf.items():
        costs = [
            np.mean(scores[target] < at) + (1 - p) / p * np.mean(scores[~target] >= at)
            for at in [*scores, scores.max() + 1]
        ]
        assert value == pytest.approx(min(costs))


def test_figures_need_both_kinds() -> None:
    with pytest.raises(KnnError, match="0 nontarget"):
        figures(np.ones(3), np.ones(3, dtype=bool), llr=False)


def test_scores_are_written_in_the_order_of_the_list(tmp_path: Path) -> None:
    found = listed(tmp_path, "1 a b\n0 c b\n1 a d\n")
    stream = io.StringIO()
    write_scores(found, np.array([0.5, -1.25, 1 / 3]), stream)
    assert stream.getvalue() == "enrol\ttest\tscore\ttarget\na\tb\t0.500000\t1\nc\tb\t-1.250000\t0\na\td\t0.333333\t1\n"
    stream = io.StringIO()
    write_scores(listed(tmp_path, "a b\n"), np.array([1.0]), stream)
    assert stream.getvalue() == "enrol\ttest\tscore\na\tb\t1.000000\n"
