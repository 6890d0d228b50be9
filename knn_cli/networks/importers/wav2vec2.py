"""Checkpoints of wav2vec 2.0, HuBERT, XLS-R and MMS in transformers' folders, to our `Wav2Vec2`.

Strict: every weight of the network must be there with its size, and nothing else may be, but for the heads and
training leftovers that are left out by name. The head of a sequence classification becomes pooling and head.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from knn_cli.networks.encoders.wav2vec2 import Wav2Vec2Sizes
from knn_cli.networks.importers.checkpoint_files import (
    read_hugging_face_weights,
    read_json,
    read_preprocessor,
    require_settings,
)
from knn_cli.networks.importers.components import ImportedModel, encoder_to_fill, match_weights
from knn_cli.networks.importers.registry import Checkpoint, importer
from knn_cli.networks.importers.transformers_folders import checked_sizes, sequence_head, shared_sizes, without_prefix
from knn_cli.networks.importers.wavlm import weight_norm_names
from knn_cli.networks.importers.weight_names import HUGGING_FACE_SEQUENCE, WAV2VEC2

__all__ = ["from_hugging_face_wav2vec2"]

_PREFIXES = {"wav2vec2": "wav2vec2.", "hubert": "hubert."}  # model_type -> what stands before an encoder with a head
_ADAPTER = r"encoder\.layers\.\d+\.adapter_layer\.linear_1\.weight"
_LICENCE_NOTE = (
    "The weights keep the licence of their source. wav2vec 2.0, HuBERT and XLS-R are published under Apache 2.0, MMS "
    "under CC BY-NC 4.0. Check before you pass them on."
)


def _is_wav2vec2(checkpoint: Checkpoint) -> bool:
    return checkpoint.is_folder and read_json(checkpoint.path / "config.json").get("model_type") in [*_PREFIXES]


@importer("Hugging Face", recognizes=_is_wav2vec2)
def from_hugging_face_wav2vec2(checkpoint: Checkpoint) -> ImportedModel:
    """Import a folder with `model_type` wav2vec2 or hubert: an encoder, or a model with a head.

    The head of a sequence classification is imported. Heads for other tasks, such as CTC, and weights for pretraining
    are left out.

    Raises
    ------
    KnnError
        Settings are those of another network, weights are missing, extra or mis-sized, or classes have no names.
    """
    folder = checkpoint.path
    config = read_json(folder / "config.json")
    every = read_hugging_face_weights(folder)
    classifies = {"projector.weight", "classifier.weight"} <= every.keys() and "tdnn.0.kernel.weight" not in every
    weighted = classifies and config.get("use_weighted_layer_sum") is True
    kept = HUGGING_FACE_SEQUENCE if classifies else "(?!)"
    state = weight_norm_names(without_prefix(every, _PREFIXES[config["model_type"]], kept))
    if classifies and not weighted:
        state.pop("layer_weights", None)
    sizes = _sizes(config, state, folder)
    names = WAV2VEC2
    if weighted and sizes.norm_first:  # transformers 5 sums the layers as they come, the last without its norm
        sizes = replace(sizes, final_norm=False)
        names = replace(names, extras=rf"{names.extras}|encoder\.layer_norm\.(weight|bias)")
    encoder = encoder_to_fill("wav2vec2", asdict(sizes), names)
    note = " ".join([_LICENCE_NOTE, *_notes(every, folder, sizes)])
    source = f"Hugging Face: {folder.name}"
    if not classifies:
        component = match_weights([encoder], state, folder, sizes.network, "Hugging Face")[0]
        return ImportedModel(component, source, note)
    head = sequence_head(config, state, encoder, folder)
    components = match_weights([encoder, head.pooling, head.head], state, folder, sizes.network, "Hugging Face")
    return ImportedModel(components[0], source, note, components[1], components[2], head.labels)


def _sizes(config: Mapping[str, Any], state: Mapping[str, Any], folder: Path) -> Wav2Vec2Sizes:
    """The sizes in the files of a folder; the weights tell whether the blocks have adapters, and how wide they are."""
    require_settings(config, {"conv_pos_batch_norm": False}, folder, Wav2Vec2Sizes.network)
    adapters = [value for key, value in state.items() if re.fullmatch(_ADAPTER, str(key))]
    sizes: Wav2Vec2Sizes = checked_sizes(
        Wav2Vec2Sizes,
        folder,
        shared_sizes(config, folder, Wav2Vec2Sizes.network)
        | {
            "projection_norm": config.get("feat_proj_layer_norm", True),
            "adapter": len(adapters[0]) if adapters and isinstance(adapters[0], Tensor) and adapters[0].ndim else 0,
        },
    )
    return sizes


def _notes(state: Mapping[str, Any], folder: Path, sizes: Wav2Vec2Sizes) -> list[str]:
    """What the import left out or assumed, a sentence each."""
    notes = []
    if "lm_head.weight" in state:
        notes.append("The head for CTC was left out.")
    if not read_preprocessor(folder):
        does = "is" if sizes.normalize else "is not"
        notes.append(
            f"The folder has no preprocessor_config.json: a clip {does} normalised to mean 0 and variance 1, as in the "
            f"training of networks with {sizes.convolution_norm} norm."
        )
    return notes
