"""What a training leaves on the disk while it runs: snapshots to go on from, weights to choose from, its metrics.

    OUT.training/plan.json       recipe, corpus and first weights: only an identical training is resumed
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
from collections.abc import Mapping
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


class TrainingFolder:
    """The folder of a training, beside the bundle to be.

    Parameters
    ----------
    out
        The bundle's folder; this one is named `OUT.training`.

    Attributes
    ----------
    path : Path
    """

    def __init__(self, out: Path) -> None:
        self.path = out.with_name(out.name + ".training")

    def prepare(self, plan: Mapping[str, Any], *, force: bool = False) -> None:
        """Make the folder, or check that the training in it can be resumed; only the main process does this.

        Parameters
        ----------
        plan
            What decides the result; a training of the same plan is resumed.
        force
            Begin again where the folder is of another plan, or its checkpoint is damaged.

        Raises
        ------
        KnnError
            If the folder holds another training and `force` is not set, or files of others, or cannot be made.
        """
        text = json.dumps(plan, sort_keys=True, default=str, indent=1)
        file = self.path / "plan.json"
        try:
            if self.path.exists() and (not file.is_file() or file.read_text(encoding="utf-8") != text):
                if not force and self.last.is_file():
                    raise KnnError(
                        f"{self.path} holds another training that is not finished.",
                        "Repeat its command to resume it, name another model, or drop it with `force`.",
                    )
                self._drop()
            elif force and self.last.is_file() and not _is_readable(self.last):
                self._drop()
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise KnnError(f"{self.path} cannot be written: {error.strerror or error}.", "Name another.") from error
        if not file.exists():
            with replacing_text(file) as stream:
                stream.write(text)

    def _drop(self) -> None:
        """Remove what a training left, but for its metrics, which get the next free number.

        KnnError, and nothing removed, when anything else is in the folder.
        """
        files = sorted(self.path.iterdir())
        if foreign := [file.name for file in files if not _OURS.fullmatch(file.name)]:
            raise KnnError(
                f"{self.path} holds {foreign[0]}, which no training wrote.", "Move it, or name another model."
            )
        numbers = [int(match[1]) for file in files if (match := _KEPT.fullmatch(file.name))]
        number = max(numbers, default=0) + 1
        for file in files:
            if _KEPT.fullmatch(file.name):
                continue
            if file == self.metrics and file.stat().st_size:
                file.rename(self.path / f"metrics.{number}.jsonl")
            elif file.name == "tensorboard":
                file.rename(self.path / f"tensorboard.{number}")
            elif file.is_dir():
                shutil.rmtree(file)
            else:
                file.unlink()

    @property
    def last(self) -> Path:
        """What to go on from."""
        return self.path / "last.pt"

    @property
    def best(self) -> Path:
        """The weights that did best."""
        return self.path / "best.pt"

    @property
    def metrics(self) -> Path:
        """The log."""
        return self.path / "metrics.jsonl"

    def keep_epoch(self, epoch: int, state: State, count: int) -> None:
        """Keep an epoch's weights, and of those before only as many as `count` in all."""
        save(self.path / f"epoch-{epoch:04d}.pt", dict(state))
        for old in range(max(0, epoch - count + 1)):
            (self.path / f"epoch-{old:04d}.pt").unlink(missing_ok=True)

    def average(self, last: int, count: int) -> dict[str, Tensor]:
        """The mean of the kept weights of up to `count` epochs up to `last`; whole numbers are those of the last."""
        numbers = range(max(0, last - count + 1), last + 1)
        total: dict[str, Tensor] = {}
        for number in numbers:
            state = load(self.path / f"epoch-{number:04d}.pt")
            for name, value in state.items():
                summed = value.double() if value.is_floating_point() else value
                total[name] = total[name] + summed if name in total and value.is_floating_point() else summed
        types = {name: value.dtype for name, value in state.items()}
        return {
            name: (value / len(numbers)).to(types[name]) if value.is_floating_point() else value
            for name, value in total.items()
        }

    def drop_weights(self) -> None:
        """Drop the weights; the metrics stay."""
        for file in (self.last, self.best, self.path / "plan.json", *self.path.glob("epoch-*.pt")):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.path / "network", ignore_errors=True)


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
        why = (reason.strerror if reason else None) or "the disk refuses"
        raise KnnError(f"{path} cannot be written: {why}.", "Make room; the checkpoint before is kept.") from error


def _is_readable(path: Path) -> bool:
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
        raise KnnError(f"The checkpoint {path} cannot be read.", "Begin again with `force`.") from error
    return state
