"""Languages of a recording over time: windows over its speech are embedded, scored and smoothed into spans."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from knn_cli.audio import segments, speech_regions
from knn_cli.audio.segments import MAX_GAP_SECONDS
from knn_cli.core.languages import NO_SPEECH
from knn_cli.core.values import EmbeddingSet, ScoreTable, Segment
from knn_cli.formats.spans import Span
from knn_cli.recognition import hmm
from knn_cli.recognition.language_timeline import LanguageTimeline, SpeakerLanguage
from knn_cli.recognition.timeline_smoothing import (
    ALTERNATIVES,
    SWITCH_PROBABILITY,
    SpeechTrack,
    language_switches,
    smooth_labels,
    speaker_language,
)

if TYPE_CHECKING:
    from pyannote.core import Annotation, Timeline

    from knn_cli.recognition.classifier import Classifier

# Chosen by `benchmarks.timelines` with Whisper-base: docs/benchmarks.md.
WINDOW_SECONDS = 4.0
STEP_SECONDS = 1.5
MIN_WINDOW_SECONDS = 0.4  # a shorter region of speech takes the label of the nearest window


@dataclass(frozen=True)
class TimelineOptions:
    """How the language is followed through a recording.

    Attributes
    ----------
    window, step : float
        Seconds of sound behind each score, and from one score to the next.
    switch : float
        Probability, above 0, that the language is another one a second later; small values give longer spans.
    max_gap : float
        Pauses up to this many seconds between two spans of one label belong to it.
    alternatives : int
        Labels to give besides the first.
    use_vad : bool
        Label speech only.
    channel : str
        See `audio.reading.read`.
    """

    window: float = WINDOW_SECONDS
    step: float = STEP_SECONDS
    switch: float = SWITCH_PROBABILITY
    max_gap: float = MAX_GAP_SECONDS
    alternatives: int = ALTERNATIVES
    use_vad: bool = True
    channel: str = "mix"


def timeline(
    path: Path | str,
    classifier: Classifier,
    *,
    speakers: Annotation | None = None,
    options: TimelineOptions | None = None,
) -> LanguageTimeline:
    """Find the languages of one audio file of any length over time, in bounded memory.

    A file without speech has no spans. Windows below the open-set threshold of a classifier.h5, which was chosen on
    rows of embeddings, count in favour of `unknown`; that of a head holds for whole recordings and is not used.

    Parameters
    ----------
    path : Path or str
    classifier : Classifier
    speakers : pyannote.core.Annotation, optional
        Turns, as of an RTTM file. Languages are then smoothed and summed up for each speaker, in speech that lies in a
        turn; speech outside all turns gets no label.
    options : TimelineOptions, optional

    Returns
    -------
    LanguageTimeline

    Raises
    ------
    AudioError
        See `audio.reading.read`.
    KnnError
        For windows or a `switch` that make no sense.
    """
    options = options or TimelineOptions()
    return smooth(score_speech(path, classifier, speakers=speakers, options=options), options)


@dataclass(frozen=True)
class ScoredSpeech:
    """The scores of windows over the speech of a recording, of which `smooth` makes a timeline.

    Attributes
    ----------
    name : str
        The file's stem.
    seconds : float
        Duration of the recording.
    labels : tuple of str
    tracks : tuple of SpeechTrack
        The speech of each speaker, or all speech; only tracks with windows.
    tables : tuple of ScoreTable
        The scores of each track's windows.
    by_speaker : bool
        Whether the tracks are those of speakers.
    names : mapping of str to str
        Names of labels that are codes.
    """

    name: str
    seconds: float
    labels: tuple[str, ...]
    tracks: tuple[SpeechTrack, ...]
    tables: tuple[ScoreTable, ...]
    by_speaker: bool
    names: Mapping[str, str]


def score_speech(
    path: Path | str,
    classifier: Classifier,
    *,
    speakers: Annotation | None = None,
    options: TimelineOptions | None = None,
) -> ScoredSpeech:
    """Score windows over the speech of a file, in one pass. Takes and raises what `timeline` does."""
    options = options or TimelineOptions()
    segments.windows((), duration=options.window, step=options.step)  # refuse bad options before the work
    languages = [label for label in classifier.labels if label != NO_SPEECH]
    hmm.switch_probabilities(options.switch, np.ones(1), max(2, len(languages)))
    speech, seconds = speech_regions.of_recording(
        path, rate=classifier.embedder.rate, use_vad=options.use_vad, channel=options.channel
    )
    tracks = _tracks(speech, speakers, options.window, options.step)
    windows = sorted((window.start, window.end, number) for number, t in enumerate(tracks) for window in t.windows)
    tables: tuple[ScoreTable, ...] = ()
    if windows:
        table = _score_windows(path, classifier, [(start, end) for start, end, _ in windows], options.channel)
        if classifier.head is not None:  # its threshold was chosen on recordings, which say more than windows
            table = replace(table, threshold=None)
        track_of_row = np.array([number for _, _, number in windows])
        tables = tuple(table.take(track_of_row == number) for number in range(len(tracks)))
    by_speaker = speakers is not None
    return ScoredSpeech(
        Path(path).stem, seconds, classifier.labels, tuple(tracks), tables, by_speaker, classifier.names
    )


def smooth(scored: ScoredSpeech, options: TimelineOptions | None = None) -> LanguageTimeline:
    """The timeline of scored speech, whose windows were placed with the same `window` and `step`."""
    options = options or TimelineOptions()
    spans: list[Span] = []
    languages: list[SpeakerLanguage] = []
    for track, scores in zip(scored.tracks, scored.tables, strict=True):
        spans += smooth_labels(
            scores,
            track,
            window=options.window,
            switch=options.switch,
            max_gap=options.max_gap,
            alternatives=options.alternatives,
        )
        if scored.by_speaker:
            languages.append(speaker_language(scores, track, alternatives=options.alternatives))
    spans.sort(key=lambda span: (span.start, span.end))
    return LanguageTimeline(
        scored.name,
        scored.seconds,
        tuple(spans),
        language_switches(spans),
        tuple(languages),
        names=dict(scored.names),
    )


def _score_windows(
    path: Path | str, classifier: Classifier, windows: Sequence[tuple[float, float]], channel: str
) -> ScoreTable:
    """Scores of sorted windows (start, end), in one pass over the file."""
    data = classifier.embedder.spans(path, [Segment(start, end) for start, end in windows], channel=channel)
    embeddings = EmbeddingSet.from_columns(
        data,
        [Path(path).stem] * len(windows),
        start=[start for start, _ in windows],
        end=[end for _, end in windows],
        embedder=classifier.embedder.bundle.fingerprint,
    )
    return classifier.score(embeddings, str(path))


def _tracks(speech: list[Segment], speakers: Annotation | None, window: float, step: float) -> list[SpeechTrack]:
    """The speech of each speaker, or all speech, with its windows."""

    def track(tier: str, speech: list[Segment], scored: list[Segment]) -> SpeechTrack:
        minimum = min(window, MIN_WINDOW_SECONDS)
        return SpeechTrack(tier, speech, scored, segments.windows(scored, duration=window, step=step, minimum=minimum))

    if speakers is None:
        return [track("", speech, speech)] if speech else []
    all_speech = _as_timeline(speech)
    overlap = speakers.get_overlap()
    tracks = []
    for speaker in speakers.labels():
        speaker_speech = speakers.label_timeline(speaker).support().crop(all_speech).support()
        if not speaker_speech:
            continue
        # Overlapped speech tells little of either speaker, but is used for a speaker who hardly ever talks alone.
        alone = speaker_speech.extrude(overlap)
        scored = alone if alone.duration() >= window else speaker_speech
        tracks.append(track(str(speaker), _as_segments(speaker_speech), _as_segments(scored)))
    return tracks


def _as_timeline(speech: Iterable[Segment]) -> Timeline:
    """Segments as a pyannote.core.Timeline."""
    from pyannote.core import Segment as PyannoteSegment
    from pyannote.core import Timeline

    return Timeline([PyannoteSegment(segment.start, segment.end) for segment in speech])


def _as_segments(timeline: Timeline) -> list[Segment]:
    """The segments of a pyannote.core.Timeline, by start."""
    return [Segment(segment.start, segment.end) for segment in timeline]
