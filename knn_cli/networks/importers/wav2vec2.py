"""Checkpoints of wav2vec 2.0, HuBERT, XLS-R and MMS in transformers' folders, to our `Wav2Vec2`.

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

from knn_cli.networks.encoders.wav2vec2 import Wav2Vec2Sizes
from knn_cli.networks.importers.checkpoint_files import read_json, read_preprocessor, require_settings
from knn_cli.networks.importers.components import ImportedModel, encoder_to_fill
from knn_cli.networks.importers.registry import Checkpoint, importer
from knn_cli.networks.importers.transformers_folders import (
    CTC_NOTE,
    FolderWeights,
    checked_sizes,
    shared_sizes,
    without_final_norm,
)
from knn_cli.networks.importers.wavlm import weight_norm_names
from knn_cli.networks.importers.weight_names import WAV2VEC2

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

    The heads of a sequence classification and of an x-vector network are imported. Heads for CTC and weights for
    pretraining are left out.

    Raises
    ------
    KnnError
        Settings are those of another network, weights are missing, extra or mis-sized, classes have no names, or the
        head classifies single frames.
    """
    folder = checkpoint.path
    config = read_json(folder / "config.json")
    weights = FolderWeights.read(folder, config, _PREFIXES[config["model_type"]])
    weights = replace(weights, state=weight_norm_names(weights.state))
    sizes = _sizes(config, weights.state, folder)
    names = WAV2VEC2
    if weights.weighted and sizes.norm_first:
        sizes, names = replace(sizes, final_norm=False), without_final_norm(names)
    encoder = encoder_to_fill("wav2vec2", asdict(sizes), names)
    return weights.imported(encoder, sizes.network, " ".join([_LICENCE_NOTE, *_notes(weights, sizes)]))


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


def _notes(weights: FolderWeights, sizes: Wav2Vec2Sizes) -> list[str]:
    """What the import left out or assumed, a sentence each."""
    notes = []
    if weights.has_ctc:
        notes.append(CTC_NOTE)
    if not read_preprocessor(weights.folder):
        does = "is" if sizes.normalize else "is not"
        notes.append(
            f"The folder has no preprocessor_config.json: a clip {does} normalised to mean 0 and variance 1, as in the "
            f"training of networks with {sizes.convolution_norm} norm."
        )
    return notes
