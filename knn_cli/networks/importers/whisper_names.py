"""Names of the weights of a Whisper in each source: encoder, decoder, and the tables of tokens and positions."""

from __future__ import annotations

from dataclasses import dataclass

from knn_cli.networks.importers.weight_names import WeightNames

__all__ = ["CTRANSLATE2", "HUGGING_FACE", "OPENAI", "WhisperNames"]


@dataclass(frozen=True)
class WhisperNames:
    """Translation of knn's names of the weights of a Whisper to those of a source.

    Attributes
    ----------
    encoder, decoder : WeightNames
        Those of the encoder `whisper` and of the pooling `whisper-decoder`. Of the decoder one step of one token is
        imported, which needs neither the queries and keys of its self-attention nor most rows of its tables: they are
        listed as extras.
    tokens, positions : str
        The embeddings of the decoder's tokens (V, C) and of its positions (P, C).
    places : str
        The position embeddings (T, C) of the encoder, which knn computes.
    """

    encoder: WeightNames
    decoder: WeightNames
    tokens: str
    positions: str
    places: str


_CONVOLUTIONS = (("first.", "conv1."), ("second.", "conv2."))
_START = ("start", "start")  # made of a token and a position, under this name

_HUGGING_FACE_INNER = (
    ("blocks.#1.inner_norm.", "layers.#1.final_layer_norm."),
    ("blocks.#1.widen.", "layers.#1.fc1."),
    ("blocks.#1.narrow.", "layers.#1.fc2."),
    ("norm.", "layer_norm."),
)
HUGGING_FACE = WhisperNames(
    encoder=WeightNames(
        (
            *_CONVOLUTIONS,
            ("blocks.#1.norm.", "layers.#1.self_attn_layer_norm."),
            ("blocks.#1.query.", "layers.#1.self_attn.q_proj."),
            ("blocks.#1.key.", "layers.#1.self_attn.k_proj."),
            ("blocks.#1.value.", "layers.#1.self_attn.v_proj."),
            ("blocks.#1.out.", "layers.#1.self_attn.out_proj."),
            *_HUGGING_FACE_INNER,
        ),
        extras=r"embed_positions\.weight",
    ),
    decoder=WeightNames(
        (
            _START,
            ("blocks.#1.self_norm.", "layers.#1.self_attn_layer_norm."),
            ("blocks.#1.self_value.", "layers.#1.self_attn.v_proj."),
            ("blocks.#1.self_out.", "layers.#1.self_attn.out_proj."),
            ("blocks.#1.norm.", "layers.#1.encoder_attn_layer_norm."),
            ("blocks.#1.query.", "layers.#1.encoder_attn.q_proj."),
            ("blocks.#1.key.", "layers.#1.encoder_attn.k_proj."),
            ("blocks.#1.value.", "layers.#1.encoder_attn.v_proj."),
            ("blocks.#1.out.", "layers.#1.encoder_attn.out_proj."),
            *_HUGGING_FACE_INNER,
        ),
        extras=r"embed_(tokens|positions)\.weight|layers\.\d+\.self_attn\.(q_proj\.weight|q_proj\.bias|k_proj\.weight)",
    ),
    tokens="embed_tokens.weight",
    positions="embed_positions.weight",
    places="embed_positions.weight",
)

_OPENAI_INNER = (
    ("blocks.#1.inner_norm.", "blocks.#1.mlp_ln."),
    ("blocks.#1.widen.", "blocks.#1.mlp.0."),
    ("blocks.#1.narrow.", "blocks.#1.mlp.2."),
)
_PARTS = ("query", "key", "value", "out")
OPENAI = WhisperNames(
    encoder=WeightNames(
        (
            *_CONVOLUTIONS,
            ("norm.", "ln_post."),
            ("blocks.#1.norm.", "blocks.#1.attn_ln."),
            *((f"blocks.#1.{part}.", f"blocks.#1.attn.{part}.") for part in _PARTS),
            *_OPENAI_INNER,
        ),
        extras="positional_embedding",
    ),
    decoder=WeightNames(
        (
            _START,
            ("norm.", "ln."),
            ("blocks.#1.self_norm.", "blocks.#1.attn_ln."),
            ("blocks.#1.self_value.", "blocks.#1.attn.value."),
            ("blocks.#1.self_out.", "blocks.#1.attn.out."),
            ("blocks.#1.norm.", "blocks.#1.cross_attn_ln."),
            *((f"blocks.#1.{part}.", f"blocks.#1.cross_attn.{part}.") for part in _PARTS),
            *_OPENAI_INNER,
        ),
        extras=r"token_embedding\.weight|positional_embedding"
        r"|blocks\.\d+\.attn\.(query\.weight|query\.bias|key\.weight)",
    ),
    tokens="token_embedding.weight",
    positions="positional_embedding",
    places="positional_embedding",
)

# With dots in place of slashes, and with the projections apart that CTranslate2 stacks: see `ctranslate2`.
_CTRANSLATE2_INNER = (
    ("blocks.#1.inner_norm.", "layer_#1.ffn.layer_norm."),
    ("blocks.#1.widen.", "layer_#1.ffn.linear_0."),
    ("blocks.#1.narrow.", "layer_#1.ffn.linear_1."),
    ("norm.", "layer_norm."),
)
CTRANSLATE2 = WhisperNames(
    encoder=WeightNames(
        (
            *_CONVOLUTIONS,
            ("blocks.#1.norm.", "layer_#1.self_attention.layer_norm."),
            *((f"blocks.#1.{part}.", f"layer_#1.self_attention.{part}.") for part in _PARTS),
            *_CTRANSLATE2_INNER,
        ),
        extras=r"position_encodings\.encodings|layer_\d+\.self_attention\.key\.bias",
    ),
    decoder=WeightNames(
        (
            _START,
            ("blocks.#1.self_norm.", "layer_#1.self_attention.layer_norm."),
            ("blocks.#1.self_value.", "layer_#1.self_attention.value."),
            ("blocks.#1.self_out.", "layer_#1.self_attention.out."),
            ("blocks.#1.norm.", "layer_#1.attention.layer_norm."),
            *((f"blocks.#1.{part}.", f"layer_#1.attention.{part}.") for part in _PARTS),
            *_CTRANSLATE2_INNER,
        ),
        # What a bias of the keys adds is the same at all frames, so that a softmax over time drops it.
        extras=r"embeddings\.weight|position_encodings\.encodings|projection\.weight"
        r"|layer_\d+\.self_attention\.(query|key)\.(weight|bias)|layer_\d+\.attention\.key\.bias",
    ),
    tokens="embeddings.weight",
    positions="position_encodings.encodings",
    places="position_encodings.encodings",
)
