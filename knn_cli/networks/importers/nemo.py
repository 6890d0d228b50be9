"""NVIDIA NeMo: AmberNet, TitaNet, SpeakerNet and other EncDecSpeakerLabelModels of a ConvASREncoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from knn_cli.core.errors import KnnError
from knn_cli.networks.construction import MAX_SIZE
from knn_cli.networks.encoders.conv_asr import BLOCK
from knn_cli.networks.features import StandardMel
from knn_cli.networks.importers.checkpoint_files import checked_settings, list_keys, require_settings, sources_hint
from knn_cli.networks.importers.components import (
    ComponentToFill,
    ImportedModel,
    encoder_to_fill,
    head_to_fill,
    match_weights,
    pooling_to_fill,
)
from knn_cli.networks.importers.nemo_file import is_nemo, read_nemo
from knn_cli.networks.importers.registry import Checkpoint, importer
from knn_cli.networks.importers.weight_names import WeightNames

__all__ = ["from_nemo"]

_NOTE = (
    "The weights keep the licence of their source; NVIDIA publishes models of NeMo under CC-BY-4.0 or its NGC terms. "
    "Check before you pass them on."
)
_PREPROCESSOR = "AudioToMelSpectrogramPreprocessor"
# Of a training; the filter bank and the window are compared with ours.
_FEATURES = ("preprocessor.featurizer.fb", "preprocessor.featurizer.window")
_LEFT_OUT = r"(eval_)?loss\..*|(_macro|_pair_macro)?_?accuracy\..*|" + "|".join(
    key.replace(".", r"\.") for key in _FEATURES
)
_HEAD = r"decoder\.final\.(weight|bias)"
_POOLED = ("xvector", "tap", "attention")

MOST_REPEATS = 100  # of the convolutions of a block; published models have 5


def _is_nemo(checkpoint: Checkpoint) -> bool:
    return is_nemo(checkpoint.path)


@importer("NeMo", recognizes=_is_nemo)
def from_nemo(checkpoint: Checkpoint) -> ImportedModel:
    """Import a `.nemo` file; its classes become a head if the training had a softmax and named them, as AmberNet's.

    Speakers of a training with an angular loss, as TitaNet's, are left out: the embeddings are what it is for.

    Raises
    ------
    KnnError
        The file is no model of NeMo, or of another kind, or settings, weights or names do not fit.
    """
    path = checkpoint.path
    settings, weights = read_nemo(path)
    encoder_settings = _section(settings, "encoder", "ConvASREncoder", path)
    decoder = _section(settings, "decoder", "SpeakerDecoder", path)
    features = _features(_section(settings, "preprocessor", _PREPROCESSOR, path), path)
    blocks = _blocks(encoder_settings, features["bins"], path)
    encoder = encoder_to_fill("conv-asr", {**features, "blocks": blocks}, _encoder_names(blocks), "encoder.encoder.")
    _check_features(encoder, weights, path)
    pooling = _pooling(encoder, decoder, path)
    labels = _labels(settings, decoder, path)
    parts = [encoder, pooling]
    if labels:
        rectify = pooling.component.name == "layered-statistics"  # there is no ReLU behind attention
        args = {"normalize": False, "rectify": rectify}
        names = WeightNames(((f"trans.{int(rectify)}.", "final."),))
        parts.append(head_to_fill(pooling, len(labels), "softmax", args, names, "decoder."))
    left_out = _LEFT_OUT if labels else f"{_LEFT_OUT}|{_HEAD}"
    components = match_weights(parts, weights, path, "ConvASREncoder", "NeMo", left_out)
    head = components[2] if labels else None
    return ImportedModel(components[0], f"NeMo: {path.name}", _NOTE, components[1], head, labels)


def _section(settings: Mapping[str, Any], key: str, name: str, path: Path) -> dict[str, Any]:
    """Settings of a part without those that mean nothing here. KnnError if it is another class than `name`."""
    section = settings.get(key)
    target = str(section.get("_target_", section.get("cls"))) if isinstance(section, dict) else "nothing"
    if not isinstance(section, dict) or target.rpartition(".")[2] != name:
        raise KnnError(f"{path} has {target} as {key}, and knn reads {name} only.", sources_hint())
    return section


def _features(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Arguments of the encoder's features. KnnError for others than those of `StandardMel`."""
    plain = {"sample_rate": 16000, "normalize": "per_feature", "preemph": 0.97, "lowfreq": 0, "log": True}
    plain |= {"log_zero_guard_type": "add", "log_zero_guard_value": 2**-24, "frame_splicing": 1, "exact_pad": False}
    require_settings(settings, {**plain, "mag_power": 2.0, "mel_norm": "slaney", "pad_value": 0}, path, "features")
    if settings.get("highfreq") not in (None, 8000):
        raise KnnError(f"{path} has highfreq {settings['highfreq']!r}, and knn's features 8000 only.", sources_hint())
    args = {
        "window": _samples(settings, "window_size", 0.02, path),
        "step": _samples(settings, "window_stride", 0.01, path),
    }
    transform = settings.get("n_fft") or 1 << (args["window"] - 1).bit_length()
    shape = checked_settings(settings, {"window": "hann", "features": 64}, path, "features of NeMo")
    return {**args, "transform": transform, "shape": shape["window"], "bins": shape["features"]}


def _samples(settings: Mapping[str, Any], key: str, default: float, path: Path) -> int:
    """A length in samples, which is given as such or in seconds."""
    if isinstance(samples := settings.get(f"n_{key}"), int):
        return samples
    seconds = settings.get(key, default)
    if not isinstance(seconds, (int, float)) or not 0 < seconds < 1:
        raise KnnError(f"{path} has {key} {seconds!r}.", sources_hint())
    return int(seconds * 16000)


def _blocks(settings: Mapping[str, Any], bins: int, path: Path) -> list[dict[str, Any]]:
    """Settings of the encoder's blocks, as `conv_asr.BLOCK` has them."""
    plain = {"activation": "relu", "normalization_mode": "batch", "conv_mask": True, "frame_splicing": 1}
    require_settings(settings, {**plain, "feat_in": bins, "quantize": False}, path, "ConvASREncoder")
    listed = settings.get("jasper")
    if not isinstance(listed, list) or not listed or not all(isinstance(each, dict) for each in listed):
        raise KnnError(f"{path} names no blocks of its encoder.", sources_hint())
    mode, blocks = settings.get("residual_mode", "add"), []
    for each in listed:
        plain = {"groups": 1, "heads": -1, "residual_dense": False, "future_context": -1}
        require_settings(each, plain, path, "ConvASREncoder")
        mode = each.get("residual_mode", mode)  # that of a block holds for those behind it
        if mode not in ("add", "stride_add"):
            raise KnnError(f"{path} has residual_mode {mode!r}; knn supports add and stride_add.", sources_hint())
        blocks.append(_block(each, mode, path))
    return blocks


def _block(settings: Mapping[str, Any], residual_mode: str, path: Path) -> dict[str, Any]:
    """Settings of one block."""
    listed = ("kernel", "stride", "dilation")
    defaults: dict[str, Any] = {
        **{"filters": 0, "repeat": 1, "kernel": [0], "stride": [1], "dilation": [1], "dropout": 0.0},
        **{"residual": False, "separable": False, "se": False, "se_reduction_ratio": 8, "stride_last": False},
    }
    given = {key: [value] if key in listed and type(value) is int else value for key, value in settings.items()}
    found = checked_settings(given, {**defaults, "kernel_size_factor": 1.0}, path, "a ConvASREncoder")
    if not 1 <= found["repeat"] <= MOST_REPEATS:
        raise KnnError(f"{path} has a block that repeats {found['repeat']} times.", sources_hint())
    if any(len(found[key]) != 1 for key in listed):
        raise KnnError(f"{path} has convolutions of more than one axis.", sources_hint())
    kernel = found["kernel"][0] * found["kernel_size_factor"]
    if not -MAX_SIZE <= kernel <= MAX_SIZE:  # nor is NaN
        raise KnnError(f"{path} has a convolution of {kernel:g} frames.", sources_hint())
    kernel = max(int(kernel), 1)
    same = ("repeat", "dropout", "residual", "separable", "stride_last")
    return {
        "channels": found["filters"],
        "kernel": kernel + (kernel % 2 == 0),
        "stride": found["stride"][0],
        "dilation": found["dilation"][0],
        **{key: found[key] for key in same},
        "stride_residual": found["residual"] and residual_mode == "stride_add",
        "squeeze": found["se_reduction_ratio"] if found["se"] else 0,
    }


def _encoder_names(blocks: Sequence[Mapping[str, Any]]) -> WeightNames:
    """Names of the encoder's weights: a block of NeMo is one list of convolutions, norms, ReLUs and dropouts."""
    names = []
    for number, given in enumerate(blocks):
        block, place = {**BLOCK, **given}, 0
        ours, theirs = f"blocks.{number}.", f"{number}.mconv."
        for unit in range(block["repeat"]):
            parts = ("depthwise.", "convolution.") if block["separable"] else ("convolution.",)
            for part in parts:
                names.append((f"{ours}units.{unit}.{part}", f"{theirs}{place}.conv."))
                place += 1
            names.append((f"{ours}units.{unit}.norm.", f"{theirs}{place}."))
            place += 1 if unit == block["repeat"] - 1 else 3  # behind a norm there are ReLU and dropout
        names.append((f"{ours}squeeze.narrow.", f"{theirs}{place}.fc.0."))
        names.append((f"{ours}squeeze.widen.", f"{theirs}{place}.fc.2."))
        names.append((f"{ours}residual.convolution.", f"{number}.res.0.0.conv."))
        names.append((f"{ours}residual.norm.", f"{number}.res.0.1."))
    return WeightNames(tuple(names))


def _check_features(encoder: ComponentToFill, weights: Mapping[str, Any], path: Path) -> None:
    """KnnError if a checkpoint holds another filter bank or window than its settings say."""
    args = encoder.component.args
    front = StandardMel(args["bins"], args["window"], args["transform"], args["step"], args["shape"])
    for key, ours in zip(_FEATURES, (front.filters.T[None], front.window), strict=True):
        theirs = weights.get(key)
        if theirs is None:
            continue
        if not isinstance(theirs, Tensor) or theirs.shape != ours.shape:
            raise KnnError(f"{path} has another {key} than its settings say.", "Download it again.")
        if not torch.allclose(theirs.float(), ours, atol=1e-5, rtol=1e-4):
            raise KnnError(f"{path} has other values in {key} than its settings say.", "Download it again.")


def _pooling(encoder: ComponentToFill, settings: Mapping[str, Any], path: Path) -> ComponentToFill:
    """The pooling of a SpeakerDecoder."""
    mode = str(settings.get("pool_mode", "xvector")).lower()
    given = settings.get("emb_sizes", 256)
    sizes = given if isinstance(given, list) else [given]
    if mode not in _POOLED or not sizes or any(type(size) is not int or size < 1 for size in sizes):
        raise KnnError(f"{path} has pool_mode {mode!r} with emb_sizes {given!r}.", f"Known: {', '.join(_POOLED)}.")
    require_settings(settings, {"feat_in": encoder.module.channels}, path, "SpeakerDecoder")
    if mode != "attention":
        layers = (("linears.#1.", "emb_layers.#1.0."), ("norms.#1.", "emb_layers.#1.1."))
        args = {"dimensions": sizes, "deviation": mode == "xvector"}
        return pooling_to_fill(encoder, "layered-statistics", args, WeightNames(layers), "decoder.")
    if len(sizes) > 1:
        raise KnnError(f"{path} has several layers behind its attention: {list_keys(sizes)}.", sources_hint())
    attention = checked_settings(settings, {"attention_channels": 128}, path, "a SpeakerDecoder")["attention_channels"]
    parts = (("tdnn.conv.", "0.conv_layer."), ("tdnn.norm.", "0.bn."), ("conv.", "2."))
    names = [(ours, f"_pooling.attention_layer.{theirs}") for ours, theirs in parts]
    names += [("norm.", "emb_layers.0.0."), ("fc.", "emb_layers.0.1.")]
    args = {"attention": attention, "dimension": sizes[0], "floor": 1e-10}
    return pooling_to_fill(encoder, "ecapa-tdnn", args, WeightNames(tuple(names)), "decoder.")


def _labels(settings: Mapping[str, Any], decoder: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Names of the classes of a softmax; () where the training had an angular loss or did not keep them."""
    train, loss = settings.get("train_ds"), settings.get("loss")
    named = (train.get("labels") if isinstance(train, dict) else None) or settings.get("labels")
    is_angular = decoder.get("angular", False) or "angular" in str(
        loss.get("_target_") if isinstance(loss, dict) else ""
    )
    if is_angular or not isinstance(named, list):
        return ()
    labels = tuple(str(each) for each in named)
    if len(labels) != decoder.get("num_classes") or len(set(labels)) != len(labels):
        raise KnnError(f"{path} does not name its {decoder.get('num_classes')} classes one by one.", sources_hint())
    return labels
