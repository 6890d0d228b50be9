"""`python -m knn_cli` is `knn`: signals are heard first, and only then is anything else imported."""

from __future__ import annotations

import atexit
import gc
from typing import NoReturn

from knn_cli.cli import stopping


def main() -> NoReturn:
    """The `knn` command."""
    try:
        stopping.begin()
        atexit.register(stopping.ignore)  # the first to be registered is the last to be called
        from knn_cli.cli.app import run

        code = stopping.finished(run())
    except BaseException:
        if not stopping.is_asked():
            raise
        code = stopping.stopped()
    gc.freeze()  # so that the end of the process does not look through all of torch for cycles, which takes 0.7 s
    raise SystemExit(code)


if __name__ == "__main__":
    main()
