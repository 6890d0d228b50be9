"""What a training leaves on the disk while it runs: snapshots to go on from, weights to choose from, its metrics.

    OUT.training/plan.json       recipe, corpus and first weights: only an identical training is resumed. Without it,
                                 nothing else in the folder is ours
                 last.pt         everything that the next step needs
                 previous.pt     the one before it, from which a training goes on if the last one is damaged
                 best.pt         weights of the epoch that did best on held-out recordings
                 epoch-0007.pt   weights of the last epochs, where they will be averaged
                 metrics.jsonl   one JSON object a line: steps and epochs
                 metrics.1.jsonl those of an earlier training in this folder, and so on; tensorboard.1 likewise

Each file is written whole under another name and then renamed, so a crash or a full disk leaves the one before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle  # only to catch what torch.load raises
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from knn_cli.core.atomic import replacing, replacing_text
from knn_cli.core.errors import KnnError
from knn_cli.core.temporary import is_temporary, sweep
from knn_cli.networks import bundle

State = Mapping[str, Tensor]

# What torch.load raises for bytes that are no checkpoint: it does not promise one kind of error.
_UNREADABLE = (
    *(OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError),
    *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error),
)
_log = logging.getLogger(__name__)
_WEIGHTS = re.compile(r"last\.pt|previous\.pt|best\.pt|epoch-\d+\.pt")
_MARK = {"knn": "training"}
_KEPT = re.compile(r"(?:metrics|tensorboard)\.(\d+)(?:\.jsonl)?")
_LOGS = re.compile(r"metrics(\.\d+)?\.jsonl|tensorboard(\.\d+)?")
_OURS = re.compile(rf"plan\.json|{_WEIGHTS.pattern}|{_LOGS.pattern}")


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

    def prepare(
        self,
        plan: Mapping[str, Any],
        *,
        force: bool = False,
        fits: Callable[[Mapping[str, Any]], bool] = lambda checkpoint: True,
    ) -> None:
        """Make the folder, or let `last` be what the training in it goes on from; only the main process does this.

        Where the last checkpoint is damaged, it is the one before, and where that is too, the training begins again:
        both are said.

        Parameters
        ----------
        plan
            What decides the result; a training of the same plan is resumed.
        force
            Begin again where the folder is of another plan, or weights of epochs in it are damaged.
        fits
            Tells whether a checkpoint holds what this training needs.

        Raises
        ------
        KnnError
            If the folder holds another training and `force` is not set, or files of others, or cannot be made.
        """
        text = _plan_text(plan)
        file = self.path / "plan.json"
        try:
            if self.path.exists():
                sweep(self.path)
                self._check_ours()
            if self.path.exists() and (not file.is_file() or file.read_text(encoding="utf-8") != text):
                if not force and self._checkpoints():
                    raise KnnError(
                        f"{self.path} holds another training that is not finished, or one of sound that has changed.",
                        "Repeat its command to resume it, name another model, or drop it with `force`.",
                    )
                self._drop()
            elif self._checkpoints():
                self._mend(fits)
                if force and not all(
                    _is_whole(file) for file in self.path.glob("*.pt") if _WEIGHTS.fullmatch(file.name)
                ):
                    self._drop()
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise KnnError(f"{self.path} cannot be used: {error.strerror or error}.", "Name another.") from error
        if not file.exists():
            with replacing_text(file) as stream:
                stream.write(text)

    def _checkpoints(self) -> list[Path]:
        """The checkpoints that there are, the newest first."""
        return [file for file in (self.last, self.previous) if file.is_file()]

    def _mend(self, fits: Callable[[Mapping[str, Any]], bool]) -> None:
        """Let `last` be the newest checkpoint that is whole, or drop all where none is."""
        found = self._checkpoints()
        for file in found:
            file.open("rb").close()  # what may not be read is not damaged
            if not _is_whole(file, fits):
                continue
            if file == self.previous:
                if len(found) > 1:
                    _log.warning("%s is damaged; the training goes on from the checkpoint before it.", self.last)
                file.replace(self.last)
            return
        _log.warning("%s is damaged, and no other checkpoint is there; the training begins again.", found[0])
        self._drop()

    def _check_ours(self) -> None:
        """Raise KnnError for a link, and for a folder with files of others but no plan of ours."""
        if self.path.is_symlink():
            raise KnnError(f"{self.path} is a link, and checkpoints are kept there.", "Remove the link.")
        try:
            mark = json.loads((self.path / "plan.json").read_text(encoding="utf-8"))
            if isinstance(mark, dict) and mark.items() >= _MARK.items():
                return
        except (FileNotFoundError, ValueError):
            pass
        names = sorted(file.name for file in self.path.iterdir() if not is_temporary(file.name))
        if foreign := [name for name in names if not _LOGS.fullmatch(name)]:
            raise KnnError(
                f"{self.path} holds {foreign[0]}, which no training wrote.", "Move it, or name another model."
            )

    def _drop(self) -> None:
        """Remove what a training left, but for its metrics, which get the next free number."""
        files = sorted(file for file in self.path.iterdir() if _OURS.fullmatch(file.name))
        numbers = [int(match[1]) for file in files if (match := _KEPT.fullmatch(file.name))]
        number = max(numbers, default=0) + 1
        for file in files:
            if _KEPT.fullmatch(file.name):
                continue
            if file == self.metrics and file.stat().st_size:
                file.rename(self.path / f"metrics.{number}.jsonl")
            elif file.name == "tensorboard":
                file.rename(self.path / f"tensorboard.{number}")
            else:
                file.unlink()

    @property
    def last(self) -> Path:
        """What to go on from."""
        return self.path / "last.pt"

    @property
    def previous(self) -> Path:
        """The checkpoint before it."""
        return self.path / "previous.pt"

    def save(self, state: Mapping[str, Any]) -> None:
        """Write a checkpoint, and keep the one before; KnnError as of the function `save`."""
        self.previous.unlink(missing_ok=True)  # so that no more than two need space
        save(self.last, state, before=self.previous)

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
        for file in sorted(self.path.iterdir()):
            if _WEIGHTS.fullmatch(file.name):
                file.unlink()
        (self.path / "plan.json").unlink(missing_ok=True)  # last, for it says that the others are ours


def plan_digest(plan: Mapping[str, Any]) -> str:
    """What a finished bundle says of the training that made it."""
    return hashlib.sha256(_plan_text(plan).encode()).hexdigest()


def check_free(out: Path, force: bool) -> None:
    """Raise an error if a bundle cannot be written to `out`, as `bundle.check_free`.

    Where a process was killed between the end of a training and the removal of its weights, they are removed now.
    """
    folder = TrainingFolder(out)
    try:
        config = json.loads((out / bundle.CONFIG).read_text(encoding="utf-8"))
        text = (folder.path / "plan.json").read_text(encoding="utf-8")
        if not force and config["training"]["plan"] == hashlib.sha256(text.encode()).hexdigest():
            folder.drop_weights()
    except (OSError, ValueError, LookupError, TypeError):
        pass  # none of that is there
    bundle.check_free(out, force)


def _plan_text(plan: Mapping[str, Any]) -> str:
    return json.dumps({**_MARK, **plan}, sort_keys=True, default=str, indent=1)


def save(path: Path, state: Mapping[str, Any], before: Path | None = None) -> None:
    """Write tensors and plain values so that `load` reads them, whole or not at all.

    The file before, if there is one, takes the name `before`. Raises KnnError when the file cannot be written; the one
    before is then still there.
    """
    try:
        with replacing(path) as part:
            with part.open("wb") as file:
                torch.save(dict(state), file)
            if before is not None and path.is_file():
                path.replace(before)
    except RuntimeError as error:  # torch's archive writer, when the file below it refuses
        reason = error.__context__ if isinstance(error.__context__, OSError) else None
        why = (reason.strerror if reason else None) or "the disk refuses"
        hint = "Make room; the checkpoint before is kept." if path.is_file() else "Make room."
        raise KnnError(f"{path} cannot be written: {why}.", hint) from error


def _is_whole(path: Path, fits: Callable[[Mapping[str, Any]], bool] = lambda state: True) -> bool:
    try:
        return fits(load(path))
    except KnnError:
        return False


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote, on the CPU. Raises KnnError for a file that is missing or damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:  # torch does not look at checksums
                raise zipfile.BadZipFile(damaged)
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        if "allocate memory" in str(error):
            raise
        raise KnnError(f"The checkpoint {path} cannot be read.", "Begin again with `force`.") from error
    return state
