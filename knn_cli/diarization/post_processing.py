"""Diarized recordings put to use: known voices named, one label a voice over all recordings, and cleaned sound."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pyannote.core import Annotation

from knn_cli.core.atomic import replacing_text
from knn_cli.core.errors import KnnError
from knn_cli.core.values import Diarization
from knn_cli.diarization import identification, linking, speaker_removal
from knn_cli.diarization.identification import Recognised, Voices
from knn_cli.diarization.speaker_removal import Cleaned, Part
from knn_cli.formats import turns as report


class Found(NamedTuple):
    """A recording's turns; and what is said of its speakers where voices are known (see `Recognised.facts`)."""

    diarization: Diarization
    recognised: list[dict[str, Any]] | None = None

    @property
    def known(self) -> dict[str, float]:
        """The known voices that were recognised, with their cosines."""
        return {one["speaker"]: one["cosine"].get(one["speaker"]) for one in self.recognised or () if one["known"]}


Results = Iterable[tuple[Path, Found | KnnError]]


def recognised(
    results: Results, voices: Voices, *, threshold: float = identification.THRESHOLD, keep: bool = False
) -> Iterator[tuple[Path, Found | KnnError]]:
    """The same recordings with known speakers named.

    keep : whether the others keep the names that they have, as far as no voice has these
    """
    for path, one in results:
        if isinstance(one, KnnError):
            yield path, one
            continue
        try:
            told = identification.recognise(one.diarization, voices, threshold=threshold)
        except KnnError as error:
            yield path, error
            continue
        if keep:
            told = _with_names(told, linking.speakers(one.diarization))
        yield path, Found(told.diarization, told.facts())


def _with_names(told: Recognised, before: Sequence[str]) -> Recognised:
    """The same, but speakers that are no known voice are called as before."""
    names = {new: old for old, new in zip(before, told.speakers, strict=True) if old not in told.names}
    if set(names.values()) & set(told.voices):
        return told
    speakers = tuple(names.get(label, label) for label in told.speakers)
    return replace(told, diarization=linking.renamed(told.diarization, names), speakers=speakers)


def linked(
    results: Results, *, known: Collection[str] = (), threshold: float = linking.THRESHOLD, view: slice = slice(None)
) -> list[tuple[Path, Found | KnnError]]:
    """The same recordings with one label a voice over all of them; see `across.link`."""
    everything = list(results)
    good = [one for _, one in everything if not isinstance(one, KnnError)]
    labelled = iter(linking.link([one.diarization for one in good], known=known, threshold=threshold, view=view))
    made: list[tuple[Path, Found | KnnError]] = []
    for path, one in everything:
        if isinstance(one, KnnError):
            made.append((path, one))
            continue
        after = next(labelled)
        names = _renaming(one.diarization, after)
        facts = one.recognised and [_renamed(fact, names, known) for fact in one.recognised]
        made.append((path, Found(after, facts)))
    return made


def _renaming(before: Diarization, after: Diarization) -> dict[str, str]:
    """What each speaker became: turns and voices are the same, in the same order."""
    pairs = zip(_labels(before), _labels(after), strict=True)
    return dict([*pairs, *zip(before.voices, after.voices, strict=True)])


def _labels(one: Diarization) -> list[str]:
    return [str(label) for _, _, label in one.turns.itertracks(yield_label=True)]


def _renamed(fact: Mapping[str, Any], names: Mapping[str, str], known: Collection[str]) -> dict[str, Any]:
    label = names[fact["speaker"]]
    return {**fact, "speaker": label, "known": label in known}


class Result(NamedTuple):
    """What cleaning did to a recording: who was not wanted and where; what sound was written, None where none was."""

    speakers: list[str]
    parts: list[Part]
    cleaned: Cleaned | None


@dataclass(frozen=True)
class Cleaning:
    """What is to be done to recordings, and where it goes.

    folder      : of everything that is written
    form        : of the turns that are written beside cleaned sound
    unwanted    : see `cleaning.unwanted_speakers`; None where nobody is
    how         : what happens to them; None leaves the sound as it is
    max_silence : see `cleaning.clean`; None leaves silences as they are
    channel     : that turns are of, which a player of cleaned sound plays

    Raises KnnError for what no recording can be cleaned by.
    """

    folder: Path
    form: str
    unwanted: str | None = None
    how: Literal["mute", "cut"] | None = None
    max_silence: float | None = None
    threshold: float = speaker_removal.THRESHOLD
    channel: str = "mix"

    def __post_init__(self) -> None:
        speaker_removal.check_silence(self.max_silence, self.threshold)
        if self.unwanted is not None:
            speaker_removal.unwanted_speakers(Annotation(), self.unwanted)

    @property
    def writes_sound(self) -> bool:
        return self.how is not None or self.max_silence is not None

    def listed(self, source: Path) -> Path:
        """Where the unwanted parts of a recording are listed."""
        return self.folder / f"{source.stem}_unwanted.csv"

    def sound(self, source: Path) -> Path:
        """Where its cleaned sound goes; AudioError for what is not audio."""
        word = {"mute": "muted", "cut": "cut", None: "shortened"}[self.how]
        return speaker_removal.target_of(source, word, self.folder)

    def turns(self, source: Path) -> Path:
        """Where the turns of its cleaned sound go."""
        return self.folder / f"{self.sound(source).stem}{report.suffix(self.form)}"

    def run(self, source: Path, found: Diarization, known: Collection[str] = ()) -> Result:
        """List a recording's unwanted parts, write its cleaned sound, and its turns as they are heard there.

        known : speakers that need not be in this recording
        Raises KnnError for an unknown speaker and as `cleaning.clean`, AudioError for the recording.
        """
        names: list[str] = []
        if self.unwanted is not None:
            names = speaker_removal.unwanted_speakers(found.turns, self.unwanted, known)
        parts = speaker_removal.parts_of(found.turns, names)
        if self.unwanted is not None:
            with replacing_text(self.listed(source)) as file:
                speaker_removal.write_unwanted_csv(parts, file)
        if not self.writes_sound:
            return Result(names, parts, None)
        target = self.sound(source)
        done = speaker_removal.clean(
            source, target, parts, how=self.how, max_silence=self.max_silence, threshold=self.threshold
        )
        heard = speaker_removal.moved(found, done)
        turns = heard.turns.copy()
        turns.uri = target.stem
        report.write(
            replace(heard, turns=turns), self.turns(source), self.form, audio_path=target, channel=self.channel
        )
        return Result(names, parts, done)
