"""The same work for each of many recordings: one after the other, several at once, or by the workers of a cluster.

Either way the results come in the order of the recordings, and are the same: a command takes a `RecordingMap` and does
not know where the work is done. What is to be said of the sound, and how far it is read, reaches the listeners of
`reading_notes` and `reading_progress` in the process of the command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from knn_cli.audio import reading_notes, reading_progress
from knn_cli.core.cluster import Cluster
from knn_cli.core.errors import AudioError, KnnError
from knn_cli.store.corpora.recordings import CorpusRecording

if TYPE_CHECKING:
    import torch

__all__ = ["RecordingMap", "at_once", "by_workers", "one_by_one"]

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


def at_once(device: torch.device | None, jobs: int | None = None) -> RecordingMap:
    """The map for work on `device`: on a CPU with several recordings at a time, each on one thread.

    The results are the same for any number of processors. When the caller stops, recordings that are being read are
    given up at their next piece of sound.

    Parameters
    ----------
    device : torch.device or None
        None for work without networks.
    jobs : int, optional
        Processors that are used, by default those that are idle; see `core.parallel.parallel_map`. Where there are
        fewer recordings, the work on each shares what is left; no more than 16 are held at once.
    """
    return partial(_at_once, device, jobs)


class _StoppedError(Exception):
    """In a thread: nobody wants the result any more."""


def _at_once(
    device: torch.device | None,
    jobs: int | None,
    prepare: Prepare[Source, Result],
    sources: Sequence[Source],
    caught: Caught = AudioError,
    /,
) -> Iterator[Result | KnnError]:
    if (device is not None and device.type != "cpu") or not sources:
        yield from one_by_one(prepare, sources, caught)
        return
    from knn_cli.core.parallel import MAX_PARALLEL_ITEMS, parallel_map

    work, stopped, listener = prepare(), Event(), reading_progress.current()
    awaited = 0  # the recording whose result comes next: its progress is shown

    def do(numbered: tuple[int, Source]) -> _Done[Result]:
        number, source = numbered

        def follow(path: Path, seconds: float, total: float | None) -> None:
            if stopped.is_set():
                raise _StoppedError
            if number == awaited and listener is not None:
                listener(path, seconds, total)

        return _listened(work, source, caught, follow)

    with parallel_map(device, min(MAX_PARALLEL_ITEMS, len(sources)), jobs=jobs) as each:
        try:
            for source, done in zip(sources, each(do, enumerate(sources)), strict=True):
                _note(_path(source), done)
                yield done.result
                awaited += 1  # now that the caller has counted this one
        finally:
            stopped.set()


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
    work = unit.prepare()
    return [_listened(work, source, unit.caught) for source in unit.sources]


def _listened(
    work: Callable[[Source], Result], source: Source, caught: Caught, watch: reading_progress.Listener | None = None
) -> _Done[Result]:
    """What a recording gives, with what is to be said of it; `watch` is told how far its sound is read."""
    notes: list[Note] = []
    read = 0.0

    def note(path: Path, clause: str, loss: bool) -> None:
        notes.append((path, clause, loss))

    def progress(path: Path, seconds: float, total: float | None) -> None:
        nonlocal read
        read = max(read, seconds)
        if watch is not None:
            watch(path, seconds, total)

    with reading_notes.listening(note), reading_progress.listening(progress):
        result = _attempt(work, source, caught)
    return _Done(result, notes, read)


def _note(path: Path, done: _Done[Any]) -> None:
    """Tell the listener here what is to be said of sound that was heard elsewhere."""
    for _, clause, loss in done.notes:
        reading_notes.note(path, clause, loss=loss)


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
            cluster.sound_seconds += done.seconds
            _note(path, done)
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
