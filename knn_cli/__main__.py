"""`python -m knn_cli` is `knn`: signals are heard first, and only then is anything else imported."""

from __future__ import annotations

import atexit
import gc
import os
from typing import NoReturn

from knn_cli.cli import stopping


def main() -> NoReturn:
    """The `knn` command."""
    try:
        stopping.begin()
        atexit.register(stopping.ignore)  # the first to be registered is the last to be called
        # Threads of an operation that wait for each other by spinning take the cores from those that they wait for.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is loaded
        # Large tensors in large pages: a WavLM spent a tenth of its time on faults of small ones.
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        from knn_cli.core import processors  # noqa: F401  # what others do is watched from here on
        from knn_cli.cli.app import run  # isort: skip

        code = stopping.finished(run())
    except BaseException:
        if not stopping.is_asked():
            raise
        code = stopping.stopped()
    gc.freeze()  # so that the end of the process does not look through all of torch for cycles, which takes 0.7 s
    raise SystemExit(code)


if __name__ == "__main__":
    main()
