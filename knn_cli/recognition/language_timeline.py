"""The result of following the language through a recording: spans, switches, and the language of each speaker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from knn_cli.core.display_names import is_uncertain
from knn_cli.formats.spans import Span, SpanDocument

TIER = "language"


@dataclass(frozen=True)
class LanguageSwitch:
    """A change of language.

    Attributes
    ----------
    time : float
        Seconds, where the new language begins.
    before, after : str
        Labels.
    speaker : str
        Whose language changes; "" without speakers.
    """

    time: float
    before: str
    after: str
    speaker: str = ""


@dataclass(frozen=True)
class SpeakerLanguage:
    """The language of all that a speaker says.

    Attributes
    ----------
    speaker, label : str
    probability : float
    alternatives : tuple of (str, float)
        Other labels with their probabilities, the most likely first.
    seconds : float
        Of the speaker's speech.
    scored_seconds : float
        The part of it that the label is based on: overlapped speech is left out as long as enough remains.
    """

    speaker: str
    label: str
    probability: float
    alternatives: tuple[tuple[str, float], ...]
    seconds: float
    scored_seconds: float


@dataclass(frozen=True)
class LanguageTimeline:
    """The languages of one recording over time.

    Attributes
    ----------
    name : str
        The file's stem, or among several recordings what tells them apart (`classify_files.language_timelines`).
    seconds : float
        Duration of the recording.
    spans : tuple of Span
        By start, speech only. With speakers, each is in its speaker's tier, and those of two speakers may overlap.
    switches : tuple of LanguageSwitch
        Changes from one known language to another; pauses and what is unknown or no speech between them are skipped.
    speakers : tuple of SpeakerLanguage
        Empty unless speakers were given.
    names : mapping
        Label -> English name, of the classifier's labels that are languages.
    """

    name: str
    seconds: float
    spans: tuple[Span, ...]
    switches: tuple[LanguageSwitch, ...]
    speakers: tuple[SpeakerLanguage, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def durations(self) -> dict[str, float]:
        """Seconds of each label, the longest first."""
        sums: dict[str, float] = {}
        for span in self.spans:
            sums[span.label] = sums.get(span.label, 0.0) + span.end - span.start
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    def document(self) -> SpanDocument:
        """The timeline as `formats.span_formats` writes it."""
        switches: list[dict[str, Any]] = []
        for switch in self.switches:
            switches.append({"time": round(switch.time, 3), "from": switch.before, "to": switch.after})
            if switch.speaker:
                switches[-1]["speaker"] = switch.speaker
        more: dict[str, Any] = {"switches": switches}
        if self.speakers:
            more["speakers"] = [
                {
                    "speaker": speaker.speaker,
                    "label": speaker.label,
                    **({"name": self.names.get(speaker.label)} if self.names else {}),
                    "probability": round(speaker.probability, 6),
                    "uncertain": is_uncertain(speaker.probability),
                    "alternatives": {label: round(probability, 6) for label, probability in speaker.alternatives},
                    "seconds": round(speaker.seconds, 3),
                    "heard": round(speaker.scored_seconds, 3),
                }
                for speaker in self.speakers
            ]
        tiers = {speaker.speaker: (speaker.label, speaker.probability) for speaker in self.speakers}
        return SpanDocument("timeline", self.name, self.seconds, self.spans, TIER, more, self.names, tiers)
