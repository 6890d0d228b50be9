"""Checkpoints of wav2vec 2.0, HuBERT, XLS-R and MMS as fairseq writes them, to our `Wav2Vec2`.

Settings are argparse's or omegaconf's objects, read as data (`inert_objects`). Strict: every weight of the network must
be there with its size, and nothing else may be, but for what only training needs and a head for CTC. The classifier of
MMS for languages becomes pooling and head; names of its classes come from the file, or from dict.lang.txt beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from knn_cli.core.errors import KnnError
from knn_cli.core.texts import read_lines
from knn_cli.networks.encoders.wav2vec2 import Wav2Vec2Sizes
from knn_cli.networks.importers.checkpoint_files import require_settings, sources_hint
from knn_cli.networks.importers.components import (
    ComponentToFill,
    ImportedModel,
    encoder_to_fill,
    head_to_fill,
    match_weights,
    pooling_to_fill,
)
from knn_cli.networks.importers.inert_objects import plain_settings
from knn_cli.networks.importers.registry import Checkpoint, importer
from knn_cli.networks.importers.transformers_folders import CTC_NOTE, checked_sizes, language_codes
from knn_cli.networks.importers.wavlm import fairseq_sizes, weight_norm_names
from knn_cli.networks.importers.weight_names import FAIRSEQ_EXTRAS, WeightNames, microsoft

__all__ = ["from_fairseq"]

_LICENCE_NOTE = (
    "The weights keep the licence of their source. fairseq publishes wav2vec 2.0, HuBERT and XLS-R under the MIT "
    "licence, MMS under CC BY-NC 4.0. Check before you pass them on."
)
_MARK = "post_extract_proj.weight"  # of every wav2vec 2.0 and HuBERT, behind the names of the modules around it
_WAVLM = "encoder.layers.0.self_attn.grep_a"
_CTC = r"w2v_encoder\.proj\.(weight|bias)"
_POOLING = WeightNames((("projector.", "pooling_layer.linear."),))
_HEAD = WeightNames((("trans.0.", "pooling_layer.projection."),))
_ACTIVATIONS = {"linear": "none", "relu": "relu", "gelu": "gelu", "tanh": "tanh"}
_DICTIONARY = "dict.lang.txt"  # a class and its count on each line


def _is_fairseq(checkpoint: Checkpoint) -> bool:
    content = checkpoint.content
    weights = content.get("model")
    if not isinstance(weights, Mapping) or not ("cfg" in content or "args" in content):
        return False
    return any(str(key).endswith(_MARK) for key in weights) and not any(str(key).endswith(_WAVLM) for key in weights)


@importer("fairseq", recognizes=_is_fairseq)
def from_fairseq(checkpoint: Checkpoint) -> ImportedModel:
    """Import a file of fairseq: a pretrained network, one that was fine-tuned for CTC, or MMS for languages.

    Raises
    ------
    KnnError
        Settings are those of another network or are missing, weights are missing, extra or mis-sized, or the classes of
        a classifier have no names.
    """
    path = checkpoint.path
    state = weight_norm_names(checkpoint.content["model"])
    settings = _settings(checkpoint.content)
    prefix = next(key for key in state if key.endswith(_MARK)).removesuffix(_MARK)
    if any(key.startswith(f"{prefix}encoder.layers.0.adapter_layer.") for key in state):
        raise KnnError(
            f"{path} holds adapters of many languages, of which a network uses one at a time.",
            "Convert transformers' folder of the same network.",
        )
    supported = {"activation_fn": "gelu", "layer_type": "transformer", "pos_conv_depth": 1, "quantize_input": False}
    network = Wav2Vec2Sizes.network
    require_settings(settings.encoder, supported, path, network)
    if "encoder_attention_heads" not in settings.encoder:
        raise KnnError(f"{path} does not say the sizes of its {network}.", sources_hint())
    sizes: Wav2Vec2Sizes = checked_sizes(
        Wav2Vec2Sizes, path, fairseq_sizes(settings.encoder, path) | {"normalize": settings.normalize}
    )
    names = microsoft(sizes.convolution_norm)
    encoder = encoder_to_fill("wav2vec2", asdict(sizes), WeightNames(names.prefixes, FAIRSEQ_EXTRAS), prefix)
    parts, labels = [encoder], tuple[str, ...]()
    if "pooling_layer.projection.weight" in state:
        labels = _labels(checkpoint)
        parts += _classifier(settings.model, state, encoder, labels, path)
    filled = match_weights(parts, state, path, network, "fairseq", extras=_CTC)
    note = f"{_LICENCE_NOTE} {CTC_NOTE}" if any(re.fullmatch(_CTC, key) for key in state) else _LICENCE_NOTE
    source = f"fairseq: {path.name}"
    if len(filled) == 1:
        return ImportedModel(filled[0], source, note)
    return ImportedModel(filled[0], source, note, filled[1], filled[2], labels)


class _Settings:
    """The settings of a training.

    Attributes
    ----------
    model : dict
        Of the network that was trained.
    encoder : dict
        Of the wav2vec 2.0 in it.
    normalize : bool
        Whether a clip is normalised to mean 0 and variance 1.
    """

    def __init__(self, whole: Mapping[str, Any]) -> None:
        self._whole = whole
        self.model, task = _parts(whole)
        inner = self.model.get("w2v_args")
        self.encoder, inner_task = _parts(inner) if isinstance(inner, dict) else (self.model, {})
        found = (self._resolved(each.get("normalize")) for each in (self.model, task, inner_task, self.encoder))
        self.normalize = next((value for value in found if value is not None), False)

    def _resolved(self, value: Any) -> Any:
        """A value, or the one that omegaconf's "${task.normalize}" names."""
        reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        if reference is None:
            return value
        found: Any = self._whole
        for name in reference[1].split("."):
            found = found.get(name) if isinstance(found, dict) else None
        return found


def _settings(content: Mapping[str, Any]) -> _Settings:
    return _Settings(plain_settings(content.get("cfg")) or plain_settings(content.get("args")))


def _parts(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of network and task, which older trainings keep in one table."""
    model, task = settings.get("model"), settings.get("task")
    if isinstance(model, dict):
        return model, task if isinstance(task, dict) else {}
    return dict(settings), {}


def _classifier(
    settings: Mapping[str, Any],
    state: Mapping[str, Any],
    encoder: ComponentToFill,
    labels: tuple[str, ...],
    path: Path,
) -> list[ComponentToFill]:
    """Pooling and head of a classifier of clips, in the arithmetic of fairseq's mean pooling."""
    require_settings(settings, {"pooling": "mean"}, path, "classifier")
    activation, linear = settings.get("activation_fn", "gelu"), state.get("pooling_layer.linear.weight")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise KnnError(f"{path} has activation_fn {activation!r}.", f"Known: {', '.join(_ACTIVATIONS)}.")
    width = len(linear) if isinstance(linear, Tensor) and linear.ndim == 2 else 1
    args = {"dimension": width, "activation": _ACTIVATIONS[activation]}
    pooling = pooling_to_fill(encoder, "projected-mean", args, _POOLING)
    return [pooling, head_to_fill(pooling, len(labels), "softmax", {"normalize": False}, _HEAD)]


def _labels(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Names of the classes in their order. KnnError if neither the file nor one beside it has a name for each."""
    state = plain_settings(checkpoint.content.get("task_state"))
    dictionary = state.get("target_dictionary")
    names = dictionary.get("symbols") if isinstance(dictionary, dict) else None
    beside = checkpoint.path.with_name(_DICTIONARY)
    if names is None and beside.is_file():
        lines = read_lines(beside, "a list of classes")
        names = [line.rpartition(" ")[0].strip() for line in lines if line.strip()]
    weight = checkpoint.content["model"]["pooling_layer.projection.weight"]
    classes = len(weight) if isinstance(weight, Tensor) and weight.ndim == 2 else 0
    if not isinstance(names, list) or len({*map(str, names)}) != classes or not all(names):
        count = len(names) if isinstance(names, list) else 0
        raise KnnError(
            f"{checkpoint.path} has {classes} classes, and {count} names for them.",
            f"Copy {_DICTIONARY} of its release beside it.",
        )
    return language_codes(tuple(map(str, names)))
