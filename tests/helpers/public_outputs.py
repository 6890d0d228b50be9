"""Outputs of the public implementations on weights that a test can make again: data/public_outputs.npz.

Made by `python tests/public_outputs.py SPEECHBRAIN WESPEAKER 3D_SPEAKER REDIMNET`, four source trees of the
public repositories (speechbrain 1.0 with hyperpyyaml, wenet-e2e/wespeaker, modelscope/3D-Speaker, IDRnD/ReDimNet;
November 2026), and only read by the tests. Filter banks are speechbrain's and ReDimNet's own and torchaudio's
`compliance.kaldi.fbank`.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

OUTPUTS = Path(__file__).parents[1] / "data" / "public_outputs.npz"
ECAPA = {
    "channels": [16, 16, 16, 16, 24],
    "kernel_sizes": [5, 3, 3, 3, 1],
    "dilations": [1, 2, 3, 4, 1],
    "attention_channels": 8,
    "res2net_scale": 4,
    "se_channels": 6,
    "lin_neurons": 12,
}
CLASSIFIER = {"lin_blocks": 1, "lin_neurons": 10, "out_neurons": 5}

# Settings of ReDimNet: every kind of block and of stage, the last with what wespeaker's has too.
REDIMNET: dict[str, dict[str, Any]] = {
    "att": {
        "F": 12,
        "C": 4,
        "block_1d_type": "att",
        "block_2d_type": "basic_resnet_fwse",
        "stages_setup": [(1, 1, 2, [(3, 3)], 6), (3, 2, 1, [(3, 3)], None), (2, 1, 1, [(3, 3)], 4)],
        "group_divisor": 2,
        "out_channels": 10,
        "global_context_att": True,
        "emb_bn": True,
        "hop_length": 240,
        "embed_dim": 12,
    },
    "fc": {
        "F": 12,
        "C": 4,
        "block_1d_type": "fc",
        "block_2d_type": "convnext_like_relu",
        "stages_setup": [(2, 1, 3, [(3, 3)], 6), (3, 1, 1, [(3, 3)], 6)],
        "group_divisor": None,
        "pooling_func": "TSTP",
        "embed_dim": 12,
    },
    "conv": {
        "F": 12,
        "C": 4,
        "block_1d_type": "conv",
        "block_2d_type": "basic_resnet",
        "stages_setup": [(1, 1, 1, [(3, 3)], 6), (2, 2, 1, [(3, 3)], 12)],
        "group_divisor": None,
        "embed_dim": 12,
    },
    "b0": {
        "F": 12,
        "C": 4,
        "block_1d_type": "conv+att",
        "block_2d_type": "convnext_like",
        "stages_setup": [(1, 1, 1, [(3, 3)], 12), (2, 1, 2, [(3, 3)], 6), (1, 1, 1, [(3, 3)], None)],
        "group_divisor": 2,
        "embed_dim": 12,
    },
}


def clips() -> Tensor:
    """Two clips of one second, (2, 16000) float32 in [-1, 1]."""
    noise = np.random.default_rng(0).normal(size=(2, 16000)) * 0.1
    swell = 0.1 + np.abs(np.sin(np.arange(16000) / 900))
    return torch.from_numpy((noise * swell).astype(np.float32))


def weights(shapes: Mapping[str, Any]) -> dict[str, Tensor]:
    """A weight for each published name, from the name and its shape alone."""
    return {name: _weight(name, tuple(value.shape)) for name, value in shapes.items()}


def _weight(name: str, shape: tuple[int, ...]) -> Tensor:
    random = np.random.default_rng(crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    if name.endswith("running_var"):
        return torch.from_numpy(random.uniform(0.5, 2, shape).astype(np.float32))
    values = random.normal(size=shape)
    if len(shape) == 1:  # of a norm, a bias
        values = values * 0.2 + (name.endswith(".weight") or name == "weight")
    else:
        values /= np.sqrt(np.prod(shape[1:]) / 2)
    return torch.from_numpy(values.astype(np.float32))


def _filled(module: Any) -> Any:
    module.load_state_dict(weights(module.state_dict()))
    return module.eval()


def _kaldi(scale: float, window: str) -> Tensor:
    from torchaudio.compliance.kaldi import fbank

    rows = [
        fbank(clip[None] * scale, num_mel_bins=80, dither=0.0, sample_frequency=16000, window_type=window)
        for clip in clips()
    ]
    features = torch.stack(rows)
    return features - features.mean(1, keepdim=True)


def of_wespeaker() -> dict[str, Tensor]:
    """What wespeaker's networks give, whose packages can be imported."""
    from wespeaker.models import (
        campplus,
        ecapa_tdnn,
        eres2net,
        gemini_dfresnet,
        redimnet,
        repvgg,
        res2net,
        resnet,
        samresnet,
        tdnn,
    )

    features = _kaldi(32768.0, "hamming")
    basic, blocks = resnet.BasicBlock, [2, 2, 2, 2]
    networks = {
        "resnet18": resnet.ResNet(basic, blocks, 4, 80, 12),
        "resnet50": resnet.ResNet(resnet.Bottleneck, [3, 4, 6, 3], 2, 80, 12, two_emb_layer=True),
        "resnet18-ASTP": resnet.ResNet(basic, blocks, 4, 80, 12, pooling_func="ASTP"),
        "resnet18-MQMHASTP": resnet.ResNet(basic, blocks, 4, 80, 12, pooling_func="MQMHASTP"),
        "resnet18-MHASTP": resnet.ResNet(basic, blocks, 4, 80, 12, pooling_func="MHASTP", two_emb_layer=True),
        "res2net": res2net.Res2Net(8, [1, 2, 1, 1], embed_dim=12, two_emb_layer=True),
        "df-resnet": gemini_dfresnet.Gemini_DF_ResNet([1, 2, 1, 1], [4, 4, 6, 6, 8], 80, 12),
        "simam-resnet34": samresnet.SimAM_ResNet34_ASP(4, 12),
        "eres2net-wespeaker": eres2net.ERes2Net(8, [1, 2, 2, 1], embed_dim=12),
        "eres2net-aug": eres2net.ERes2Net(8, [1, 1, 2, 1], 24, 3, 4, embed_dim=12, two_emb_layer=True),
        "redimnet-wespeaker": redimnet.ReDimNet(
            80,
            4,
            "conv+att",
            "convnext_like",
            [(1, 1, 1, [], 10), (2, 1, 2, [], 8), (1, 1, 1, [], None)],
            2,
            embed_dim=12,
        ),
        "xvector": tdnn.XVEC(80, 8, 12, 12),
        "ecapa-ASTP": ecapa_tdnn.ECAPA_TDNN(16, 80, 12),
        "ecapa-context": ecapa_tdnn.ECAPA_TDNN(16, 80, 12, global_context_att=True, emb_bn=True),
        "campplus-wespeaker": campplus.CAMPPlus(80, 12, growth_rate=4, init_channels=8),
        "repvgg": repvgg.RepVGG(
            num_blocks=[2, 1, 2, 1],
            strides=[1, 1, 2, 2, 2],
            width_multiplier=[0.125, 0.125, 0.125, 0.125],
            override_groups_map=repvgg.g2_map,
            pooling_func="TSTP",
            embed_dim=12,
        ),
        "repvgg-squeezed": repvgg.RepVGG(
            num_blocks=[2, 1, 2, 1],
            strides=[1, 1, 2, 2, 2],
            width_multiplier=[0.125, 0.125, 0.125, 0.125],
            override_groups_map=repvgg.g2_map,
            pooling_func="MQMHASTP",
            use_se=True,
            embed_dim=12,
        ),
        "repvgg-dilated": repvgg.RepVGG(
            block="RepSPK",
            num_blocks=[2, 1, 2, 1],
            strides=[1, 1, 2, 2, 2],
            width_multiplier=[0.125, 0.125, 0.125, 0.125],
            pooling_func="TSTP",
            embed_dim=12,
        ),
    }
    outputs = {name: _filled(network)(features) for name, network in networks.items()}
    return {name: output[-1] if isinstance(output, tuple) else output for name, output in outputs.items()}


def of_redimnet() -> dict[str, Tensor]:
    """What the authors' ReDimNet gives, whose package can be imported."""
    from redimnet.model import ReDimNetWrap

    outputs = {}
    for name, config in REDIMNET.items():
        model = ReDimNetWrap(**config)
        constants = {key: value for key, value in model.state_dict().items() if key.startswith("spec.")}
        model.load_state_dict(weights(model.state_dict()) | constants)
        outputs[f"redimnet-{name}"] = model.eval()(clips())
    return outputs


def of_3d_speaker() -> dict[str, Tensor]:
    """What 3D-Speaker's networks give, whose package can be imported."""
    from speakerlab.models.campplus.DTDNN import CAMPPlus
    from speakerlab.models.eres2net import ERes2Net, ERes2Net_huge, ERes2NetV2

    features, sizes = _kaldi(1.0, "povey"), {"m_channels": 8, "embedding_size": 12}
    networks = {
        "campplus": CAMPPlus(80, 12, growth_rate=4, init_channels=8),
        "eres2net": ERes2Net.ERes2Net(num_blocks=[1, 2, 2, 1], **sizes),
        "eres2net-huge": ERes2Net_huge.ERes2Net(num_blocks=[1, 1, 2, 1], two_emb_layer=True, **sizes),
        "eres2netv2": ERes2NetV2.ERes2NetV2(num_blocks=[1, 2, 1, 1], pooling_func="ASTP", **sizes),
    }
    return {name: _filled(network)(features) for name, network in networks.items()}


@torch.inference_mode()
def main(speechbrain: str, wespeaker: str, speaker_3d: str, redimnet: str) -> None:
    """Write `OUTPUTS`."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.helpers.oracles import load_torchaudio

    load_torchaudio()
    sys.path[:0] = [speechbrain, speaker_3d, redimnet]
    for name, folder in (("wespeaker", "wespeaker"), ("wespeaker.models", "wespeaker/models")):
        package = types.ModuleType(name)  # its own __init__ imports programs that the networks do not need
        package.__path__ = [str(Path(wespeaker, folder))]
        sys.modules[name] = package
    from speechbrain.lobes.features import Fbank
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
    from speechbrain.lobes.models.Xvector import Classifier
    from speechbrain.processing.features import InputNormalization

    found = of_wespeaker() | of_3d_speaker() | of_redimnet()
    features = InputNormalization(norm_type="sentence", std_norm=False)(Fbank(n_mels=60)(clips()), torch.ones(2))
    embeddings = _filled(ECAPA_TDNN(60, **ECAPA))(features)
    found["decibels"] = features[0]
    found["ecapa"] = embeddings[:, 0]
    found["ecapa_scores"] = _filled(Classifier([None, None, 12], **CLASSIFIER))(embeddings)[:, 0]
    OUTPUTS.parent.mkdir(exist_ok=True)
    np.savez_compressed(OUTPUTS, **{name: value.numpy() for name, value in found.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
