"""Published WavLM checkpoints, in the three spellings they come in, to the arguments and weights of our `WavLM`.

Strict: every weight of the network must be there with its size, and nothing else may be, but for the heads and
training leftovers that each dialect lists. Files are read without running anything that they contain.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from pickle import UnpicklingError  # only to catch what torch.load raises
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from knn_cli.dialects import HUGGING_FACE, HUGGING_FACE_HEADS, TORCHAUDIO, Spelling, microsoft
from knn_cli.errors import KnnError
from knn_cli.wavlm import SIZES, WavLM, WavLMSizes

__all__ = ["DIALECTS", "ImportedEncoder", "import_checkpoint"]

DIALECTS = {
    "Microsoft": 'a .pt file {"cfg": ..., "model": ...} such as WavLM-Base+.pt or WavLM-Large.pt',
    "Hugging Face": "a folder with config.json and model.safetensors or pytorch_model.bin",
    "torchaudio": "a .pt, .pth or .safetensors file with the state dict of torchaudio's wavlm_model",
}
LICENCE_NOTE = (
    "The weights keep the licence of their source. Microsoft's model cards for WavLM point to the licence of its "
    "UniSpeech repository (CC BY-SA 3.0); torchaudio states MIT for the same weights. Check before you pass them on."
)
# What Microsoft's own reader takes for settings that a cfg leaves out.
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
_SHOWN = 20  # keys listed in an error


@dataclass(frozen=True)
class ImportedEncoder:
    """An encoder from elsewhere: `ENCODERS.build(name, **args).load_state_dict(state)` is all it takes.

    Attributes:
        name: name of the encoder in `ENCODERS`.
        args: its arguments, ready for JSON.
        state: its weights, float32 on the CPU.
        source: dialect and file or folder name that it came from.
        licence_note: what to write about the licence in a bundle's card.
    """

    name: str
    args: dict[str, Any]
    state: dict[str, Tensor]
    source: str
    licence_note: str = LICENCE_NOTE


def import_checkpoint(path: Path | str) -> ImportedEncoder:
    """The WavLM at `path`, whichever of `DIALECTS` it speaks.

    Raises:
        KnnError: nothing there, not readable, no dialect that we know, sizes or settings that our network does not
            have, or keys that are missing, extra or of another size (all of them listed).
    """
    path = Path(path)
    if path.is_dir():
        return _from_hugging_face(path)
    if not path.is_file():
        raise KnnError(f"There is no checkpoint {path}.", _known())
    content = _read(path)
    if {"cfg", "model"} <= content.keys():
        return _from_microsoft(content, path)
    if any("encoder.transformer." in str(key) for key in content):
        return _from_torchaudio(content, path)
    if any("pos_conv_embed" in str(key) for key in content):
        raise KnnError(f"{path} is the weights of a Hugging Face model without its config.", "Name their folder.")
    raise KnnError(f"{path} is no WavLM checkpoint that knn knows.", _known())


def _from_microsoft(content: Mapping[str, Any], path: Path) -> ImportedEncoder:
    config, state = content["cfg"], content["model"]
    if isinstance(config, dict):
        config = {**_MICROSOFT_DEFAULTS, **config}
    if not isinstance(config, dict) or not isinstance(state, dict):
        raise KnnError(f"{path} is no WavLM checkpoint: its cfg and model are no dictionaries.", _known())
    _require(config, {"activation_fn": "gelu", "relative_position_embedding": True, "gru_rel_pos": True}, path)
    mode = config["extractor_mode"]
    sizes = _sizes(
        path,
        convolutions=_convolutions(config["conv_feature_layers"], path),
        convolution_bias=config["conv_bias"],
        convolution_norm={"default": "group", "layer_norm": "layer"}.get(mode, mode),
        channels=config["encoder_embed_dim"],
        blocks=config["encoder_layers"],
        heads=config["encoder_attention_heads"],
        inner=config["encoder_ffn_embed_dim"],
        position_kernel=config["conv_pos"],
        position_groups=config["conv_pos_groups"],
        buckets=config["num_buckets"],
        distance=config["max_distance"],
        norm_first=config["layer_norm_first"],
        normalize=config["normalize"],
    )
    return _imported(sizes, state, microsoft(sizes.convolution_norm), "Microsoft", path)


def _from_hugging_face(folder: Path) -> ImportedEncoder:
    config = _json(folder / "config.json")
    if config.get("model_type") != "wavlm":
        raise KnnError(f"{folder} is no WavLM folder: config.json has no model_type wavlm.", _known())
    gelu = {"hidden_act": "gelu", "feat_extract_activation": "gelu"}
    _require(config, {**gelu, "layer_norm_eps": 1e-5, "add_adapter": False}, folder)
    base = SIZES["base"]  # transformers takes Base's value for what a config leaves out

    def take(key: str, default: Any) -> Any:
        return config.get(key, default)

    default = list(zip(*base.convolutions, strict=True))
    shapes = [take(key, default[n]) for n, key in enumerate(("conv_dim", "conv_kernel", "conv_stride"))]
    if not all(isinstance(shape, (list, tuple)) for shape in shapes) or len({len(shape) for shape in shapes}) > 1:
        raise KnnError(f"{folder}/config.json has conv_dim, conv_kernel and conv_stride of different lengths.")
    norm = take("feat_extract_norm", base.convolution_norm)
    prepared = folder / "preprocessor_config.json"
    sizes = _sizes(
        folder,
        convolutions=tuple(zip(*shapes, strict=True)),
        convolution_bias=take("conv_bias", base.convolution_bias),
        convolution_norm=norm,
        channels=take("hidden_size", base.channels),
        blocks=take("num_hidden_layers", base.blocks),
        heads=take("num_attention_heads", base.heads),
        inner=take("intermediate_size", base.inner),
        position_kernel=take("num_conv_pos_embeddings", base.position_kernel),
        position_groups=take("num_conv_pos_embedding_groups", base.position_groups),
        buckets=take("num_buckets", base.buckets),
        distance=take("max_bucket_distance", base.distance),
        norm_first=take("do_stable_layer_norm", base.norm_first),
        # The network's config is silent on this; without the other file, as Microsoft trained the sizes.
        normalize=_json(prepared).get("do_normalize", True) if prepared.is_file() else norm == "layer",
    )
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            state = _read(folder / name)
            break
    else:
        raise KnnError(f"{folder} has neither model.safetensors nor pytorch_model.bin.", "Copy the whole folder.")
    if any(str(key).startswith("wavlm.") for key in state):
        heads = [key for key in state if re.fullmatch(HUGGING_FACE_HEADS, str(key))]
        # What neither is a head nor starts with the prefix gets a mark, so that it is told as extra.
        state = {
            key.removeprefix("wavlm.") if key.startswith("wavlm.") else f"(without wavlm.) {key}": value
            for key, value in state.items()
            if key not in heads
        }
    return _imported(sizes, state, HUGGING_FACE, "Hugging Face", folder)


def _from_torchaudio(content: Mapping[str, Any], path: Path) -> ImportedEncoder:
    """Sizes come from shapes; what shapes do not tell is as in all WavLM that torchaudio publishes.

    That is: strides, `distance` 800, and norm_first and normalize exactly where convolutions have layer norms.
    """
    state: dict[str, Any] = dict(content)
    if all(key.startswith("model.") for key in state):  # the wrapper that normalises puts this in front
        state = {key.removeprefix("model."): value for key, value in state.items()}
    state = _weight_norm_names(state)
    for key in [key for key in state if key.endswith((".in_proj_weight", ".in_proj_bias"))]:
        if isinstance(packed := state[key], Tensor) and packed.ndim and packed.shape[0] % 3 == 0:
            for part, value in zip(("query", "key", "value"), packed.chunk(3), strict=True):
                state[f"{key}[{part}]"] = value
            del state[key]
    transformer, convolution = "encoder.transformer.", "feature_extractor.conv_layers."
    count = _count(state, convolution)
    telling = {
        **{f"{convolution}{n}.conv.weight": 3 for n in range(count)},
        "encoder.feature_projection.projection.weight": 2,
        f"{transformer}pos_conv_embed.conv.weight_v": 3,
        f"{transformer}layers.0.attention.rel_attn_embed.weight": 2,
        f"{transformer}layers.0.feed_forward.intermediate_dense.weight": 2,
    }
    wrong = [key for key, axes in telling.items() if not isinstance(state.get(key), Tensor) or state[key].ndim != axes]
    if wrong or count == 0:
        raise KnnError(f"{path} does not tell the sizes of its WavLM: missing or mis-sized {_listed(wrong)}.", _known())
    *convolutions, projection, position, relative, inner = (tuple(state[key].shape) for key in telling)
    kernels = [shape[2] for shape in convolutions]
    if kernels != [kernel for _, kernel, _ in SIZES["base"].convolutions]:
        raise KnnError(f"{path} has convolutions of {kernels} samples, whose strides knn cannot tell.")
    layer_norm = f"{convolution}{count - 1}.layer_norm.weight" in state
    sizes = _sizes(
        path,
        convolutions=tuple(
            (shape[0], kernel, stride)
            for shape, (_, kernel, stride) in zip(convolutions, SIZES["base"].convolutions, strict=True)
        ),
        convolution_bias=f"{convolution}0.conv.bias" in state,
        convolution_norm="layer" if layer_norm else "group",
        channels=projection[0],
        blocks=_count(state, f"{transformer}layers."),
        heads=relative[1],
        inner=inner[0],
        position_kernel=position[2],
        position_groups=max(1, position[0] // max(1, position[1])),
        buckets=relative[0],
        norm_first=layer_norm,
        normalize=layer_norm,
    )
    return _imported(sizes, state, TORCHAUDIO, "torchaudio", path)


def _imported(
    sizes: WavLMSizes, state: Mapping[str, Any], spelling: Spelling, dialect: str, path: Path
) -> ImportedEncoder:
    """Rename `state`, and refuse it where any key is missing, extra or of another size."""
    with torch.device("meta"):
        expected = WavLM(**asdict(sizes)).state_dict()
    found = _weight_norm_names(state)
    names = {spelling.theirs(ours): ours for ours in expected}
    extra = [key for key in found if key not in names and not re.fullmatch(spelling.extras, str(key))]
    missing = [key for key in names if key not in found]
    sized = [
        f"{key} is {_shape(found[key])}, not {tuple(expected[ours].shape)}"
        for key, ours in names.items()
        if key in found and _shape(found[key]) != tuple(expected[ours].shape)
    ]
    faults = [
        f"{len(keys)} {what}: {_listed(keys)}"
        for what, keys in (("missing", missing), ("extra", extra), ("mis-sized", sized))
        if keys
    ]
    if faults:
        raise KnnError(
            f"{path} does not hold the WavLM that it describes ({dialect} names). {'; '.join(faults)}.",
            "Download it again, or check that its config belongs to it.",
        )
    weights = {ours: found[key].detach().float().contiguous() for key, ours in names.items()}
    args = json.loads(json.dumps(asdict(sizes)))
    return ImportedEncoder("wavlm", args, weights, f"{dialect}: {path.name}")


def _read(path: Path) -> dict[str, Any]:
    """The dictionary in a .safetensors or PyTorch file; nothing in it is run."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with path.open("rb") as file:
            if file.read(2) not in (b"PK", b"\x80\x02"):
                raise KnnError(f"{path} is no PyTorch file.", _known())
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        raise KnnError(f"{path} cannot be read: {_first_line(error)}.", "Download it again.") from error
    except UnpicklingError as error:
        raise KnnError(
            f"{path} is damaged, or holds objects beside weights, which knn does not load because that could run "
            "foreign code.",
            "Save its state dict alone, or as safetensors.",
        ) from error
    if not isinstance(content, dict):
        raise KnnError(f"{path} holds no dictionary of weights.", _known())
    return content


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KnnError(f"{path} cannot be read: {_first_line(error)}.", _known()) from error
    if not isinstance(content, dict):
        raise KnnError(f"{path} holds no settings.", _known())
    return content


def _sizes(path: Path, **sizes: Any) -> WavLMSizes:
    default = asdict(WavLMSizes())
    odd = [name for name, value in sizes.items() if type(value) is not type(default[name])]
    if odd:
        raise KnnError(f"{path} has settings of another kind than WavLM's: {_listed(odd)}.", _known())
    return replace(WavLMSizes(), **sizes)


def _require(config: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """KnnError where a setting is there and is not the only one that our network knows."""
    for key, value in wanted.items():
        if (found := config.get(key, value)) != value:
            raise KnnError(f"{path} has {key} {found!r}, and knn's WavLM knows {value!r} only.", _known())


def _convolutions(text: Any, path: Path) -> tuple[Any, ...]:
    """The list that a text such as "[(512,10,5)] + [(512,3,2)] * 4" means, without evaluating it as code."""

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
        raise KnnError(f"{path} has conv_feature_layers {text!r}, which is no list of sizes.", _known()) from error


def _weight_norm_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Keys with torch's newer names for a weight norm's parts put back to the older ones."""
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
    """Number of the parts `prefix`0, `prefix`1, ... in `state`."""
    numbers = {key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)}
    return len(numbers)


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _listed(keys: list[str]) -> str:
    shown = ", ".join(str(key) for key in keys[:_SHOWN])
    return f"{shown} and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else shown


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _known() -> str:
    return "Known: " + "; ".join(f"{name}: {what}" for name, what in DIALECTS.items()) + "."
