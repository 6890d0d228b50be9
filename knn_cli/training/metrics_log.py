"""The log of a training: metrics.jsonl, and TensorBoard's files where the recipe asks for them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from knn_cli.core.atomic import replacing_text
from knn_cli.core.errors import KnnError

__all__ = ["MetricsLog", "tensorboard_writer"]


class MetricsLog:
    """metrics.jsonl, cut back to the step and the epoch that a training resumes from.

    Parameters
    ----------
    path
        The file; a new one is made if there is none.
    step, epochs
        Steps and epochs that are done.
    """

    def __init__(self, path: Path, step: int, epochs: int) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        with replacing_text(path) as file:
            file.writelines(f"{line}\n" for line in lines if _is_before(line, step, epochs))

    def write(self, facts: Mapping[str, Any]) -> None:
        """Add one line, which is on the disk when this returns. KnnError if it cannot be written."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(facts) + "\n")
        except OSError as error:
            raise KnnError(f"{self.path} cannot be written: {error.strerror or error}.", "Make room.") from error


def _is_before(line: str, step: int, epochs: int) -> bool:
    try:
        facts = json.loads(line)
        return int(facts["step"]) <= step and int(facts.get("epoch", 0)) <= epochs
    except (ValueError, KeyError, TypeError, AttributeError):
        return False  # half a line of a process that died


@contextmanager
def tensorboard_writer(folder: Path, step: int) -> Iterator[Any]:
    """TensorBoard's writer, which drops what came after `step`. KnnError if the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        hint = "Install it, or take the line out: metrics.jsonl has the same."
        raise KnnError("loop.tensorboard needs the package tensorboard.", hint) from error
    with SummaryWriter(str(folder), purge_step=step + 1) as writer:
        yield writer


def draw(writer: Any, facts: Mapping[str, Any]) -> None:
    """Hand the numbers among the facts of a step to TensorBoard, if there is a writer."""
    for name, value in facts.items() if writer is not None else ():
        if name != "step" and isinstance(value, float):
            writer.add_scalar(name, value, facts["step"])
