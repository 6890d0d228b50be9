"""Labelled spans of one recording - speaker turns, or languages over time - as input of the writers in `span_formats`.

Times in files are whole milliseconds: each time is rounded independently, so that adjacent spans remain adjacent, and
a span whose length rounds to zero is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from knn_cli.core.visible_text import visible

if TYPE_CHECKING:
    from knn_cli.core.values import Diarization, Turn
    from knn_cli.formats.transcripts import TranscriptSegment

SpanKind = Literal["turns", "timeline"]


@dataclass(frozen=True)
class Span:
    """A label that holds for a part of a recording.

    Attributes
    ----------
    start, end : float
        Seconds from the beginning of the recording.
    label : str
        A language, or the speaker of a turn.
    tier : str
        The speaker, or the kind of label, that the span belongs to; "" if there is only one kind.
    probability : float or None
        Probability of the label, or the confidence of a turn, 0 to 1; None where unknown.
    alternatives : tuple of (str, float)
        Other labels with their probabilities, the likeliest first.
    no_speech_probability : float or None
        Of a turn: that it is no speaker, 0 to 1; None where unknown.
    """

    start: float
    end: float
    label: str
    tier: str = ""
    probability: float | None = None
    alternatives: tuple[tuple[str, float], ...] = ()
    no_speech_probability: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end < math.inf:
            raise ValueError(f"a span ends after its start and starts at 0 or later, not {self.start} to {self.end}")

    @property
    def probably_no_speaker(self) -> bool:
        """Whether it is more probable that a turn is music or a noise."""
        return self.no_speech_probability is not None and self.no_speech_probability >= 0.5


class RoundedSpan(NamedTuple):
    """A span with its times in whole milliseconds."""

    start_ms: int
    end_ms: int
    span: Span

    @property
    def label(self) -> str:
        return self.span.label


@dataclass(frozen=True)
class SpanDocument:
    """The spans of one recording, with facts about the recording for the files that are written.

    Attributes
    ----------
    kind : {"turns", "timeline"}
        Speaker turns, or languages over time.
    name : str or None
        The recording's name as written into tables and RTTM.
    seconds : float
        Length of the recording, 0 where unknown. Spans that reach beyond it lengthen it.
    spans : sequence of Span
    tier : str
        Name of the tier of spans that have none.
    metadata : mapping
        Further keys of the JSON of a timeline, besides `file`, `seconds` and `spans`.
    label_names : mapping
        Label -> name, which tables, JSON and captions of a timeline have beside each label where any label has one.
    tier_labels : mapping
        Tier -> (label, probability) of all its spans together: the language of each speaker.
    audio_path : Path or None
        The recording, for the player and for the reference in an ELAN document.
    audio_file : Path or None
        Where its sound is read from while it is not yet at `audio_path`.
    audio_stays : bool
        Whether the recording is still at its path when the file is used; otherwise the file does not refer to it, and
        a player holds its sound however long it is.
    channel : str
        Channel that the player plays and draws, see `audio.reading.read`.
    location : Path or None
        Final path of the file, so that it can refer to the recording by a relative path.
    place : int or None
        Number of the recording in a file of several, from 0; None for a file of its own.
    transcript : sequence of TranscriptSegment or None
        What the speakers say, for formats that hold words; None where that is not known.
    template : bool
        Whether ELAN documents and TextGrids get empty tiers for what each speaker says.
    """

    kind: SpanKind
    name: str | None
    seconds: float
    spans: Sequence[Span]
    tier: str = "labels"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    label_names: Mapping[str, str] = field(default_factory=dict)
    tier_labels: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    audio_path: Path | None = None
    audio_file: Path | None = None
    audio_stays: bool = True
    channel: str = "mix"
    location: Path | None = None
    place: int | None = None
    transcript: Sequence[TranscriptSegment] | None = None
    template: bool = False

    def __post_init__(self) -> None:
        if self.kind == "timeline" and not all(span.label.strip() for span in self.spans):
            raise ValueError("the spans of a timeline have labels")

    def described(self, label: str, probability: float | None) -> str:
        """Return a label with its name and probability, as far as they are known, such as "cs Czech 97%"."""
        name = self.label_names.get(label)
        share = None if probability is None else f"{probability:.0%}"
        return one_line(" ".join(part for part in (label, name, share) if part))

    def rounded(self) -> list[RoundedSpan]:
        """Return the spans in whole milliseconds, sorted by start and end; those of no length are left out."""
        spans = (RoundedSpan(round(span.start * 1000), round(span.end * 1000), span) for span in self.spans)
        return sorted((span for span in spans if span.end_ms > span.start_ms), key=lambda span: span[:2])


def turn_document(
    diarization: Diarization, *, audio_path: str | Path | None = None, channel: str = "mix"
) -> SpanDocument:
    """Return speaker turns as a document.

    Parameters
    ----------
    diarization : Diarization
    audio_path : path, optional
        The recording; a player needs it.
    channel : str
        Channel of the recording that a player plays and draws.
    """
    return SpanDocument(
        "turns",
        diarization.name,
        diarization.seconds,
        turn_spans(diarization.turns),
        tier="speakers",
        audio_path=None if audio_path is None else Path(audio_path),
        channel=channel,
    )


def turn_spans(turns: Iterable[Turn]) -> list[Span]:
    """Return speaker turns as spans, each in the tier of its speaker."""
    return [
        Span(
            turn.start,
            turn.end,
            turn.speaker,
            turn.speaker,
            turn.confidence,
            no_speech_probability=turn.no_speech_probability,
        )
        for turn in turns
    ]


def seconds_by_label(spans: Iterable[RoundedSpan]) -> dict[str, float]:
    """Return the seconds of each label, by first appearance; overlapping spans of one label are counted once."""
    total_ms: dict[str, int] = {}
    covered_until: dict[str, int] = {}
    for span in sorted(spans, key=lambda span: (span.start_ms, span.end_ms, span.label)):
        until = covered_until.get(span.label, 0)
        total_ms[span.label] = total_ms.get(span.label, 0) + max(0, span.end_ms - max(span.start_ms, until))
        covered_until[span.label] = max(span.end_ms, until)
    return {label: milliseconds / 1000 for label, milliseconds in total_ms.items()}


def one_line(text: str) -> str:
    """Return a text as one line: each run of white space becomes one space, and no character is hidden."""
    return visible(" ".join(text.split()))


def new_name(name: str, names: set[str]) -> str:
    """Return a name that is not among `names` - it gets a number if it is - and enter it there."""
    number = 1
    while (wanted := name if number == 1 else f"{name} ({number})") in names:
        number += 1
    names.add(wanted)
    return wanted


def format_seconds(milliseconds: float, digits: int = 3) -> str:
    """Return milliseconds as seconds with `digits` decimals."""
    return f"{milliseconds / 1000:.{digits}f}"
