"""How much a model's pooling takes of each layer of its encoder."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from knn_cli.core.errors import BundleError

if TYPE_CHECKING:
    from knn_cli.networks.bundle import Bundle

__all__ = ["layer_weights"]

_NAMES = {"weights_k": "keys", "weights_v": "values", "weights_q": "queries", "layer_weights": "layers"}
_KEY = re.compile(rf"pooling\.(?:.*\.)?({'|'.join(_NAMES)})")


def layer_weights(model: Bundle) -> dict[str, list[float]]:
    """Return the shares of the encoder's layers in the weighted sums that a model's pooling makes of them.

    Parameters
    ----------
    model : Bundle

    Returns
    -------
    dict of str to list of float
        For "keys", "values", "queries" or "layers" (one sum for all) the share of each layer from the bottom, which are
        positive and add up to 1; {} where the pooling has no such weights, or the model no network or no weights.

    Raises
    ------
    BundleError
        The file of weights cannot be read.
    """
    from safetensors import SafetensorError, safe_open
    from scipy.special import softmax

    from knn_cli.networks import bundle

    path = model.folder / bundle.WEIGHTS
    if not model.has_network or not path.is_file():
        return {}
    shares: dict[str, list[float]] = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for match in filter(None, map(_KEY.fullmatch, sorted(file.keys()))):
                weights = np.asarray(file.get_tensor(match[0]), dtype=np.float64)
                if weights.ndim == 1 and len(weights) > 1:
                    shares[_NAMES[match[1]]] = softmax(weights).tolist()
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path} cannot be read: {error}.", "Copy the whole folder again.") from error
    if [*shares] == ["keys"]:  # the published name of the only sum there
        return {"layers": shares["keys"]}
    return {name: shares[name] for name in _NAMES.values() if name in shares}
