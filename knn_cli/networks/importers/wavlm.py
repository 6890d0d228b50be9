"""Published WavLM checkpoints, in the three spellings they come in, to the arguments and weights of our `WavLM`.

Strict: every weight of the network must be there with its size, and nothing else may be, but for the heads and
training leftovers that each dialect lists.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from knn_cli.core.errors import KnnError
from knn_cli.networks.encoders.wavlm_sizes import SIZES, WavLMSizes
from knn_cli.networks.importers.checkpoint_files import (
    list_keys,
    read_json,
    require_settings,
    sources_hint,
    without_wrappers,
)
from knn_cli.networks.importers.components import ImportedModel, encoder_to_fill, match_weights
from knn_cli.networks.importers.registry import Checkpoint, importer
from knn_cli.networks.importers.transformers_folders import (
    CTC_NOTE,
    FolderWeights,
    checked_sizes,
    shared_sizes,
    without_final_norm,
)
from knn_cli.networks.importers.weight_names import HUGGING_FACE, TORCHAUDIO, WeightNames, microsoft

__all__ = [
    "fairseq_sizes",
    "from_hugging_face",
    "from_microsoft",
    "from_torchaudio",
    "sizes_from_shapes",
    "wavlm_args",
    "weight_norm_names",
]

_LICENCE_NOTE = (
    "The weights keep the licence of their source. Microsoft's model cards for WavLM point to the licence of its "
    "UniSpeech repository (CC BY-SA 3.0); torchaudio states MIT for the same weights. Check before you pass them on."
)
# The defaults of Microsoft's reader for settings that a cfg leaves out.
_MICROSOFT_DEFAULTS: dict[str, Any] = {
    "extractor_mode": "default",
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "conv_feature_layers": "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
    "conv_bias": False,
    "normalize": False,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "relative_position_embedding": False,
    "num_buckets": 320,
    "max_distance": 1280,
    "gru_rel_pos": False,
}


def _is_microsoft(checkpoint: Checkpoint) -> bool:
    return {"cfg", "model"} <= checkpoint.content.keys()


@importer("Microsoft", recognizes=_is_microsoft)
def from_microsoft(checkpoint: Checkpoint) -> ImportedModel:
    """A WavLM of Microsoft's release: `cfg` holds its settings, `model` its weights.

    Raises
    ------
    KnnError
        Settings are those of another network, or weights are missing, extra or mis-sized.
    """
    content, path = checkpoint.content, checkpoint.path
    config, state = content["cfg"], content["model"]
    if isinstance(config, dict):
        config = {**_MICROSOFT_DEFAULTS, **config}
    if not isinstance(config, dict) or not isinstance(state, dict):
        raise KnnError(f"{path} is no WavLM checkpoint: its cfg and model are no dictionaries.", sources_hint())
    require_settings(
        config, {"activation_fn": "gelu", "relative_position_embedding": True, "gru_rel_pos": True}, path, "WavLM"
    )
    sizes = _sizes(
        path,
        **fairseq_sizes(config, path),
        buckets=config["num_buckets"],
        distance=config["max_distance"],
        normalize=config["normalize"],
    )
    return _imported(sizes, without_wrappers(state), microsoft(sizes.convolution_norm), "Microsoft", path)


def fairseq_sizes(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Fields of `TransformerSizes` in settings with the names of fairseq; missing ones are those of Base."""
    config = {**_MICROSOFT_DEFAULTS, **config}
    mode = config["extractor_mode"]
    norms = {"default": "group", "layer_norm": "layer"}
    return {
        "convolutions": _convolutions(config["conv_feature_layers"], path),
        "convolution_bias": config["conv_bias"],
        "convolution_norm": norms.get(mode, mode) if isinstance(mode, str) else mode,
        "channels": config["encoder_embed_dim"],
        "blocks": config["encoder_layers"],
        "heads": config["encoder_attention_heads"],
        "inner": config["encoder_ffn_embed_dim"],
        "position_kernel": config["conv_pos"],
        "position_groups": config["conv_pos_groups"],
        "norm_first": config["layer_norm_first"],
    }


def _is_config_folder(checkpoint: Checkpoint) -> bool:
    return checkpoint.is_folder


@importer("Hugging Face", recognizes=_is_config_folder)
def from_hugging_face(checkpoint: Checkpoint) -> ImportedModel:
    """Import a WavLM of transformers: a folder with config.json and model.safetensors or pytorch_model.bin.

    An x-vector head becomes the pooling, that of a sequence classification pooling and head; a head for CTC and weights
    for pretraining are left out.

    Raises
    ------
    KnnError
        Settings are those of another network, weights are missing, extra or mis-sized, classes have no names, or the
        head classifies single frames.
    """
    folder = checkpoint.path
    config = read_json(folder / "config.json")
    if config.get("model_type") != "wavlm":
        raise KnnError(f"{folder} is no WavLM folder: config.json has no model_type wavlm.", sources_hint())
    sizes, names = _hugging_face_sizes(config, folder), HUGGING_FACE
    weights = FolderWeights.read(folder, config, "wavlm.")
    weights = replace(weights, state=weight_norm_names(weights.state))
    if weights.weighted and sizes.norm_first:
        sizes, names = replace(sizes, final_norm=False), without_final_norm(names)
    encoder = encoder_to_fill("wavlm", wavlm_args(sizes), names)
    note = f"{_LICENCE_NOTE} {CTC_NOTE}" if weights.has_ctc else _LICENCE_NOTE
    return weights.imported(encoder, sizes.network, note)


def _hugging_face_sizes(config: Mapping[str, Any], folder: Path) -> WavLMSizes:
    """Sizes from config.json and preprocessor_config.json; missing settings are those of Base, as in transformers."""
    base = SIZES["base"]
    return _sizes(
        folder,
        **shared_sizes(config, folder, "WavLM"),
        buckets=config.get("num_buckets", base.buckets),
        distance=config.get("max_bucket_distance", base.distance),
    )


def _is_torchaudio(checkpoint: Checkpoint) -> bool:
    return any("encoder.transformer." in key for key in checkpoint.keys)


@importer("torchaudio", recognizes=_is_torchaudio)
def from_torchaudio(checkpoint: Checkpoint) -> ImportedModel:
    """Import a WavLM of torchaudio, whose sizes follow from the shapes of its weights."""
    content, path = checkpoint.weights, checkpoint.path
    state = weight_norm_names(content)
    for key in [key for key in state if key.endswith((".in_proj_weight", ".in_proj_bias"))]:
        if isinstance(packed := state[key], Tensor) and packed.ndim and packed.shape[0] % 3 == 0:
            for part, value in zip(("query", "key", "value"), packed.chunk(3), strict=True):
                state[f"{key}[{part}]"] = value
            del state[key]
    return _imported(sizes_from_shapes(state, TORCHAUDIO, path), state, TORCHAUDIO, "torchaudio", path)


def sizes_from_shapes(state: Mapping[str, Any], names: WeightNames, path: Path) -> WavLMSizes:
    """Infer the sizes of a WavLM whose weights come without settings.

    Settings that the shapes do not determine are those of all published WavLM models: the strides, `distance` 800,
    and norm_first and normalize if and only if the convolutions have layer norms.

    Raises
    ------
    KnnError
        Weights that determine the sizes are missing or mis-sized, or the kernels are not WavLM's.
    """
    first = names.source_name("front.convolutions.0.weight")
    count = _count(state, first.split("0", 1)[0])
    axes_of = {
        **{names.source_name(f"front.convolutions.{n}.weight"): 3 for n in range(count)},
        names.source_name("front.projection.weight"): 2,
        names.source_name("position.direction"): 3,
        names.source_name("distances.values.weight"): 2,
        names.source_name("blocks.0.widen.weight"): 2,
    }
    wrong = [key for key, axes in axes_of.items() if not isinstance(state.get(key), Tensor) or state[key].ndim != axes]
    if wrong or count == 0:
        raise KnnError(
            f"{path} does not determine the sizes of its WavLM: missing or mis-sized {list_keys(wrong)}.",
            sources_hint(),
        )
    *convolutions, projection, position, relative, inner = (tuple(state[key].shape) for key in axes_of)
    kernels = [shape[2] for shape in convolutions]
    if kernels != [kernel for _, kernel, _ in SIZES["base"].convolutions]:
        raise KnnError(f"{path} has convolutions of {kernels} samples, whose strides knn does not know.")
    layer_norm = names.source_name(f"front.norms.{count - 1}.weight") in state
    return _sizes(
        path,
        convolutions=tuple(
            (shape[0], kernel, stride)
            for shape, (_, kernel, stride) in zip(convolutions, SIZES["base"].convolutions, strict=True)
        ),
        convolution_bias=first.removesuffix("weight") + "bias" in state,
        convolution_norm="layer" if layer_norm else "group",
        channels=projection[0],
        blocks=_count(state, names.source_name("blocks.0.widen.weight").split("0", 1)[0]),
        heads=relative[1],
        inner=inner[0],
        position_kernel=position[2],
        position_groups=max(1, position[0] // max(1, position[1])),
        buckets=relative[0],
        norm_first=layer_norm,
        normalize=layer_norm,
    )


def _imported(
    sizes: WavLMSizes, state: Mapping[str, Any], names: WeightNames, source: str, path: Path
) -> ImportedModel:
    """Match the weights with the network; KnnError where keys are missing, extra or of another shape."""
    encoder = encoder_to_fill("wavlm", wavlm_args(sizes), names)
    (component,) = match_weights([encoder], weight_norm_names(state), path, sizes.network, source)
    return ImportedModel(component, f"{source}: {path.name}", _LICENCE_NOTE)


def wavlm_args(sizes: WavLMSizes) -> dict[str, Any]:
    """The encoder's arguments, without `final_norm` where it is as in all published models."""
    return {name: value for name, value in asdict(sizes).items() if name != "final_norm" or not value}


def _sizes(path: Path, **sizes: Any) -> WavLMSizes:
    checked: WavLMSizes = checked_sizes(WavLMSizes, path, sizes)
    return checked


def _convolutions(text: Any, path: Path) -> tuple[Any, ...]:
    """Parse a list such as "[(512,10,5)] + [(512,3,2)] * 4" without evaluating it as code."""

    def value(node: ast.expr) -> Any:
        match node:
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return value(left) + value(right)
            case ast.BinOp(left=left, op=ast.Mult(), right=ast.Constant(value=int(times))) if times < 100:
                return ast.literal_eval(left) * times
            case _:
                return ast.literal_eval(node)

    try:
        return tuple(tuple(int(size) for size in shape) for shape in value(ast.parse(text, mode="eval").body))
    except (SyntaxError, ValueError, TypeError) as error:
        raise KnnError(
            f"{path} has conv_feature_layers {text!r}, which is no list of sizes.", sources_hint()
        ) from error


def weight_norm_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the keys of a weight norm from torch's newer names (parametrizations) to weight_g and weight_v."""
    ends: dict[str, Callable[[str], str]] = {
        ".parametrizations.weight.original0": lambda key: f"{key}.weight_g",
        ".parametrizations.weight.original1": lambda key: f"{key}.weight_v",
    }
    renamed = {}
    for key, value in state.items():
        name = str(key)
        for end, old in ends.items():
            if name.endswith(end):
                name = old(name.removesuffix(end))
        renamed[name] = value
    return renamed


def _count(state: Mapping[str, Any], prefix: str) -> int:
    """The number of modules `prefix`0, `prefix`1, ... in `state`."""
    numbers = {key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)}
    return len(numbers)
