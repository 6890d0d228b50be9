"""Published Whisper checkpoints: the encoder, and of the decoder the one step that tells the language.

Where the decoder and its language tokens are there, the bundle has the pooling `whisper-decoder` and a head whose rows
are the embeddings of these tokens, so that it classifies. Otherwise it has the encoder alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from knn_cli.audio import reading
from knn_cli.core.errors import KnnError
from knn_cli.networks.encoders.whisper import sinusoids
from knn_cli.networks.importers.checkpoint_files import (
    checked_settings,
    read_hugging_face_weights,
    read_json,
    read_preprocessor,
    require_settings,
    sources_hint,
    without_wrappers,
)
from knn_cli.networks.importers.components import (
    ImportedModel,
    encoder_to_fill,
    head_to_fill,
    match_weights,
    pooling_to_fill,
)
from knn_cli.networks.importers.registry import Checkpoint, importer
from knn_cli.networks.importers.weight_names import SAME_NAMES
from knn_cli.networks.importers.whisper_languages import LanguageTokens, language_tokens, token_numbers
from knn_cli.networks.importers.whisper_names import HUGGING_FACE, OPENAI, WhisperNames

__all__ = [
    "NO_SPEECH_BIAS",
    "SILENCE",
    "WhisperWeights",
    "from_hugging_face_whisper",
    "from_openai",
    "imported_whisper",
]

SILENCE = 1.0  # seconds after each clip; without it the decoder, which learnt from padded clips, errs more often
# Nats, on the row of no speech: as it is, Whisper-base calls a quarter of words and short phrases no speech, with this
# one clip in a hundred.
NO_SPEECH_BIAS = -5.0
_LICENCE_NOTE = (
    "The weights keep the licence of their source: OpenAI's Whisper is under the MIT licence (Radford et al., 2022)."
)


@dataclass(frozen=True)
class WhisperWeights:
    """A Whisper as its source has it.

    Attributes
    ----------
    path : Path
        The checkpoint, for messages.
    source : str
        A key of `weight_names.SOURCES`.
    names : WhisperNames
        Names of the weights.
    weights : mapping of str to Tensor
        All weights; those of the encoder and of the decoder start with `prefix` and `encoder.`, `decoder.`, or, if the
        file holds nothing but an encoder, with nothing.
    encoder : dict
        Arguments of our encoder.
    decoder : dict
        Arguments of our pooling; of no use where the weights have no decoder.
    prefix : str
        What all names start with.
    projection : str
        Name of the output projection (V, C), used where it is not the table of token embeddings.
    known_tokens : mapping of str to int
        Token -> number, of the tokens that the source's files name.
    """

    path: Path
    source: str
    names: WhisperNames
    weights: Mapping[str, Any]
    encoder: dict[str, Any]
    decoder: dict[str, Any]
    prefix: str = ""
    projection: str = ""
    known_tokens: Mapping[str, int] = field(default_factory=dict)

    def table(self, name: str) -> Tensor:
        """A weight (N, C). KnnError if it is missing or of another size."""
        value = self.weights.get(name)
        if not isinstance(value, Tensor) or value.ndim != 2 or value.shape[1] != self.encoder["channels"]:
            given = tuple(value.shape) if isinstance(value, Tensor) else "missing"
            raise KnnError(
                f"{self.path} does not hold the Whisper that it describes: {name} is {given}.",
                "Download it again, or check that its config belongs to it.",
            )
        return value


def _is_hugging_face_whisper(checkpoint: Checkpoint) -> bool:
    if not checkpoint.is_folder:
        return False
    return bool(read_json(checkpoint.path / "config.json").get("model_type") == "whisper")


@importer("Hugging Face", recognizes=_is_hugging_face_whisper)
def from_hugging_face_whisper(checkpoint: Checkpoint) -> ImportedModel:
    """Import a Hugging Face folder with `model_type` whisper: a whole model, one with another head, or the encoder.

    Raises
    ------
    KnnError
        Settings are those of another network, there are no weights, or keys are missing, extra or of another shape.
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
        "decoder_layers": 4,
        "decoder_attention_heads": 6,
        "decoder_ffn_dim": 1536,
    }
    channels, blocks, heads, inner, bins, *decoder = checked_settings(config, defaults, folder, "Whisper").values()
    features = {"sampling_rate": reading.RATE, "feature_size": bins, "hop_length": 160, "n_fft": 400}
    require_settings(read_preprocessor(folder), features, folder, "Whisper")
    state = read_hugging_face_weights(folder)
    whisper = WhisperWeights(
        folder,
        "Hugging Face",
        HUGGING_FACE,
        state,
        _args(channels, blocks, heads, inner, bins),
        dict(zip(("blocks", "heads", "inner"), decoder, strict=True)),
        prefix="model." if "model.encoder.conv1.weight" in state else "",
        projection="proj_out.weight",
        known_tokens=token_numbers(folder),
    )
    return imported_whisper(whisper)


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
    text = checked_settings(dims, {"n_text_layer": 4, "n_text_head": 6}, path, "Whisper")
    decoder = {"blocks": text["n_text_layer"], "heads": text["n_text_head"], "inner": 4 * channels}
    args = _args(channels, blocks, heads, 4 * channels, bins)
    return imported_whisper(WhisperWeights(path, "OpenAI", OPENAI, without_wrappers(state), args, decoder))


def _args(channels: int, blocks: int, heads: int, inner: int, bins: int) -> dict[str, Any]:
    return {"channels": channels, "blocks": blocks, "heads": heads, "inner": inner, "bins": bins}


def imported_whisper(whisper: WhisperWeights) -> ImportedModel:
    """Our encoder, and, where the decoder and its language tokens are there, our pooling and our head.

    Raises
    ------
    KnnError
        Weights are missing, extra or of another shape, the encoder's position embeddings are not Whisper's sinusoids,
        which knn computes, or language tokens are named that the vocabulary lacks.
    """
    parts = {part: f"{whisper.prefix}{part}." for part in ("encoder", "decoder")}
    if not any(str(key).startswith(parts["encoder"]) for key in whisper.weights):
        parts["encoder"] = whisper.prefix
    _check_places(whisper, parts["encoder"])
    tokens = _tokens(whisper, parts["decoder"])
    source = f"{whisper.source}: {whisper.path.name}"
    args = whisper.encoder if tokens is None else whisper.encoder | {"silence": SILENCE}
    encoder = encoder_to_fill("whisper", args, whisper.names.encoder, parts["encoder"])
    weights = {key: value for key, value in whisper.weights.items() if str(key).startswith(parts["encoder"])}
    if tokens is None:
        components = match_weights([encoder], weights, whisper.path, "Whisper", whisper.source)
        return ImportedModel(components[0], source, _LICENCE_NOTE)
    pooling = pooling_to_fill(encoder, "whisper-decoder", whisper.decoder, whisper.names.decoder, parts["decoder"])
    head = head_to_fill(pooling, len(tokens.labels), "softmax", {"normalize": False}, SAME_NAMES, "head.")
    weights |= {key: value for key, value in whisper.weights.items() if str(key).startswith(parts["decoder"])}
    weights |= _from_tables(whisper, parts["decoder"], tokens)
    components = match_weights([encoder, pooling, head], weights, whisper.path, "Whisper", whisper.source)
    return ImportedModel(components[0], source, _LICENCE_NOTE, components[1], components[2], tokens.labels)


def _check_places(whisper: WhisperWeights, prefix: str) -> None:
    """Raise a KnnError if the encoder's position embeddings are given and are not those that knn computes."""
    places, channels = whisper.weights.get(f"{prefix}{whisper.names.places}"), whisper.encoder["channels"]
    if isinstance(places, Tensor) and places.ndim == 2 and places.shape[1] == channels:
        expected = sinusoids(torch.arange(len(places)), channels)
        if not torch.allclose(places.float(), expected, atol=2e-3):  # half precision keeps three digits
            raise KnnError(
                f"{whisper.path} has trained position embeddings; knn's Whisper computes them.", sources_hint()
            )


def _tokens(whisper: WhisperWeights, prefix: str) -> LanguageTokens | None:
    """The language tokens of a Whisper that has a decoder; None without one, or if nothing tells which they are."""
    name = f"{prefix}{whisper.names.tokens}"
    if name not in whisper.weights:
        return None
    return language_tokens(len(whisper.table(name)), whisper.known_tokens, whisper.path)


def _from_tables(whisper: WhisperWeights, prefix: str, tokens: LanguageTokens) -> dict[str, Tensor]:
    """The weights that are made of rows of the decoder's tables: its start, and the head."""
    table, positions = (whisper.table(f"{prefix}{name}") for name in (whisper.names.tokens, whisper.names.positions))
    rows = whisper.table(whisper.projection) if whisper.projection in whisper.weights else table
    if len(positions) < 1 or len(rows) != len(table):
        raise KnnError(f"{whisper.path} has {len(positions)} positions, and {len(rows)} of {len(table)} tokens.")
    return {
        f"{prefix}start": table[tokens.start].float() + positions[0].float(),
        "head.trans.0.weight": rows[list(tokens.numbers)].float(),
        "head.trans.0.bias": torch.tensor([*[0.0] * (len(tokens.numbers) - 1), NO_SPEECH_BIAS]),
    }
