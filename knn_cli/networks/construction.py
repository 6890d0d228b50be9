"""Building networks of the sizes that a config or a checkpoint names, which nobody has checked.

Arguments must have the types that a component declares. While it is built, its parameters are counted: a network that
is larger than the file of its weights is given up before its memory is taken, and so is one of a million blocks.
Whatever else a module raises for impossible sizes becomes one sentence.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import torch
from torch import nn
from torch.nn import init
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.overrides import TorchFunctionMode

from knn_cli.core.errors import BundleError, KnnError
from knn_cli.core.registry import ENCODERS, HEADS, POOLINGS, Registry, check_arguments
from knn_cli.networks.contracts import Encoder, Pooling
from knn_cli.networks.network import Network

__all__ = ["IMPOSSIBLE_SIZES", "build_network", "built", "first_line", "limited", "without_new_weights"]

# Raised by modules for impossible sizes that they do not check themselves.
IMPOSSIBLE_SIZES = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError),
)
MAX_VALUES = 2 * 10**10  # of a network whose weights are not there yet
MAX_MODULES = 10**5
MAX_SIZE = 10**8  # of any one size
_MIN_TENSOR_BYTES = 16  # that a file takes for a tensor and its name
_MODULES_PER_TENSOR = 8
_DRAWING = frozenset([torch.Tensor.uniform_, torch.Tensor.normal_, init.uniform_, init.normal_, init.kaiming_uniform_])
_FEW = 1000  # modules and tensors that any network may have


class _TooLargeError(ValueError):
    """The network is larger than its weights."""


@contextmanager
def limited(weights: Path | None = None) -> Iterator[None]:
    """Raise a ValueError from within when this thread builds a network that is larger than the file of its weights.

    Parameters
    ----------
    weights : Path, optional
        The file, or a folder of files; None for a network that will get new weights, which only has to be of a possible
        size.
    """
    weight_bytes = None if weights is None else _bytes(weights)
    most_values = MAX_VALUES if weight_bytes is None else weight_bytes
    most_tensors = MAX_MODULES if weight_bytes is None else weight_bytes // _MIN_TENSOR_BYTES + _FEW
    most_modules = _MODULES_PER_TENSOR * most_tensors
    thread, values, tensors, modules = threading.get_ident(), 0, 0, 0

    def count_parameter(owner: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal values, tensors
        if parameter is None or threading.get_ident() != thread:
            return
        values, tensors = values + parameter.numel(), tensors + 1
        if values > most_values or tensors > most_tensors:
            raise _TooLargeError("the network would be larger than its weights")

    def count_module(owner: nn.Module, name: str, module: nn.Module | None) -> None:
        nonlocal modules
        modules += threading.get_ident() == thread
        if modules > most_modules:
            raise _TooLargeError("the network would have more parts than its weights")

    hooks = (
        register_module_parameter_registration_hook(count_parameter),
        register_module_module_registration_hook(count_module),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _NoRandomNumbers(TorchFunctionMode):
    """Leave tensors as they are where random numbers would be drawn into them."""

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        return (args[0] if args else given["tensor"]) if function in _DRAWING else function(*args, **given)


def without_new_weights() -> TorchFunctionMode:
    """Let modules that are built within have any numbers as weights, because all are replaced: it takes half the time.

    Examples
    --------
    >>> from torch import nn
    >>> from knn_cli.networks.construction import without_new_weights
    >>> with without_new_weights():
    ...     layer = nn.Linear(3, 2)  # without drawing its weights
    """
    return _NoRandomNumbers()


def built(
    registry: Registry,
    name: str,
    args: Mapping[str, Any],
    *,
    source: str = "This config",
    error: type[KnnError] = KnnError,
    **sizes: Any,
) -> Any:
    """Build a component from arguments that nobody has checked.

    Parameters
    ----------
    registry : Registry
    name : str
    args : mapping
        As JSON has them.
    source : str
        Where they are from, for messages.
    error : type
        Of what is raised.
    **sizes
        Arguments that follow from other components.

    Raises
    ------
    KnnError
        The name is unknown, an argument is unknown or of another type, or the sizes make no network.
    """
    component = registry.get(name)
    check_arguments(f"The {registry.kind} {name!r}", component, **sizes, **args)
    hints = get_type_hints(component.__init__ if inspect.isclass(component) else component)
    parameters = inspect.signature(component).parameters
    for key, value in args.items():
        declared = hints.get(key, getattr(parameters.get(key), "annotation", Any))
        if reason := _refusal(value, Any if declared is inspect.Parameter.empty else declared):
            shown = repr(value)[:60]
            raise error(f"{source}: {key} of the {registry.kind} {name!r} is {shown}: {reason}.", "Copy it again.")
    try:
        return component(**sizes, **args)
    except IMPOSSIBLE_SIZES as reason:
        raise error(f"{source} makes no {registry.kind} {name!r}: {first_line(reason)}.", "Copy it again.") from reason


def build_network(config: Mapping[str, Any], source: str = "This config") -> Network:
    """A network of the config's encoder, pooling and head with new weights.

    BundleError, which names the source, for unknown names, and arguments or sizes that no network has.
    """

    def part(registry: Registry, name: str, **sizes: int) -> Any:
        entry = config[name]
        return built(registry, entry["name"], entry["args"], source=source, error=BundleError, **sizes)

    encoder: Encoder = part(ENCODERS, "encoder")
    pooling: Pooling = part(POOLINGS, "pooling", layers=encoder.layers, channels=encoder.channels)
    if "head" not in config:
        return Network(encoder, pooling)
    head = part(HEADS, "head", dimension=pooling.dimension, classes=len(config["head"]["labels"]))
    return Network(encoder, pooling, head)


def first_line(error: BaseException) -> str:
    """The first line of an error's message without its full stop, or else what kind of error it is."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _bytes(path: Path) -> int:
    """Size of a file, or of all files in a folder; 0 where there is none, which whoever reads it says."""
    files = path.iterdir() if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def _refusal(value: Any, declared: Any) -> str:
    """Why a value cannot be an argument: another type than the declared one, or a size that nothing has; else ""."""
    try:
        msgspec.convert(value, declared)
    except msgspec.ValidationError as error:
        return first_line(error)[:1].lower() + first_line(error)[1:]
    except (TypeError, ValueError):  # a type that is not one of data, which only programs give
        return ""
    return "" if _is_possible(value) else "no network has it so large"


def _is_possible(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_possible, value))
    if isinstance(value, dict):
        return all(map(_is_possible, value.values()))
    return not isinstance(value, (int, float)) or (math.isfinite(value) and abs(value) <= MAX_SIZE)
