"""The registry of importers, and the contract that each of them keeps.

Adding an importer: write a function with `@importer(...)` in a module of this package, name the module in `MODULES`,
and describe the source in `weight_names.SOURCES`. The contract test runs over everything that is registered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar

from knn_cli.networks.importers.checkpoint_files import ImportedModel, ImportedSegmenter

__all__ = ["Checkpoint", "Importer", "RegisteredImporter", "importer", "importers"]

# Tried in this order, and in the order within each: the first importer that recognizes a checkpoint reads it.
MODULES = ("speechbrain", "pyannote", "whisper", "wespeaker", "wavlm", "three_d_speaker")


@dataclass(frozen=True)
class Checkpoint:
    """A file or folder to be imported.

    Attributes
    ----------
    path : Path
        The file, or a folder with its settings.
    content : mapping
        The dictionary in the file; empty for a folder.
    config : Path, optional
        YAML of the training that wrote it.
    labels : sequence of str, optional
        Names of the head's classes, in any order.
    """

    path: Path
    content: Mapping[str, Any] = field(default_factory=dict)
    config: Path | None = None
    labels: Sequence[str] | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, which the importer reads itself."""
        return self.path.is_dir()

    @cached_property
    def weights(self) -> Mapping[str, Any]:
        """The content, or the state dict in it, where a trainer has put one beside other things."""
        if isinstance(self.content.get("model"), dict) and "cfg" not in self.content:
            return dict(self.content["model"])
        if isinstance(self.content.get("state_dict"), dict):  # Lightning's, pyannote's
            return dict(self.content["state_dict"])
        return self.content

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Names of the weights."""
        return tuple(map(str, self.weights))


class Importer(Protocol):
    """The contract: a checkpoint that is recognized to a network of ours, strictly.

    Every weight of the network is in the checkpoint with its size, and nothing else is, but for heads and leftovers of
    training that `weight_names` lists. Nothing in the checkpoint is run. Whatever does not fit is a KnnError that lists
    it.
    """

    def __call__(self, checkpoint: Checkpoint) -> ImportedModel | ImportedSegmenter: ...


ImporterFunction = TypeVar("ImporterFunction", bound=Importer)


@dataclass(frozen=True)
class RegisteredImporter:
    """An importer with its source, a key of `weight_names.SOURCES`, and the check of what it recognizes.

    `takes_options` is true where `config` and `labels` mean something to it.
    """

    source: str
    recognizes: Callable[[Checkpoint], bool]
    read: Importer
    takes_options: bool = False


_REGISTERED: list[RegisteredImporter] = []


def importer(
    source: str, *, recognizes: Callable[[Checkpoint], bool], takes_options: bool = False
) -> Callable[[ImporterFunction], ImporterFunction]:
    """Register a function as the importer of what `recognizes` says yes to."""

    def register(function: ImporterFunction) -> ImporterFunction:
        _REGISTERED.append(RegisteredImporter(source, recognizes, function, takes_options))
        return function

    return register


def importers() -> list[RegisteredImporter]:
    """All importers, in the order in which they are tried."""
    for module in MODULES:
        import_module(f"{__package__}.{module}")
    places = {f"{__package__}.{module}": place for place, module in enumerate(MODULES)}
    return sorted(_REGISTERED, key=lambda each: places[each.read.__module__])
