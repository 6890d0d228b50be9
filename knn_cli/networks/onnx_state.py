"""Whether a network is being exported to ONNX, for modules that have another form there."""

from __future__ import annotations

import sys

__all__ = ["is_in_onnx_export"]


def is_in_onnx_export() -> bool:
    """As `torch.onnx.is_in_onnx_export`, without importing torch.onnx, which no network needs that is not exported."""
    onnx = sys.modules.get("torch.onnx")
    return onnx is not None and bool(onnx.is_in_onnx_export())
