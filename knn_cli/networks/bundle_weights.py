"""The weights of a bundle: float32, float16, or int8 with a scale for each output, in weights.safetensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from knn_cli.core.errors import BundleError
from knn_cli.networks.bundle_config import weight_bytes
from knn_cli.networks.int8 import SCALE, dequantised, int8_product_names, with_int8_products

__all__ = ["load_strictly", "load_weights", "read_weights"]


def read_weights(path: Path, sha256: str) -> dict[str, torch.Tensor]:
    """Read weights.safetensors as it is stored.

    Parameters
    ----------
    path : Path
    sha256 : str
        What the config says of the file.

    Returns
    -------
    dict of str to Tensor

    Raises
    ------
    BundleError
        The file is missing, another one, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = weight_bytes(path, sha256)
    try:
        return load(data)
    except SafetensorError as error:
        raise BundleError(f"{path} is damaged: {error}.", "Copy the whole folder again.") from error


def load_weights(
    module: torch.nn.Module, state: Mapping[str, torch.Tensor], source: str, *, int8_products: bool = False
) -> None:
    """Copy weights as `read_weights` gives them into a network.

    Parameters
    ----------
    module : Module
    state : mapping of str to Tensor
    source : str
        Where the weights are from, for messages.
    int8_products : bool
        Let the linear layers with int8 weights compute with these; see `int8`.

    Raises
    ------
    BundleError
        See `load_strictly`.
    """
    multiplied = int8_product_names(module, state) if int8_products else set()
    # Their floats, which nothing would compute with, are not made: one number of the right shape stands for all.
    floats = dequantised({key: value for key, value in state.items() if key.removesuffix(SCALE) not in multiplied})
    stand_ins = {key: torch.zeros(()).expand(state[key].shape) for key in multiplied}
    load_strictly(module, {**floats, **stand_ins}, source, left=multiplied)
    with_int8_products(module, state, multiplied)


def load_strictly(
    module: torch.nn.Module, state: Mapping[str, torch.Tensor], source: str, left: Collection[str] = ()
) -> None:
    """Copy `state` into `module`; the BundleError for a mismatch lists missing, extra and mis-sized keys.

    Weights named in `left` are compared, but not copied.
    """
    expected = module.state_dict()
    problems = [f"missing {key}" for key in expected.keys() - state.keys()]
    problems += [f"extra {key}" for key in state.keys() - expected.keys()]
    problems += [
        f"{key} is {tuple(state[key].shape)}, not {tuple(expected[key].shape)}"
        for key in expected.keys() & state.keys()
        if state[key].shape != expected[key].shape
    ]
    problems += [f"{key} is int8 without scales" for key, value in state.items() if value.dtype == torch.int8]
    if problems:
        shown = "; ".join(sorted(problems)[:20]) + ("; ..." if len(problems) > 20 else "")
        raise BundleError(f"{source} does not fit the network: {len(problems)} keys differ ({shown}).")
    module.load_state_dict({key: value for key, value in state.items() if key not in left}, strict=not left)
