"""Checkpoints of w2v-BERT 2.0 in transformers' folders, to our `W2vBert`.

Strict: every weight of the network must be there with its size, and nothing else may be, but for the heads and
training leftovers that are left out by name (see `transformers_folders`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from knn_cli.audio import reading
from knn_cli.core.errors import KnnError
from knn_cli.networks.encoders.conformer_sizes import W2vBertSizes
from knn_cli.networks.importers.checkpoint_files import (
    checked_settings,
    read_json,
    read_preprocessor,
    require_settings,
    sources_hint,
)
from knn_cli.networks.importers.components import ImportedModel, encoder_to_fill
from knn_cli.networks.importers.registry import Checkpoint, importer
from knn_cli.networks.importers.transformers_folders import CTC_NOTE, FolderWeights, checked_sizes
from knn_cli.networks.importers.weight_names import W2V_BERT

__all__ = ["from_hugging_face_w2v_bert"]

_LICENCE_NOTE = "The weights keep the licence of their source. w2v-BERT 2.0 is published under the MIT licence."
_POINTWISE = r"encoder\.layers\.\d+\.conv_module\.pointwise_conv\d\.weight"
# transformers' names of settings, in the order of the fields of `W2vBertSizes` that they give.
_SETTINGS = {
    "hidden_size": "channels",
    "num_hidden_layers": "blocks",
    "num_attention_heads": "heads",
    "intermediate_size": "inner",
    "conv_depthwise_kernel_size": "kernel",
    "left_max_position_embeddings": "left",
    "right_max_position_embeddings": "right",
    "rotary_embedding_base": "rotary_base",
}
_ADAPTER_SETTINGS = {
    "use_intermediate_ffn_before_adapter": "between",
    "adapter_kernel_size": "adapter_kernel",
    "adapter_stride": "adapter_stride",
}
_POSITIONS = {"relative_key": "key", "relative": "relative", "rotary": "rotary", None: "none"}
_ACTIVATIONS = {"swish": "swish", "silu": "swish", "relu": "relu", "gelu": "gelu"}


def _is_w2v_bert(checkpoint: Checkpoint) -> bool:
    return checkpoint.is_folder and read_json(checkpoint.path / "config.json").get("model_type") == "wav2vec2-bert"


@importer("Hugging Face", recognizes=_is_w2v_bert)
def from_hugging_face_w2v_bert(checkpoint: Checkpoint) -> ImportedModel:
    """Import a folder with `model_type` wav2vec2-bert: an encoder, or a model with a head.

    The heads of a sequence classification and of an x-vector network are imported; a head for CTC is left out.

    Raises
    ------
    KnnError
        Settings are those of another network, weights are missing, extra or mis-sized, classes have no names, or the
        head classifies single frames.
    """
    folder = checkpoint.path
    config = read_json(folder / "config.json")
    sizes = _sizes(config, folder)
    weights = FolderWeights.read(folder, config, "wav2vec2_bert.")
    if weights.weighted and sizes.adapters_above:
        raise KnnError(
            f"{folder} has a weighted sum of layers beside layers of another pace, which knn does not have.",
            sources_hint(),
        )
    weights = replace(weights, state={key: _as_matrix(key, value) for key, value in weights.state.items()})
    encoder = encoder_to_fill("w2v-bert", asdict(sizes), W2V_BERT)
    note = f"{_LICENCE_NOTE} {CTC_NOTE}" if weights.has_ctc else _LICENCE_NOTE
    return weights.imported(encoder, sizes.network, note, projection=768)


def _as_matrix(key: str, value: Any) -> Any:
    """The weight of a convolution over single frames (O, C, 1) as a matrix (O, C); others as they are."""
    single = isinstance(value, Tensor) and value.ndim == 3 and value.shape[2] == 1
    return value[:, :, 0] if single and re.fullmatch(_POINTWISE, key) else value


def _sizes(config: Mapping[str, Any], folder: Path) -> W2vBertSizes:
    """Sizes from config.json and preprocessor_config.json; missing settings are those of the release."""
    default = asdict(W2vBertSizes())
    require_settings(config, {"layer_norm_eps": 1e-5}, folder, W2vBertSizes.network)
    preprocessor = read_preprocessor(folder)
    require_settings(preprocessor, {"sampling_rate": reading.RATE}, folder, W2vBertSizes.network)
    names = _SETTINGS | (_ADAPTER_SETTINGS if config.get("add_adapter") is True else {})
    wanted = {setting: default[field] for setting, field in names.items()}
    given = checked_settings(config, wanted, folder, W2vBertSizes.network)
    sizes = {field: given[setting] for setting, field in names.items()}
    sizes |= {
        "bins": preprocessor.get("num_mel_bins", default["bins"]),
        "stack": preprocessor.get("stride", default["stack"]),
        "activation": _known(config.get("hidden_act", "swish"), _ACTIVATIONS, "hidden_act", folder),
        "positions": _known(
            config.get("position_embeddings_type", "relative_key"), _POSITIONS, "position_embeddings_type", folder
        ),
    }
    if names.keys() > _SETTINGS.keys():
        width = config.get("output_hidden_size") or sizes["channels"]
        sizes |= {
            "adapters_above": config.get("num_adapter_layers", 1),
            "adapter_channels": 0 if width == sizes["channels"] else width,
            "adapter_activation": _known(config.get("adapter_act", "relu"), _ACTIVATIONS, "adapter_act", folder),
        }
    checked: W2vBertSizes = checked_sizes(W2vBertSizes, folder, sizes)
    inputs = config.get("feature_projection_input_dim", 160)
    if inputs != checked.bins * checked.stack:
        raise KnnError(
            f"{folder} has {inputs} features in config.json, and {checked.stack} frames of {checked.bins} bins in "
            "preprocessor_config.json.",
            "Copy the whole folder.",
        )
    return checked


def _known(value: Any, known: Mapping[Any, str], setting: str, folder: Path) -> str:
    """Our name of a value. KnnError if there is none."""
    if not isinstance(value, str | None) or value not in known:
        raise KnnError(
            f"{folder} has {setting} {value!r}, and knn's {W2vBertSizes.network} supports "
            f"{', '.join(str(each) for each in known)}.",
            sources_hint(),
        )
    return known[value]
