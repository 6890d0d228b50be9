"""Which language when: windows over speech, their scores, and a hidden Markov model that makes spans of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from pyannote.core import Segment, Timeline

from knn_cli.audio import segments, speech_regions
from knn_cli.audio.segments import MAX_GAP_SECONDS
from knn_cli.core.values import Doubles, EmbeddingSet, ScoreTable
from knn_cli.evaluation.open_set import UNKNOWN
from knn_cli.formats.spans import Span, SpanDocument
from knn_cli.recognition import hmm

if TYPE_CHECKING:
    from pyannote.core import Annotation

    from knn_cli.recognition.classifier import Classifier

WINDOW_SECONDS = 3.0
STEP_SECONDS = 1.0
MINIMUM_WINDOW_SECONDS = 0.4  # a region of speech shorter than this takes the label of the nearest window
SWITCH = 0.1  # probability that the language is another one a second later; smaller ones lose switches of a few seconds
ALTERNATIVES = 3
TIER = "language"


@dataclass(frozen=True)
class Switch:
    """A change of language: at `time` seconds, where the new one begins; of the speaker where one is named."""

    time: float
    before: str
    after: str
    speaker: str = ""


@dataclass(frozen=True)
class SpeakerLanguage:
    """The language of all that a speaker says.

    seconds : of the speaker's speech
    heard   : of it, what the label is from; where others talk at the same time is left out as long as enough is left
    """

    speaker: str
    label: str
    probability: float
    alternatives: tuple[tuple[str, float], ...]
    seconds: float
    heard: float


@dataclass(frozen=True)
class LanguageTimeline:
    """What `timeline` finds in one recording.

    name     : the file's stem, or of several recordings what tells them apart (`classify_files.language_timelines`)
    seconds  : length of the recording
    spans    : by start, speech only; with speakers each in its speaker's tier, and those of two speakers may overlap
    switches : changes from one known language to another, pauses and unknown speech between them passed over
    speakers : empty unless speakers were given
    """

    name: str
    seconds: float
    spans: tuple[Span, ...]
    switches: tuple[Switch, ...]
    speakers: tuple[SpeakerLanguage, ...] = ()

    @property
    def durations(self) -> dict[str, float]:
        """Seconds of each label, the longest first."""
        sums: dict[str, float] = {}
        for span in self.spans:
            sums[span.label] = sums.get(span.label, 0.0) + span.end - span.start
        return dict(sorted(sums.items(), key=lambda one: -one[1]))

    def document(self) -> SpanDocument:
        """The timeline as `formats.span_formats` writes it."""
        switches: list[dict[str, Any]] = []
        for one in self.switches:
            switches.append({"time": round(one.time, 3), "from": one.before, "to": one.after})
            if one.speaker:
                switches[-1]["speaker"] = one.speaker
        more: dict[str, Any] = {"switches": switches}
        if self.speakers:
            more["speakers"] = [
                {
                    "speaker": one.speaker,
                    "label": one.label,
                    "probability": round(one.probability, 6),
                    "alternatives": {label: round(chance, 6) for label, chance in one.alternatives},
                    "seconds": round(one.seconds, 3),
                    "heard": round(one.heard, 3),
                }
                for one in self.speakers
            ]
        return SpanDocument("timeline", self.name, self.seconds, self.spans, TIER, more)


class Voice(NamedTuple):
    """Speech that is smoothed by itself.

    tier    : the speaker, "" for all speech alike
    spoken  : what gets a label
    heard   : the part of it that windows lie in
    windows : sorted by start
    """

    tier: str
    spoken: Timeline
    heard: Timeline
    windows: list[Segment]


def timeline(
    path: Path | str,
    classifier: Classifier,
    *,
    window: float = WINDOW_SECONDS,
    step: float = STEP_SECONDS,
    switch: float = SWITCH,
    speakers: Annotation | None = None,
    max_gap: float = MAX_GAP_SECONDS,
    alternatives: int = ALTERNATIVES,
    use_vad: bool = True,
    channel: str = "mix",
) -> LanguageTimeline:
    """Languages of one audio file of any length, in bounded memory.

    window, step : seconds of sound a score is from, and from one to the next
    switch       : probability that the language is another one a second later, above 0; small values hold on longer
    speakers     : turns, as of an RTTM: languages are then smoothed and summed up for each speaker, in speech that lies
                   in a turn; speech outside all turns gets no label
    max_gap      : pauses up to this many seconds between two spans of one label are part of it
    alternatives : labels to give besides the first
    use_vad      : label speech only

    No spans where there is no speech. A window whose largest detection LLR is below the classifier's threshold is in
    favour of `unknown`. Raises AudioError (see `audio.read`) and KnnError for windows or a `switch` that make no sense.
    """
    segments.windows(Timeline(), duration=window, step=step)  # refuses what makes no sense before minutes of work
    hmm.switch_probabilities(switch, np.ones(1), max(2, len(classifier.labels)))
    speech, seconds = speech_regions.of_recording(path, rate=classifier.embedder.rate, use_vad=use_vad, channel=channel)
    voices = _voices(speech, speakers, window, step)
    order = sorted((one.start, one.end, number) for number, voice in enumerate(voices) for one in voice.windows)
    name = Path(path).stem
    if not order:
        return LanguageTimeline(name, seconds, (), ())
    data = classifier.embedder.spans(path, [Segment(start, end) for start, end, _ in order], channel=channel)
    table = classifier.score(
        EmbeddingSet.from_columns(
            data,
            [name] * len(order),
            start=[one[0] for one in order],
            end=[one[1] for one in order],
            embedder=classifier.embedder.bundle.fingerprint,
        ),
        str(path),
    )
    owner = np.array([number for _, _, number in order])
    spans: list[Span] = []
    summed: list[SpeakerLanguage] = []
    for number, voice in enumerate(voices):
        own = table.take(owner == number)
        spans += smooth(own, voice, window=window, switch=switch, max_gap=max_gap, alternatives=alternatives)
        if speakers is not None:
            summed.append(overall(own, voice, alternatives=alternatives))
    spans.sort(key=lambda span: (span.start, span.end))
    return LanguageTimeline(name, seconds, tuple(spans), tuple(switches(spans)), tuple(summed))


def _voices(speech: Timeline, speakers: Annotation | None, window: float, step: float) -> list[Voice]:
    def voice(tier: str, spoken: Timeline, heard: Timeline) -> Voice:
        found = segments.windows(heard, duration=window, step=step, minimum=min(window, MINIMUM_WINDOW_SECONDS))
        return Voice(tier, spoken, heard, found)

    if speakers is None:
        return [voice("", speech, speech)] if speech else []
    overlap = speakers.get_overlap()
    voices = []
    for speaker in speakers.labels():
        spoken = speakers.label_timeline(speaker).support().crop(speech).support()
        if not spoken:
            continue
        alone = spoken.extrude(overlap)
        # Two voices at once tell little of either; but a speaker who is hardly ever alone must be heard all the same.
        voices.append(voice(str(speaker), spoken, alone if alone.duration() >= window else spoken))
    return voices


def smooth(
    table: ScoreTable,
    voice: Voice,
    *,
    window: float,
    switch: float = SWITCH,
    max_gap: float = MAX_GAP_SECONDS,
    alternatives: int = ALTERNATIVES,
) -> list[Span]:
    """Spans of one voice: the most likely sequence of labels, with the probabilities of each span's labels.

    table : scores of `voice.windows`, in their order

    Windows overlap, so one second of speech is heard by window / step of them, and taking all of their evidence would
    count it as often. Each log-likelihood is therefore scaled by the seconds that its window stands for (nearer to its
    centre than to another's) over `window`: step / window in the midst of speech, and all windows of a stretch together
    weigh as much as windows laid end to end. What is shorter than a window weighs less, second for second.

    A span's probability is the mean over its time of the probability of its label given all windows (forward-backward),
    its alternatives are the other labels by the same mean; their sum is at most 1.
    """
    labels, scores = _with_unknown(table)
    centres = np.array([(one.start + one.end) / 2 for one in voice.windows])
    weights = _heard_seconds(centres, voice) / window  # (N,)
    scores = scores * np.minimum(weights, 1.0)[:, None]
    change = hmm.switch_probabilities(switch, np.diff(centres), len(labels))
    path = hmm.viterbi(scores, change)
    chances = hmm.chances(scores, change)
    found: list[Span] = []
    sums = np.zeros(len(labels))
    start = end = covered = 0.0
    current = -1

    def close() -> None:
        if current >= 0:
            found.append(_span(start, end, voice.tier, labels, current, sums / covered, alternatives))

    for first, last, row in _cells(centres, voice.spoken):
        if path[row] != current or first - end > max_gap + segments.EPSILON:
            close()
            start, current, covered, sums = first, int(path[row]), 0.0, np.zeros(len(labels))
        end = last
        covered += last - first
        sums += (last - first) * chances[row]
    close()
    return found


def overall(table: ScoreTable, voice: Voice, *, alternatives: int = ALTERNATIVES) -> SpeakerLanguage:
    """The language of one voice from the mean of its windows' scores, each by the seconds that it stands for.

    The mean and not the sum: windows of one voice in one room share what is odd about it, and the classifier's
    calibration is for one embedding, which a mean over windows is to a linear classifier.
    """
    centres = np.array([(one.start + one.end) / 2 for one in voice.windows])
    weights = _heard_seconds(centres, voice)
    mean = ScoreTable(
        table.labels,
        (weights / weights.sum())[None] @ table.log_likelihood,
        np.array([voice.tier]),
        np.array([np.nan]),
        np.array([np.nan]),
        threshold=table.threshold,
    )
    labels, scores = _with_unknown(mean)
    odds = np.exp(scores[0] - scores[0].max())
    span = _span(0.0, 0.0, voice.tier, labels, int(odds.argmax()), odds / odds.sum(), alternatives)
    assert span.probability is not None
    seconds, heard = voice.spoken.duration(), voice.heard.duration()
    return SpeakerLanguage(voice.tier, span.label, span.probability, span.alternatives, seconds, heard)


def switches(spans: Sequence[Span]) -> list[Switch]:
    """Changes of label from span to span within a tier, by time; unknown speech is no language to change to or from."""
    found: list[Switch] = []
    last: dict[str, str] = {}
    for span in spans:
        if span.label == UNKNOWN:
            continue
        before = last.setdefault(span.tier, span.label)
        if before != span.label:
            found.append(Switch(span.start, before, span.label, span.tier))
        last[span.tier] = span.label
    return found


def _span(
    start: float, end: float, tier: str, labels: tuple[str, ...], label: int, chances: Doubles, alternatives: int
) -> Span:
    ranked = [column for column in np.argsort(-chances, kind="stable").tolist() if column != label]
    others = tuple((labels[column], float(chances[column])) for column in ranked[:alternatives])
    return Span(start, end, labels[label], tier, float(chances[label]), others)


def _with_unknown(table: ScoreTable) -> tuple[tuple[str, ...], Doubles]:
    """Labels and scores, with a label `unknown` where the table has a threshold.

    Speech of no label here is given the mean likelihood of all labels but the best, times exp(threshold). So a row by
    itself is unknown exactly when its largest detection LLR, l_best - log mean_{others} exp(l), is below the threshold,
    and neighbouring rows speak for or against `unknown` as for any label.
    """
    scores = table.log_likelihood
    if table.threshold is None or scores.shape[1] < 2:
        return table.labels, scores
    ordered = np.sort(scores, axis=1)
    stranger = np.logaddexp.reduce(ordered[:, :-1], axis=1) - np.log(scores.shape[1] - 1) + table.threshold
    if UNKNOWN in table.labels:
        column = table.labels.index(UNKNOWN)
        scores = scores.copy()
        scores[:, column] = np.maximum(scores[:, column], stranger)
        return table.labels, scores
    return (*table.labels, UNKNOWN), np.concatenate([scores, stranger[:, None]], axis=1)


def _cells(centres: Doubles, regions: Timeline) -> Iterator[tuple[float, float, int]]:
    """Start, end and window of each part of the regions: every instant goes to the window whose centre is nearest.

    Only windows with their centres in the instant's region are asked, so that nothing leaks over a pause; a region
    without any goes whole to the window nearest to its middle.
    """
    for region in regions:
        first, last = np.searchsorted(centres, [region.start, region.end], side="left").tolist()
        if first == last:
            yield region.start, region.end, int(np.abs(centres - region.middle).argmin())
            continue
        middles = (centres[first : last - 1] + centres[first + 1 : last]) / 2
        edges = [region.start, *middles.tolist(), region.end]
        for row in range(first, last):
            if edges[row - first + 1] > edges[row - first]:
                yield edges[row - first], edges[row - first + 1], row


def _heard_seconds(centres: Doubles, voice: Voice) -> Doubles:
    """(N,) seconds of `voice.heard` that each window stands for; regions that are too short for one count for none."""
    seconds = np.zeros(len(centres))
    for start, end, row in _cells(centres, voice.heard):
        if start <= centres[row] <= end:
            seconds[row] += end - start
    return seconds
