"""Trainings of WavLM in forks of wespeaker: plain, with adapters, frozen, and of the large size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from knn_cli.core.errors import KnnError
from knn_cli.networks.chunk_setting import CHUNK_SECONDS, WHOLE, Chunk
from knn_cli.networks.encoders.adapters import KINDS, PREFIXED, arguments
from knn_cli.networks.importers.checkpoint_files import checked_settings
from knn_cli.networks.importers.components import ComponentToFill, encoder_to_fill, pooling_to_fill
from knn_cli.networks.importers.wavlm import sizes_from_shapes, wavlm_args
from knn_cli.networks.importers.weight_names import SAME_NAMES, WeightNames, microsoft
from knn_cli.networks.importers.wespeaker_networks import Training

__all__ = ["MODELS", "wavlm_to_fill"]

# Model of the fork -> how much speech it hears: all of it, or the first 20 or 30 s. The rest is heard in such parts.
MODELS: dict[str, Chunk] = {
    "WavLM_Base_MHFA": WHOLE,
    "WavLM_Base_Adapter": CHUNK_SECONDS,
    "WavLM_Base_Drop": CHUNK_SECONDS,
    "WavLM_Large_MHFA": 30.0,
}
# The fork's name of a pooling -> knn's, for poolings with the same arithmetic and weights.
POOLINGS = {
    "MHFA": "mhfa",
    "MHFA_Context": "mhfa",
    "G_MHFA": "mhfa-grouped",
    "G_MHFA_MQSKMV": "mhfa-shared-key",
    "G_MHFA_MQMKSV": "mhfa-shared-value",
    "G_MHFA_Conv2D": "mhfa-context",
    "G_MHFA_Conv2D_MeanStd": "mhfa-context-statistics",
    "QKV": "query-key-value",
    "LWAP_Mean": "layer-average",
    "LWAP_PoolDim": "layer-spans",
    "TSTP": "statistics",
    "ASTP": "attentive-statistics",
    "Last_ASTP": "attentive-statistics-last",
    "CorrelationPooling": "correlation",
    "CorrelationPoolingDrop": "correlation",
}
_GROUPED = ("mhfa-grouped", "mhfa-shared-key", "mhfa-shared-value")
# The fork's type of adapters -> knn's kind. Its LoRaAdapter reshapes what it adds to queries and keys without bringing
# heads before frames, so that other frames and heads get it: no projection does the same.
_ADAPTERS = {
    "SeqAdapter": "houlsby",
    "ParallelAdapter": "parallel",
    "PrefixAdapter": "prefix",
    "MAMAdapter": "mam",
}
_BLOCKS = "encoder.layers.#1"


def _adapter_names(kind: str) -> tuple[tuple[str, str], ...]:
    return (
        *(
            (
                f"blocks.#1.{place}.{part}.",
                f"{_BLOCKS}.adapter_fc{number}{'' if place.startswith('attention') else '_2'}.",
            )
            for place in KINDS[kind]
            for part, number in (("down", 1), ("up", 2))
        ),
        ("blocks.#1.attention.prefix.keys", f"{_BLOCKS}.self_attn.prefix_k_adapter"),
        ("blocks.#1.attention.prefix.values", f"{_BLOCKS}.self_attn.prefix_v_adapter"),
    )


def _adapter_args(training: Training, kind: str) -> dict[str, Any]:
    """Arguments of `adapters.insert`, from the sizes of the first block's."""
    first = "model.encoder.layers.0"
    bottleneck = training.shape(f"{first}.adapter_fc1_2.weight", 2)[0] if KINDS[kind] else 0
    length = training.shape(f"{first}.self_attn.prefix_k_adapter", 3)[1] if kind in PREFIXED else 0
    return arguments(kind, bottleneck, length)


def wavlm_to_fill(training: Training) -> tuple[list[ComponentToFill], dict[str, Any]]:
    """Encoder and pooling of a training whose model is among `MODELS`, and its weights as these have them.

    Raises
    ------
    KnnError
        Its YAML names a pooling or adapters that knn does not have, or does not belong to the weights.
    """
    state, model = dict(training.state), training.settings["model"]
    prefix = f"{training.prefix}model."
    norm = f"{prefix}feature_extractor.conv_layers.1.2.1.weight"
    names = microsoft("layer" if norm in state else "group")
    adapters = training.args.get("adapter_type") if model == "WavLM_Base_Adapter" else None
    args: dict[str, Any] = {}
    if adapters is not None and adapters not in _ADAPTERS:
        raise KnnError(
            f"{training.config} has adapters of the type {adapters!r}.", f"Known: {', '.join(_ADAPTERS)}, or none."
        )
    if adapters is not None:
        kind = _ADAPTERS[adapters]
        names = WeightNames((*_adapter_names(kind), *names.prefixes), names.extras)
        args["adapters"] = _adapter_args(training, kind)
    inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    sizes = sizes_from_shapes(inner, names, training.path)
    if model == "WavLM_Large_MHFA":  # it neither normalises waveforms nor the last layer
        sizes = replace(sizes, normalize=False, final_norm=False)
        names = WeightNames(names.prefixes, rf"{names.extras}|encoder\.layer_norm\.(weight|bias)")
    encoder = encoder_to_fill("wavlm", {**wavlm_args(sizes), **args}, names, prefix)
    pooling = "MHFA" if model == "WavLM_Large_MHFA" else str(training.args.get("pooling"))
    return [encoder, _pooling(training, state, encoder, pooling)], state


def _pooling(training: Training, state: dict[str, Any], encoder: ComponentToFill, fork_name: str) -> ComponentToFill:
    """The pooling; of MHFA_Context's attention the part that tells frames apart stays in `state`."""
    prefix, config = f"{training.prefix}back_end.", training.config
    if fork_name not in POOLINGS:
        raise KnnError(f"{config} has the pooling {fork_name!r}.", f"Known: {', '.join(POOLINGS)}.")
    assert config is not None  # there are settings
    sizes = checked_settings(training.args, {"head_nb": 8, "embed_dim": 256, "group": 1}, config, "a pooling")
    args: dict[str, Any] = {"dimension": sizes["embed_dim"]}
    name, narrow = POOLINGS[fork_name], state.get(f"{prefix}cmp_linear_k.weight")
    if not isinstance(narrow, Tensor) or narrow.ndim != 2:
        raise KnnError(
            f"{training.path} lacks {prefix}cmp_linear_k.weight, or has another size.", "Is it the right YAML?"
        )
    args["compression"] = width = narrow.shape[0]
    if name in ("mhfa", *_GROUPED):
        args["heads"] = sizes["head_nb"]
    if name in _GROUPED:
        args["groups"] = sizes["group"]
    if name in ("mhfa-grouped", "mhfa-shared-value"):
        args["compression"] //= max(1, sizes["group"])
    if name in ("mhfa-context", "mhfa-context-statistics"):
        args |= {"groups": sizes["group"], "context": sizes["head_nb"] // max(1, sizes["group"]) // 2}
    key = f"{prefix}att_head.weight"
    if fork_name == "MHFA_Context":
        if getattr(state.get(key), "shape", None) != (sizes["head_nb"], 3 * width):
            raise KnnError(f"{training.path} lacks {key}, or has another size.", "Is it the right YAML?")
        state[key] = state[key][:, :width]  # what is the same at every frame, the softmax over time cancels
    return pooling_to_fill(encoder, name, args, SAME_NAMES, prefix)
