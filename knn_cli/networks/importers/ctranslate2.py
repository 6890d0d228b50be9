"""Whispers in CTranslate2's format, such as those of faster-whisper: float, or 8 or 16 bits with scales."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from knn_cli.core.errors import KnnError
from knn_cli.networks.importers.checkpoint_files import require_settings, sources_hint
from knn_cli.networks.importers.components import ImportedModel
from knn_cli.networks.importers.ctranslate2_file import Ctranslate2Model, is_ctranslate2, read_ctranslate2
from knn_cli.networks.importers.registry import Checkpoint, importer
from knn_cli.networks.importers.whisper import WhisperWeights, imported_whisper
from knn_cli.networks.importers.whisper_languages import token_numbers
from knn_cli.networks.importers.whisper_names import CTRANSLATE2

__all__ = ["from_ctranslate2"]

_WEIGHTS = "model.bin"
_GELU = 3  # its number among CTranslate2's activations
# The projections of attention under CTranslate2's names, several where it stacks them.
_PROJECTIONS = {
    "self_attention/linear_0": ("query", "key", "value"),
    "self_attention/linear_1": ("out",),
    "attention/linear_0": ("query",),
    "attention/linear_1": ("key", "value"),
    "attention/linear_2": ("out",),
}
_KINDS = {"gamma": "weight", "beta": "bias"}  # of norms


def _weights_file(path: Path) -> Path | None:
    """The file itself, or `model.bin` in a folder that has no other weights; None if it is not CTranslate2's."""
    if path.is_dir():
        others = (*path.glob("model*.safetensors"), *path.glob("pytorch_model*.bin"))
        path = path / _WEIGHTS if not others else path
    return path if is_ctranslate2(path) else None


def _is_ctranslate2(checkpoint: Checkpoint) -> bool:
    return _weights_file(checkpoint.path) is not None


@importer("CTranslate2", recognizes=_is_ctranslate2)
def from_ctranslate2(checkpoint: Checkpoint) -> ImportedModel:
    """Import a `model.bin` of a Whisper, or a folder with one; its sizes follow from the weights.

    Raises
    ------
    KnnError
        The file is damaged, holds another network, or weights are missing, extra or of another shape.
    """
    path = checkpoint.path
    file = _weights_file(path) or path
    model = read_ctranslate2(file)
    if model.kind != "WhisperSpec":
        raise KnnError(f"{path} is a {model.kind} of CTranslate2; knn reads its WhisperSpec.", sources_hint())
    supported = {"scale_embeddings": 0, "start_from_zero_embedding": 0, "alibi": 0, "pre_norm": 1, "activation": _GELU}
    require_settings(model.settings, {f"decoder/{key}": value for key, value in supported.items()}, path, "Whisper")
    weights = _separated(model.weights, path)
    channels, bins, _ = _shape(weights, "encoder.conv1.weight", 3, path)
    sizes = {part: _sizes(model, weights, part, path) for part in ("encoder", "decoder")}
    whisper = WhisperWeights(
        path,
        "CTranslate2",
        CTRANSLATE2,
        weights,
        {"channels": channels, **sizes["encoder"], "bins": bins},
        sizes["decoder"],
        projection="decoder.projection.weight",
        known_tokens=token_numbers(file.parent),
    )
    return imported_whisper(whisper)


def _separated(variables: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Weights under the names of `whisper_names.CTRANSLATE2`: dots, and a name for each projection."""
    weights: dict[str, Tensor] = {}
    for name, value in variables.items():
        if "/" not in name:
            raise KnnError(f"{path} has a weight {name!r}, which no Whisper has.", "Check what it is a model of.")
        *owner, layer, kind = name.split("/")
        parts = _PROJECTIONS.get("/".join([*owner[-1:], layer]), (layer,))
        if len(value) % len(parts):
            raise KnnError(f"{path} has {len(value)} rows of {name}, which are no {len(parts)} equal parts.")
        for part, piece in zip(parts, value.chunk(len(parts)), strict=True):
            weights[".".join([*owner, part, _KINDS.get(kind, kind)])] = piece
    return weights


def _sizes(model: Ctranslate2Model, weights: dict[str, Tensor], part: str, path: Path) -> dict[str, int]:
    """`blocks`, `heads` and `inner` of the encoder or the decoder."""
    numbers = {match[1] for name in weights if (match := re.match(rf"{part}\.layer_(\d+)\.", name))}
    inner, _ = _shape(weights, f"{part}.layer_0.ffn.linear_0.weight", 2, path)
    heads = model.settings.get(f"{part}/num_heads")
    if heads is None or not 1 <= heads < 2**16:
        raise KnnError(f"{path} does not say how many heads its {part} has.", "Convert it with a newer CTranslate2.")
    return {"blocks": len(numbers), "heads": int(heads), "inner": inner}


def _shape(weights: dict[str, Tensor], name: str, axes: int, path: Path) -> tuple[int, ...]:
    """The shape of a weight. KnnError if it is missing or has another number of axes."""
    if name not in weights or weights[name].ndim != axes:
        raise KnnError(f"{path} lacks {name}, or it has another size.", "Download it again.")
    return tuple(weights[name].shape)
