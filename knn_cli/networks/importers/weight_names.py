"""Names of the weights in each source of checkpoints, as tables of prefixes."""

from __future__ import annotations

import re
from dataclasses import dataclass

SOURCES = {
    "Microsoft": 'a .pt file {"cfg": ..., "model": ...} such as WavLM-Base+.pt or WavLM-Large.pt',
    "Hugging Face": "a folder with config.json and model.safetensors or pytorch_model.bin of a WavLM, "
    "wav2vec 2.0, HuBERT, XLS-R, MMS, w2v-BERT 2.0 or Whisper",
    "fairseq": 'a .pt file {"args" or "cfg": ..., "model": ...} of a wav2vec 2.0, HuBERT, XLS-R or MMS such as '
    "wav2vec_small.pt",
    "OpenAI": 'a .pt file {"dims": ..., "model_state_dict": ...} of a Whisper',
    "CTranslate2": "model.bin of a Whisper, or a folder with it such as faster-whisper-base",
    "torchaudio": "a .pt, .pth or .safetensors file with the state dict of torchaudio's wavlm_model",
    "speechbrain": "a folder with hyperparams.yaml, embedding_model.ckpt and classifier.ckpt of an ECAPA-TDNN",
    "wespeaker": "avg_model.pt of a ResNet (also with SimAM), Res2Net, ERes2Net, DF-ResNet, CAM++, ECAPA-TDNN, RepVGG, "
    "ReDimNet or x-vector network, "
    "model_N.pt of a WavLM with its config.yaml beside it or named by `config`, the folder exp/NAME, or pyannote's "
    "pytorch_model.bin of a ResNet",
    "IDRnD": 'a .pt file {"model_config": ..., "state_dict": ...} of a ReDimNet such as b2-vox2-ptn.pt',
    "3D-Speaker": "the .pt, .bin or .ckpt file of a CAM++, ERes2Net, Res2Net or ResNet",
    "NeMo": "the .nemo file of an AmberNet, TitaNet or SpeakerNet",
    "pyannote": "pytorch_model.bin of a segmentation network such as segmentation-3.0",
}


EXPERIMENT_MODELS = ("models/avg_model.pt", "models/final_model.pt")  # in a folder exp/NAME of wespeaker


@dataclass(frozen=True)
class WeightNames:
    """Translation of knn's weight names to those of a source.

    Attributes
    ----------
    prefixes : tuple of (str, str)
        Pairs of a prefix in knn and the corresponding prefix in the source; the first match is used. #1 and #2 stand
        for numbers, #1+1 for the successor of #1.
    extras : str
        Regular expression of further keys in the source's checkpoints, which are left out.
    """

    prefixes: tuple[tuple[str, str], ...]
    extras: str = ""

    def source_name(self, name: str) -> str:
        """Translate knn's name of a weight to the source's name."""
        for prefix, source_prefix in self.prefixes:
            match = re.match(re.sub(r"\\#\d", r"(\\d+)", re.escape(prefix)), name)
            if match:
                for position, number in enumerate(match.groups(), start=1):
                    source_prefix = source_prefix.replace(f"#{position}+1", str(int(number) + 1))
                    source_prefix = source_prefix.replace(f"#{position}", number)
                return source_prefix + name[match.end() :]
        raise AssertionError(f"{name} has no name in this source")


SAME_NAMES = WeightNames((("", ""),))

_BLOCK = (
    ("blocks.#1.attention.gate_scale", "layers.#1.attention.gru_rel_pos_const"),
    ("blocks.#1.attention.gate.", "layers.#1.attention.gru_rel_pos_linear."),
    ("blocks.#1.attention.query.", "layers.#1.attention.q_proj."),
    ("blocks.#1.attention.key.", "layers.#1.attention.k_proj."),
    ("blocks.#1.attention.value.", "layers.#1.attention.v_proj."),
    ("blocks.#1.attention.output.", "layers.#1.attention.out_proj."),
    ("blocks.#1.attention_norm.", "layers.#1.layer_norm."),
    ("blocks.#1.widen.", "layers.#1.feed_forward.intermediate_dense."),
    ("blocks.#1.narrow.", "layers.#1.feed_forward.output_dense."),
    ("blocks.#1.output_norm.", "layers.#1.final_layer_norm."),
    ("distances.values.", "layers.0.attention.rel_attn_embed."),
    ("position.direction", "pos_conv_embed.conv.weight_v"),
    ("position.magnitude", "pos_conv_embed.conv.weight_g"),
    ("position.bias", "pos_conv_embed.conv.bias"),
    ("norm.", "layer_norm."),
)
_CONVOLUTIONS = (
    ("front.convolutions.#1.", "feature_extractor.conv_layers.#1.conv."),
    ("front.norms.#1.", "feature_extractor.conv_layers.#1.layer_norm."),
)
HUGGING_FACE = WeightNames(
    (
        *_CONVOLUTIONS,
        ("front.norm.", "feature_projection.layer_norm."),
        ("front.projection.", "feature_projection.projection."),
        *((name, f"encoder.{other}") for name, other in _BLOCK),
    ),
    extras="masked_spec_embed",
)
# Heads that transformers saves beside `wavlm.`: CTC, pre-training, sequence and frame classification, x-vector.
HUGGING_FACE_HEADS = (
    r"(lm_head|project_hid|project_q|projector|classifier|feature_extractor|tdnn\.\d+\.kernel)\.(weight|bias)"
    r"|quantizer\.(codevectors|weight_proj\.weight|weight_proj\.bias)|layer_weights|objective\.weight"
)
# Those of them that become weights of the x-vector pooling.
HUGGING_FACE_XVECTOR = r"(projector|feature_extractor|tdnn\.\d+\.kernel)\.(weight|bias)|layer_weights"
# Those of them that become weights of the pooling and the head of a sequence classification.
HUGGING_FACE_SEQUENCE = r"(projector|classifier)\.(weight|bias)|layer_weights"
SEQUENCE_POOLING = WeightNames((("layer_weights", "layer_weights"), ("projector.", "projector.")))
_ADAPTER = "encoder.layers.#1.adapter_layer."
WAV2VEC2 = WeightNames(
    (
        ("blocks.#1.language.norm.", f"{_ADAPTER}norm."),
        ("blocks.#1.language.down.", f"{_ADAPTER}linear_1."),
        ("blocks.#1.language.up.", f"{_ADAPTER}linear_2."),
        *HUGGING_FACE.prefixes,
    ),
    extras=HUGGING_FACE.extras,
)
W2V_BERT = WeightNames(
    (
        ("norm.", "feature_projection.layer_norm."),
        ("projection.", "feature_projection.projection."),
        ("between.widen.", "intermediate_ffn.intermediate_dense."),
        ("between.narrow.", "intermediate_ffn.output_dense."),
        ("narrow.0.", "adapter.proj."),
        ("narrow.1.", "adapter.proj_layer_norm."),
        *(
            (f"{ours}.attention.{name}", f"{theirs}.self_attn.{other}")
            for ours, theirs in (("blocks.#1", "encoder.layers.#1"), ("above.#1", "adapter.layers.#1"))
            for name, other in (
                ("query.", "linear_q."),
                ("key.", "linear_k."),
                ("value.", "linear_v."),
                ("output.", "linear_out."),
                ("distances.", "distance_embedding."),
                ("position.", "linear_pos."),
                ("content_query", "pos_bias_u"),
                ("position_query", "pos_bias_v"),
            )
        ),
        *(
            (f"blocks.#1.{name}", f"encoder.layers.#1.{other}")
            for name, other in (
                ("first_norm.", "ffn1_layer_norm."),
                ("first.widen.", "ffn1.intermediate_dense."),
                ("first.narrow.", "ffn1.output_dense."),
                ("attention_norm.", "self_attn_layer_norm."),
                ("convolution.norm.", "conv_module.layer_norm."),
                ("convolution.widen.", "conv_module.pointwise_conv1."),
                ("convolution.depthwise.", "conv_module.depthwise_conv."),
                ("convolution.inner_norm.", "conv_module.depthwise_layer_norm."),
                ("convolution.narrow.", "conv_module.pointwise_conv2."),
                ("second_norm.", "ffn2_layer_norm."),
                ("second.widen.", "ffn2.intermediate_dense."),
                ("second.narrow.", "ffn2.output_dense."),
                ("output_norm.", "final_layer_norm."),
            )
        ),
        *(
            (f"above.#1.{name}", f"adapter.layers.#1.{other}")
            for name, other in (
                ("norms.0.", "residual_layer_norm."),
                ("norms.1.", "self_attn_layer_norm."),
                ("convolutions.0.", "residual_conv."),
                ("convolutions.1.", "self_attn_conv."),
                ("output_norm.", "ffn_layer_norm."),
                ("output.widen.", "ffn.intermediate_dense."),
                ("output.narrow.", "ffn.output_dense."),
            )
        ),
    ),
    extras="masked_spec_embed",
)
TORCHAUDIO = WeightNames(
    (
        *_CONVOLUTIONS,
        ("front.norm.", "encoder.feature_projection.layer_norm."),
        ("front.projection.", "encoder.feature_projection.projection."),
        *(
            (f"blocks.#1.attention.{part}.{kind}", f"encoder.transformer.layers.#1.{projection}_{kind}[{part}]")
            for part in ("query", "key", "value")
            for kind in ("weight", "bias")
            for projection in ("attention.attention.in_proj",)
        ),
        ("blocks.#1.attention.output.", "encoder.transformer.layers.#1.attention.attention.out_proj."),
        *((name, f"encoder.transformer.{other}") for name, other in _BLOCK),
    ),
    extras=r"aux\.(weight|bias)",
)
_MICROSOFT_BLOCK = (
    ("blocks.#1.attention.gate_scale", "self_attn.grep_a"),
    ("blocks.#1.attention.gate.", "self_attn.grep_linear."),
    ("blocks.#1.attention.query.", "self_attn.q_proj."),
    ("blocks.#1.attention.key.", "self_attn.k_proj."),
    ("blocks.#1.attention.value.", "self_attn.v_proj."),
    ("blocks.#1.attention.output.", "self_attn.out_proj."),
    ("blocks.#1.attention_norm.", "self_attn_layer_norm."),
    ("blocks.#1.widen.", "fc1."),
    ("blocks.#1.narrow.", "fc2."),
    ("blocks.#1.output_norm.", "final_layer_norm."),
)


def microsoft(convolution_norm: str) -> WeightNames:
    """Names in Microsoft's files, which depend on the position of the norms (`WavLMSizes.convolution_norm`)."""
    # A convolution is a sequence (convolution, dropout, norm, GELU); a norm over channels sits between transposes.
    norm = "2." if convolution_norm == "group" else "2.1."
    return WeightNames(
        (
            ("front.convolutions.#1.", "feature_extractor.conv_layers.#1.0."),
            ("front.norms.#1.", f"feature_extractor.conv_layers.#1.{norm}"),
            ("front.norm.", "layer_norm."),
            ("front.projection.", "post_extract_proj."),
            *((name, f"encoder.layers.#1.{other}") for name, other in _MICROSOFT_BLOCK),
            ("distances.values.", "encoder.layers.0.self_attn.relative_attention_bias."),
            ("position.direction", "encoder.pos_conv.0.weight_v"),
            ("position.magnitude", "encoder.pos_conv.0.weight_g"),
            ("position.bias", "encoder.pos_conv.0.bias"),
            ("norm.", "encoder.layer_norm."),
        ),
        extras="mask_emb",
    )


# What only the training of fairseq's wav2vec 2.0 and HuBERT needs.
FAIRSEQ_EXTRAS = r"mask_emb|label_embs_concat|(quantizer|project_q|final_proj|target_glu)(\.\w+)+"

_UNIT = (("conv.", "conv.conv."), ("norm.", "norm.norm."))  # speechbrain wraps a convolution and a norm in modules


def _units(*places: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"{place}.{name}", f"{place}.{other}") for place in places for name, other in _UNIT)


ECAPA = WeightNames(
    (
        ("blocks.#1.se_block.conv#2.", "blocks.#1.se_block.conv#2.conv."),
        ("blocks.#1.shortcut.", "blocks.#1.shortcut.conv."),
        *_units("blocks.#1.res2net_block.blocks.#2", "blocks.#1.tdnn#2", "blocks.#1", "mfa"),
    )
)
ECAPA_POOLING = WeightNames(
    (
        *((f"tdnn.{name}", f"asp.tdnn.{other}") for name, other in _UNIT),
        ("conv.", "asp.conv.conv."),
        ("norm.", "asp_bn.norm."),
        ("fc.", "fc.conv."),
    )
)


def speechbrain_classifier(hidden: int) -> WeightNames:
    """Names in speechbrain's x-vector classifier of `hidden` hidden layers."""
    return WeightNames(
        (
            ("norms.0.", "norm.norm."),
            *((f"norms.{number + 1}.", f"DNN.block_{number}.norm.norm.") for number in range(hidden)),
            *((f"linears.{number}.", f"DNN.block_{number}.linear.w.") for number in range(hidden)),
            (f"linears.{hidden}.", "out.w."),
        )
    )


_DENSE = "xvector.block#1+1.tdnnd#2+1."
CAMPPLUS = WeightNames(
    (
        ("head.", "head."),
        ("tdnn.linear.", "xvector.tdnn.linear."),
        ("tdnn.norm.", "xvector.tdnn.nonlinear.batchnorm."),
        ("blocks.#1.#2.first.norm.", f"{_DENSE}nonlinear1.batchnorm."),
        ("blocks.#1.#2.first.linear.", f"{_DENSE}linear1."),
        ("blocks.#1.#2.norm.", f"{_DENSE}nonlinear2.batchnorm."),
        ("blocks.#1.#2.local.", f"{_DENSE}cam_layer.linear_local."),
        ("blocks.#1.#2.narrow.", f"{_DENSE}cam_layer.linear1."),
        ("blocks.#1.#2.widen.", f"{_DENSE}cam_layer.linear2."),
        ("transits.#1.norm.", "xvector.transit#1+1.nonlinear.batchnorm."),
        ("transits.#1.linear.", "xvector.transit#1+1.linear."),
        ("norm.", "xvector.out_nonlinear.batchnorm."),
    )
)
CAMPPLUS_POOLING = WeightNames((("linear.", "xvector.dense.linear."), ("norm.", "xvector.dense.nonlinear.batchnorm.")))


def eres2net(scale: int) -> WeightNames:
    """Names in wespeaker's ERes2Net, which has the first of `scale` convolutions of a fused block apart."""
    fused = [
        (
            f"layer{stage}.#1.{ours}.{number}.",
            f"layer{stage}.#1.{theirs}_1." if number == 0 else f"layer{stage}.#1.{ours}.{number - 1}.",
        )
        for stage in (3, 4)
        for ours, theirs in (("convs", "conv2"), ("bns", "bn2"))
        for number in range(scale)
    ]
    return WeightNames((*fused, ("", "")))


XVECTOR = WeightNames(
    (
        ("layer_weights", "layer_weights"),
        ("projector.", "projector."),
        ("tdnn.#1.", "tdnn.#1.kernel."),
        ("linear.", "feature_extractor."),
    )
)


def pyannet(monolithic: bool) -> WeightNames:
    """Names in pyannote's PyanNet, whose LSTM is a single module (`monolithic`) or a module per layer."""
    lstm = "lstm." if monolithic else "lstm.#1."
    return WeightNames(
        (
            ("normalize.", "sincnet.wav_norm1d."),
            ("sinc.low", "sincnet.conv1d.0.filterbank.low_hz_"),
            ("sinc.band", "sincnet.conv1d.0.filterbank.band_hz_"),
            ("convolutions.#1.", "sincnet.conv1d.#1+1."),
            ("norms.#1.", "sincnet.norm1d.#1."),
            *((f"lstm.{kind}_l#1", f"{lstm}{kind}_l{'#1' if monolithic else 0}") for kind in _LSTM),
            ("linears.#1.", "linear.#1."),
            ("classifier.", "classifier."),
        ),
        extras=r"sincnet\.conv1d\.0\.filterbank\.(window|n)_",
    )


_LSTM = tuple(f"{kind}_{side}" for kind in ("weight", "bias") for side in ("ih", "hh"))
