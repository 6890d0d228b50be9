"""Small networks on a CPU: several inputs side by side, a thread for each, instead of several threads on each sum.

Sums of the size that frames of a few seconds give are over before threads have met; side by side, the same work takes
fewer processor seconds, ends sooner, and gives the same values however many threads there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Protocol, TypeVar

import torch

MOST = 16  # items at a time: of the networks shipped each takes some tens of megabytes

Item = TypeVar("Item")
Result = TypeVar("Result")

_lock = Lock()
_inside = 0  # how many threads of the program are in `one_thread`
_threads = 0  # torch's number before the first of them came


class Map(Protocol):
    """Applies a function to items; results come in their order."""

    def __call__(self, work: Callable[[Item], Result], items: Iterable[Item], /) -> Iterable[Result]: ...


@contextmanager
def one_thread() -> Iterator[int]:
    """One thread for each of torch's sums; gives how many there were.

    The number is the whole process's: the first of several callers at once finds it, the last one puts it back.
    """
    global _inside, _threads
    with _lock:
        if not _inside:
            _threads = torch.get_num_threads()
        _inside += 1
        threads = _threads
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                torch.set_num_threads(threads)


@contextmanager
def side_by_side(device: torch.device, most: int = MOST) -> Iterator[Map]:
    """A map on as many threads as torch has, up to `most`, one item each; off the CPU the plain `map`.

    Items are taken as they are needed, never more than one beyond the threads. An error of the work comes where its
    result would, one of the items when they are taken. A map may feed another one.
    """
    if device.type != "cpu":
        yield map
        return
    with one_thread() as threads:
        lanes = min(threads, most)
        # The number that torch goes by is set above, but MKL has one of its own in every thread.
        pool = ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(1,))

        def ordered(work: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
            waiting: deque[Future[Result]] = deque()
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > lanes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        try:
            yield ordered
        finally:
            pool.shutdown(cancel_futures=True)
