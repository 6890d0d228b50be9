"""The settings beside a small ECAPA-TDNN of SpeechBrain's, as its hyperparams.yaml has them."""

from __future__ import annotations

_HYPERPARAMS = """
n_mels: 60
deltas: False
out_n_neurons: {classes}
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: !ref <n_mels>
    left_frames: 0
    deltas: !ref <deltas>
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: !ref <n_mels>
    channels: [16, 16, 16, 16, 24]
    kernel_sizes: [5, 3, 3, 3, 1]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: 8
    res2net_scale: 4
    se_channels: 6
    lin_neurons: 12
classifier: !new:speechbrain.lobes.models.Xvector.Classifier
    input_shape: [null, null, 12]
    activation: !name:torch.nn.LeakyReLU
    lin_blocks: 1
    lin_neurons: 10
    out_neurons: !ref <out_n_neurons>
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
modules:
    classifier: !ref <classifier>
"""


def hyperparams(classes: int) -> str:
    return _HYPERPARAMS.replace("{classes}", str(classes))
