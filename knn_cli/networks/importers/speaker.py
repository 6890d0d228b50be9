"""Speaker and language networks of speechbrain, wespeaker, pyannote and 3D-Speaker, with poolings and heads.

Strict, as `importers_wavlm`. What a training script of wespeaker (or of a fork of it) leaves behind holds the
network under `speaker_extractor.` and the head under `projection.`; its YAML says what the shapes do not.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from knn_cli.core.errors import KnnError
from knn_cli.networks.encoders.resnet import DEPTHS
from knn_cli.networks.importers.checkpoint_files import (
    Imported,
    Part,
    Wanted,
    fitted,
    known,
    listed,
    read,
    read_yaml,
    require,
    take,
    wanted_encoder,
    wanted_head,
    wanted_pooling,
)
from knn_cli.networks.importers.wavlm import sizes_from_shapes, weight_norm_names
from knn_cli.networks.importers.weight_names import (
    CAMPPLUS,
    CAMPPLUS_POOLING,
    ECAPA,
    ECAPA_POOLING,
    SAME,
    microsoft,
    speechbrain_classifier,
)

__all__ = ["EXTRACTOR", "from_3d_speaker", "from_speechbrain", "from_training", "from_wespeaker"]

EXTRACTOR = "speaker_extractor."
PROJECTION = "projection."
INTEGER_SCALE = 32768.0  # wespeaker's waveforms go to 16-bit integers' range

# Sorted, as wespeaker numbers its classes.
CZECH_DIALECTS = tuple("1-1 1-2 1-3 1-4 2-1 2-2 2-3 2-4 3-1 3-2 3-3 4-1 4-2".split())
VOXLINGUA107 = tuple(
    "ab af am ar as az ba be bg bn bo br bs ca ceb cs cy da de el en eo es et eu fa fi fo fr gl gn gu gv ha haw hi hr "
    "ht hu hy ia id is it iw ja jw ka kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn no oc pa pl "
    "ps pt ro ru sa sco sd si sk sl sn so sq sr su sv sw ta te tg th tk tl tr tt uk ur uz vi war yi yo zh".split()
)

# The fork's name of a pooling -> ours, for those whose arithmetic and weights are the same.
POOLINGS = {
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
_SPEECHBRAIN_NOTE = (
    "The weights keep the licence of their source; speechbrain's model cards state Apache-2.0. Check before you pass "
    "them on."
)
_3D_SPEAKER_NOTE = (
    "The weights keep the licence of their source; 3D-Speaker's model cards state Apache-2.0. Check before you pass "
    "them on."
)
_OWN_NOTE = "The weights keep the licence of whoever trained them, and that of the WavLM they started from."


def from_speechbrain(folder: Path) -> Imported:
    """An ECAPA-TDNN of speechbrain, such as lang-id-voxlingua107-ecapa, with the classifier where that is x-vector's.

    Raises
    ------
        KnnError: files that are missing or do not fit, or settings that our network does not have.
    """
    path = folder / "hyperparams.yaml"
    settings = read_yaml(path)
    features, model = (
        _section(settings, "compute_features", ".Fbank", path),
        _section(settings, "embedding_model", ".ECAPA_TDNN", path),
    )
    plain = {"deltas": False, "context": False, "sample_rate": 16000, "f_min": 0, "n_fft": 400, "win_length": 25}
    require(features, {**plain, "hop_length": 10, "filter_shape": "triangular"}, path, "filter bank")
    if features.get("f_max") not in (None, 8000):
        raise KnnError(f"{path} has f_max {features['f_max']!r}, and knn's filter bank knows 8000 only.", known())
    norm = {"norm_type": "global", "std_norm": True, **_section(settings, "mean_var_norm", "Normalization", path)}
    require(norm, {"norm_type": "sentence", "std_norm": False}, path, "filter bank")
    defaults = {
        "channels": [512, 512, 512, 512, 1536],
        "kernel_sizes": [5, 3, 3, 3, 1],
        "dilations": [1, 2, 3, 4, 1],
        "res2net_scale": 8,
        "se_channels": 128,
        "attention_channels": 128,
        "lin_neurons": 192,
        "global_context": True,
    }
    found = take(model, defaults, path, "an ECAPA-TDNN")
    bins = take(features, {"n_mels": 40}, path, "a filter bank")["n_mels"]
    require(model, {"input_size": bins, "groups": [1] * len(found["channels"])}, path, "ECAPA-TDNN")
    if "ReLU" not in str(model.get("activation", "ReLU")) or "Leaky" in str(model.get("activation", "")):
        raise KnnError(f"{path} has activation {model['activation']!r}, and knn's ECAPA-TDNN knows ReLU only.", known())
    args = dict(zip(("channels", "kernels", "dilations", "scale", "squeeze"), found.values(), strict=False))
    encoder = wanted_encoder("ecapa-tdnn", {**args, "bins": bins}, ECAPA)
    pooling_args = {
        "attention": found["attention_channels"],
        "dimension": found["lin_neurons"],
        "context": found["global_context"],
    }
    pooling = wanted_pooling(encoder, "ecapa-tdnn", pooling_args, ECAPA_POOLING)
    weights = folder / "embedding_model.ckpt"
    parts = fitted([encoder, pooling], _file(weights), weights, "ECAPA-TDNN", "speechbrain")
    source, classifier = f"speechbrain: {folder.name}", settings.get("classifier")
    if not isinstance(classifier, dict) or not str(classifier.get("!")).endswith("Xvector.Classifier"):
        return Imported(parts[0], source, _SPEECHBRAIN_NOTE, parts[1])
    if "LeakyReLU" not in str(classifier.get("activation", "LeakyReLU")):
        raise KnnError(f"{path} has a classifier with {classifier['activation']!r}; knn knows LeakyReLU only.", known())
    sizes = take(classifier, {"lin_blocks": 1, "lin_neurons": 512, "out_neurons": 1211}, path, "an x-vector classifier")
    labels = _speechbrain_labels(folder / "label_encoder.txt", sizes["out_neurons"])
    hidden = [sizes["lin_neurons"]] * sizes["lin_blocks"]
    spelling = speechbrain_classifier(len(hidden))
    head = wanted_head(pooling, len(labels), "deep-softmax", {"hidden": hidden}, spelling)
    weights = folder / "classifier.ckpt"
    parts += fitted([head], _file(weights), weights, "classifier", "speechbrain")
    return Imported(parts[0], source, _SPEECHBRAIN_NOTE, parts[1], parts[2], labels)


def _section(settings: Mapping[str, Any], key: str, ending: str, path: Path) -> dict[str, Any]:
    found = settings.get(key)
    if not isinstance(found, dict) or not str(found.get("!")).endswith(ending):
        raise KnnError(f"{path} has no {key} that knn knows: !new:...{ending} is wanted.", known())
    return {name: value for name, value in found.items() if name != "!"}


def _file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise KnnError(f"{path} is missing.", "Copy the whole folder.")
    return read(path)


def _speechbrain_labels(path: Path, classes: int) -> tuple[str, ...]:
    """Labels of a label encoder's text, in the order of their numbers."""
    try:
        lines = path.read_text(encoding="utf-8").split("================", 1)[0].splitlines()
        pairs = [line.rsplit(" => ", 1) for line in lines if line.strip()]
        numbered = {int(number): str(ast.literal_eval(label)) for label, number in pairs}
    except (OSError, ValueError, SyntaxError) as error:
        raise KnnError(f"{path} holds no labels of speechbrain.", "Copy the whole folder.") from error
    if sorted(numbered) != list(range(classes)) or len(set(numbered.values())) != classes:
        raise KnnError(f"{path} does not name the {classes} classes one by one.", "Copy the whole folder.")
    return tuple(numbered[number] for number in range(classes))


def from_wespeaker(content: Mapping[str, Any], path: Path) -> Imported:
    """A ResNet of wespeaker, its head left out, or pyannote's copy of one (all keys behind `resnet.`)."""
    prefix = "resnet." if "resnet.conv1.weight" in content else ""
    wanted = _resnet(content, prefix, path)
    encoder, pooling = fitted(wanted, content, path, "ResNet", "wespeaker", extras=r"projection\..*|loss_func\..*")
    return Imported(encoder, f"wespeaker: {path.name}", _WESPEAKER_NOTE, pooling, scale=INTEGER_SCALE)


def _resnet(state: Mapping[str, Any], prefix: str, path: Path) -> list[Wanted]:
    counts = []
    for stage in range(1, 5):
        start = f"{prefix}layer{stage}."
        counts.append(len({key.removeprefix(start).split(".")[0] for key in state if key.startswith(start)}))
    shape = (tuple(counts), f"{prefix}layer1.0.conv3.weight" in state)
    depths = [depth for depth, known_shape in DEPTHS.items() if known_shape == shape]
    stem, last = state.get(f"{prefix}conv1.weight"), state.get(f"{prefix}seg_1.weight")
    if not depths or not isinstance(stem, Tensor) or not isinstance(last, Tensor) or last.ndim != 2 or stem.ndim != 4:
        raise KnnError(f"{path} holds no ResNet that knn knows: its stages have {listed(counts)} blocks.", known())
    width = stem.shape[0]
    bins = last.shape[1] // (2 * width * (4 if shape[1] else 1))
    encoder = wanted_encoder("resnet", {"depth": depths[0], "width": width, "bins": bins}, SAME, prefix)
    args = {"dimension": last.shape[0], "two": f"{prefix}seg_2.weight" in state}
    return [encoder, wanted_pooling(encoder, "resnet", args, SAME, prefix)]


def from_3d_speaker(content: Mapping[str, Any], path: Path) -> Imported:
    """A CAM++ of 3D-Speaker; its sizes come from shapes."""
    blocks = []
    for number in range(1, 4):
        start = f"xvector.block{number}.tdnnd"
        blocks.append(len({key.removeprefix(start).split(".")[0] for key in content if key.startswith(start)}))
    telling = {
        "head.conv1.weight": 4,
        "xvector.tdnn.linear.weight": 3,
        "xvector.block1.tdnnd1.cam_layer.linear_local.weight": 3,
        "xvector.dense.linear.weight": 3,
    }
    wrong = [key for key, axes in telling.items() if getattr(content.get(key), "ndim", 0) != axes]
    if wrong:
        raise KnnError(f"{path} does not tell the sizes of its CAM++: missing or mis-sized {listed(wrong)}.", known())
    stem, tdnn, local, dense = (tuple(content[key].shape) for key in telling)
    args = {
        "width": stem[0],
        "channels": tdnn[0],
        "growth": local[0],
        "bottleneck": local[1] // local[0],
        "blocks": blocks,
        "bins": 8 * tdnn[1] // stem[0],
    }
    encoder = wanted_encoder("campplus", args, CAMPPLUS)
    pooling = wanted_pooling(encoder, "campplus", {"dimension": dense[0]}, CAMPPLUS_POOLING)
    parts = fitted([encoder, pooling], content, path, "CAM++", "3D-Speaker")
    return Imported(parts[0], f"3D-Speaker: {path.name}", _3D_SPEAKER_NOTE, parts[1])


def from_training(
    content: Mapping[str, Any], path: Path, config: Path | None, labels: Sequence[str] | None
) -> Imported:
    """What wespeaker's training of a WavLM or ResNet wrote, with its head.

    config : the training's YAML
    labels : names of the classes, in any order; None for those of the known sets of 13 and of 107 classes

    Raises
    ------
        KnnError: no config, a network or head that knn does not have, weights that do not fit, names that are missing
            or too many.
    """
    if config is None:
        raise KnnError(f"{path} was written by a training; it needs its settings.", "Name its YAML with --config.")
    settings = read_yaml(config)
    model, args = str(settings.get("model")), _mapping(settings, "model_args", config)
    state = weight_norm_names(content)
    if model == "WavLM_Base_MHFA":
        norm = f"{EXTRACTOR}model.feature_extractor.conv_layers.1.2.1.weight"
        spelling = microsoft("layer" if norm in state else "group")
        prefix = f"{EXTRACTOR}model."
        inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        sizes = sizes_from_shapes(inner, spelling, path)
        encoder = wanted_encoder("wavlm", asdict(sizes), spelling, prefix)
        wanted = [encoder, _fork_pooling(encoder, args, state, path, config)]
    elif model.startswith("ResNet"):
        require(args, {"pooling_func": "TSTP"}, config, "ResNet")
        wanted = _resnet(state, EXTRACTOR, path)
    else:
        raise KnnError(f"{config} has the model {model!r}.", "Known: WavLM_Base_MHFA, ResNet18 to ResNet293.")
    parts, names, level = _with_head(wanted, state, settings, labels, path, config)
    return Imported(parts[0], f"wespeaker: {path.name}", _OWN_NOTE, parts[1], parts[2], names, level, INTEGER_SCALE)


def _mapping(settings: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    found = settings.get(key)
    if not isinstance(found, dict):
        raise KnnError(f"{path} has no {key}.", "Name the YAML of the training that wrote the checkpoint.")
    return found


def _fork_pooling(
    encoder: Wanted, settings: Mapping[str, Any], state: Mapping[str, Any], path: Path, config: Path
) -> Wanted:
    prefix, theirs = f"{EXTRACTOR}back_end.", str(settings.get("pooling"))
    if theirs not in POOLINGS:
        raise KnnError(f"{config} has the pooling {theirs!r}.", f"Known: {', '.join(POOLINGS)}.")
    found = take(settings, {"head_nb": 8, "embed_dim": 256, "group": 1}, config, "a pooling")
    args: dict[str, Any] = {"dimension": found["embed_dim"]}
    name = POOLINGS[theirs]
    narrow = state.get(f"{prefix}cmp_linear_k.weight")
    if not isinstance(narrow, Tensor) or narrow.ndim != 2:
        raise KnnError(f"{path} lacks {prefix}cmp_linear_k.weight, or has another size.", "Is it the right YAML?")
    args["compression"] = narrow.shape[0]
    if name in ("mhfa", "mhfa-grouped", "mhfa-shared-key", "mhfa-shared-value"):
        args["heads"] = found["head_nb"]
    if name in ("mhfa-grouped", "mhfa-shared-key", "mhfa-shared-value"):
        args["groups"] = found["group"]
    if name in ("mhfa-grouped", "mhfa-shared-value"):
        args["compression"] //= max(1, found["group"])
    if name in ("mhfa-context", "mhfa-context-statistics"):
        args |= {"groups": found["group"], "context": found["head_nb"] // max(1, found["group"]) // 2}
    return wanted_pooling(encoder, name, args, SAME, prefix)


def _with_head(
    wanted: list[Wanted],
    state: Mapping[str, Any],
    settings: Mapping[str, Any],
    labels: Sequence[str] | None,
    path: Path,
    config: Path,
) -> tuple[list[Part], tuple[str, ...], str]:
    """Encoder, pooling and head with their weights; the classes' names, and their level."""
    projection = _mapping(settings, "projection_args", config)
    kind = str(projection.get("project_type"))
    cosine: dict[str, Any] = {}
    if kind in _COSINE:
        cosine = take(projection, {"scale": 32.0, "easy_margin": False, "K": 3}, config, "a head")
    key = f"{PROJECTION}weight" if cosine else f"{PROJECTION}trans.2.weight"
    if kind not in (*_COSINE, "softmax"):
        raise KnnError(f"{config} has the project_type {kind!r}.", f"Known: {', '.join((*_COSINE, 'softmax'))}.")
    rows = state.get(key)
    if not isinstance(rows, Tensor) or rows.ndim != 2:
        raise KnnError(f"{path} lacks {key}, or has another size.", "Is it the right YAML?")
    centers = cosine["K"] if kind.endswith("subcenter") else 1
    classes, rest = divmod(rows.shape[0], max(1, centers))
    # Speed perturbation counts a class at another speed as another class: all of them at 1.0, then at 0.9, then 1.1.
    data = settings.get("dataset_args")
    speeds = 3 if isinstance(data, dict) and data.get("speed_perturb") else 1
    if rest or classes % speeds:
        raise KnnError(f"{path} has {rows.shape[0]} rows of {key}, which make no classes of {centers * speeds} each.")
    args: dict[str, Any] = {}
    if cosine:
        args = {"margin": 0.0, "scale": cosine["scale"], "subcenters": centers}
    if kind.startswith("arc_margin"):
        args["easy_margin"] = cosine["easy_margin"]
    head = wanted_head(wanted[1], classes, "softmax" if not cosine else _COSINE[kind], args, SAME, PROJECTION)
    parts = fitted([*wanted, head], state, path, "network", "wespeaker")
    classes //= speeds
    for name in ("weight", "trans.2.weight", "trans.2.bias"):
        if speeds > 1 and name in parts[2].state:
            parts[2].state[name] = parts[2].state[name][: classes * centers].clone()
    names, level = _names(labels, classes)
    return parts, names, level


_COSINE = {
    "arc_margin_intertopk_subcenter": "aam-softmax",
    "arc_margin": "aam-softmax",
    "add_margin": "am-softmax",
}


def _names(labels: Sequence[str] | None, classes: int) -> tuple[tuple[str, ...], str]:
    """Sorted names of the classes, and their level."""
    if labels is None:
        sets = {len(names): (names, level) for names, level in ((CZECH_DIALECTS, "subgroup"), (VOXLINGUA107, "group"))}
        if classes not in sets:
            raise KnnError(f"The head knows {classes} classes, and their names are not known.", "Give --labels.")
        return sets[classes]
    if len(set(labels)) != len(labels) or len(labels) != classes:
        raise KnnError(
            f"The head knows {classes} classes, and {len(set(labels))} different names are given.", "Correct --labels."
        )
    return tuple(sorted(labels)), "subgroup" if set(labels) <= set(CZECH_DIALECTS) else "group"
