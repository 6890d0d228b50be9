"""Tables of named components. Adding a component is one class under `register`, in a module listed below."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from knn_cli.core.errors import KnnError

Component = TypeVar("Component", bound=Callable[..., Any])


class Registry:
    """A table of named classes or functions of one kind.

    Parameters
    ----------
    kind : str
        What the table holds, for messages: "encoder", "pooling".
    *modules : str
        Modules that register components. They are imported in this order until a look-up succeeds, so that
        creating the table imports nothing and no module has to import others only to have them registered.
    """

    def __init__(self, kind: str, *modules: str) -> None:
        self.kind = kind
        self._modules = modules
        self._components: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[Component], Component]:
        """Return a decorator that registers a class or function as `name`. ValueError if the name is taken."""

        def decorate(component: Component) -> Component:
            if name in self._components:
                raise ValueError(f"the {self.kind} {name!r} is registered already")
            self._components[name] = component
            return component

        return decorate

    def names(self) -> list[str]:
        """Return all names, sorted."""
        for module in self._modules:
            import_module(module)
        return sorted(self._components)

    def get(self, name: str) -> Callable[..., Any]:
        """Return the component registered as `name`. KnnError, which lists the known names, if there is none."""
        for module in self._modules:
            import_module(module)
            if name in self._components:
                break
        if name not in self._components:
            raise KnnError(f"There is no {self.kind} named {name!r}.", f"Known: {', '.join(self.names())}.")
        return self._components[name]

    def build(self, name: str, **args: Any) -> Any:
        """Call the component registered as `name`. KnnError for an unknown name or arguments that it does not take."""
        component = self.get(name)
        check_arguments(f"The {self.kind} {name!r}", component, **args)
        return component(**args)


def check_arguments(what: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Check that a call fits the signature of a function or class.

    Parameters
    ----------
    what : str
        The subject of the message: "The encoder 'wavlm'".
    function : callable
    *args, **kwargs
        Arguments of the call; the function is not called.

    Raises
    ------
    KnnError
        If an argument is unknown, missing or given twice.
    """
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        raise KnnError(f"{what} does not take these arguments: {error}.") from error


_SPEAKER_ENCODERS = (
    "knn_cli.networks.encoders.ecapa",
    "knn_cli.networks.encoders.resnet",
    "knn_cli.networks.encoders.campplus",
    "knn_cli.networks.encoders.tdnn",
    "knn_cli.networks.encoders.conv_asr",
)  # these modules register their encoder, its pooling and, for some, its head
ENCODERS = Registry(
    "encoder",
    "knn_cli.networks.encoders.fbank_tdnn",
    "knn_cli.networks.encoders.repvgg",
    "knn_cli.networks.encoders.res2net",
    "knn_cli.networks.encoders.simam_resnet",
    "knn_cli.networks.encoders.df_resnet",
    "knn_cli.networks.encoders.eres2net",
    "knn_cli.networks.encoders.redimnet",
    "knn_cli.networks.encoders.wavlm",
    "knn_cli.networks.encoders.wav2vec2",
    "knn_cli.networks.encoders.w2v_bert",
    "knn_cli.networks.encoders.whisper",
    *_SPEAKER_ENCODERS,
)
POOLINGS = Registry(
    "pooling",
    "knn_cli.networks.pooling.mean",
    "knn_cli.networks.pooling.projected_mean",
    "knn_cli.networks.pooling.mhfa",
    "knn_cli.networks.pooling.statistics",
    "knn_cli.networks.pooling.whisper_decoder",
    "knn_cli.networks.pooling.xvector",
    *_SPEAKER_ENCODERS,
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
