"""Output files of speaker removal: the list of unwanted spans, the edited audio and its turns."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from knn_cli.audio import reading
from knn_cli.core.atomic import replacing_text, replacing_together
from knn_cli.core.errors import KnnError
from knn_cli.core.output_records import OutputTask
from knn_cli.core.texts import did_you_mean, tidy
from knn_cli.core.values import Diarization
from knn_cli.diarization import speaker_removal, unwanted_spans
from knn_cli.diarization.speaker_removal import Removal, RemovalResult
from knn_cli.diarization.unwanted_spans import OVERLAPPED, UnwantedSpan
from knn_cli.formats.span_formats import find_format, write
from knn_cli.formats.spans import turn_document


class RemovalSummary(NamedTuple):
    """Unwanted speakers of a recording, their spans, and the edited audio, if any."""

    speakers: list[str]
    parts: list[UnwantedSpan]
    cleaned: RemovalResult | None


@dataclass(frozen=True)
class SpeakerRemoval:
    """Settings of speaker removal and its output folder.

    Parameters
    ----------
    folder : Path
        Folder of all output files.
    formats : tuple of str
        Formats of the turns that are written beside edited audio.
    unwanted : str, optional
        See `unwanted_spans.unwanted_speakers`; None removes no speakers.
    how : {"mute", "cut"}, optional
        See `speaker_removal.plan_removal`; None leaves the audio of unwanted speakers unchanged.
    overlap : {"keep", "mute", "cut"}, optional
        What happens to overlapped speech of whichever speakers; None leaves that of wanted speakers alone, and treats
        that of unwanted ones as the rest of theirs.
    max_silence : float, optional
        See `speaker_removal.plan_removal`; None leaves silences unchanged.
    threshold : float
        Silence threshold in dB against full scale.
    places : mapping of Path to Path, optional
        Source -> its place in `folder`, without a suffix; the stem where it has none.
    channel : str
        The channel of the turns, which a player of the edited audio plays; of its audio track the audio is made.

    Raises
    ------
    KnnError
        For settings that are invalid for every recording.
    """

    folder: Path
    formats: tuple[str, ...]
    unwanted: str | None = None
    how: Removal | None = None
    overlap: Literal["keep", "mute", "cut"] | None = None
    max_silence: float | None = None
    threshold: float = speaker_removal.SILENCE_THRESHOLD_DB
    channel: str = "mix"
    places: Mapping[Path, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        speaker_removal.check_silence(self.max_silence, self.threshold)
        if self.unwanted is not None:
            unwanted_spans.unwanted_speakers((), self.unwanted)

    @property
    def writes_sound(self) -> bool:
        return self.how is not None or self.overlap_removal is not None or self.max_silence is not None

    @property
    def overlap_removal(self) -> Removal | None:
        return None if self.overlap == "keep" else self.overlap

    @property
    def lists(self) -> bool:
        """Whether the unwanted spans of each recording are listed."""
        return self.unwanted is not None or self.overlap_removal is not None

    def list_path(self, source: Path) -> Path:
        """Path of the list of a recording's unwanted spans."""
        return self.folder / f"{self._place(source)}_unwanted.csv"

    def audio_path(self, source: Path) -> Path:
        """Path of its edited audio. AudioError where the source cannot be read."""
        word = {"mute": "muted", "cut": "cut", None: "shortened"}[self.how or self.overlap_removal]
        track, _ = reading.track_and_channel(self.channel)
        suffix = speaker_removal.output_path(source, word, track=track).suffix
        return self.folder / f"{self._place(source)}_{word}{suffix}"

    def turns_paths(self, source: Path) -> list[Path]:
        """Paths of the turns of its edited audio, one for each format."""
        audio = self.audio_path(source)
        return [audio.with_name(audio.stem + find_format("turns", name).suffix) for name in self.formats]

    def _place(self, source: Path) -> Path:
        return self.places.get(source, Path(source.stem))

    def check_names(self, known: Collection[str], *, numbered: bool) -> None:
        """Raise KnnError for an unwanted speaker of a name that no recording can have, before any is diarized.

        Parameters
        ----------
        known : collection of str
            Names that are known beforehand, of enrolled speakers and given turns.
        numbered : bool
            Whether there will be speakers with numbers too (SPEAKER_00).
        """
        if self.unwanted is None or self.unwanted.strip() == unwanted_spans.LEAST_TALKATIVE:
            return
        for name in map(tidy, self.unwanted.split(",")):
            if name not in known and not (numbered and re.fullmatch(r"SPEAKER_\d+", name)):
                others = [*sorted(known), *["SPEAKER_00 and so on"] * numbered]
                hint = f"{did_you_mean(name, known)}It is one of {', '.join(others)}; or use `least`."
                raise KnnError(f"No recording can have an unwanted speaker {name!r}.", hint)

    def unwanted_speakers(self, diarization: Diarization, known: Collection[str] = ()) -> list[str]:
        """The recording's speakers that are unwanted; KnnError as `unwanted_spans.unwanted_speakers`."""
        if self.unwanted is None:
            return []
        return unwanted_spans.unwanted_speakers(diarization.turns, self.unwanted, known, recording=diarization.name)

    def apply(
        self,
        source: Path,
        diarization: Diarization,
        known: Collection[str] = (),
        *,
        task: OutputTask | None = None,
    ) -> RemovalSummary:
        """Write the list of a recording's unwanted spans, its edited audio, and the turns of that audio.

        Parameters
        ----------
        source : Path
        diarization : Diarization
        known : collection of str
            Speakers that need not occur in this recording.
        task : OutputTask, optional
            What makes the files, see `atomic.replacing`.

        Returns
        -------
        RemovalSummary

        Raises
        ------
        KnnError
            For an unknown speaker, and as `speaker_removal.plan_removal`.
        AudioError
            For a recording that cannot be read.
        """
        names = self.unwanted_speakers(diarization, known)
        parts = unwanted_spans.unwanted_spans(diarization.turns, names, all_overlap=self.overlap_removal is not None)
        if self.overlap == "keep":
            parts = [part for part in parts if part.speaker != OVERLAPPED]
        if self.lists:
            with replacing_text(self.list_path(source), task=task) as file:
                unwanted_spans.write_unwanted_csv(parts, file)
        if not self.writes_sound:
            return RemovalSummary(names, parts, None)
        return RemovalSummary(names, parts, self._write_sound(source, diarization, parts, task))

    def _write_sound(
        self, source: Path, diarization: Diarization, parts: list[UnwantedSpan], task: OutputTask | None
    ) -> RemovalResult:
        """Write the edited audio and its turns, which appear together."""
        target, turns = self.audio_path(source), self.turns_paths(source)
        plan = speaker_removal.plan_removal(
            source,
            target,
            parts,
            how=self.how,
            overlap=self.overlap_removal,
            max_silence=self.max_silence,
            threshold=self.threshold,
            track=reading.track_and_channel(self.channel)[0],
        )
        cleaned = replace(speaker_removal.retime(diarization, plan.result), name=target.stem)
        document = turn_document(cleaned, audio_path=target, channel=self.channel.rpartition(":")[2])
        with replacing_together([*turns, target], task=task) as (*turn_parts, sound_part):
            plan.write(sound_part)  # where the sound is, its turns are
            for name, final, part in zip(self.formats, turns, turn_parts, strict=True):
                write(replace(document, audio_file=sound_part, location=final), part, name)
        return plan.result
