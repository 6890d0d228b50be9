"""wespeaker: its published networks, pyannote's copies of them, and checkpoints of trainings in it or a fork of it.

The import is strict (see `registry.Importer`). A fork's checkpoint holds the network under `speaker_extractor.` and the
head under `projection.`; its YAML file supplies the settings that shapes do not determine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from knn_cli.core.errors import KnnError
from knn_cli.networks.chunk_setting import WHOLE, Chunk
from knn_cli.networks.importers.components import ComponentToFill, ImportedModel, match_weights
from knn_cli.networks.importers.merged_branches import merge_branches
from knn_cli.networks.importers.origins import EXTRACTOR, SHARED, WESPEAKER, origin_of
from knn_cli.networks.importers.registry import Checkpoint, importer
from knn_cli.networks.importers.wavlm import weight_norm_names
from knn_cli.networks.importers.wespeaker_heads import with_head
from knn_cli.networks.importers.wespeaker_networks import NETWORKS, Training, network_of
from knn_cli.networks.importers.wespeaker_wavlm import MODELS, wavlm_to_fill

__all__ = ["INTEGER_SCALE", "from_training", "from_wespeaker"]

INTEGER_SCALE = 32768.0  # wespeaker's waveforms have the range of 16-bit integers

_HEADS = r"projection\..*|loss_func\..*"  # of networks whose classes are speakers without names
_WESPEAKER_NOTE = (
    "The weights keep the licence of their source. wespeaker's and pyannote's VoxCeleb models are published under "
    "CC BY 4.0. Check before you pass them on."
)
_TRAINED_NOTE = "The weights keep the licence given by those who trained them, and that of the WavLM they started from."


def _training(checkpoint: Checkpoint) -> Training:
    prefix = "resnet." if "resnet.conv1.weight" in checkpoint.weights else ""
    if _has_extractor(checkpoint):
        prefix = EXTRACTOR
    state = merge_branches(checkpoint.weights)
    return Training(checkpoint.path, state, prefix, checkpoint.settings, checkpoint.config)


def _has_network(checkpoint: Checkpoint) -> bool:
    if _has_extractor(checkpoint):
        return False
    found = network_of(_training(checkpoint))
    only_here = found is not None and found[0] not in SHARED
    return found is not None and (only_here or origin_of(checkpoint) == WESPEAKER)


def _has_extractor(checkpoint: Checkpoint) -> bool:
    return any(str(key).startswith(EXTRACTOR) for key in checkpoint.keys)


@importer("wespeaker", recognizes=_has_network, takes_options=True)
def from_wespeaker(checkpoint: Checkpoint) -> ImportedModel:
    """Import a network of wespeaker, or pyannote's copy of one (all keys prefixed with `resnet.`).

    Its head is left out, unless the names of its classes (`labels`) are given.

    Raises
    ------
    KnnError
        The checkpoint does not hold the network that it begins, or its YAML is missing or does not describe the head.
    """
    training = _training(checkpoint)
    found = network_of(training)
    assert found is not None  # `_has_network`
    name, build = found
    to_fill = build(training)
    if checkpoint.labels is not None:
        return _with_head(checkpoint, training, to_fill, training.state, WHOLE)
    encoder, pooling = match_weights(to_fill, training.state, checkpoint.path, name, "wespeaker", extras=_HEADS)
    source = f"wespeaker: {checkpoint.path.name}"
    return ImportedModel(encoder, source, _WESPEAKER_NOTE, pooling, scale=INTEGER_SCALE, chunk=WHOLE)


@importer("wespeaker", recognizes=_has_extractor, takes_options=True)
def from_training(checkpoint: Checkpoint) -> ImportedModel:
    """Import a checkpoint of a training of a WavLM or another network by a fork of wespeaker, with its head.

    Raises
    ------
    KnnError
        The checkpoint comes without its YAML file (`config`), describes a network or head that knn does not have, or
        does not hold its weights; or the names of its classes (`labels`) do not fit.
    """
    training = _training(checkpoint)
    training = Training(training.path, weight_norm_names(training.state), EXTRACTOR, training.settings, training.config)
    model = str(_settings_of(training).get("model"))
    if not isinstance(training.settings.get("model_args"), dict):
        raise KnnError(
            f"{training.config} has no model_args.", "Name the YAML of the training that wrote the checkpoint."
        )
    if model in MODELS:
        to_fill, state = wavlm_to_fill(training)
        return _with_head(checkpoint, training, to_fill, state, MODELS[model])
    found = network_of(training)
    if found is None or model.startswith("WavLM"):
        names = ", ".join([*MODELS, *(name for name, _ in NETWORKS.values())])
        raise KnnError(
            f"{training.config} has the model {model!r}, which is not in {training.path}.", f"Known: {names}."
        )
    return _with_head(checkpoint, training, found[1](training), training.state, WHOLE)


def _settings_of(training: Training) -> Mapping[str, Any]:
    """The training's settings; KnnError without its YAML."""
    if training.config is None:
        raise KnnError(
            f"{training.path} was written by a training; it needs its settings.", "Name its YAML with `config`."
        )
    return training.settings


def _with_head(
    checkpoint: Checkpoint,
    training: Training,
    to_fill: list[ComponentToFill],
    state: Mapping[str, Any],
    chunk: Chunk,
) -> ImportedModel:
    _settings_of(training)
    components, names, level = with_head(to_fill, training, state, checkpoint.labels)
    return ImportedModel(
        components[0],
        f"wespeaker: {checkpoint.path.name}",
        _TRAINED_NOTE,
        components[1],
        components[2],
        names,
        level,
        INTEGER_SCALE,
        chunk,
    )
