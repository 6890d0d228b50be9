"""What comes to turns when they are written: the words that are said, empty tiers for them, tiers of a given file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from knn_cli.cli.console import console
from knn_cli.cli.options import INPUT, OUTPUT, switch, valued
from knn_cli.core.errors import KnnError

if TYPE_CHECKING:
    from knn_cli.core.output_records import OutputTask
    from knn_cli.core.values import Turn
    from knn_cli.formats.spans import SpanDocument
    from knn_cli.formats.transcripts import TranscriptSegment
    from knn_cli.formats.word_readers import Transcripts

TEMPLATE_FORMATS = ("textgrid", "eaf")

WordsOption = Annotated[
    Path | None,
    valued("--words", metavar="PATH", panel=INPUT, help="Give words speakers: Whisper JSON, SRT, CTM."),
]
AddToOption = Annotated[
    Path | None,
    valued("--add-to", metavar="PATH", panel=INPUT, help="Add the turns to this EAF or TextGrid."),
]
TemplateOption = Annotated[
    bool, switch("--template", panel=OUTPUT, help="Add empty tiers for transcription (EAF, TextGrid).")
]


@dataclass(frozen=True)
class TurnAdditions:
    """Words, templates and files to add to, of all recordings.

    Attributes
    ----------
    words : mapping or None
        Transcripts by recording.
    words_path : Path or None
        Where they come from.
    add_to : Path or None
        A TextGrid or ELAN document, or a folder of these, named as the recordings.
    template : bool
    """

    words: Transcripts | None = None
    words_path: Path | None = None
    add_to: Path | None = None
    template: bool = False

    @classmethod
    def given(cls, words: Path | None, add_to: Path | None, template: bool) -> TurnAdditions:
        """Return what the options ask for, with the words read."""
        from knn_cli.formats.word_readers import read_words

        return cls(None if words is None else read_words(words), words, add_to, template)

    @property
    def read(self) -> list[Path]:
        """The files that are read; of folders all that is in them."""
        given = [path for path in (self.words_path, self.add_to) if path is not None]
        return [*given, *(file for path in given if path.is_dir() for file in path.iterdir())]

    def check(self, names: Sequence[str], formats: Iterable[str]) -> None:
        """Refuse, before any work, what will not fit the recordings or formats.

        Raises
        ------
        KnnError
            For a recording without words or without a file to add to, for a file to add to that is damaged, and for
            formats that hold no words or tiers.
        """
        from knn_cli.formats.added_tiers import with_added_tiers
        from knn_cli.formats.span_formats import TURN_FORMATS
        from knn_cli.formats.spans import SpanDocument

        formats = [*formats]
        with_words = [known.name for known in TURN_FORMATS.values() if known.words]
        if self.words_path is not None and not {*formats} & {*with_words}:
            raise KnnError(f"{' and '.join(formats)} say no words.", f"Formats with words are {', '.join(with_words)}.")
        if self.template and not {*formats} & {*TEMPLATE_FORMATS}:
            raise KnnError("--template is for EAF and TextGrid.", "Choose one of these formats.")
        for name in names:
            self._words_of(name, len(names))
            if self.add_to is None:
                continue
            files = [file for known in formats if (file := self.existing(name, TURN_FORMATS[known].suffix))]
            if not files:
                raise KnnError(
                    f"There is nothing to add the turns of {name} to: {self.add_to}.",
                    "It is a TextGrid or EAF, which is also the format of the output, or a folder with one for each "
                    "recording.",
                )
            for file in files:
                with_added_tiers(file, SpanDocument("turns", name, 0.0, ()))
        if self.add_to is not None and not self.add_to.is_dir() and len(names) > 1:
            raise KnnError(f"{self.add_to} is of one recording, not of {len(names)}.", "Name a folder of such files.")

    def existing(self, name: str, suffix: str) -> Path | None:
        """Return the file of a recording with this suffix, in small or capital letters, that turns are added to."""
        from knn_cli.formats.rttm import found_by_name

        if self.add_to is None:
            return None
        if not self.add_to.is_dir():
            return self.add_to if self.add_to.suffix.lower() == suffix.lower() else None
        return found_by_name(name, self._files.get(suffix.lower(), {}))

    def completed(self, document: SpanDocument, name: str, turns: Sequence[Turn], recordings: int) -> SpanDocument:
        """Return a document of a recording with what is said in it, and with the wish for templates."""
        from knn_cli.formats.transcripts import with_speakers

        words = self._words_of(name, recordings)
        spoken = None if words is None else with_speakers(words, turns)
        return replace(document, transcript=spoken, template=self.template)

    def write(self, document: SpanDocument, target: Path, format: str, name: str, task: OutputTask) -> None:
        """Write a completed document of a recording: a file of its own, or the given one with its tiers added."""
        from knn_cli.audio.segments import BEYOND_SECONDS
        from knn_cli.core.atomic import replacing
        from knn_cli.formats import added_tiers, span_formats
        from knn_cli.formats.textgrid import last_ms

        if (given := self.existing(name, span_formats.TURN_FORMATS[format].suffix)) is None:
            span_formats.write(document, target, format, task=task)
            return
        with replacing(target, task=task) as part:
            part.write_bytes(added_tiers.with_added_tiers(given, document))
        end, last = added_tiers.textgrid_end(given), last_ms(document) / 1000
        if end is not None and last > end + BEYOND_SECONDS:
            console.note(f"{given} ends at {end:.1f} s, the turns at {last:.1f} s; what is behind is left out.")

    @cached_property
    def _files(self) -> dict[str, dict[str, Path]]:
        """Suffix -> name of a recording -> its file in the folder to add to."""
        from knn_cli.formats.rttm import by_rttm_name

        by_suffix: dict[str, dict[str, Path]] = {}
        for file in sorted(self.add_to.iterdir()) if self.add_to is not None else ():
            by_suffix.setdefault(file.suffix.lower(), {}).setdefault(file.stem, file)
        return {suffix: by_rttm_name(files) for suffix, files in by_suffix.items()}

    @cached_property
    def _words_by_name(self) -> Transcripts:
        from knn_cli.formats.rttm import by_rttm_name

        return by_rttm_name(self.words or {})

    def _words_of(self, name: str, recordings: int) -> Sequence[TranscriptSegment] | None:
        from knn_cli.formats.rttm import found_by_name

        if self.words is None:
            return None
        if len(self.words) == recordings == 1:
            return next(iter(self.words.values()))
        if (found := found_by_name(name, self._words_by_name)) is None:
            raise KnnError(f"{self.words_path} has no words of {name}.", "Name a file or folder that has them.")
        return found
