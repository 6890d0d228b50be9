"""The packages of ONNX, imported when something needs them, and told to send nothing."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from knn_cli.core.errors import KnnError

__all__ = ["onnx_package"]


def onnx_package(name: str, what: str = "An ONNX file") -> Any:
    """Import `onnx` or `onnxruntime`, or a module of one of them; KnnError says that `what` needs it.

    From 1.32 on, ONNX Runtime gives the machine a number in the user's cache folder and sends figures about its use,
    unless `ORT_DISABLE_TELEMETRY` is set when it is imported.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return import_module(name)
    except ImportError as error:
        raise KnnError(f"{what} needs the package {name}.", "pip install 'knn-cli[onnx]'") from error
