"""Published Whisper checkpoints to the arguments and weights of our encoder; the decoder, which writes, is left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from knn_cli.core.errors import KnnError
from knn_cli.networks.encoders.whisper import sinusoids
from knn_cli.networks.importers.checkpoint_files import (
    Imported,
    fitted,
    known,
    read,
    read_json,
    require,
    take,
    wanted_encoder,
)
from knn_cli.networks.importers.weight_names import WHISPER_HUGGING_FACE, WHISPER_OPENAI, Spelling

__all__ = ["from_hugging_face_whisper", "from_openai", "is_whisper"]

_LICENCE_NOTE = "The weights keep the licence of their source: OpenAI's Whisper is under the MIT licence."


def from_hugging_face_whisper(folder: Path) -> Imported:
    """A folder of Hugging Face's with `model_type` whisper: the encoder of whichever model around it was saved.

    Raises KnnError: other settings than our encoder has, no weights, keys that are missing, extra or of another size.
    """
    config = read_json(folder / "config.json")
    require(config, {"activation_function": "gelu", "scale_embedding": False}, folder, "Whisper")
    defaults = {  # transformers takes Whisper-tiny's values for what a config leaves out
        "d_model": 384,
        "encoder_layers": 4,
        "encoder_attention_heads": 6,
        "encoder_ffn_dim": 1536,
        "num_mel_bins": 80,
    }
    args = _args(*take(config, defaults, folder, "Whisper").values())
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            state = read(folder / name)
            break
    else:
        raise KnnError(f"{folder} has neither model.safetensors nor pytorch_model.bin.", "Copy the whole folder.")
    # A whole model, one with a head on the encoder, and the encoder alone put different things in front.
    prefix = next((each for each in ("model.encoder.", "encoder.") if f"{each}conv1.weight" in state), "")
    found = {key.removeprefix(prefix): value for key, value in state.items() if str(key).startswith(prefix)}
    return _imported(args, found, WHISPER_HUGGING_FACE, "embed_positions.weight", "Hugging Face", folder)


def from_openai(content: Mapping[str, Any], path: Path) -> Imported:
    """A file of OpenAI's, {"dims": ..., "model_state_dict": ...}; raises KnnError as `from_hugging_face_whisper`."""
    dims, state = content["dims"], content["model_state_dict"]
    if not isinstance(dims, dict) or not isinstance(state, dict):
        raise KnnError(f"{path} is no Whisper checkpoint: its dims and weights are no dictionaries.", known())
    defaults = {"n_audio_state": 384, "n_audio_layer": 4, "n_audio_head": 6, "n_mels": 80}
    channels, blocks, heads, bins = take(dims, defaults, path, "Whisper").values()
    found = {
        str(key).removeprefix("encoder."): value for key, value in state.items() if str(key).startswith("encoder.")
    }
    args = _args(channels, blocks, heads, 4 * channels, bins)
    return _imported(args, found, WHISPER_OPENAI, "positional_embedding", "OpenAI", path)


def _args(channels: int, blocks: int, heads: int, inner: int, bins: int) -> dict[str, Any]:
    return {"channels": channels, "blocks": blocks, "heads": heads, "inner": inner, "bins": bins}


def _imported(
    args: dict[str, Any], state: dict[str, Any], spelling: Spelling, places: str, dialect: str, path: Path
) -> Imported:
    """The encoder, after a look at its places, which ours computes: KnnError where they are not Whisper's sinusoids."""
    theirs = state.pop(places, None)
    if isinstance(theirs, Tensor) and theirs.ndim == 2 and theirs.shape[1] == args["channels"]:
        ours = sinusoids(torch.arange(len(theirs)), args["channels"])
        if not torch.allclose(theirs.float(), ours, atol=2e-3):  # half precision keeps three digits
            raise KnnError(f"{path} has places that were trained; knn's Whisper computes them.", known())
    [part] = fitted([wanted_encoder("whisper", args, spelling)], state, path, "Whisper", dialect)
    return Imported(part, f"{dialect}: {path.name}", _LICENCE_NOTE)


def is_whisper(folder: Path) -> bool:
    """Whether the folder's config.json says that it holds a Whisper."""
    return bool(read_json(folder / "config.json").get("model_type") == "whisper")
