"""Trials: are an enrolment and a test recording of one speaker? Lists read, scored in blocks, and measured.

Scores are cosines or the log-likelihood ratios of a PLDA, normalised by a cohort where one is given (AS-norm).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from knn_cli.core.errors import KnnError
from knn_cli.core.values import Doubles, EmbeddingSet
from knn_cli.core.vectors import l2_normalize
from knn_cli.evaluation import metrics

if TYPE_CHECKING:
    from knn_cli.recognition.plda import PLDA

Score = Callable[[Doubles, NDArray[np.int64], Doubles], Doubles]  # (N, D), (N,) counts, (M, D) -> (N, M)

TARGET_PRIORS = (0.01, 0.05)  # of the detection costs: VoxCeleb and NIST SRE use both
TOP = 300  # cohort scores of AS-norm
ENROLMENTS = 64  # of a block: what a list asks of them is a small part of all pairs, so blocks are small
TESTS = 8192
COHORT_ROWS = 512
_VOCABULARIES = (("1", "0"), ("target", "nontarget"), ("tgt", "imp"))  # target first
_FORMS = "Expected: `enrolment test`, `enrolment test target`, or `1 enrolment test` as VoxCeleb has it."

Form = tuple[int, int, int]  # columns, column of the key (-1: none), vocabulary


@dataclass(frozen=True, eq=False)
class Trials:
    """A list of trials.

    enrol, test : distinct texts of the two columns; an enrolment of several recordings names them with commas between
    rows        : (T, 2) numbers in `enrol` and `test`
    target      : (T,) whether the two are of one speaker, None where the list does not say
    """

    enrol: tuple[str, ...]
    test: tuple[str, ...]
    rows: NDArray[np.int64]
    target: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.rows)


def read_trials(path: Path | str) -> Trials:
    """A list of trials: two names a line, and in all lines or none a key, before or after them.

    Columns are separated by tabs where a line has any, else by white space; keys are 1 and 0, target and nontarget, or
    tgt and imp. Blank lines are passed over. Raises KnnError, with the line's number, for a line of another form than
    the lines before it, and for a file that cannot be read or holds no trials.
    """
    books: tuple[dict[str, int], ...] = ({}, {}, {})
    codes = (array("q"), array("q"), array("q"))
    forms: set[Form] = set()
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                fields = [one.strip() for one in line.split("\t")] if "\t" in line.strip() else line.split()
                if not fields or not any(fields):
                    continue
                found = _forms(fields)
                if not found:
                    raise KnnError(f"Line {number} of {path} is no trial.", _FORMS)
                forms = found & forms if codes[0] else found
                if not forms:
                    raise KnnError(f"Line {number} of {path} is of another form than the lines before it.", _FORMS)
                for text, book, column in zip(fields, books, codes, strict=False):
                    column.append(book.setdefault(text, len(book)))
    except OSError as error:
        raise KnnError(f"{path} cannot be read: {error.strerror}.", "Give the path of a list of trials.") from error
    except UnicodeDecodeError as error:
        raise KnnError(f"{path} is not a text file.", "Give the path of a list of trials.") from error
    if not forms:
        raise KnnError(f"{path} holds no trials.", _FORMS)
    if len(forms) > 1:
        raise KnnError(f"{path} has a key both before and after the names.", "Leave one of the two columns out.")
    ((_, key, vocabulary),) = forms
    names = [column for column in range(3) if column != key][:2]
    rows = np.stack([np.array(codes[column], dtype=np.int64) for column in names], axis=1)  # (T, 2)
    enrol, test = (tuple(books[column]) for column in names)
    if key < 0:
        return Trials(enrol, test, rows)
    is_target = np.array([text.lower() == _VOCABULARIES[vocabulary][0] for text in books[key]])
    return Trials(enrol, test, rows, is_target[np.array(codes[key], dtype=np.int64)])


def _forms(fields: Sequence[str]) -> set[Form]:
    """What a line may be taken for."""
    if not all(fields):
        return set()
    if len(fields) == 2:
        return {(2, -1, -1)}
    if len(fields) != 3:
        return set()
    return {(3, key, n) for key in (0, 2) for n, words in enumerate(_VOCABULARIES) if fields[key].lower() in words}


class Pool(NamedTuple):
    """One vector a recording or speaker.

    names    : (N,) distinct
    data     : (N, D) float64
    embedder : fingerprint of the bundle that the embeddings are of
    """

    names: tuple[str, ...]
    data: Doubles
    embedder: str


def pool(blocks: Iterable[EmbeddingSet], level: str = "name") -> Pool:
    """The mean embedding of each recording, or of each speaker, over the rows of one store or more.

    blocks : any number of rows at a time, so that a store need not fit in memory
    level  : what is averaged over, as in `EmbeddingSet.label`; rows without that label are left out
    Raises KnnError when the blocks are of several models, or no row is left.
    """
    book: dict[str, int] = {}
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
        found, inverse = np.unique(labels[kept], return_inverse=True)
        place = np.array([book.setdefault(one, len(book)) for one in found.tolist()])
        if len(book) > len(counts):  # room for twice as many, so that growing costs little
            room = max(len(book), 2 * len(counts))
            sums = np.concatenate(
                [sums.reshape(len(counts), block.dimension), np.zeros((room - len(counts), block.dimension))]
            )
            counts = np.concatenate([counts, np.zeros(room - len(counts))])
        np.add.at(sums, place[inverse], block.data[kept].astype(np.float64))
        counts += np.bincount(place[inverse], minlength=len(counts))
    if not book:
        raise KnnError(f"There are no embeddings with a {level}.", "Give a store that has some.")
    return Pool(tuple(book), sums[: len(book)] / counts[: len(book), None], embedder or "")


def score(
    trials: Trials,
    recordings: Pool,
    *,
    plda: PLDA | None = None,
    transform: Callable[[Doubles], Doubles] | None = None,
    cohort: Pool | None = None,
    centre: bool = False,
    top: int | None = None,
) -> Doubles:
    """(T,) scores: cosines, or log-likelihood ratios (natural logarithm) of `plda`.

    recordings : those that the trials name: as they are, without suffix, or without folders that lead to them
    transform  : (N, D) -> (N, D'), done to every embedding first, as the PLDA was trained on
    cohort     : speakers or recordings that are in no trial
    centre     : take the cohort's mean off every embedding (PLDA: put its own mean there)
    top        : AS-norm by that many cohort scores (all where there are fewer); None: no normalisation

    An enrolment of several recordings is the mean of their vectors, of unit length for cosines; a PLDA knows how many.
    To a PLDA a recording is one embedding, of however many segments it is the mean: those share their session and are
    far from independent given the speaker. Taken for independent they make LLRs that are too sure (Cllr 1.9 bits
    instead of 1.6, and 195 instead of 55 in another domain, with more equal errors in both); so did a PLDA that was
    trained on means of recordings. The price is that long recordings are trusted no more than short ones.
    Time and memory are those of small blocks of trials. Raises KnnError for a name without an embedding, a cohort of
    another model, or `centre` and `top` without a cohort.
    """
    if cohort is None and (centre or top is not None):
        raise KnnError(
            "Centring and normalising scores need a cohort.", "Give a store of other speakers as the cohort."
        )
    if cohort is not None and cohort.embedder != recordings.embedder:
        both = f"{cohort.embedder or '(unknown)'}, the recordings of {recordings.embedder or '(unknown)'}"
        raise KnnError(f"The cohort is of {both}.", "Embed both with one model.")
    members, test_rows = _members(trials, recordings)
    vectors, others = recordings.data, None if cohort is None else cohort.data
    if transform is not None:
        vectors, others = transform(vectors), None if others is None else transform(others)
    if centre and others is not None:
        shift = others.mean(axis=0) - (0.0 if plda is None else plda.mean)
        vectors, others = vectors - shift, others - shift
    if plda is None:
        vectors, others = l2_normalize(vectors), None if others is None else l2_normalize(others)
    counts = np.array([len(rows) for rows in members])
    owner = np.repeat(np.arange(len(members)), counts)
    enrol = np.zeros((len(members), vectors.shape[1]))
    np.add.at(enrol, owner, vectors[np.concatenate(members)])
    enrol /= counts[:, None]
    test = vectors[test_rows]
    scorer = _cosine if plda is None else _llr(plda)
    scores = _paired(scorer, enrol, counts, test, trials.rows)
    if top is None or others is None:
        return scores
    return as_norm(scores, trials.rows, scorer, enrol, counts, test, others, top)


def as_norm(
    scores: Doubles,
    rows: NDArray[np.int64],
    scorer: Score,
    enrol: Doubles,
    counts: NDArray[np.int64],
    test: Doubles,
    cohort: Doubles,
    top: int,
) -> Doubles:
    """Adaptive symmetric normalisation: ((s - m_e) / d_e + (s - m_t) / d_t) / 2.

    m and d are mean and (population) standard deviation of the `top` largest scores of the enrolment, or of the test
    recording, against the cohort, each with its own part of the cohort: AS-norm1 of P. Matejka et al., "Analysis of
    score normalization in multilingual speaker recognition", Interspeech 2017.

    scores : (T,) of the pairs `rows` (T, 2) of enrol (N, D) and test (M, D)
    cohort : (K, D), K >= 2, each taken for one embedding
    Raises KnnError when the cohort is too small, or its scores are all alike.
    """
    if top < 2 or len(cohort) < 2:
        raise KnnError(
            f"AS-norm by {min(top, len(cohort))} cohort score has no spread.", "Take two or more; usual are 200 to 500."
        )
    ones = np.ones(len(cohort), dtype=np.int64)
    enrol_mean, enrol_spread = _moments(lambda a, b: scorer(enrol[a:b], counts[a:b], cohort), len(enrol), top)
    test_mean, test_spread = _moments(lambda a, b: scorer(cohort, ones, test[a:b]).T, len(test), top)
    if min(enrol_spread.min(), test_spread.min()) < 1e-12:
        raise KnnError("A recording scores alike against all of the cohort.", "Give a cohort of different speakers.")
    left, right = rows.T
    by_enrol = (scores - enrol_mean[left]) / enrol_spread[left]
    by_test = (scores - test_mean[right]) / test_spread[right]
    result: Doubles = (by_enrol + by_test) / 2
    return result


def _moments(against: Callable[[int, int], Doubles], rows: int, top: int) -> tuple[Doubles, Doubles]:
    """Mean and deviation of the largest scores of each row, some rows at a time."""
    mean, spread = np.empty(rows), np.empty(rows)
    for first in range(0, rows, COHORT_ROWS):
        last = min(rows, first + COHORT_ROWS)
        scores = against(first, last)  # (rows of the block, K)
        if top < scores.shape[1]:
            scores = np.partition(scores, scores.shape[1] - top, axis=1)[:, -top:]
        mean[first:last], spread[first:last] = scores.mean(axis=1), scores.std(axis=1)
    return mean, spread


def _cosine(enrol: Doubles, counts: NDArray[np.int64], test: Doubles) -> Doubles:
    scores: Doubles = l2_normalize(enrol) @ test.T
    return scores


def _llr(plda: PLDA) -> Score:
    return lambda enrol, counts, test: plda.llr(enrol, test, counts)


def _paired(
    scorer: Score, enrol: Doubles, counts: NDArray[np.int64], test: Doubles, rows: NDArray[np.int64]
) -> Doubles:
    """Scores of the pairs asked for: a few enrolments against all their tests at a time, as one matrix product."""
    scores = np.empty(len(rows))
    order = np.lexsort((rows[:, 1], rows[:, 0]))
    block = rows[order, 0] // ENROLMENTS
    edges = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(rows)]
    for first, last in pairwise(edges):
        asked = order[first:last]
        enrolments, left = np.unique(rows[asked, 0], return_inverse=True)
        tests, right = np.unique(rows[asked, 1], return_inverse=True)
        for start in range(0, len(tests), TESTS):
            part = (right >= start) & (right < start + TESTS)
            found = scorer(enrol[enrolments], counts[enrolments], test[tests[start : start + TESTS]])
            scores[asked[part]] = found[left[part], right[part] - start]
    return scores


def _members(trials: Trials, recordings: Pool) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Rows of the recordings of each enrolment, and the row of each test."""
    book = {name: row for row, name in enumerate(recordings.names)}
    homes: dict[int, str] = {}
    missing: dict[str, None] = {}

    def row_of(text: str) -> int:
        for name in _spellings(text):
            if (row := book.get(name)) is not None:
                whole = str(PurePosixPath(text).with_suffix("")) if name != text else text
                if "/" in whole and homes.setdefault(row, whole) != whole:
                    raise KnnError(
                        f"{homes[row]} and {whole} of the trials are both {name} in the store.",
                        "Name the recordings in the store with their folders.",
                    )
                return row
        missing[text] = None
        return 0

    enrolments = [
        np.array([row_of(one) for one in ([text] if text in book else text.split(","))], dtype=np.int64)
        for text in trials.enrol
    ]
    tests = np.array([row_of(text) for text in trials.test], dtype=np.int64)
    if missing:
        raise KnnError(
            f"The trials name {len(missing)} recordings without an embedding, first {next(iter(missing))}.",
            f"The store's names are like {recordings.names[0]}.",
        )
    return enrolments, tests


def _spellings(text: str) -> Iterator[str]:
    """As a store may call a recording: x/y/z.wav, x/y/z, y/z, z."""
    yield text
    parts = PurePosixPath(text).parts
    if not parts:
        return
    parts = (*parts[:-1], PurePosixPath(text).stem)
    for first in range(len(parts)):
        yield "/".join(parts[first:])


@dataclass(frozen=True)
class VerificationMetrics:
    """How good scores of labelled trials are.

    eer      : equal error rate, as `metrics.eer`
    min_dcf  : target prior P -> min over thresholds of (P P_miss + (1 - P) P_fa) / min(P, 1 - P), costs of 1 (the
               normalised detection cost of the NIST SRE 2016 evaluation plan)
    dcf      : the same at the threshold that the score as an LLR asks for, log((1 - P) / P); empty for other scores
    cllr     : Brummer & du Preez, "Application-independent evaluation of speaker detection", Computer Speech and
               Language 2006: (mean log2(1 + e^-s) of targets + mean log2(1 + e^s) of nontargets) / 2; None if no LLR
    """

    targets: int
    nontargets: int
    eer: float
    min_dcf: dict[float, float]
    dcf: dict[float, float] = field(default_factory=dict)
    cllr: float | None = None


def figures(scores: Doubles, target: NDArray[np.bool_], *, llr: bool) -> VerificationMetrics:
    """Figures of (T,) scores and keys. `llr`: the scores are log-likelihood ratios (of a PLDA, not normalised).

    Raises KnnError without trials of both kinds.
    """
    targets, nontargets = np.sort(scores[target]), np.sort(scores[~target])
    if len(targets) == 0 or len(nontargets) == 0:
        raise KnnError(f"{len(targets)} target and {len(nontargets)} nontarget trials cannot be measured.")
    thresholds = np.append(np.unique(scores), np.inf)
    miss = np.searchsorted(targets, thresholds) / len(targets)
    alarm = 1 - np.searchsorted(nontargets, thresholds) / len(nontargets)
    least = {p: float(_cost(miss, alarm, p).min()) for p in TARGET_PRIORS}
    rate = metrics.eer(targets, nontargets)
    if not llr:
        return VerificationMetrics(len(targets), len(nontargets), rate, least)
    actual = {}
    for p in TARGET_PRIORS:
        at = math.log((1 - p) / p)
        actual[p] = float(_cost(np.mean(targets < at), np.mean(nontargets >= at), p))
    bits = np.mean(np.logaddexp(0, -targets)) + np.mean(np.logaddexp(0, nontargets))
    return VerificationMetrics(len(targets), len(nontargets), rate, least, actual, float(bits / (2 * math.log(2))))


def _cost(miss: Any, alarm: Any, prior: float) -> Any:
    return (prior * miss + (1 - prior) * alarm) / min(prior, 1 - prior)


def write_scores(trials: Trials, scores: Doubles, file: TextIO) -> None:
    """Tab-separated with a header, in the order of the list: enrol, test, score, and target (1 or 0) where known."""
    keyed = trials.target is not None
    file.write("enrol\ttest\tscore" + ("\ttarget" if keyed else "") + "\n")
    keys = trials.target.astype(int).tolist() if trials.target is not None else [0] * len(trials)
    for (left, right), value, key in zip(trials.rows.tolist(), scores.tolist(), keys, strict=True):
        end = f"\t{key}\n" if keyed else "\n"
        file.write(f"{trials.enrol[left]}\t{trials.test[right]}\t{value:.6f}{end}")
