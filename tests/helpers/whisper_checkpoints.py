"""Whispers with random weights: transformers' own, and the same weights as OpenAI and CTranslate2 store them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from knn_cli.networks.encoders.whisper import sinusoids
from tests.helpers.encoder_contract import shaken

SECONDS = 2.0  # that the small models here pad a clip to
FIRST, START = 50259, 50258  # numbers of the first language's token and of the start token


def random_whisper(transformers: Any, channels: int = 24, bins: int = 80, vocabulary: int = 51865, **sizes: int) -> Any:
    """A WhisperForConditionalGeneration of transformers, in evaluation mode."""
    settings = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 3, "decoder_attention_heads": 2}
    config = transformers.WhisperConfig(
        d_model=channels, num_mel_bins=bins, vocab_size=vocabulary, max_source_positions=round(50 * SECONDS),
        max_target_positions=8, encoder_ffn_dim=4 * channels, decoder_ffn_dim=4 * channels, init_std=0.3,
        **{**settings, **sizes},
        **({"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} if vocabulary < FIRST else {}),
        decoder_start_token_id=min(START, vocabulary - 1),
    )  # fmt: skip
    torch.manual_seed(1)
    model = shaken(transformers.WhisperForConditionalGeneration(config))
    places = model.model.encoder.embed_positions.weight
    places.data = sinusoids(torch.arange(len(places)), channels)
    return model


def log_probabilities(model: Any, features: Tensor, start: int, languages: list[int]) -> Tensor:
    """What transformers says of features (B, bins, N): (B, languages) log-probabilities at the first token."""
    with torch.inference_mode():
        tokens = torch.full((len(features), 1), start)
        logits = model(features, decoder_input_ids=tokens).logits[:, -1]
    result: Tensor = logits[:, languages].log_softmax(1)
    return result


_OPENAI = (
    (".layers.", ".blocks."), (".self_attn.", ".attn."), (".encoder_attn.", ".cross_attn."), (".q_proj.", ".query."),
    (".k_proj.", ".key."), (".v_proj.", ".value."), (".out_proj.", ".out."), (".fc1.", ".mlp.0."), (".fc2.", ".mlp.2."),
    (".self_attn_layer_norm.", ".attn_ln."), (".encoder_attn_layer_norm.", ".cross_attn_ln."),
    (".final_layer_norm.", ".mlp_ln."), ("encoder.layer_norm.", "encoder.ln_post."),
    ("decoder.layer_norm.", "decoder.ln."), ("embed_tokens.", "token_embedding."),
    ("embed_positions.weight", "positional_embedding"),
)  # fmt: skip


def save_openai(model: Any, file: Path) -> None:
    """Write OpenAI's file."""
    state = {}
    for name, value in model.model.state_dict().items():
        for old, new in _OPENAI:
            name = name.replace(old, new)
        state[name] = value
    config = model.config
    dims = {
        "n_mels": config.num_mel_bins, "n_audio_ctx": config.max_source_positions, "n_audio_state": config.d_model,
        "n_audio_head": config.encoder_attention_heads, "n_audio_layer": config.encoder_layers,
        "n_vocab": config.vocab_size, "n_text_ctx": config.max_target_positions, "n_text_state": config.d_model,
        "n_text_head": config.decoder_attention_heads, "n_text_layer": config.decoder_layers,
    }  # fmt: skip
    torch.save({"dims": dims, "model_state_dict": state}, file)


Variables = dict[str, NDArray[Any]]
_TYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4, "uint16": 5}  # uint16 stands for bfloat16


def ctranslate2_variables(model: Any, precision: str = "float32") -> tuple[Variables, dict[str, str]]:
    """Variables and aliases of a `model.bin`; precision: float32, float16, bfloat16, int16 or int8."""
    variables: Variables = {
        "decoder/num_heads": np.int16(model.config.decoder_attention_heads),
        "encoder/num_heads": np.int16(model.config.encoder_attention_heads),
        "decoder/activation": np.int8(3), "decoder/pre_norm": np.int8(1), "decoder/scale_embeddings": np.int8(0),
    }  # fmt: skip
    state = {name: value.numpy() for name, value in model.model.state_dict().items()}

    def matrices(name: str, *sources: str) -> None:
        weights = np.concatenate([state[f"{source}.weight"] for source in sources])
        rows = len(weights) // len(sources)
        biases = [state.get(f"{source}.bias", np.zeros(rows, dtype=np.float32)) for source in sources]
        _add(variables, f"{name}/weight", weights, precision)
        _add(variables, f"{name}/bias", np.concatenate(biases), "float16" if precision == "float16" else "float32")

    def norm(name: str, source: str) -> None:
        variables[f"{name}/gamma"], variables[f"{name}/beta"] = state[f"{source}.weight"], state[f"{source}.bias"]

    for part in ("encoder", "decoder"):
        norm(f"{part}/layer_norm", f"{part}.layer_norm")
        variables[f"{part}/position_encodings/encodings"] = state[f"{part}.embed_positions.weight"]
        for number in range(getattr(model.config, f"{part}_layers")):
            ours, theirs = f"{part}/layer_{number}", f"{part}.layers.{number}"
            norm(f"{ours}/self_attention/layer_norm", f"{theirs}.self_attn_layer_norm")
            inside = [f"{theirs}.self_attn.{letter}_proj" for letter in "qkv"]
            matrices(f"{ours}/self_attention/linear_0", *inside)
            matrices(f"{ours}/self_attention/linear_1", f"{theirs}.self_attn.out_proj")
            if part == "decoder":
                norm(f"{ours}/attention/layer_norm", f"{theirs}.encoder_attn_layer_norm")
                matrices(f"{ours}/attention/linear_0", f"{theirs}.encoder_attn.q_proj")
                matrices(f"{ours}/attention/linear_1", *(f"{theirs}.encoder_attn.{letter}_proj" for letter in "kv"))
                matrices(f"{ours}/attention/linear_2", f"{theirs}.encoder_attn.out_proj")
            norm(f"{ours}/ffn/layer_norm", f"{theirs}.final_layer_norm")
            for place in (0, 1):
                matrices(f"{ours}/ffn/linear_{place}", f"{theirs}.fc{place + 1}")
    for name in ("conv1", "conv2"):
        matrices(f"encoder/{name}", f"encoder.{name}")
    _add(variables, "decoder/embeddings/weight", state["decoder.embed_tokens.weight"], precision)
    aliases = {"decoder/projection/weight": "decoder/embeddings/weight"}
    if "decoder/embeddings/weight_scale" in variables:
        aliases["decoder/projection/weight_scale"] = "decoder/embeddings/weight_scale"
    return variables, aliases


def _add(variables: Variables, name: str, values: NDArray[Any], precision: str) -> None:
    """Add a weight, rounded as CTranslate2 rounds it."""
    if precision == "int8":
        peaks = np.abs(values).reshape(len(values), -1).max(1)  # of the rows, one of which is the padding token's
        scale = 127 / np.where(peaks, peaks, 127)
        variables[f"{name}_scale"] = scale.astype(np.float32)
        values = values * scale.reshape(-1, *[1] * (values.ndim - 1))
    elif precision == "int16":
        variables[f"{name}_scale"] = np.float32(2**10 / np.abs(values).max())
        values = values * variables[f"{name}_scale"]
    if precision == "bfloat16":
        variables[name] = (values.view(np.uint32) >> 16).astype(np.uint16)
    else:
        variables[name] = np.rint(values).astype(precision) if "int" in precision else values.astype(precision)


def write_ctranslate2(
    file: Path, variables: Variables, aliases: dict[str, str], kind: str = "WhisperSpec", version: int = 6
) -> None:
    """Write a `model.bin`."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    parts = [struct.pack("<I", version), text(kind), struct.pack("<II", 3, len(variables))]
    for name, values in variables.items():
        parts += [text(name), struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)]
        parts += [struct.pack("<BI", _TYPES[values.dtype.name], values.nbytes), values.tobytes()]
    parts += [struct.pack("<I", len(aliases)), *(text(each) for pair in aliases.items() for each in pair)]
    file.write_bytes(b"".join(parts))


def save_ctranslate2(model: Any, folder: Path, precision: str = "float32", count: int = 99) -> None:
    """Write a folder such as those of faster-whisper."""
    folder.mkdir(exist_ok=True)
    write_ctranslate2(folder / "model.bin", *ctranslate2_variables(model, precision))
    (folder / "config.json").write_text(json.dumps({"lang_ids": [*range(FIRST, FIRST + count)]}))
