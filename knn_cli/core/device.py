"""The device that networks run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from knn_cli.core.errors import KnnError

if TYPE_CHECKING:
    import torch


def torch_device(name: str) -> torch.device:
    """Return the torch device with the given name.

    Parameters
    ----------
    name : str
        `auto`, `cpu`, `cuda` or `mps`, or a numbered device such as `cuda:1`. `auto` takes the first of CUDA, MPS and
        CPU that is available.

    Raises
    ------
    KnnError
        If the name is unknown or the device is not available.
    """
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    kind = name.partition(":")[0]
    if kind not in available:
        raise KnnError(f"There is no device {name!r}.", "Known: auto, cpu, cuda, mps.")
    if not available[kind]:
        raise KnnError(
            f"This machine has no {kind} device that torch can use.", 'Choose `device="cpu"` or `device="auto"`.'
        )
    return torch.device(name)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 numbers itself, so that they are faster than float32."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
