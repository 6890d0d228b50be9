"""Named parts. Adding an encoder, a pooling or a clustering method is one class or function under `register`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from knn_cli.core.errors import KnnError

Part = TypeVar("Part", bound=Callable[..., Any])


class Registry:
    """A table of named classes or functions of one kind.

    `modules` are the modules that register parts; they are imported in this order until a look-up succeeds, so that the
    table itself costs nothing and no module has to import its neighbours only to have them registered.
    """

    def __init__(self, kind: str, *modules: str) -> None:
        self.kind = kind
        self._modules = modules
        self._parts: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[Part], Part]:
        """Decorator: file a class or function under `name`; a name can be taken once."""

        def file(part: Part) -> Part:
            if name in self._parts:
                raise ValueError(f"the {self.kind} {name!r} is registered already")
            self._parts[name] = part
            return part

        return file

    def names(self) -> list[str]:
        """All names, sorted."""
        for module in self._modules:
            import_module(module)
        return sorted(self._parts)

    def get(self, name: str) -> Callable[..., Any]:
        """The part filed under `name`; KnnError that lists the names there are when there is none."""
        for module in self._modules:
            import_module(module)
            if name in self._parts:
                break
        if name not in self._parts:
            raise KnnError(f"There is no {self.kind} named {name!r}.", f"Known: {', '.join(self.names())}.")
        return self._parts[name]

    def build(self, name: str, **args: Any) -> Any:
        """Call the part filed under `name`; arguments that it does not take are a KnnError."""
        part = self.get(name)
        try:
            return part(**args)
        except TypeError as error:
            if "argument" not in str(error):
                raise
            raise KnnError(f"The {self.kind} {name!r} does not take these arguments: {error}.") from error


_SPEAKER = (
    "knn_cli.networks.encoders.ecapa",
    "knn_cli.networks.encoders.resnet",
    "knn_cli.networks.encoders.campplus",
)  # encoders with poolings of their own
ENCODERS = Registry(
    "encoder",
    "knn_cli.networks.encoders.fbank_tdnn",
    "knn_cli.networks.encoders.wavlm",
    "knn_cli.networks.encoders.whisper",
    *_SPEAKER,
)
POOLINGS = Registry(
    "pooling",
    "knn_cli.networks.pooling.mhfa",
    "knn_cli.networks.pooling.statistics",
    "knn_cli.networks.pooling.xvector",
    *_SPEAKER,
)
HEADS = Registry(
    "head", "knn_cli.networks.heads.softmax", "knn_cli.networks.heads.sphere", "knn_cli.networks.encoders.ecapa"
)
SEGMENTERS = Registry(
    "segmentation network", "knn_cli.networks.segmenters.pyannet", "knn_cli.networks.segmenters.encoder_lstm"
)
CLUSTERERS = Registry(
    "clustering method",
    "knn_cli.diarization.clustering.ahc",
    "knn_cli.diarization.clustering.spectral",
    "knn_cli.diarization.clustering.hdbscan",
    "knn_cli.diarization.clustering.vbx",
)
