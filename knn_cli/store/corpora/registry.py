"""The readers of corpora: each recognises its kind of path and yields its utterances.

Adding a source is a module in `_MODULES` with one function under `corpus_reader`. The first reader that recognises a
path reads it, so narrow kinds stand before wide ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from knn_cli.core.errors import AudioError, KnnError
from knn_cli.core.urls import UrlPath
from knn_cli.core.visible_text import visible
from knn_cli.store import labels
from knn_cli.store.corpora.recordings import CorpusRecording, SoundSource, Utterance, gathered

SOUND = "sound"
_PACKAGE = "knn_cli.store.corpora"
_MODULES = ("features", "kaldi_data", "wespeaker_lists", "manifests", "tables", "files")
_OF_URLS = f"{_PACKAGE}.files"

Recogniser = Callable[[Path], bool]
Reader = Callable[[Path], Iterable[Utterance]]


class CorpusReader(NamedTuple):
    """A kind of corpus: whether a path is one, and its utterances."""

    name: str
    recognises: Recogniser
    read: Reader

    @property
    def is_sound(self) -> bool:
        """Whether it is a file of audio or a folder of such files, not a list or an archive of them."""
        return self.name == SOUND


_readers: list[CorpusReader] = []


def corpus_reader(name: str, recognises: Recogniser) -> Callable[[Reader], Reader]:
    """Return a decorator that registers a function as the reader of the corpora that `recognises` knows.

    Parameters
    ----------
    name : str
        The kind of corpus, with its article.
    recognises : callable
        Whether a path is of this kind; from names and the beginning of a file, without an error.
    """

    def decorate(read: Reader) -> Reader:
        _readers.append(CorpusReader(name, recognises, read))
        return read

    return decorate


def readers() -> list[CorpusReader]:
    """All readers, in the order in which they are asked."""
    modules = [f"{_PACKAGE}.{module}" for module in _MODULES]
    for module in modules:
        import_module(module)
    return sorted(_readers, key=lambda reader: modules.index(reader.read.__module__))


def kind_of(path: Path) -> CorpusReader | None:
    """Return the reader that recognises a path; None if it is no corpus. At URLs there are sound and shards only."""
    asked = [one for one in readers() if not isinstance(path, UrlPath) or one.read.__module__ == _OF_URLS]
    return next((reader for reader in asked if reader.recognises(path)), None)


def read_corpus(path: Path, rule: str = labels.DEFAULT_RULE) -> list[CorpusRecording]:
    """Read where the recordings of a corpus are, and what they are.

    Parameters
    ----------
    path : Path
        A file or folder of sound, a list, a manifest, or a folder with one.
    rule : str
        How its utterances are labelled, see `recordings.gathered`.

    Raises
    ------
    KnnError
        If it is no corpus, a damaged one, or one of features; as `recordings.gathered`. A file that does not exist is
        named, as one of sound.

    Examples
    --------
    >>> (recording,) = read_corpus(Path("meeting.flac"))
    >>> recording.parts[0].labels.name
    'meeting'
    """
    reader = kind_of(path)
    if reader is None:
        what = f"{path} holds no audio files, and no list of recordings that knn knows."
        raise AudioError(what, "Audio is found at any depth, by suffix; lists lie in the folder itself.")
    recordings = gathered(reader.read(path), rule)
    if not recordings:
        raise KnnError(f"{path}, {reader.name}, names no recordings.", "Is it the right one?")
    return recordings


def read_corpora(paths: Sequence[Path], rule: str = labels.DEFAULT_RULE) -> list[CorpusRecording]:
    """Read several corpora, each file once; see `read_corpus`. Names that two of them share get folders in front."""
    known: dict[SoundSource, CorpusRecording] = {}
    origins: dict[str, set[int]] = {}
    for place, path in enumerate(paths):
        for recording in read_corpus(path, rule):
            known.setdefault(recording.sound, recording)
            for part in recording.parts:
                origins.setdefault(part.labels.name, set()).add(place)
    shared = {name for name, places in origins.items() if len(places) > 1}
    found = [
        (recording, part) for recording in known.values() for part in recording.parts if part.labels.name in shared
    ]
    names = labels.distinct([part.labels.name for _, part in found], [entry.sound.path.parent for entry, _ in found])
    renamed = {
        (recording.sound, part.labels.name): visible(name) for (recording, part), name in zip(found, names, strict=True)
    }
    return [_renamed(recording, renamed) for recording in known.values()] if renamed else list(known.values())


def _renamed(recording: CorpusRecording, names: Mapping[tuple[SoundSource, str], str]) -> CorpusRecording:
    parts = [
        replace(
            part, labels=replace(part.labels, name=names.get((recording.sound, part.labels.name), part.labels.name))
        )
        for part in recording.parts
    ]
    return replace(recording, parts=tuple(parts))
