"""Scores of speaker verification trials: cosines or PLDA log-likelihood ratios, normalised by a cohort (AS-norm).

To a PLDA a recording is one embedding, however many segments it is the mean of: segments share their session and are
far from independent given the speaker. Taken as independent they make LLRs overconfident (Cllr 1.9 bits instead of 1.6,
and 195 instead of 55 in another domain, with a higher EER in both); so did a PLDA that was trained on means of
recordings. The price is that long recordings are trusted no more than short ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, EmbeddingSet
from knn_cli.core.vectors import l2_normalize
from knn_cli.recognition.trials import Trials

if TYPE_CHECKING:
    from knn_cli.recognition.plda import PLDA

# (N, D) enrollments, (N,) embeddings of each, (M, D) tests -> (N, M) scores
PairScorer = Callable[[Doubles, NDArray[np.int64], Doubles], Doubles]

# A list asks for few of all pairs, so blocks are small.
ENROLLMENTS_PER_BLOCK = 64
TESTS_PER_BLOCK = 8192
COHORT_ROWS_PER_BLOCK = 512


class MeanEmbeddings(NamedTuple):
    """One embedding per recording or speaker.

    Attributes
    ----------
    names : tuple of N str
        All different.
    data : (N, D) float64
    embedder : str
        Fingerprint of the bundle that made the embeddings.
    """

    names: tuple[str, ...]
    data: Doubles
    embedder: str


def mean_embeddings(blocks: Iterable[EmbeddingSet], level: str = "name") -> MeanEmbeddings:
    """The mean embedding of each recording, or of each speaker, over the rows of one or more stores.

    Parameters
    ----------
    blocks : iterable of EmbeddingSet
        Any number of rows at a time, so that a store need not fit in memory.
    level : str
        What is averaged over, as in `EmbeddingSet.label`; rows without that label are left out.

    Returns
    -------
    MeanEmbeddings

    Raises
    ------
    KnnError
        The blocks are of several models, or no row is left.
    """
    places: dict[str, int] = {}
    sums = np.zeros((0, 0))
    counts = np.zeros(0)
    embedder: str | None = None
    for block in blocks:
        if embedder is not None and block.embedder != embedder:
            raise KnnError(
                f"Embeddings of {embedder or '(unknown)'} and of {block.embedder or '(unknown)'} do not mix."
            )
        embedder = block.embedder
        labels = block.label(level)
        kept = np.flatnonzero(labels != "")
        if len(kept) == 0:
            continue
        names, inverse = np.unique(labels[kept], return_inverse=True)
        place = np.array([places.setdefault(name, len(places)) for name in names.tolist()])
        if len(places) > len(counts):  # at least double the capacity, so that growing costs little
            capacity = max(len(places), 2 * len(counts))
            sums = np.concatenate(
                [sums.reshape(len(counts), block.dimension), np.zeros((capacity - len(counts), block.dimension))]
            )
            counts = np.concatenate([counts, np.zeros(capacity - len(counts))])
        np.add.at(sums, place[inverse], block.data[kept].astype(np.float64))
        counts += np.bincount(place[inverse], minlength=len(counts))
    if not places:
        raise KnnError(f"There are no embeddings with a {level}.", "Give a store that has some.")
    return MeanEmbeddings(tuple(places), sums[: len(places)] / counts[: len(places), None], embedder or "")


def score_trials(
    trials: Trials,
    recordings: MeanEmbeddings,
    *,
    plda: PLDA | None = None,
    transform: Callable[[Doubles], Doubles] | None = None,
    cohort: MeanEmbeddings | None = None,
    subtract_mean: bool = False,
    as_norm_top_n: int | None = None,
) -> Doubles:
    """Score trials by cosine or PLDA.

    An enrollment of several recordings is the mean of their embeddings, of unit length for cosines; a PLDA takes their
    number into account. Time and memory are those of small blocks of trials.

    Parameters
    ----------
    trials : Trials
    recordings : MeanEmbeddings
        Those that the trials name: by the same text, or without its suffix or leading folders.
    plda : PLDA, optional
        Scores are its log-likelihood ratios (natural logarithm); cosines by default.
    transform : callable, optional
        (N, D) -> (N, D'), applied to every embedding first, as for the training of the PLDA.
    cohort : MeanEmbeddings, optional
        Speakers or recordings that are in no trial.
    subtract_mean : bool
        Subtract the cohort's mean from every embedding (and, for a PLDA, add the PLDA's).
    as_norm_top_n : int, optional
        AS-norm by that many of the highest cohort scores (all of them if there are fewer); None: no normalisation.

    Returns
    -------
    (T,) float64

    Raises
    ------
    KnnError
        For a name without an embedding, a cohort of another model, or `subtract_mean` or `as_norm_top_n` without a
        cohort.
    """
    _check_cohort(recordings, cohort, subtract_mean or as_norm_top_n is not None)
    enroll_rows, test_rows = _find_rows(trials, recordings)
    vectors, others = recordings.data, None if cohort is None else cohort.data
    if transform is not None:
        vectors, others = transform(vectors), None if others is None else transform(others)
    if subtract_mean and others is not None:
        shift = others.mean(axis=0) - (0.0 if plda is None else plda.mean)
        vectors, others = vectors - shift, others - shift
    if plda is None:
        vectors, others = l2_normalize(vectors), None if others is None else l2_normalize(others)
    enroll, counts = _enrollment_means(vectors, enroll_rows)
    test = vectors[test_rows]
    scorer = _cosine if plda is None else _plda_scorer(plda)
    scores = _score_pairs(scorer, enroll, counts, test, trials.pairs)
    if as_norm_top_n is None or others is None:
        return scores
    return as_norm(scores, trials.pairs, scorer, enroll, counts, test, others, as_norm_top_n)


def _check_cohort(recordings: MeanEmbeddings, cohort: MeanEmbeddings | None, needed: bool) -> None:
    if cohort is None and needed:
        raise KnnError(
            "Centring and normalising scores need a cohort.", "Give a store of other speakers as the cohort."
        )
    if cohort is not None and cohort.embedder != recordings.embedder:
        both = f"{cohort.embedder or '(unknown)'}, the recordings of {recordings.embedder or '(unknown)'}"
        raise KnnError(f"The cohort is of {both}.", "Embed both with one model.")


def _enrollment_means(vectors: Doubles, rows: list[NDArray[np.int64]]) -> tuple[Doubles, NDArray[np.int64]]:
    """(N, D) means of the embeddings of each enrollment, and (N,) how many there are."""
    counts = np.array([len(members) for members in rows])
    owner = np.repeat(np.arange(len(rows)), counts)
    means = np.zeros((len(rows), vectors.shape[1]))
    np.add.at(means, owner, vectors[np.concatenate(rows)])
    means /= counts[:, None]
    return means, counts


def as_norm(
    scores: Doubles,
    pairs: NDArray[np.int64],
    scorer: PairScorer,
    enroll: Doubles,
    counts: NDArray[np.int64],
    test: Doubles,
    cohort: Doubles,
    top_n: int,
) -> Doubles:
    """Adaptive symmetric score normalisation: ((s - m_e) / d_e + (s - m_t) / d_t) / 2.

    m and d are the mean and the (population) standard deviation of the `top_n` highest scores of the enrollment, or of
    the test recording, against the cohort, each with its own part of the cohort (AS-norm1).

    Parameters
    ----------
    scores : (T,) float64
    pairs : (T, 2) int64
        Rows of `enroll` and `test`.
    scorer : callable
        (N, D) enrollments, (N,) embeddings of each and (M, D) tests to (N, M) scores.
    enroll : (N, D) float64
    counts : (N,) int64
        How many embeddings each enrollment is the mean of.
    test : (M, D) float64
    cohort : (K, D) float64
        K >= 2, each row taken as one embedding.
    top_n : int

    Returns
    -------
    (T,) float64

    Raises
    ------
    KnnError
        The cohort is too small, or all scores against it are equal.

    References
    ----------
    P. Matejka et al., "Analysis of score normalization in multilingual speaker recognition", Interspeech 2017.
    """
    if top_n < 2 or len(cohort) < 2:
        raise KnnError(
            f"AS-norm by {min(top_n, len(cohort))} cohort score has no spread.",
            "Take two or more; usual are 200 to 500.",
        )
    ones = np.ones(len(cohort), dtype=np.int64)
    enroll_mean, enroll_std = _top_moments(lambda a, b: scorer(enroll[a:b], counts[a:b], cohort), len(enroll), top_n)
    test_mean, test_std = _top_moments(lambda a, b: scorer(cohort, ones, test[a:b]).T, len(test), top_n)
    if min(enroll_std.min(), test_std.min()) < 1e-12:
        raise KnnError("A recording scores the same against all of the cohort.", "Give a cohort of different speakers.")
    left, right = pairs.T
    by_enroll = (scores - enroll_mean[left]) / enroll_std[left]
    by_test = (scores - test_mean[right]) / test_std[right]
    result: Doubles = (by_enroll + by_test) / 2
    return result


def _top_moments(against: Callable[[int, int], Doubles], rows: int, top_n: int) -> tuple[Doubles, Doubles]:
    """Mean and deviation of the highest scores of each row, some rows at a time."""
    mean, std = np.empty(rows), np.empty(rows)
    for first in range(0, rows, COHORT_ROWS_PER_BLOCK):
        last = min(rows, first + COHORT_ROWS_PER_BLOCK)
        scores = against(first, last)  # (rows of the block, K)
        if top_n < scores.shape[1]:
            scores = np.partition(scores, scores.shape[1] - top_n, axis=1)[:, -top_n:]
        mean[first:last], std[first:last] = scores.mean(axis=1), scores.std(axis=1)
    return mean, std


def _cosine(enroll: Doubles, counts: NDArray[np.int64], test: Doubles) -> Doubles:
    """Cosines, of tests that have unit length already."""
    scores: Doubles = l2_normalize(enroll) @ test.T
    return scores


def _plda_scorer(plda: PLDA) -> PairScorer:
    return lambda enroll, counts, test: plda.llr(enroll, test, counts)


def _score_pairs(
    scorer: PairScorer, enroll: Doubles, counts: NDArray[np.int64], test: Doubles, pairs: NDArray[np.int64]
) -> Doubles:
    """Scores of the pairs only: a few enrollments against all their tests at a time, as one matrix product."""
    scores = np.empty(len(pairs))
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    block = pairs[order, 0] // ENROLLMENTS_PER_BLOCK
    edges = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(pairs)]
    for first, last in pairwise(edges):
        trials = order[first:last]
        enrollments, left = np.unique(pairs[trials, 0], return_inverse=True)
        tests, right = np.unique(pairs[trials, 1], return_inverse=True)
        for start in range(0, len(tests), TESTS_PER_BLOCK):
            in_block = (right >= start) & (right < start + TESTS_PER_BLOCK)
            block_tests = test[tests[start : start + TESTS_PER_BLOCK]]
            block_scores = scorer(enroll[enrollments], counts[enrollments], block_tests)
            scores[trials[in_block]] = block_scores[left[in_block], right[in_block] - start]
    return scores


def _find_rows(trials: Trials, recordings: MeanEmbeddings) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Rows of the recordings of each enrollment, and the row of each test."""
    rows = {name: row for row, name in enumerate(recordings.names)}
    full_names: dict[int, str] = {}  # with folders, of each row that the trials name
    missing: dict[str, None] = {}

    def row_of(text: str) -> int:
        for name in _spellings(text):
            if (row := rows.get(name)) is not None:
                full_name = str(PurePosixPath(text).with_suffix("")) if name != text else text
                if "/" in full_name and full_names.setdefault(row, full_name) != full_name:
                    raise KnnError(
                        f"{full_names[row]} and {full_name} of the trials are both {name} in the store.",
                        "Name the recordings in the store with their folders.",
                    )
                return row
        missing[text] = None
        return 0

    enrollments = [
        np.array([row_of(name) for name in ([text] if text in rows else text.split(","))], dtype=np.int64)
        for text in trials.enroll
    ]
    tests = np.array([row_of(text) for text in trials.test], dtype=np.int64)
    if missing:
        raise KnnError(
            f"The trials name {len(missing)} recordings without an embedding, first {next(iter(missing))}.",
            f"The store's names are like {recordings.names[0]}.",
        )
    return enrollments, tests


def _spellings(text: str) -> Iterator[str]:
    """The names that a store may give it: x/y/z.wav, x/y/z, y/z, z."""
    yield text
    parts = PurePosixPath(text).parts
    if not parts:
        return
    parts = (*parts[:-1], PurePosixPath(text).stem)
    for first in range(len(parts)):
        yield "/".join(parts[first:])
