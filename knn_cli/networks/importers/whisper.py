"""Published Whisper checkpoints: the encoder is imported, the text decoder is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from knn_cli.core.errors import KnnError
from knn_cli.networks.encoders.whisper import sinusoids
from knn_cli.networks.importers.checkpoint_files import (
    checked_settings,
    read_hugging_face_weights,
    read_json,
    require_settings,
    sources_hint,
)
from knn_cli.networks.importers.components import ImportedModel, encoder_to_fill, match_weights
from knn_cli.networks.importers.registry import Checkpoint, importer
from knn_cli.networks.importers.weight_names import WHISPER_HUGGING_FACE, WHISPER_OPENAI, WeightNames

__all__ = ["from_hugging_face_whisper", "from_openai"]

_LICENCE_NOTE = "The weights keep the licence of their source: OpenAI's Whisper is under the MIT licence."


def _is_hugging_face_whisper(checkpoint: Checkpoint) -> bool:
    if not checkpoint.is_folder:
        return False
    return bool(read_json(checkpoint.path / "config.json").get("model_type") == "whisper")


@importer("Hugging Face", recognizes=_is_hugging_face_whisper)
def from_hugging_face_whisper(checkpoint: Checkpoint) -> ImportedModel:
    """Import the encoder of a Hugging Face folder with `model_type` whisper, whatever head was saved around it.

    Raises
    ------
    KnnError
        Settings are those of another encoder, there are no weights, or keys are missing, extra or of another shape.
    """
    folder = checkpoint.path
    config = read_json(folder / "config.json")
    require_settings(config, {"activation_function": "gelu", "scale_embedding": False}, folder, "Whisper")
    defaults = {  # transformers takes Whisper-tiny's values for settings that are missing
        "d_model": 384,
        "encoder_layers": 4,
        "encoder_attention_heads": 6,
        "encoder_ffn_dim": 1536,
        "num_mel_bins": 80,
    }
    args = _args(*checked_settings(config, defaults, folder, "Whisper").values())
    state = read_hugging_face_weights(folder)
    # The prefix differs between a whole model, a model with a head on the encoder, and the encoder alone.
    prefix = next((each for each in ("model.encoder.", "encoder.") if f"{each}conv1.weight" in state), "")
    encoder_state = {key.removeprefix(prefix): value for key, value in state.items() if str(key).startswith(prefix)}
    return _imported(args, encoder_state, WHISPER_HUGGING_FACE, "embed_positions.weight", "Hugging Face", folder)


def _is_openai_whisper(checkpoint: Checkpoint) -> bool:
    return {"dims", "model_state_dict"} <= checkpoint.content.keys()


@importer("OpenAI", recognizes=_is_openai_whisper)
def from_openai(checkpoint: Checkpoint) -> ImportedModel:
    """Import an OpenAI file, {"dims": ..., "model_state_dict": ...}; KnnError as in `from_hugging_face_whisper`."""
    content, path = checkpoint.content, checkpoint.path
    dims, state = content["dims"], content["model_state_dict"]
    if not isinstance(dims, dict) or not isinstance(state, dict):
        raise KnnError(f"{path} is no Whisper checkpoint: its dims and weights are no dictionaries.", sources_hint())
    defaults = {"n_audio_state": 384, "n_audio_layer": 4, "n_audio_head": 6, "n_mels": 80}
    channels, blocks, heads, bins = checked_settings(dims, defaults, path, "Whisper").values()
    encoder_state = {
        str(key).removeprefix("encoder."): value for key, value in state.items() if str(key).startswith("encoder.")
    }
    args = _args(channels, blocks, heads, 4 * channels, bins)
    return _imported(args, encoder_state, WHISPER_OPENAI, "positional_embedding", "OpenAI", path)


def _args(channels: int, blocks: int, heads: int, inner: int, bins: int) -> dict[str, Any]:
    return {"channels": channels, "blocks": blocks, "heads": heads, "inner": inner, "bins": bins}


def _imported(
    args: dict[str, Any], state: dict[str, Any], names: WeightNames, positions_key: str, source: str, path: Path
) -> ImportedModel:
    """The encoder; KnnError if its position embeddings are not Whisper's sinusoids, which knn computes."""
    positions = state.pop(positions_key, None)
    if isinstance(positions, Tensor) and positions.ndim == 2 and positions.shape[1] == args["channels"]:
        expected = sinusoids(torch.arange(len(positions)), args["channels"])
        if not torch.allclose(positions.float(), expected, atol=2e-3):  # half precision keeps three digits
            raise KnnError(f"{path} has trained position embeddings; knn's Whisper computes them.", sources_hint())
    [encoder] = match_weights([encoder_to_fill("whisper", args, names)], state, path, "Whisper", source)
    return ImportedModel(encoder, f"{source}: {path.name}", _LICENCE_NOTE)
