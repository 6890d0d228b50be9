"""What a corpus is to `convert`, `embed` and `train`: recordings, their parts, and the labels of these.

A reader of corpora yields utterances as their lists have them; `gathered` labels them by one rule and puts those of one
file together, so that each file is read once.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from knn_cli.audio import fetched, reading
from knn_cli.core.errors import AudioError, KnnError
from knn_cli.core.folders import is_folder
from knn_cli.core.texts import path_text, tidy
from knn_cli.core.urls import UrlPath, is_url
from knn_cli.core.values import Segment
from knn_cli.store import labels, row_labels
from knn_cli.store.labels import Labels
from knn_cli.store.row_labels import KeyPath

LEVELS = ("group", "subgroup", "speaker")  # as rules: the class that a corpus states is of this level
UNSTATED = Labels("")
_COPIED_BYTES = 1 << 20


@dataclass(frozen=True)
class SoundSource:
    """Where sound is read from: a file, or a member of a tar file.

    Attributes
    ----------
    path : Path
        The file, or a `UrlPath`, which is copied when it is opened.
    member : str
        Its name in the tar file `path`, "" for a file.
    offset, size : int
        Bytes of the member.
    """

    path: Path
    member: str = ""
    offset: int = 0
    size: int = 0

    def __str__(self) -> str:
        return f"{self.member} in {self.path}" if self.member else str(self.path)

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """Yield a path that can be read: of a member or a URL, a copy that is removed afterwards.

        AudioError names the member or the URL where it cannot be read.
        """
        if not self.member:
            with fetched.opened(self.path) as path:
                yield path
            return
        name = f"member{Path(self.member).suffix}"
        with fetched.copied(self._copy_member, name, self.path, str(self)) as copy:
            yield copy

    def _copy_member(self, copy: Path) -> None:
        if isinstance(self.path, UrlPath):
            from knn_cli.core import url_reading

            url_reading.copy(self.path, copy, offset=self.offset, size=self.size)
            return
        try:
            with self.path.open("rb") as tar, copy.open("wb") as file:
                tar.seek(self.offset)
                for start in range(0, self.size, _COPIED_BYTES):
                    file.write(tar.read(min(_COPIED_BYTES, self.size - start)))
        except OSError as error:
            raise AudioError(f"{self} cannot be read: {error.strerror or error}.", "Check it.") from error


@dataclass(frozen=True)
class Utterance:
    """A line of a corpus, before the rule of labels.

    Attributes
    ----------
    key : str
        The path or name by which the corpus knows it.
    sound : SoundSource
    stated : Labels
        What the corpus says of group, subgroup and speaker; its `name` is that of the recording, or "".
    span : Segment, optional
        Its place in the recording, by default all of it.
    speech : tuple of Segment, optional
        What of the recording is used, by default all of it.
    seconds : float, optional
        How long the corpus says that the recording is.
    """

    key: str
    sound: SoundSource
    stated: Labels = UNSTATED
    span: Segment | None = None
    speech: tuple[Segment, ...] | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class CorpusPart:
    """One utterance of a recording, labelled; see `Utterance`."""

    key: str
    labels: Labels
    span: Segment | None = None
    speech: tuple[Segment, ...] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all of the recording is meant."""
        return self.span is None and self.speech is None

    @property
    def is_open(self) -> bool:
        """Whether it ends where the recording does, which it does not say."""
        spans = self.speech if self.speech is not None else (self.span or Segment(0.0, math.inf),)
        return any(math.isinf(span.end) for span in spans)

    def used(self, seconds: float) -> list[Segment]:
        """What is used of a recording of so many seconds, sorted by start."""
        unit = Segment(0.0, seconds) if self.span is None else self.span & Segment(0.0, seconds)
        spans = [unit] if self.speech is None else [span & unit for span in self.speech]
        return [span for span in spans if span.duration > 0]


@dataclass(frozen=True)
class CorpusRecording:
    """A recording and its parts, sorted by start.

    Attributes
    ----------
    sound : SoundSource
    parts : tuple of CorpusPart
        At least one.
    seconds : float, optional
        How long the corpus says that it is.
    """

    sound: SoundSource
    parts: tuple[CorpusPart, ...]
    seconds: float | None = None


def gathered(utterances: Iterable[Utterance], rule: str = labels.DEFAULT_RULE) -> list[CorpusRecording]:
    """Label utterances, and put those of one recording together.

    Parameters
    ----------
    utterances : iterable of Utterance
    rule : str
        See `labels.rule`; the default takes what the corpus states, and the folders of the keys where it states none.
        One of `LEVELS` takes the class that it states as a label of this level.

    Returns
    -------
    list of CorpusRecording
        In the order of their first utterances.

    Raises
    ------
    KnnError
        If the rule does not match, for no utterances at all, and for two lengths of one recording.
    """
    lines = list(utterances)
    parts: dict[SoundSource, list[CorpusPart]] = {}
    urls: dict[str, SoundSource] = {}
    seconds: dict[SoundSource, float] = {}
    for line, label in zip(lines, _labelled(lines, rule), strict=True):
        if isinstance(line.sound.path, UrlPath) and urls.setdefault(str(line.sound), line.sound) != line.sound:
            raise KnnError(
                f"{line.sound} is listed twice, with another text behind the `?`.", "Download one of the two."
            )
        parts.setdefault(line.sound, []).append(CorpusPart(line.key, label, line.span, line.speech))
        if line.seconds is not None and seconds.setdefault(line.sound, line.seconds) != line.seconds:
            raise KnnError(f"{line.sound} has two lengths in its lists.", "Leave one of them out.")
    return [
        CorpusRecording(sound, tuple(sorted(found, key=_start)), seconds.get(sound)) for sound, found in parts.items()
    ]


def _start(part: CorpusPart) -> float:
    return part.span.start if part.span is not None else part.speech[0].start if part.speech else 0.0


def _labelled(lines: Sequence[Utterance], rule: str) -> list[Labels]:
    """The labels of utterances; a folder that could not be listed (see `folders.files_below`) has a name only."""
    closed = {place for place, line in enumerate(lines) if _is_closed_folder(line.sound)}
    known = iter(_by_rule([line for place, line in enumerate(lines) if place not in closed], rule))
    return [Labels(line.sound.path.name) if place in closed else next(known) for place, line in enumerate(lines)]


def _is_closed_folder(sound: SoundSource) -> bool:
    """Whether a folder stands in the place of a file, since it could not be listed."""
    is_known = isinstance(sound.path, UrlPath) or sound.path.suffix.lower() in reading.SUFFIXES
    return not is_known and not sound.member and is_folder(sound.path)


def _by_rule(lines: Sequence[Utterance], rule: str) -> list[Labels]:
    stated = [_without_folder(line) for line in lines]
    if rule in LEVELS:
        return _at_level(lines, stated, rule)
    found = row_labels.of_keys([line.key for line in lines], rule, paths=True)
    names = row_labels.of_keys([line.stated.name or line.key for line in lines], paths=True)
    both = zip(found, stated, names, strict=True)
    if rule == labels.DEFAULT_RULE:
        return [
            replace(own if own.group or own.subgroup else replace(ours, speaker=own.speaker), name=name.name)
            for ours, own, name in both
        ]
    named = row_labels.of_keys([line.key for line in lines], paths=True)
    return [
        Labels(
            ours.name if ours.name != plain.name else name.name,
            *(getattr(ours, level) or getattr(own, level) for level in LEVELS),
        )
        for (ours, own, name), plain in zip(both, named, strict=True)
    ]


def _without_folder(line: Utterance) -> Labels:
    """What is stated, without a speaker that is only the folder of the key, whose class it then is."""
    known = line.stated
    return replace(known, speaker="") if known.speaker == path_text(KeyPath(line.key).parent.name) else known


def _at_level(lines: Sequence[Utterance], stated: Sequence[Labels], level: str) -> list[Labels]:
    names = row_labels.of_keys([line.stated.name or line.key for line in lines], paths=True)
    found, without = [], []
    for line, own, name in zip(lines, stated, names, strict=True):
        text = own.subgroup or own.group or line.stated.speaker
        if not text:
            without.append(line.key)
        label = labels.of_class(name.name, text)
        found.append(label if level == "subgroup" else replace(Labels(name.name), **{level: text}))
    if without:
        raise KnnError(
            f"The corpus states no class of {len(without)} of {len(lines)} utterances, such as {without[0]}.",
            "Use another rule of labels.",
        )
    return found


def class_and_speaker(classes: str, speaker: str, name: str = "") -> Labels:
    """What a corpus states by the text of a class and a speaker, each "" where it states none.

    Examples
    --------
    >>> class_and_speaker("3-2", "eva")
    Labels(name='', group='3', subgroup='3-2', speaker='eva')
    """
    return replace(labels.of_class(name, tidy(classes)), speaker=tidy(speaker))


def find_sound(name: str, source: Path) -> SoundSource:
    """The file that a list names, or a URL: a file beside the list where there is one, else as the path stands."""
    if is_url(name) and "://" in name:
        return SoundSource(UrlPath.of(name))
    path = Path(name)
    if not path.is_absolute() and not (path := source.parent / name).is_file():
        path = Path(name)
    if not path.exists() and (other := Path(unicodedata.normalize("NFD", str(path)))).exists():
        return SoundSource(other)  # tables are composed when they are read, files of macOS are not
    return SoundSource(path)


def refuse_command(text: str, place: str) -> None:
    """Raise KnnError for a shell command, which Kaldi's lists may have in place of a file."""
    if text.startswith("|") or text.endswith("|"):
        raise KnnError(
            f"{place} is a shell command ({text[:60]}), which is never run.",
            "Run it yourself, write what it gives to a file of sound, and name that.",
        )
