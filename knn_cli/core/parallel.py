"""Small networks on a CPU: several inputs in parallel, one thread each, instead of several threads on each operation.

Operations on a few seconds of frames take less time than the synchronisation of threads. With inputs in parallel, the
same work takes less processor time, ends sooner, and gives the same values for any number of threads.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from threading import Event, Lock
from typing import TYPE_CHECKING, Protocol, TypeVar

from knn_cli.core.processors import idle_processors

if TYPE_CHECKING:
    import torch

MAX_PARALLEL_ITEMS = 16  # with the shipped networks, each item takes some tens of megabytes

Item = TypeVar("Item")
Result = TypeVar("Result")

# In a thread of a map, and inside `limited`: the processors for the maps within, so that all together are no more.
_share: ContextVar[int | None] = ContextVar("share", default=None)
# In a thread of a map: set when nobody wants the results of that map any more.
_given_up: ContextVar[Event | None] = ContextVar("given_up", default=None)
_lock = Lock()
_active_callers = 0  # threads of the program that are in `single_threaded`
_torch_threads = 0  # torch's number before the first of them entered


class OrderedMap(Protocol):
    """A function that applies another to items and yields the results in the order of the items."""

    def __call__(self, work: Callable[[Item], Result], items: Iterable[Item], /) -> Iterable[Result]: ...


@contextmanager
def single_threaded() -> Iterator[int]:
    """Let torch use one thread per operation; yield how many it used before.

    The number belongs to the whole process: the first of several concurrent callers saves it, the last restores it.
    """
    import torch

    global _active_callers, _torch_threads
    with _lock:
        if not _active_callers:
            _torch_threads = torch.get_num_threads()
        _active_callers += 1
        threads = _torch_threads
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        with _lock:
            _active_callers -= 1
            if not _active_callers:
                torch.set_num_threads(threads)


@contextmanager
def limited(jobs: int | None) -> Iterator[None]:
    """Let the maps of this context use no more than so many processors; None: as many as without it."""
    token = _share.set(jobs if jobs is not None else _share.get())
    try:
        yield
    finally:
        _share.reset(token)


class _GivenUpError(Exception):
    """In a thread of a map: nobody wants its results any more."""


def _check_wanted() -> None:
    given_up = _given_up.get()
    if given_up is not None and given_up.is_set():
        raise _GivenUpError


def _threads_asked() -> int:
    """The threads that `OMP_NUM_THREADS` allows, as torch understands it; many where it says nothing."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else sys.maxsize


def _processors(jobs: int | None, threads: int) -> int:
    """Processors for a map, where torch would use so many threads."""
    share = _share.get()
    if jobs is None:
        return min(threads, idle_processors()) if share is None else share
    return jobs if share is None else min(jobs, share)


@contextmanager
def parallel_map(
    device: torch.device | None, max_items: int = MAX_PARALLEL_ITEMS, *, jobs: int | None = None
) -> Iterator[OrderedMap]:
    """Yield a map that processes several items at once, each on a separate thread.

    On other devices than the CPU it is the built-in `map`. Items are taken as they are needed, at most one more than
    there are threads. An exception of the function is raised where its result would be yielded, an exception of the
    iterable when an item is taken. A map may be the input of another; maps inside the function share the processors of
    this one, and end at their next item when the block of this one ends.

    Parameters
    ----------
    device : torch.device or None
        Where the work runs; None for work without torch, which is then not imported.
    max_items : int
        Largest number of items processed at once.
    jobs : int, optional
        Processors that are used. By default as many as others leave idle (`idle_processors`), and no more than torch
        uses threads, which `OMP_NUM_THREADS` bounds.

    Yields
    ------
    OrderedMap
    """
    if device is not None and device.type != "cpu":
        yield map
        return
    with nullcontext(_threads_asked()) if device is None else single_threaded() as threads:
        processors = _processors(jobs, threads)
        workers = min(processors, max_items)
        share = max(1, processors // workers)
        if workers > 1:
            with _by_threads(workers, share, with_torch=device is not None) as ordered:
                yield ordered
            return

        def alone(work: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
            for item in items:
                _check_wanted()
                with limited(share):
                    result = work(item)
                yield result

        yield alone


@contextmanager
def _by_threads(workers: int, share: int, *, with_torch: bool) -> Iterator[OrderedMap]:
    """The map of so many threads, each of which has `share` processors for the maps within."""
    given_up = Event()

    def begin() -> None:
        _share.set(share)
        _given_up.set(given_up)
        if with_torch:  # `single_threaded` sets torch's own number, but MKL keeps another one in every thread
            import torch

            torch.set_num_threads(1)

    pool = ThreadPoolExecutor(workers, initializer=begin)

    def ordered(work: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            _check_wanted()
            waiting.append(pool.submit(work, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield ordered
    finally:
        given_up.set()
        pool.shutdown(cancel_futures=True)
