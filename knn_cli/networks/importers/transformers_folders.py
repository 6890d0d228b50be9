"""What the folders of transformers' WavLM, wav2vec 2.0 and HuBERT share: settings, prefixes, classification heads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from knn_cli.audio import reading
from knn_cli.core.errors import KnnError
from knn_cli.core.languages import find_language
from knn_cli.networks.encoders.wavlm_sizes import TransformerSizes
from knn_cli.networks.importers.checkpoint_files import (
    checked_settings,
    list_keys,
    read_preprocessor,
    require_settings,
    sources_hint,
)
from knn_cli.networks.importers.components import ComponentToFill, head_to_fill, pooling_to_fill
from knn_cli.networks.importers.weight_names import HUGGING_FACE_HEADS, SEQUENCE_POOLING, WeightNames

__all__ = ["SequenceHead", "checked_sizes", "sequence_head", "shared_sizes", "without_prefix"]

_ACTIVATIONS = {"hidden_act": "gelu", "feat_extract_activation": "gelu"}


def shared_sizes(config: Mapping[str, Any], folder: Path, network: str) -> dict[str, Any]:
    """Sizes from config.json and preprocessor_config.json; missing settings are those of Base, as in transformers.

    Raises
    ------
    KnnError
        A setting is that of another network, or the convolutions have sizes of different numbers.
    """
    require_settings(config, {**_ACTIVATIONS, "layer_norm_eps": 1e-5, "add_adapter": False}, folder, network)
    base = TransformerSizes()
    default = list(zip(*base.convolutions, strict=True))
    listed = {key: list(default[n]) for n, key in enumerate(("conv_dim", "conv_kernel", "conv_stride"))}
    shapes = list(checked_settings(config, listed, folder / "config.json", network).values())
    if len({len(shape) for shape in shapes}) > 1:
        raise KnnError(f"{folder}/config.json has conv_dim, conv_kernel and conv_stride of different lengths.")
    norm = config.get("feat_extract_norm", base.convolution_norm)
    preprocessor = read_preprocessor(folder)
    require_settings(preprocessor, {"sampling_rate": reading.RATE, "feature_size": 1}, folder, network)
    return {
        "convolutions": tuple(zip(*shapes, strict=True)),
        "convolution_bias": config.get("conv_bias", base.convolution_bias),
        "convolution_norm": norm,
        "channels": config.get("hidden_size", base.channels),
        "blocks": config.get("num_hidden_layers", base.blocks),
        "heads": config.get("num_attention_heads", base.heads),
        "inner": config.get("intermediate_size", base.inner),
        "position_kernel": config.get("num_conv_pos_embeddings", base.position_kernel),
        "position_groups": config.get("num_conv_pos_embedding_groups", base.position_groups),
        "norm_first": config.get("do_stable_layer_norm", base.norm_first),
        # config.json lacks this; without the other file it is as in the training of a network with this norm.
        "normalize": preprocessor.get("do_normalize", True) if preprocessor else norm == "layer",
    }


def checked_sizes(kind: type[TransformerSizes], path: Path, sizes: Mapping[str, Any]) -> Any:
    """`kind(**sizes)`. KnnError if a size has another type than its default."""
    default = {field.name: field.default for field in fields(kind)}
    odd = [name for name, value in sizes.items() if type(value) is not type(default[name])]
    if odd:
        raise KnnError(f"{path} has settings of another kind than {kind.network}'s: {list_keys(odd)}.", sources_hint())
    return kind(**sizes)


def without_prefix(state: Mapping[str, Any], prefix: str, kept: str) -> dict[str, Any]:
    """The weights of a model that may have a head, under names without `prefix`.

    Weights of heads are left out but for those that the regular expression `kept` matches. Other names that do not
    start with the prefix are marked, so that they are reported as extra. Without a head the names have no prefix.
    """
    if not any(str(key).startswith(prefix) for key in state):
        return dict(state)
    named = {}
    for key, value in state.items():
        if key.startswith(prefix) or re.fullmatch(kept, key):
            named[key.removeprefix(prefix)] = value
        elif not re.fullmatch(HUGGING_FACE_HEADS, key):
            named[f"(without {prefix}) {key}"] = value
    return named


@dataclass(frozen=True)
class SequenceHead:
    """The classification head of a `...ForSequenceClassification`.

    Attributes
    ----------
    pooling, head : ComponentToFill
        `projected-mean` and `softmax`.
    labels : tuple of str
        Names of the classes, in the head's order.
    """

    pooling: ComponentToFill
    head: ComponentToFill
    labels: tuple[str, ...]


def sequence_head(
    config: Mapping[str, Any], state: Mapping[str, Any], encoder: ComponentToFill, folder: Path
) -> SequenceHead:
    """The classification head that config.json and the weights describe.

    Raises
    ------
    KnnError
        Settings are of another kind, or `id2label` does not name each class.
    """
    defaults = {"classifier_proj_size": 256, "use_weighted_layer_sum": False}
    dimension, weighted = checked_settings(config, defaults, folder, "a classifier").values()
    pooling = pooling_to_fill(
        encoder, "projected-mean", {"dimension": dimension, "weighted": weighted}, SEQUENCE_POOLING
    )
    weight = state["classifier.weight"]
    classes = len(weight) if isinstance(weight, Tensor) and weight.ndim == 2 else 0
    labels = _labels(config.get("id2label", {str(number): f"LABEL_{number}" for number in range(classes)}))
    if classes != len(labels) or len(set(labels)) != classes:
        raise KnnError(
            f"{folder} does not name the {classes} classes of its head one by one: id2label has {len(set(labels))}.",
            "Copy the whole folder.",
        )
    names = WeightNames((("trans.0.", "classifier."),))
    head = head_to_fill(pooling, classes, "softmax", {"normalize": False}, names)
    return SequenceHead(pooling, head, labels)


def _labels(table: Any) -> tuple[str, ...]:
    """Names of the classes of {"0": name, ...} in their order, languages by their shortest ISO 639 code; else ().

    Names stay as they are where no more than half are languages, or where two of them would become the same.
    """
    numbers = [str(number) for number in range(len(table))] if isinstance(table, dict) else []
    if not all(isinstance(table.get(number), str) and table[number].strip() for number in numbers):
        return ()
    labels = tuple(table[number] for number in numbers)
    found = [find_language(label) for label in labels]
    codes = tuple(label if each is None else each.code for label, each in zip(labels, found, strict=True))
    languages = len(found) - found.count(None)
    return codes if 2 * languages > len(labels) and len(set(codes)) == len(labels) else labels
