"""From scores of overlapping windows to spans of labels, by a hidden Markov model, and to one label per speaker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from knn_cli.audio.segments import EPSILON, MAX_GAP_SECONDS, total_seconds
from knn_cli.core.languages import NO_SPEECH
from knn_cli.core.values import Doubles, ScoreTable, Segment
from knn_cli.evaluation.open_set import UNKNOWN, best_answer, best_llr, possible_answers
from knn_cli.formats.spans import Span
from knn_cli.recognition import hmm
from knn_cli.recognition.language_timeline import LanguageSwitch, SpeakerLanguage

SWITCH_PROBABILITY = 0.2  # of another language a second later; smaller values miss switches of a few seconds
SPEECH_SWITCH_PROBABILITY = 0.1  # that speech begins or ends within a second
UNIFORM_WINDOWS = 10.0  # windows whose weight equally likely labels have against what the recording is taken for
ALTERNATIVES = 3


class SpeechTrack(NamedTuple):
    """Speech that is smoothed by itself: that of one speaker, or all speech.

    Attributes
    ----------
    tier : str
        The speaker, "" for all speech.
    speech : list of Segment
        What gets a label.
    scored : list of Segment
        The part of it in which the windows lie.
    windows : list of Segment
        Sorted by start.
    """

    tier: str
    speech: list[Segment]
    scored: list[Segment]
    windows: list[Segment]

    @property
    def centers(self) -> Doubles:
        """(N,) seconds of the windows' centers."""
        return np.array([(window.start + window.end) / 2 for window in self.windows])


def smooth_labels(
    table: ScoreTable,
    track: SpeechTrack,
    *,
    window: float,
    switch: float = SWITCH_PROBABILITY,
    max_gap: float = MAX_GAP_SECONDS,
    alternatives: int = ALTERNATIVES,
) -> list[Span]:
    """Spans of one track by the most likely sequence of labels, with the probabilities of each span's labels.

    Windows overlap, so one second of speech is in window / step of them, and taking the full evidence of each would
    count it as often. Each log-likelihood is therefore scaled by the seconds for which its window stands (nearer to its
    center than to another's) over `window`: step / window in the middle of speech, and all windows of a region together
    weigh as much as windows laid end to end. Regions shorter than a window weigh less, in proportion.

    A recording has few languages, so they are decoded twice: first with all labels equally likely wherever the language
    changes, then with each as likely as the other windows of the recording had it (`_label_weights`). Of 99 languages
    those that fit a window or two by chance are thereby kept out, and nothing changes for a single window. The labels
    of a declared set (the table has rivals) stay equally likely: whoever declared it knows which languages there are.

    `zxx` (no speech) is no language to switch to: where it is likely, speech begins or ends, by a Markov chain of its
    own, and meanwhile the language stays what it was (`_decode`).

    A span's probability is the mean over its time of the probability of its label given all windows (forward-backward);
    its alternatives are the other labels by the same mean, and the sum of all is at most 1.

    Parameters
    ----------
    table : ScoreTable
        Scores of `track.windows`, in their order.
    track : SpeechTrack
    window : float
        Seconds of a full window.
    switch : float
        Probability that the language is another one a second later.
    max_gap : float
        Pauses up to this many seconds between two spans of one label belong to it.
    alternatives : int
        Labels to give besides the first.

    Returns
    -------
    list of Span
    """
    labels, scores = _with_unknown(table)
    centers = track.centers
    shares = np.minimum(_window_seconds(centers, track) / window, 1.0)  # (N,)
    gaps = np.diff(centers)
    weighted = table.rivals is None
    if NO_SPEECH in labels:
        path, posteriors = _decode(labels, scores, _speech_odds(table), shares, gaps, switch, weighted)
    else:
        path, posteriors = _decode_languages(scores * shares[:, None], shares, gaps, switch, weighted)
    return [
        _span(start, end, track.tier, labels, label, probabilities, alternatives)
        for start, end, label, probabilities in _runs(_cells(centers, track.speech), path, posteriors, max_gap)
    ]


def _decode(
    labels: tuple[str, ...],
    scores: Doubles,
    speech_odds: Doubles,
    shares: Doubles,
    gaps: Doubles,
    switch: float,
    weighted: bool,
) -> tuple[NDArray[np.int64], Doubles]:
    """Path (N,) and posteriors (N, C) of labels with `zxx` among them.

    Two chains: whether there is speech, and which language it has, or had before and will have again. A window without
    speech says nothing of the language: each language has the likelihood of the window if there is speech, mixed with
    an equal likelihood for all if there is none, in proportion to the posterior of speech in the first chain.
    """
    column = labels.index(NO_SPEECH)
    languages = np.delete(np.arange(len(labels)), column)
    evidence = np.stack([shares * speech_odds, np.zeros(len(scores))], axis=1)  # (N, 2)
    begins_or_ends = hmm.switch_probabilities(SPEECH_SWITCH_PROBABILITY, gaps, 2)
    speech = hmm.forward_backward(evidence, begins_or_ends)[:, :1].clip(1e-9, 1 - 1e-9)  # (N, 1)
    is_speech = hmm.viterbi(evidence, begins_or_ends) == 0
    spoken = scores[:, languages] * shares[:, None]
    spoken = spoken - scipy.special.logsumexp(spoken, axis=1, keepdims=True)
    mixed = np.logaddexp(np.log(speech) + spoken, np.log1p(-speech) - np.log(len(languages)))
    path, posteriors = _decode_languages(mixed, shares * speech[:, 0], gaps, switch, weighted)
    posteriors = posteriors * np.exp(spoken - mixed)  # given that this window is speech
    posteriors *= speech / posteriors.sum(axis=1, keepdims=True)
    return np.where(is_speech, languages[path], column), np.insert(posteriors, column, 1 - speech[:, 0], axis=1)


def _decode_languages(
    scores: Doubles, shares: Doubles, gaps: Doubles, switch: float, weighted: bool
) -> tuple[NDArray[np.int64], Doubles]:
    """Path (N,) and posteriors (N, C) of log-likelihoods (N, C).

    weighted : labels are as likely as the recording has them, not equally
    """
    probabilities = hmm.switch_probabilities(switch, gaps, scores.shape[1])
    weights = _label_weights(hmm.forward_backward(scores, probabilities), shares) if weighted else None
    return hmm.viterbi(scores, probabilities, weights), hmm.forward_backward(scores, probabilities, weights)


def _label_weights(posteriors: Doubles, shares: Doubles) -> Doubles:
    """(C,) how likely each label is where the language changes, from posteriors (N, C) with equal weights.

    Their mean over the windows, each counted by its share of a full window, and equal weights that count as much as
    `UNIFORM_WINDOWS`. One window less is counted than there are: the weights are for a window what the others have.
    """
    windows = shares.sum()
    others = max(0.0, windows - 1)
    mean = shares @ posteriors / windows if others else np.zeros(posteriors.shape[1])
    weights: Doubles = (others * mean + UNIFORM_WINDOWS / posteriors.shape[1]) / (others + UNIFORM_WINDOWS)
    return weights


def _speech_odds(table: ScoreTable) -> Doubles:
    """(N,) log-odds of speech, in any language that the model knows, against `zxx`; every label is equally likely."""
    column = table.labels.index(NO_SPEECH)
    spoken = np.delete(table.log_likelihood, column, axis=1)
    if table.rivals is not None:
        spoken = np.concatenate([spoken, table.rivals], axis=1)
    odds: Doubles = scipy.special.logsumexp(spoken, axis=1) - table.log_likelihood[:, column]
    return odds


def _runs(
    cells: Iterator[tuple[float, float, int]], path: NDArray[np.int64], posteriors: Doubles, max_gap: float
) -> Iterator[tuple[float, float, int, Doubles]]:
    """Start, end, label and mean posteriors of each run of cells with one label and no long pause."""
    sums = np.zeros(posteriors.shape[1])
    start = end = covered = 0.0
    current = -1
    for first, last, row in cells:
        if path[row] != current or first - end > max_gap + EPSILON:
            if current >= 0:
                yield start, end, current, sums / covered
            start, current, covered, sums = first, int(path[row]), 0.0, np.zeros(posteriors.shape[1])
        end = last
        covered += last - first
        sums += (last - first) * posteriors[row]
    if current >= 0:
        yield start, end, current, sums / covered


def speaker_language(table: ScoreTable, track: SpeechTrack, *, alternatives: int = ALTERNATIVES) -> SpeakerLanguage:
    """The language of one speaker from the mean of the windows' scores, each weighted by the seconds it stands for.

    The mean and not the sum: windows of one speaker in one recording share their peculiarities, and the classifier is
    calibrated for one embedding, which a mean over windows is to a linear classifier. Where `zxx` is a label, windows
    count as far as they are speech, and it is the answer only if it is likelier than all languages together.
    """
    weights = _window_seconds(track.centers, track)
    if NO_SPEECH in table.labels and (speech := weights * scipy.special.expit(_speech_odds(table))).sum() > 0:
        weights = speech
    shares = (weights / weights.sum())[None]  # (1, N)
    mean = replace(
        table.take(slice(1)),
        log_likelihood=shares @ table.log_likelihood,
        rivals=None if table.rivals is None else shares @ table.rivals,
    )
    labels, scores = _with_unknown(mean)
    probabilities = scipy.special.softmax(scores[0])
    candidates = probabilities.copy()
    if NO_SPEECH in labels and probabilities[labels.index(NO_SPEECH)] <= 0.5:
        candidates[labels.index(NO_SPEECH)] = 0.0
    span = _span(0.0, 0.0, track.tier, labels, int(candidates.argmax()), probabilities, alternatives)
    assert span.probability is not None
    seconds, scored_seconds = total_seconds(track.speech), total_seconds(track.scored)
    return SpeakerLanguage(track.tier, span.label, span.probability, span.alternatives, seconds, scored_seconds)


def language_switches(spans: Sequence[Span]) -> tuple[LanguageSwitch, ...]:
    """Changes of label from span to span within a tier, by time; what is unknown or no speech is skipped."""
    switches: list[LanguageSwitch] = []
    current: dict[str, str] = {}  # tier -> language
    for span in spans:
        if span.label in (UNKNOWN, NO_SPEECH):
            continue
        before = current.setdefault(span.tier, span.label)
        if before != span.label:
            switches.append(LanguageSwitch(span.start, before, span.label, span.tier))
        current[span.tier] = span.label
    return tuple(switches)


def _span(
    start: float, end: float, tier: str, labels: tuple[str, ...], label: int, probabilities: Doubles, alternatives: int
) -> Span:
    ranked = [column for column in np.argsort(-probabilities, kind="stable").tolist() if column != label]
    others = tuple((labels[column], float(probabilities[column])) for column in ranked[:alternatives])
    return Span(start, end, labels[label], tier, float(probabilities[label]), others)


def _with_unknown(table: ScoreTable) -> tuple[tuple[str, ...], Doubles]:
    """Labels and scores, with a label `unknown` where the table has a threshold.

    Out-of-set speech is given the mean likelihood of all labels of the model but the best answer, times exp(threshold).
    So a row by itself is unknown exactly if its largest detection LLR (`open_set.best_llr`), l_best - log mean_{others}
    exp(l), is below the threshold, and neighbouring rows count for or against `unknown` as for any label.
    """
    scores = possible_answers(table).log_likelihood
    if table.threshold is None:
        return table.labels, scores
    best = table.log_likelihood[np.arange(len(scores)), best_answer(table)]
    unknown = best - best_llr(table) + table.threshold
    if UNKNOWN in table.labels:
        column = table.labels.index(UNKNOWN)
        scores = scores.copy()
        scores[:, column] = np.maximum(scores[:, column], unknown)
        return table.labels, scores
    return (*table.labels, UNKNOWN), np.concatenate([scores, unknown[:, None]], axis=1)


def _cells(centers: Doubles, regions: Iterable[Segment]) -> Iterator[tuple[float, float, int]]:
    """Start, end and window of each part of the regions: every instant goes to the window with the nearest center.

    Only windows with their centers in the instant's region are considered, so that nothing leaks across a pause; a
    region without any goes as a whole to the window nearest to its middle.
    """
    for region in regions:
        first, last = np.searchsorted(centers, [region.start, region.end], side="left").tolist()
        if first == last:
            yield region.start, region.end, int(np.abs(centers - (region.start + region.end) / 2).argmin())
            continue
        middles = (centers[first : last - 1] + centers[first + 1 : last]) / 2
        edges = [region.start, *middles.tolist(), region.end]
        for row in range(first, last):
            if edges[row - first + 1] > edges[row - first]:
                yield edges[row - first], edges[row - first + 1], row


def _window_seconds(centers: Doubles, track: SpeechTrack) -> Doubles:
    """(N,) seconds of `track.scored` for which each window stands; regions too short for a window are left out."""
    seconds = np.zeros(len(centers))
    for start, end, row in _cells(centers, track.scored):
        if start <= centers[row] <= end:
            seconds[row] += end - start
    return seconds
