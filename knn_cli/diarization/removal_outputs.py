"""What is written of a diarized recording without its unwanted speakers: list, cleaned sound and its turns."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from knn_cli.core.atomic import replacing_text
from knn_cli.core.values import Diarization
from knn_cli.diarization import speaker_removal
from knn_cli.diarization.speaker_removal import RemovalResult, UnwantedSpan
from knn_cli.formats.span_formats import find_format, write
from knn_cli.formats.spans import turn_document


class RemovalSummary(NamedTuple):
    """What was removed from a recording: unwanted speakers, their spans, and the sound that was written, if any."""

    speakers: list[str]
    parts: list[UnwantedSpan]
    cleaned: RemovalResult | None


@dataclass(frozen=True)
class SpeakerRemoval:
    """How speakers are removed from recordings, and where the results go.

    folder      : of everything that is written
    format      : of the turns that are written beside cleaned sound
    unwanted    : see `speaker_removal.unwanted_speakers`; None where nobody is
    how         : what happens to them; None leaves the sound as it is
    max_silence : see `speaker_removal.remove_speakers`; None leaves silences as they are
    channel     : that turns are of, which a player of cleaned sound plays

    Raises KnnError for what no recording can be cleaned by.
    """

    folder: Path
    format: str
    unwanted: str | None = None
    how: Literal["mute", "cut"] | None = None
    max_silence: float | None = None
    threshold: float = speaker_removal.SILENCE_THRESHOLD_DB
    channel: str = "mix"

    def __post_init__(self) -> None:
        speaker_removal.check_silence(self.max_silence, self.threshold)
        if self.unwanted is not None:
            speaker_removal.unwanted_speakers((), self.unwanted)

    @property
    def writes_sound(self) -> bool:
        return self.how is not None or self.max_silence is not None

    def list_path(self, source: Path) -> Path:
        """Where the unwanted parts of a recording are listed."""
        return self.folder / f"{source.stem}_unwanted.csv"

    def audio_path(self, source: Path) -> Path:
        """Where its cleaned sound goes; AudioError for what is not audio."""
        word = {"mute": "muted", "cut": "cut", None: "shortened"}[self.how]
        return speaker_removal.output_path(source, word, self.folder)

    def turns_path(self, source: Path) -> Path:
        """Where the turns of its cleaned sound go."""
        suffix = find_format("turns", self.format).suffix
        return self.folder / f"{self.audio_path(source).stem}{suffix}"

    def apply(self, source: Path, found: Diarization, known: Collection[str] = ()) -> RemovalSummary:
        """List a recording's unwanted spans, write its edited sound, and the turns at their times in it.

        known : speakers that need not be in this recording
        Raises KnnError for an unknown speaker and as `speaker_removal.remove_speakers`, AudioError for the recording.
        """
        names: list[str] = []
        if self.unwanted is not None:
            names = speaker_removal.unwanted_speakers(found.turns, self.unwanted, known, recording=found.name)
        parts = speaker_removal.unwanted_spans(found.turns, names)
        if self.unwanted is not None:
            with replacing_text(self.list_path(source)) as file:
                speaker_removal.write_unwanted_csv(parts, file)
        if not self.writes_sound:
            return RemovalSummary(names, parts, None)
        target = self.audio_path(source)
        done = speaker_removal.remove_speakers(
            source, target, parts, how=self.how, max_silence=self.max_silence, threshold=self.threshold
        )
        cleaned = replace(speaker_removal.retime(found, done), name=target.stem)
        document = turn_document(cleaned, audio_path=target, channel=self.channel)
        write(document, self.turns_path(source), self.format)
        return RemovalSummary(names, parts, done)
