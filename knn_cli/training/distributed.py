"""One process or many: what `torchrun` started, as far as a training needs to know of it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist

from knn_cli.core.device import torch_device
from knn_cli.core.errors import KnnError


class TrainingStopped(KnnError):
    """A training that was asked to stop and left a checkpoint: nothing is wrong, and the same command goes on."""

    code = 75  # what the command exits with: EX_TEMPFAIL of sysexits.h, try again later


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


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGUSR1 set, which schedulers send before they kill; only in a main thread."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    names = [name for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)]  # Windows has the first only
    before = {name: signal.signal(getattr(signal, name), lambda number, frame: asked.set()) for name in names}
    try:
        yield asked
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
