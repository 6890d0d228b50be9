"""One process or many: what `torchrun` started, as far as a training needs to know of it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from knn_cli.core.device import torch_device
from knn_cli.core.errors import KnnError
from knn_cli.core.signals import REPEAT_SECONDS

_BY_HAND = tuple(getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name))


class TrainingStopped(KnnError):
    """A training that was asked to stop and left a checkpoint: nothing is wrong, and the same command goes on.

    Parameters
    ----------
    message, hint : str
    number : int, optional
        The signal. After Ctrl-C and the end of a terminal the command exits with their code of shells, else with 75:
        EX_TEMPFAIL of sysexits.h, try again later.
    """

    def __init__(self, message: str, hint: str, number: int | None = None) -> None:
        super().__init__(message, hint)
        self.code = 75 if number is None or number not in _BY_HAND else 128 + number


@dataclass(frozen=True)
class ProcessGroup:
    """One process of the `size` that train together."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor on the CPU over all processes, in each of them."""
        if self.size == 1:
            return values
        joined = values.to(self.device)  # where NCCL looks
        dist.all_reduce(joined)
        return joined.to(values.device)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in one of them, in each of them."""
        return bool(self.sum(torch.tensor([float(flag)])))

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give these tensors, which lie where this process computes, the main process's values in each of them."""
        for tensor in tensors if self.size > 1 else ():
            dist.broadcast(tensor, src=0)

    def broadcast_text(self, text: str) -> str:
        """The main process's text, in each of them."""
        if self.size == 1:
            return text
        box = [text]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def in_main(self, work: Callable[[], object]) -> None:
        """Let the main process do something; its KnnError is raised in all of them."""
        failure = ""
        if self.is_main:
            try:
                work()
            except KnnError as error:
                failure = "\0".join((error.message, error.hint))
        if failure := self.broadcast_text(failure):
            raise KnnError(*failure.split("\0"))


@contextmanager
def process_group(device: str = "auto") -> Iterator[ProcessGroup]:
    """The processes of this training: those of `torchrun` (or of a group made before), else this one alone.

    device : auto, cpu, cuda or mps; of several processes on one machine each takes the GPU of its number

    NCCL joins GPUs, Gloo all else. Raises KnnError for a device that is not there.
    """
    chosen = torch_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not dist.is_initialized():
        yield ProcessGroup(0, 1, chosen)
        return
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    starts_group = not dist.is_initialized()
    if starts_group:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), chosen)
    finally:
        if starts_group:
            dist.destroy_process_group()


class StopSignals:
    """Which signal has asked a training to stop, if any: it ends the step and writes a checkpoint first.

    Attributes
    ----------
    number : int or None
        The first of these signals.
    is_interruptible : bool
        Whether Ctrl-C stops at once, because a checkpoint has just been written.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.is_interruptible = False
        self._received = 0.0
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.number is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        by_hand, before = number in _BY_HAND, self._before[number]
        is_repeated = self.number is not None and now - self._received > REPEAT_SECONDS
        if by_hand and callable(before) and (self.is_interruptible or is_repeated):
            before(number, frame)
        if self.number is None:
            self.number, self._received = number, now

    def listen(self) -> None:
        """Hear the signals; only in a main thread, and none that the process was told to ignore."""
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGUSR1", "SIGTERM", "SIGINT", "SIGHUP"):  # Windows lacks some
                number = getattr(signal, name, None)
                if number is not None and (handler := signal.getsignal(number)) is not signal.SIG_IGN:
                    self._before[number] = handler
                    signal.signal(number, self._handle)

    def close(self) -> None:
        """Leave the signals to whom they came before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Signals that let a training end its step and write a checkpoint: those of schedulers, Ctrl-C, the terminal's end.

    Ctrl-C that is repeated after `REPEAT_SECONDS` stops at once, and what came since the last checkpoint is lost.
    """
    asked = StopSignals()
    asked.listen()
    try:
        yield asked
    finally:
        asked.close()
