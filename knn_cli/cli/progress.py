"""Progress over recordings of any length: seconds of sound a second, and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from knn_cli.cli.console import console

# Relative cost of a pass over the sound with the shipped networks; what a pass takes is measured once it runs.
SEGMENTATION_PASS, EMBEDDING_PASS = 1.0, 1.0
SPEECH_PASS, SCORING_PASS = 0.1, 2.0
MOST_SHOWN = 0.99  # of the bar, while there is still work
GUESS_SHARE = 0.05  # of a pass, as which the guess counts beside what was measured


class Finished(Protocol):
    """What is called after each file of `over_files`."""

    def __call__(self, count: int | None = None) -> None: ...


class PassTimes:
    """Estimates the time left for a file from the passes over its sound so far.

    Parameters
    ----------
    costs : sequence of float
        Expected work of each pass, relative to the others.
    started : float
        Seconds of a clock.
    """

    def __init__(self, costs: Sequence[float], started: float) -> None:
        self._costs = costs
        self._started = self._pass_started = started
        self._now = started
        self._pass = 0
        self._seconds, self._total = 0.0, 0.0

    def update(self, seconds: float, total: float | None, now: float) -> None:
        """Note that the current pass has used the first `seconds` of `total`, at a time of the clock.

        Fewer seconds than before begin the next pass.
        """
        if seconds < self._seconds:
            self._total = self._total or self._seconds
            self._pass += 1
            self._pass_started = self._now
        self._seconds, self._now = seconds, now
        self._total = total or (self._total if self._total >= seconds else 0.0)

    @property
    def elapsed(self) -> float:
        """Seconds of the clock so far."""
        return self._now - self._started

    @property
    def left(self) -> float | None:
        """Estimated seconds of the clock until the last pass ends; None where the recording's length is unknown."""
        if not self._total:
            return None
        if self._pass >= len(self._costs):
            return 0.0
        before, cost, after = sum(self._costs[: self._pass]), self._costs[self._pass], self._costs[self._pass + 1 :]
        share, spent = min(1.0, self._seconds / self._total), self._now - self._pass_started
        unit = self.elapsed / (before + cost * share)  # seconds of the clock per unit of cost
        whole = (spent + GUESS_SHARE * cost * unit) / (share + GUESS_SHARE)
        return (1 - share) * whole + sum(after) * unit

    @property
    def pace(self) -> float:
        """Seconds of sound a second of the clock, all passes together; of this pass where the length is unknown."""
        left = self.left
        if left is None:
            return self._seconds / max(self._now - self._pass_started, 1e-9)
        return self._total / max(self.elapsed + left, 1e-9)


class FilesProgress:
    """Progress of several files; `share` and `text` are what a bar shows.

    The share stays below 1: behind the last pass over the sound there is still work, such as clustering and outputs.

    Parameters
    ----------
    count : int
        Number of files.
    costs : callable
        Expected work of each pass over a file, by its path.
    clock : callable
        Seconds.
    """

    def __init__(
        self, count: int, costs: Callable[[Path], Sequence[float]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._count, self._costs, self._clock = count, costs, clock
        self._started = self._file_started = clock()
        self._finished = 0
        self._path: Path | None = None
        self._times: PassTimes | None = None
        self.share, self.text = 0.0, ""

    def read(self, path: Path, seconds: float, total: float | None) -> None:
        """Note how far a file is read; a `reading_progress.Listener`."""
        now = self._clock()
        if path != self._path:
            self._path, self._times = path, PassTimes(self._costs(path), self._file_started)
        if self._times is None:  # the file is finished: its sound is read again for an output
            return
        self._times.update(seconds, total, now)
        left = self._times.left
        self.text = f"{self._times.pace:.0f} s of sound a second"
        if left is None:
            return
        each = (now - self._started + left) / (self._finished + 1)  # seconds of the clock a file
        left += each * (self._count - self._finished - 1)
        self.share = self._shown(max(self.share, (now - self._started) / max(now - self._started + left, 1e-9)))
        self.text += f", {_clock_time(left)} left" if left >= 0.5 else ", nearly done"

    def finish(self, count: int | None = None) -> None:
        """Note that a file is finished, and how many there are if that is known better now."""
        self._finished += 1
        self._count = self._count if count is None else count
        self._times = None
        self._file_started = self._clock()
        self.share = self._shown(self._finished / self._count)
        if self._finished >= self._count:
            self.text = "finishing"

    @staticmethod
    def _shown(share: float) -> float:
        return min(share, MOST_SHOWN)


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


@contextmanager
def over_files(what: str, count: int, costs: Callable[[Path], Sequence[float]]) -> Iterator[Finished]:
    """Draw a progress bar over files if stderr is a terminal; yields a function to call after each file.

    It takes the number of files, where that is known better by then.

    Parameters
    ----------
    what : str
        The work, such as "Diarizing".
    count : int
        Number of files.
    costs : callable
        Expected work of each pass over a file, by its path.
    """
    if not console.shows_progress:
        yield lambda count=None: None
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn

    from knn_cli.audio import reading_progress

    files = FilesProgress(count, costs)
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[text]}")
    with console.bar(*columns) as bar:
        task = bar.add_task(what, total=None, text="")

        def show() -> None:
            bar.update(task, completed=files.share, total=1.0 if files.share else None, text=files.text)

        def read(path: Path, seconds: float, total: float | None) -> None:
            files.read(path, seconds, total)
            show()

        def finished(count: int | None = None) -> None:
            files.finish(count)
            show()

        with reading_progress.listening(read):
            yield finished
