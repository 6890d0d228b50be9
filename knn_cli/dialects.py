"""How others name the weights of WavLM: one table of prefixes for each dialect that `importers` reads."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Spelling:
    """How a dialect names our weights: (our prefix, theirs) in order, `N` a number; and what it may hold besides."""

    prefixes: tuple[tuple[str, str], ...]
    extras: str

    def theirs(self, ours: str) -> str:
        for prefix, other in self.prefixes:
            found = re.match(re.escape(prefix).replace("N", r"(\d+)"), ours)
            if found:
                number = found.group(1) if found.groups() else ""
                return other.replace("N", number) + ours[found.end() :]
        raise AssertionError(f"{ours} has no name in this dialect")


_BLOCK = (
    ("blocks.N.attention.gate_scale", "layers.N.attention.gru_rel_pos_const"),
    ("blocks.N.attention.gate.", "layers.N.attention.gru_rel_pos_linear."),
    ("blocks.N.attention.query.", "layers.N.attention.q_proj."),
    ("blocks.N.attention.key.", "layers.N.attention.k_proj."),
    ("blocks.N.attention.value.", "layers.N.attention.v_proj."),
    ("blocks.N.attention.output.", "layers.N.attention.out_proj."),
    ("blocks.N.attention_norm.", "layers.N.layer_norm."),
    ("blocks.N.widen.", "layers.N.feed_forward.intermediate_dense."),
    ("blocks.N.narrow.", "layers.N.feed_forward.output_dense."),
    ("blocks.N.output_norm.", "layers.N.final_layer_norm."),
    ("distances.values.", "layers.0.attention.rel_attn_embed."),
    ("position.direction", "pos_conv_embed.conv.weight_v"),
    ("position.magnitude", "pos_conv_embed.conv.weight_g"),
    ("position.bias", "pos_conv_embed.conv.bias"),
    ("norm.", "layer_norm."),
)
_CONVOLUTIONS = (
    ("front.convolutions.N.", "feature_extractor.conv_layers.N.conv."),
    ("front.norms.N.", "feature_extractor.conv_layers.N.layer_norm."),
)
HUGGING_FACE = Spelling(
    (
        *_CONVOLUTIONS,
        ("front.norm.", "feature_projection.layer_norm."),
        ("front.projection.", "feature_projection.projection."),
        *((ours, f"encoder.{theirs}") for ours, theirs in _BLOCK),
    ),
    extras="masked_spec_embed",
)
# Heads that transformers puts beside `wavlm.`: CTC, pre-training, sequence and frame classification, x-vector.
HUGGING_FACE_HEADS = (
    r"(lm_head|project_hid|project_q|projector|classifier|feature_extractor|tdnn\.\d+\.kernel)\.(weight|bias)"
    r"|quantizer\.(codevectors|weight_proj\.weight|weight_proj\.bias)|layer_weights|objective\.weight"
)
TORCHAUDIO = Spelling(
    (
        *_CONVOLUTIONS,
        ("front.norm.", "encoder.feature_projection.layer_norm."),
        ("front.projection.", "encoder.feature_projection.projection."),
        *(
            (f"blocks.N.attention.{part}.{kind}", f"encoder.transformer.layers.N.{projection}_{kind}[{part}]")
            for part in ("query", "key", "value")
            for kind in ("weight", "bias")
            for projection in ("attention.attention.in_proj",)
        ),
        ("blocks.N.attention.output.", "encoder.transformer.layers.N.attention.attention.out_proj."),
        *((ours, f"encoder.transformer.{theirs}") for ours, theirs in _BLOCK),
    ),
    extras=r"aux\.(weight|bias)",
)
_MICROSOFT_BLOCK = (
    ("blocks.N.attention.gate_scale", "self_attn.grep_a"),
    ("blocks.N.attention.gate.", "self_attn.grep_linear."),
    ("blocks.N.attention.query.", "self_attn.q_proj."),
    ("blocks.N.attention.key.", "self_attn.k_proj."),
    ("blocks.N.attention.value.", "self_attn.v_proj."),
    ("blocks.N.attention.output.", "self_attn.out_proj."),
    ("blocks.N.attention_norm.", "self_attn_layer_norm."),
    ("blocks.N.widen.", "fc1."),
    ("blocks.N.narrow.", "fc2."),
    ("blocks.N.output_norm.", "final_layer_norm."),
)


def microsoft(convolution_norm: str) -> Spelling:
    """Names in Microsoft's files, which depend on where norms stand (`WavLMSizes.convolution_norm`)."""
    # A convolution is a sequence (convolution, dropout, norm, GELU); a norm over channels sits between transposes.
    norm = "2." if convolution_norm == "group" else "2.1."
    return Spelling(
        (
            ("front.convolutions.N.", "feature_extractor.conv_layers.N.0."),
            ("front.norms.N.", f"feature_extractor.conv_layers.N.{norm}"),
            ("front.norm.", "layer_norm."),
            ("front.projection.", "post_extract_proj."),
            *((ours, f"encoder.layers.N.{theirs}") for ours, theirs in _MICROSOFT_BLOCK),
            ("distances.values.", "encoder.layers.0.self_attn.relative_attention_bias."),
            ("position.direction", "encoder.pos_conv.0.weight_v"),
            ("position.magnitude", "encoder.pos_conv.0.weight_g"),
            ("position.bias", "encoder.pos_conv.0.bias"),
            ("norm.", "encoder.layer_norm."),
        ),
        extras="mask_emb",
    )
