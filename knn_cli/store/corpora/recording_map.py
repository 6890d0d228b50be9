"""The same work for each of many recordings: one after the other here, or by the workers of a cluster.

Either way the results come in the order of the recordings, and are the same: a command takes a `RecordingMap` and does
not know where the work is done. What is to be said of the sound, and how far it is read, reaches the listeners of
`reading_notes` and `reading_progress` in the process of the command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

from knn_cli.audio import reading_notes, reading_progress
from knn_cli.core.cluster import Cluster
from knn_cli.core.errors import AudioError, KnnError
from knn_cli.store.corpora.recordings import CorpusRecording

__all__ = ["RecordingMap", "by_workers", "one_by_one"]

UNIT_BYTES = 16_000_000  # of files with sound that go to a worker together
UNIT_RECORDINGS = 32
UNITS_PER_THREAD = 4  # at least, so that few recordings keep all workers busy to the end

Source = TypeVar("Source", bound="Path | CorpusRecording")
Result = TypeVar("Result")
Prepare = Callable[[], Callable[[Source], Result]]
Caught = type[KnnError] | tuple[type[KnnError], ...]
Note = tuple[Path, str, bool]  # as `reading_notes.Listener` takes them


class RecordingMap(Protocol):
    """Does the same work for each of several recordings.

    Called with a function that makes ready, such as by loading a model, and returns the work, a function of a
    recording; with the recordings; and with the errors that are results in the place of a recording's own. For a
    cluster, all of them can be pickled. Yields the result of each recording, in their order.
    """

    def __call__(
        self, prepare: Prepare[Source, Result], sources: Sequence[Source], caught: Caught = AudioError, /
    ) -> Iterator[Result | KnnError]: ...


def one_by_one(
    prepare: Prepare[Source, Result], sources: Sequence[Source], caught: Caught = AudioError, /
) -> Iterator[Result | KnnError]:
    """The map that does everything here, one recording after the other; see `RecordingMap`.

    Examples
    --------
    >>> from pathlib import Path
    >>> from knn_cli.store.corpora.recording_map import one_by_one
    >>> [*one_by_one(lambda: lambda path: path.suffix, [Path("a.wav"), Path("b.mp3")])]
    ['.wav', '.mp3']
    """
    work = prepare() if sources else None
    for source in sources:
        assert work is not None
        yield _attempt(work, source, caught)


def _attempt(work: Callable[[Source], Result], source: Source, caught: Caught) -> Result | KnnError:
    try:
        return work(source)
    except caught as error:
        return error


def by_workers(cluster: Cluster) -> RecordingMap:
    """The map whose work is done by the workers of a cluster, which read the files under their absolute paths.

    A recording at which several workers ended has a KnnError as its result, its neighbours have theirs. The cluster's
    `sound_seconds` count what was read.
    """
    return partial(_by_workers, cluster)


@dataclass(frozen=True)
class _Unit(Generic[Source, Result]):
    """Recordings for a worker, and what it does with each."""

    sources: tuple[Source, ...]
    prepare: Prepare[Source, Result]
    caught: Caught


@dataclass(frozen=True)
class _Done(Generic[Result]):
    """What a recording gave: a result, what is to be said of its sound, and how many seconds of it were read."""

    result: Result | KnnError
    notes: Sequence[Note] = ()
    seconds: float = 0.0


def _do(unit: _Unit[Source, Result]) -> list[_Done[Result]]:
    """In a worker: what each recording of a unit gives."""
    work, done = unit.prepare(), []
    for source in unit.sources:
        notes: list[Note] = []
        read = [0.0]

        def note(path: Path, clause: str, loss: bool, notes: list[Note] = notes) -> None:
            notes.append((path, clause, loss))

        def progress(path: Path, seconds: float, total: float | None, read: list[float] = read) -> None:
            read[0] = max(read[0], seconds)

        with reading_notes.listening(note), reading_progress.listening(progress):
            result = _attempt(work, source, unit.caught)
        done.append(_Done(result, notes, read[0]))
    return done


def _by_workers(
    cluster: Cluster,
    prepare: Prepare[Source, Result],
    sources: Sequence[Source],
    caught: Caught = AudioError,
    /,
) -> Iterator[Result | KnnError]:
    most = min(UNIT_RECORDINGS, max(1, len(sources) // (UNITS_PER_THREAD * max(1, cluster.threads))))
    groups = _groups([_absolute(source) for source in sources], most)
    units = [_Unit(tuple(group), prepare, caught) for group in groups]
    left = iter(sources)
    for unit, results in cluster.ordered(_do, units):
        for done in _by_recording(cluster, unit, results):
            path = _path(next(left))
            for _, clause, loss in done.notes:
                reading_notes.note(path, clause, loss=loss)
            cluster.sound_seconds += done.seconds
            reading_progress.report(path, done.seconds, done.seconds)
            yield done.result if not isinstance(done.result, KnnError) else as_named(done.result, path)


def as_named(error: KnnError, path: Path) -> KnnError:
    """An error of a worker with the path as the command has it, in place of the absolute one."""
    return type(error)(error.message.replace(str(path.absolute()), str(path)), error.hint)


def _by_recording(
    cluster: Cluster, unit: _Unit[Source, Result], results: list[_Done[Result]] | KnnError
) -> Iterator[_Done[Result]]:
    """What each recording of a unit gives; where workers have ended, each recording is tried alone."""
    if not isinstance(results, KnnError):
        yield from results
        return
    for source in unit.sources:
        found = cluster.alone(_do, replace(unit, sources=(source,)))
        yield _Done(found) if isinstance(found, KnnError) else found[0]


def _groups(sources: Sequence[Source], most: int) -> Iterator[list[Source]]:
    """Recordings that go to a worker together: one large file, or several small ones, at most so many."""
    group: list[Source] = []
    total = 0
    for source in sources:
        size = _size(source)
        if group and (total + size > UNIT_BYTES or len(group) == most):
            yield group
            group, total = [], 0
        group.append(source)
        total += size
    if group:
        yield group


def _path(source: Path | CorpusRecording) -> Path:
    return source if isinstance(source, Path) else source.sound.path


def _absolute(source: Source) -> Source:
    other: Any = (
        source.absolute()
        if isinstance(source, Path)
        else replace(source, sound=replace(source.sound, path=source.sound.path.absolute()))
    )
    return cast(Source, other)


def _size(source: Path | CorpusRecording) -> int:
    if isinstance(source, CorpusRecording) and source.sound.size:
        return source.sound.size
    try:
        return _path(source).stat().st_size
    except OSError:  # the worker that reads it says why
        return 0
