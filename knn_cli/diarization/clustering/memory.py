"""Results that take most of the time of clustering, remembered by what they are made of.

Trees, spectra and what VBx reaches from cuts of a tree depend on the embeddings and on settings, but not on the number
of speakers asked for; VBx's labels are remembered for each. Inside `remembering`, a result that is in the memory is not
computed again; keys are hashes of all that determines it, so that a memory of other embeddings or settings is of no
use, and does no harm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

Memory = dict[str, tuple[NDArray[Any], ...]]

_memory: ContextVar[Memory | None] = ContextVar("memory", default=None)


@contextmanager
def remembering(memory: Memory) -> Iterator[None]:
    """Take results from a memory, and add those that it lacks."""
    token = _memory.set(memory)
    try:
        yield
    finally:
        _memory.reset(token)


def remembered(
    compute: Callable[[], tuple[NDArray[Any], ...]], name: str, *arrays: NDArray[Any], settings: tuple[Any, ...]
) -> tuple[NDArray[Any], ...]:
    """The result of `compute`, which these arrays and settings determine; callers do not change it."""
    memory = _memory.get()
    if memory is None:
        return compute()
    digest = hashlib.blake2b(repr((name, settings)).encode(), digest_size=16)
    for array in arrays:
        digest.update(repr((array.dtype.str, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).data)
    key = digest.hexdigest()
    if key not in memory:
        memory[key] = compute()
    return memory[key]
