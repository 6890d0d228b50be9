"""What a training leaves on the disk while it runs: snapshots to go on from, weights to choose from, its metrics.

    OUT.training/plan.json       recipe, corpus and first weights: only the same training is gone on with
                 last.pt         everything that the next step needs
                 best.pt         weights of the epoch that did best on held-out recordings
                 epoch-0007.pt   weights of the last epochs, where they will be averaged
                 metrics.jsonl   one JSON object a line: steps and epochs
                 metrics.1.jsonl those of an earlier training in this folder, and so on; tensorboard.1 likewise

Each file is written whole under another name and then renamed, so a crash or a full disk leaves the one before.
"""

from __future__ import annotations

import json
import os
import pickle  # only to catch what torch.load raises
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from knn_cli.core.atomic import replacing, replacing_text
from knn_cli.core.errors import KnnError

State = Mapping[str, Tensor]

# What torch.load raises for bytes that are no checkpoint: it does not promise one kind of error.
_UNREADABLE = (
    *(OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError),
    *(pickle.UnpicklingError, zipfile.BadZipFile),
)
_OURS = re.compile(
    r"plan\.json|last\.pt|best\.pt|metrics(\.\d+)?\.jsonl|epoch-\d+\.pt|network|tensorboard(\.\d+)?|.*\.(part|tmp)"
)
_KEPT = re.compile(r"(?:metrics|tensorboard)\.(\d+)(?:\.jsonl)?")


class Snapshots:
    """The folder beside the bundle to be.

    out  : the bundle's folder
    plan : what decides the result; a folder of the same plan is gone on with
    force: begin again where the folder is of another plan, or its checkpoint is damaged
    main : False in the other processes of a training, which leave the making to the main one

    Raises KnnError: the folder holds another training and `force` is not set, or what is not ours, or cannot be made.
    """

    def __init__(self, out: Path, plan: Mapping[str, Any], *, force: bool = False, main: bool = True) -> None:
        self.folder = out.with_name(out.name + ".training")
        if not main:
            return
        text = json.dumps(plan, sort_keys=True, default=str, indent=1)
        file = self.folder / "plan.json"
        try:
            if self.folder.exists() and (not file.is_file() or file.read_text(encoding="utf-8") != text):
                if not force and self.last.is_file():
                    raise KnnError(
                        f"{self.folder} holds another training that is not finished.",
                        "Repeat its command to go on with it, name another model, or drop it with --force.",
                    )
                self._drop()
            elif force and self.last.is_file() and not _loads(self.last):
                self._drop()
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise KnnError(f"{self.folder} cannot be written: {error.strerror or error}.", "Name another.") from error
        if not file.exists():
            with replacing_text(file) as stream:
                stream.write(text)

    def _drop(self) -> None:
        """Remove what a training left, but for its metrics, which get the next free number.

        KnnError, and nothing removed, when anything else is in the folder.
        """
        found = sorted(self.folder.iterdir())
        if foreign := [one.name for one in found if not _OURS.fullmatch(one.name)]:
            raise KnnError(
                f"{self.folder} holds {foreign[0]}, which no training wrote.", "Move it, or name another model."
            )
        numbers = [int(match[1]) for one in found if (match := _KEPT.fullmatch(one.name))]
        number = max(numbers, default=0) + 1
        for one in found:
            if _KEPT.fullmatch(one.name):
                continue
            if one == self.metrics and one.stat().st_size:
                one.rename(self.folder / f"metrics.{number}.jsonl")
            elif one.name == "tensorboard":
                one.rename(self.folder / f"tensorboard.{number}")
            elif one.is_dir():
                shutil.rmtree(one)
            else:
                one.unlink()

    @property
    def last(self) -> Path:
        """What to go on from."""
        return self.folder / "last.pt"

    @property
    def best(self) -> Path:
        """The weights that did best."""
        return self.folder / "best.pt"

    @property
    def metrics(self) -> Path:
        """The log."""
        return self.folder / "metrics.jsonl"

    def keep_epoch(self, epoch: int, state: State, count: int) -> None:
        """Keep an epoch's weights, and of those before only as many as `count` in all."""
        save(self.folder / f"epoch-{epoch:04d}.pt", dict(state))
        for old in range(max(0, epoch - count + 1)):
            (self.folder / f"epoch-{old:04d}.pt").unlink(missing_ok=True)

    def average(self, last: int, count: int) -> dict[str, Tensor]:
        """The mean of the kept weights of up to `count` epochs up to `last`; whole numbers are those of the last."""
        numbers = range(max(0, last - count + 1), last + 1)
        total: dict[str, Tensor] = {}
        for number in numbers:
            state = load(self.folder / f"epoch-{number:04d}.pt")
            for name, value in state.items():
                summed = value.double() if value.is_floating_point() else value
                total[name] = total[name] + summed if name in total and value.is_floating_point() else summed
        types = {name: value.dtype for name, value in state.items()}
        return {
            name: (value / len(numbers)).to(types[name]) if value.is_floating_point() else value
            for name, value in total.items()
        }

    def finish(self) -> None:
        """Drop the weights; the metrics stay."""
        for file in (self.last, self.best, self.folder / "plan.json", *self.folder.glob("epoch-*.pt")):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.folder / "network", ignore_errors=True)


class Metrics:
    """The log of a training, cut back to the step and to the epochs that it goes on from."""

    def __init__(self, path: Path, step: int, epochs: int) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        with replacing_text(path) as file:
            file.writelines(f"{line}\n" for line in lines if _before(line, step, epochs))

    def write(self, facts: Mapping[str, Any]) -> None:
        """Add one line, which is on the disk when this returns. Raises KnnError when it cannot be written."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(facts) + "\n")
        except OSError as error:
            raise KnnError(f"{self.path} cannot be written: {error.strerror or error}.", "Make room.") from error


def _before(line: str, step: int, epochs: int) -> bool:
    try:
        facts = json.loads(line)
        return int(facts["step"]) <= step and int(facts.get("epoch", 0)) <= epochs
    except (ValueError, KeyError, TypeError, AttributeError):
        return False  # half a line of a process that died


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors and plain values so that `load` reads them, whole or not at all.

    Raises KnnError when the file cannot be written; the one before is then still there.
    """
    try:
        with replacing(path) as part, part.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # torch's archive writer, when the file below it refuses
        reason = error.__context__ if isinstance(error.__context__, OSError) else None
        said = (reason.strerror if reason else None) or "the disk refuses"
        raise KnnError(f"{path} cannot be written: {said}.", "Make room; the checkpoint before is kept.") from error


def _loads(path: Path) -> bool:
    try:
        load(path)
    except KnnError:
        return False
    return True


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU. Raises KnnError for a file that is missing or damaged."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise KnnError(f"The checkpoint {path} cannot be read.", "Begin again with --force.") from error
    return state


@contextmanager
def board(folder: Path, step: int) -> Iterator[Any]:
    """TensorBoard's writer, that forgets what came after `step`. Raises KnnError where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        hint = "Install it, or take the line out: metrics.jsonl has the same."
        raise KnnError("loop.tensorboard needs the package tensorboard.", hint) from error
    with SummaryWriter(str(folder), purge_step=step + 1) as writer:
        yield writer
