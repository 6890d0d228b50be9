"""Small networks on a CPU: several inputs in parallel, one thread each, instead of several threads on each operation.

Operations on a few seconds of frames take less time than the synchronisation of threads. With inputs in parallel, the
same work takes less processor time, ends sooner, and gives the same values for any number of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Protocol, TypeVar

import torch

MAX_PARALLEL_ITEMS = 16  # with the shipped networks, each item takes some tens of megabytes

Item = TypeVar("Item")
Result = TypeVar("Result")

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
def parallel_map(device: torch.device, max_items: int = MAX_PARALLEL_ITEMS) -> Iterator[OrderedMap]:
    """Yield a map that processes several items at once, each on a separate thread.

    There are as many threads as torch uses, at most `max_items`. On other devices than the CPU it is the built-in
    `map`. Items are taken as they are needed, at most one more than there are threads. An exception of the function is
    raised where its result would be yielded, an exception of the iterable when an item is taken. A map may be the
    input of another.

    Parameters
    ----------
    device : torch.device
        Where the work runs.
    max_items : int
        Largest number of items processed at once.

    Yields
    ------
    OrderedMap
    """
    if device.type != "cpu":
        yield map
        return
    with single_threaded() as threads:
        workers = min(threads, max_items)
        # `single_threaded` sets torch's own number, but MKL keeps another one in every thread.
        pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))

        def ordered(work: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
            waiting: deque[Future[Result]] = deque()
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        try:
            yield ordered
        finally:
            pool.shutdown(cancel_futures=True)
