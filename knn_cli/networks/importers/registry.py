"""The registry of importers and their contract.

Adding an importer: write a function with `@importer(...)` in a module of this package, name the module in `MODULES`,
and describe the source in `weight_names.SOURCES`. The contract test covers every registered importer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TypeVar

from knn_cli.networks.importers.checkpoint_files import read_yaml, weights_in
from knn_cli.networks.importers.components import ImportedModel, ImportedSegmenter

__all__ = ["Checkpoint", "Importer", "RegisteredImporter", "importer", "importers"]

# Tried in this order, and in the order within each: the first importer that recognizes a checkpoint reads it.
MODULES = (
    "speechbrain",
    "nemo",
    "pyannote",
    "ctranslate2",
    "whisper",
    "redimnet",
    "wespeaker",
    "wav2vec2",
    "w2v_bert",
    "fairseq",
    "wavlm",
    "three_d_speaker",
)


@dataclass(frozen=True)
class Checkpoint:
    """A file or folder to be imported.

    Attributes
    ----------
    path : Path
        The file, or a folder with weights and settings.
    content : mapping
        The dictionary in the file; empty for a folder.
    config : Path, optional
        The YAML file of the training that wrote the checkpoint.
    labels : sequence of str, optional
        Names of the head's classes, in any order.
    origin : str, optional
        One of `origins.ORIGINS`, where wespeaker and 3D-Speaker have networks with the same weights.
    """

    path: Path
    content: Mapping[str, Any] = field(default_factory=dict)
    config: Path | None = None
    labels: Sequence[str] | None = None
    origin: str | None = None

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """What the YAML file says; {} without one. KnnError if it cannot be read."""
        return {} if self.config is None else read_yaml(self.config)

    @property
    def is_folder(self) -> bool:
        """Whether this is a folder, which the importer has to read."""
        return self.path.is_dir()

    @cached_property
    def weights(self) -> Mapping[str, Any]:
        """The state dict within the content, under names without the prefixes of wrappers; see `weights_in`."""
        return weights_in(self.content)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Names of the weights."""
        return tuple(self.weights)


class Importer(Protocol):
    """The contract of an importer: convert a recognized checkpoint to a network of knn, strictly.

    The checkpoint must hold every weight of the network with the right shape and nothing else, except heads and
    leftovers of training that `weight_names` lists. No code in the checkpoint is run. Mismatches raise a KnnError that
    lists all of them.
    """

    def __call__(self, checkpoint: Checkpoint) -> ImportedModel | ImportedSegmenter: ...


ImporterFunction = TypeVar("ImporterFunction", bound=Importer)


@dataclass(frozen=True)
class RegisteredImporter:
    """A registered importer.

    Attributes
    ----------
    source : str
        A key of `weight_names.SOURCES`.
    recognizes : callable
        Returns whether a checkpoint is of the kind that this importer reads.
    read : Importer
        The importer itself.
    takes_options : bool
        Whether it uses `config`, `labels` and `origin`.
    """

    source: str
    recognizes: Callable[[Checkpoint], bool]
    read: Importer
    takes_options: bool = False


_REGISTERED: list[RegisteredImporter] = []


def importer(
    source: str, *, recognizes: Callable[[Checkpoint], bool], takes_options: bool = False
) -> Callable[[ImporterFunction], ImporterFunction]:
    """Register a function as the importer of the checkpoints for which `recognizes` returns true."""

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
