"""What transformers' folders of WavLM, wav2vec 2.0, HuBERT and w2v-BERT 2.0 share: settings, prefixes and heads.

The head of a sequence classification becomes pooling and head, that of an x-vector network its pooling. Networks that
classify single frames are refused. Heads for CTC and pre-training are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
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
    read_hugging_face_weights,
    read_preprocessor,
    require_settings,
    sources_hint,
)
from knn_cli.networks.importers.components import (
    ComponentToFill,
    ImportedModel,
    head_to_fill,
    match_weights,
    pooling_to_fill,
)
from knn_cli.networks.importers.weight_names import (
    HUGGING_FACE_HEADS,
    HUGGING_FACE_SEQUENCE,
    HUGGING_FACE_XVECTOR,
    SEQUENCE_POOLING,
    XVECTOR,
    WeightNames,
)

__all__ = [
    "CTC_NOTE",
    "FolderWeights",
    "checked_sizes",
    "language_codes",
    "shared_sizes",
    "without_final_norm",
    "without_prefix",
]

CTC_NOTE = "The head for CTC was left out."

# Task -> what its head becomes weights of, beside the encoder.
_KEPT = {"": "(?!)", "sequence": HUGGING_FACE_SEQUENCE, "xvector": HUGGING_FACE_XVECTOR}
_CLASSIFIER = WeightNames((("trans.0.", "classifier."),))
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


def checked_sizes(kind: type[Any], path: Path, sizes: Mapping[str, Any]) -> Any:
    """`kind(**sizes)`. KnnError if a size has another type than its default."""
    default = {field.name: field.default for field in fields(kind)}
    odd = [name for name, value in sizes.items() if type(value) is not type(default[name])]
    if odd:
        raise KnnError(f"{path} has settings of another kind than {kind.network}'s: {list_keys(odd)}.", sources_hint())
    return kind(**sizes)


def without_final_norm(names: WeightNames) -> WeightNames:
    """Names that leave out the norm behind the blocks of a pre-LN network.

    Where transformers 5 sums all layers with weights, it takes them as they come, the last without this norm.
    """
    return replace(names, extras=rf"{names.extras}|encoder\.layer_norm\.(weight|bias)")


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
class FolderWeights:
    """The weights in a folder, and what they are for.

    Attributes
    ----------
    folder : Path
    config : mapping
        Of config.json.
    task : {"", "sequence", "xvector"}
        The head that is kept.
    weighted : bool
        Whether this head takes a weighted sum of all layers instead of the last layer.
    state : dict
        Weights under names without the prefix of networks with a head.
    has_ctc : bool
        Whether a head for CTC was left out.
    """

    folder: Path
    config: Mapping[str, Any]
    task: str
    weighted: bool
    state: dict[str, Any]
    has_ctc: bool

    @classmethod
    def read(cls, folder: Path, config: Mapping[str, Any], prefix: str) -> FolderWeights:
        """Read a folder. KnnError if it cannot be read, or if its network classifies single frames."""
        every = read_hugging_face_weights(folder)
        task = _task(every, folder)
        weighted = task != "" and config.get("use_weighted_layer_sum") is True
        state = without_prefix(every, prefix, _KEPT[task])
        if not weighted:
            state.pop("layer_weights", None)
        return cls(folder, config, task, weighted, state, "lm_head.weight" in every)

    def imported(self, encoder: ComponentToFill, network: str, note: str, projection: int = 256) -> ImportedModel:
        """Match the weights with an encoder and with the pooling and head that they are for.

        Parameters
        ----------
        encoder : ComponentToFill
        network : str
            The kind of network, for messages.
        note : str
            About the licence and what was left out.
        projection : int
            Width of a classifier's projection where config.json leaves it out.

        Raises
        ------
        KnnError
            Weights are missing, extra or mis-sized, settings of another kind, or classes without names.
        """
        head: ComponentToFill | None = None
        parts, labels = [encoder], tuple[str, ...]()
        if self.task == "xvector":
            parts.append(pooling_to_fill(encoder, "xvector", self._xvector_args(), XVECTOR))
        elif self.task == "sequence":
            defaults = {"classifier_proj_size": projection}
            (dimension,) = checked_settings(self.config, defaults, self.folder, "a classifier").values()
            args = {"dimension": dimension, "weighted": self.weighted}
            pooling = pooling_to_fill(encoder, "projected-mean", args, SEQUENCE_POOLING)
            labels = self._labels()
            head = head_to_fill(pooling, len(labels), "softmax", {"normalize": False}, _CLASSIFIER)
            parts += [pooling, head]
        filled = match_weights(parts, self.state, self.folder, network, "Hugging Face")
        imported = ImportedModel(filled[0], f"Hugging Face: {self.folder.name}", note)
        if len(filled) == 1:
            return imported
        return replace(imported, pooling=filled[1], head=filled[2] if head is not None else None, labels=labels)

    def _xvector_args(self) -> dict[str, Any]:
        """Arguments of the x-vector pooling, with transformers' defaults for missing settings."""
        defaults = {
            "tdnn_dim": [512, 512, 512, 512, 1500],
            "tdnn_kernel": [5, 3, 3, 1, 1],
            "tdnn_dilation": [1, 2, 3, 1, 1],
            "xvector_output_dim": 512,
            "use_weighted_layer_sum": False,
        }
        names = ("widths", "kernels", "dilations", "dimension", "weighted")
        values = checked_settings(self.config, defaults, self.folder, "an x-vector head").values()
        return dict(zip(names, values, strict=True))

    def _labels(self) -> tuple[str, ...]:
        """Names of the classes. KnnError if `id2label` does not name each class of the head."""
        weight = self.state["classifier.weight"]
        classes = len(weight) if isinstance(weight, Tensor) and weight.ndim == 2 else 0
        labels = _labels(self.config.get("id2label", {str(number): f"LABEL_{number}" for number in range(classes)}))
        if classes != len(labels) or len(set(labels)) != classes:
            raise KnnError(
                f"{self.folder} does not name the {classes} classes of its head one by one: id2label has "
                f"{len(set(labels))}.",
                "Copy the whole folder.",
            )
        return labels


def _task(state: Mapping[str, Any], folder: Path) -> str:
    """What a head among the weights is for: "sequence", "xvector", or "" for none that is kept."""
    if "tdnn.0.kernel.weight" in state:
        return "xvector"
    if "classifier.weight" not in state:
        return ""
    if "projector.weight" not in state:
        raise KnnError(
            f"{folder} classifies each frame by itself, and a model of knn gives one embedding for a clip.",
            "Convert the network that it was fine-tuned from: its encoder is a beginning for recipes.",
        )
    return "sequence"


def _labels(table: Any) -> tuple[str, ...]:
    """Names of the classes of {"0": name, ...} in their order, as `language_codes` has them; () for anything else."""
    numbers = [str(number) for number in range(len(table))] if isinstance(table, dict) else []
    if not all(isinstance(table.get(number), str) and table[number].strip() for number in numbers):
        return ()
    return language_codes(tuple(table[number] for number in numbers))


def language_codes(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Names of classes, languages by their shortest ISO 639 code.

    Names stay as they are where no more than half are languages, or where two of them would become the same.
    """
    found = [find_language(label) for label in labels]
    codes = tuple(label if each is None else each.code for label, each in zip(labels, found, strict=True))
    languages = len(found) - found.count(None)
    return codes if 2 * languages > len(labels) and len(set(codes)) == len(labels) else labels
