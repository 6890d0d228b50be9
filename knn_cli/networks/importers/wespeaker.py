"""wespeaker: published ResNets, pyannote's copies of them, and checkpoints of training in wespeaker or a fork of it.

The import is strict (see `registry.Importer`). A training checkpoint holds the network under `speaker_extractor.` and
the head under `projection.`; its YAML file supplies the settings that shapes do not determine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from knn_cli.core.errors import KnnError
from knn_cli.networks.encoders.resnet import DEPTHS
from knn_cli.networks.importers.checkpoint_files import (
    checked_settings,
    list_keys,
    read_yaml,
    require_settings,
    sources_hint,
)
from knn_cli.networks.importers.components import (
    ComponentToFill,
    ImportedComponent,
    ImportedModel,
    encoder_to_fill,
    head_to_fill,
    match_weights,
    pooling_to_fill,
)
from knn_cli.networks.importers.registry import Checkpoint, importer
from knn_cli.networks.importers.wavlm import sizes_from_shapes, weight_norm_names
from knn_cli.networks.importers.weight_names import SAME_NAMES, microsoft

__all__ = ["CZECH_DIALECTS", "INTEGER_SCALE", "VOXLINGUA107", "from_training", "from_wespeaker"]

EXTRACTOR = "speaker_extractor."
PROJECTION = "projection."
INTEGER_SCALE = 32768.0  # wespeaker's waveforms have the range of 16-bit integers

# Sorted, as wespeaker numbers its classes.
CZECH_DIALECTS = tuple("1-1 1-2 1-3 1-4 2-1 2-2 2-3 2-4 3-1 3-2 3-3 4-1 4-2".split())
VOXLINGUA107 = tuple(
    "ab af am ar as az ba be bg bn bo br bs ca ceb cs cy da de el en eo es et eu fa fi fo fr gl gn gu gv ha haw hi hr "
    "ht hu hy ia id is it iw ja jw ka kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn no oc pa pl "
    "ps pt ro ru sa sco sd si sk sl sn so sq sr su sv sw ta te tg th tk tl tr tt uk ur uz vi war yi yo zh".split()
)

# The fork's name of a pooling -> knn's, for poolings with the same arithmetic and weights.
FORK_POOLINGS = {
    "MHFA": "mhfa",
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
_WESPEAKER_NOTE = (
    "The weights keep the licence of their source. wespeaker's and pyannote's VoxCeleb models are published under "
    "CC BY 4.0. Check before you pass them on."
)
_TRAINED_NOTE = "The weights keep the licence given by those who trained them, and that of the WavLM they started from."


def _has_resnet(checkpoint: Checkpoint) -> bool:
    return any(key.endswith("seg_1.weight") for key in checkpoint.keys) and not _has_extractor(checkpoint)


@importer("wespeaker", recognizes=_has_resnet)
def from_wespeaker(checkpoint: Checkpoint) -> ImportedModel:
    """Import a ResNet of wespeaker without its head, or pyannote's copy of it (all keys prefixed with `resnet.`)."""
    content, path = checkpoint.weights, checkpoint.path
    prefix = "resnet." if "resnet.conv1.weight" in content else ""
    to_fill = _resnet(content, prefix, path)
    encoder, pooling = match_weights(
        to_fill, content, path, "ResNet", "wespeaker", extras=r"projection\..*|loss_func\..*"
    )
    return ImportedModel(encoder, f"wespeaker: {path.name}", _WESPEAKER_NOTE, pooling, scale=INTEGER_SCALE)


def _resnet(state: Mapping[str, Any], prefix: str, path: Path) -> list[ComponentToFill]:
    counts = []
    for stage in range(1, 5):
        start = f"{prefix}layer{stage}."
        counts.append(len({key.removeprefix(start).split(".")[0] for key in state if key.startswith(start)}))
    shape = (tuple(counts), f"{prefix}layer1.0.conv3.weight" in state)
    depths = [depth for depth, known_shape in DEPTHS.items() if known_shape == shape]
    stem, last = state.get(f"{prefix}conv1.weight"), state.get(f"{prefix}seg_1.weight")
    if not depths or not isinstance(stem, Tensor) or not isinstance(last, Tensor) or last.ndim != 2 or stem.ndim != 4:
        raise KnnError(
            f"{path} holds no ResNet that knn supports: its stages have {list_keys(counts)} blocks.", sources_hint()
        )
    width = stem.shape[0]
    bins = last.shape[1] // (2 * width * (4 if shape[1] else 1))
    encoder = encoder_to_fill("resnet", {"depth": depths[0], "width": width, "bins": bins}, SAME_NAMES, prefix)
    args = {"dimension": last.shape[0], "two": f"{prefix}seg_2.weight" in state}
    return [encoder, pooling_to_fill(encoder, "resnet", args, SAME_NAMES, prefix)]


def _has_extractor(checkpoint: Checkpoint) -> bool:
    return any(key.startswith(EXTRACTOR) for key in checkpoint.keys)


@importer("wespeaker", recognizes=_has_extractor, takes_options=True)
def from_training(checkpoint: Checkpoint) -> ImportedModel:
    """Import a checkpoint of wespeaker's training of a WavLM or ResNet, with its head.

    Raises
    ------
    KnnError
        The checkpoint comes without its YAML file (`config`), describes a network or head that knn does not have, or
        does not hold its weights; or the names of its classes (`labels`) do not fit.
    """
    path, config, labels = checkpoint.path, checkpoint.config, checkpoint.labels
    if config is None:
        raise KnnError(f"{path} was written by a training; it needs its settings.", "Name its YAML with `config`.")
    settings = read_yaml(config)
    model, args = str(settings.get("model")), _mapping(settings, "model_args", config)
    state = weight_norm_names(checkpoint.weights)
    if model == "WavLM_Base_MHFA":
        norm = f"{EXTRACTOR}model.feature_extractor.conv_layers.1.2.1.weight"
        weight_names = microsoft("layer" if norm in state else "group")
        prefix = f"{EXTRACTOR}model."
        inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        sizes = sizes_from_shapes(inner, weight_names, path)
        encoder = encoder_to_fill("wavlm", asdict(sizes), weight_names, prefix)
        to_fill = [encoder, _fork_pooling(encoder, args, state, path, config)]
    elif model.startswith("ResNet"):
        require_settings(args, {"pooling_func": "TSTP"}, config, "ResNet")
        to_fill = _resnet(state, EXTRACTOR, path)
    else:
        raise KnnError(f"{config} has the model {model!r}.", "Known: WavLM_Base_MHFA, ResNet18 to ResNet293.")
    components, names, level = _with_head(to_fill, state, settings, labels, path, config)
    return ImportedModel(
        components[0],
        f"wespeaker: {path.name}",
        _TRAINED_NOTE,
        components[1],
        components[2],
        names,
        level,
        INTEGER_SCALE,
    )


def _mapping(settings: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = settings.get(key)
    if not isinstance(value, dict):
        raise KnnError(f"{path} has no {key}.", "Name the YAML of the training that wrote the checkpoint.")
    return value


def _fork_pooling(
    encoder: ComponentToFill, settings: Mapping[str, Any], state: Mapping[str, Any], path: Path, config: Path
) -> ComponentToFill:
    prefix, fork_name = f"{EXTRACTOR}back_end.", str(settings.get("pooling"))
    if fork_name not in FORK_POOLINGS:
        raise KnnError(f"{config} has the pooling {fork_name!r}.", f"Known: {', '.join(FORK_POOLINGS)}.")
    sizes = checked_settings(settings, {"head_nb": 8, "embed_dim": 256, "group": 1}, config, "a pooling")
    args: dict[str, Any] = {"dimension": sizes["embed_dim"]}
    name = FORK_POOLINGS[fork_name]
    narrow = state.get(f"{prefix}cmp_linear_k.weight")
    if not isinstance(narrow, Tensor) or narrow.ndim != 2:
        raise KnnError(f"{path} lacks {prefix}cmp_linear_k.weight, or has another size.", "Is it the right YAML?")
    args["compression"] = narrow.shape[0]
    if name in ("mhfa", "mhfa-grouped", "mhfa-shared-key", "mhfa-shared-value"):
        args["heads"] = sizes["head_nb"]
    if name in ("mhfa-grouped", "mhfa-shared-key", "mhfa-shared-value"):
        args["groups"] = sizes["group"]
    if name in ("mhfa-grouped", "mhfa-shared-value"):
        args["compression"] //= max(1, sizes["group"])
    if name in ("mhfa-context", "mhfa-context-statistics"):
        args |= {"groups": sizes["group"], "context": sizes["head_nb"] // max(1, sizes["group"]) // 2}
    return pooling_to_fill(encoder, name, args, SAME_NAMES, prefix)


def _with_head(
    to_fill: list[ComponentToFill],
    state: Mapping[str, Any],
    settings: Mapping[str, Any],
    labels: Sequence[str] | None,
    path: Path,
    config: Path,
) -> tuple[list[ImportedComponent], tuple[str, ...], str]:
    """The encoder, pooling and head with their weights; the names of the classes, and their label level."""
    projection = _mapping(settings, "projection_args", config)
    kind = str(projection.get("project_type"))
    cosine: dict[str, Any] = {}
    if kind in _COSINE:
        cosine = checked_settings(projection, {"scale": 32.0, "easy_margin": False, "K": 3}, config, "a head")
    key = f"{PROJECTION}weight" if cosine else f"{PROJECTION}trans.2.weight"
    if kind not in (*_COSINE, "softmax"):
        raise KnnError(f"{config} has the project_type {kind!r}.", f"Known: {', '.join((*_COSINE, 'softmax'))}.")
    rows = state.get(key)
    if not isinstance(rows, Tensor) or rows.ndim != 2:
        raise KnnError(f"{path} lacks {key}, or has another size.", "Is it the right YAML?")
    centers = cosine["K"] if kind.endswith("subcenter") else 1
    classes, remainder = divmod(rows.shape[0], max(1, centers))
    # Speed perturbation adds a class per speed: all classes at 1.0, then all at 0.9, then all at 1.1.
    data = settings.get("dataset_args")
    speeds = 3 if isinstance(data, dict) and data.get("speed_perturb") else 1
    if remainder or classes % speeds:
        raise KnnError(f"{path} has {rows.shape[0]} rows of {key}, which is not divisible by {centers * speeds}.")
    args: dict[str, Any] = {}
    if cosine:
        args = {"margin": 0.0, "scale": cosine["scale"], "subcenters": centers}
    if kind.startswith("arc_margin"):
        args["easy_margin"] = cosine["easy_margin"]
    head = head_to_fill(to_fill[1], classes, "softmax" if not cosine else _COSINE[kind], args, SAME_NAMES, PROJECTION)
    components = match_weights([*to_fill, head], state, path, "network", "wespeaker")
    classes //= speeds
    for name in ("weight", "trans.2.weight", "trans.2.bias"):
        if speeds > 1 and name in components[2].state:
            components[2].state[name] = components[2].state[name][: classes * centers].clone()
    names, level = _names(labels, classes)
    return components, names, level


_COSINE = {
    "arc_margin_intertopk_subcenter": "aam-softmax",
    "arc_margin": "aam-softmax",
    "add_margin": "am-softmax",
}


def _names(labels: Sequence[str] | None, classes: int) -> tuple[tuple[str, ...], str]:
    """The sorted names of the classes, and their label level."""
    if labels is None:
        sets = {len(names): (names, level) for names, level in ((CZECH_DIALECTS, "subgroup"), (VOXLINGUA107, "group"))}
        if classes not in sets:
            raise KnnError(f"The head has {classes} classes, whose names are unknown.", "Give `labels`.")
        return sets[classes]
    if len(set(labels)) != len(labels) or len(labels) != classes:
        raise KnnError(
            f"The head has {classes} classes, but {len(set(labels))} different names are given.", "Correct `labels`."
        )
    return tuple(sorted(labels)), "subgroup" if set(labels) <= set(CZECH_DIALECTS) else "group"
