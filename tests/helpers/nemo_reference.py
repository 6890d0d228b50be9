"""NeMo's label models by its formulas, slow and plain, under its names of weights; and `.nemo` files of them.

Written from nemo/collections/asr: `parts/preprocessing/features.py` (FilterbankFeatures), `parts/submodules/jasper.py`
(JasperBlock), `parts/submodules/tdnn_attention.py` (StatsPoolLayer, AttentivePoolLayer), `modules/conv_asr.py`
(SpeakerDecoder), of version 2. Mel filters are librosa's by its definition.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def librosa_mel(bins: int, size: int, rate: int = 16000) -> np.ndarray:
    """librosa.filters.mel(norm="slaney"), a value at a time: (bins, size // 2 + 1)."""

    def to_mel(hertz: float) -> float:
        return hertz / (200 / 3) if hertz < 1000 else 15 + math.log(hertz / 1000) / (math.log(6.4) / 27)

    def to_hertz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)

    top = to_mel(rate / 2)
    edges = [to_hertz(top * number / (bins + 1)) for number in range(bins + 2)]
    filters = np.zeros((bins, size // 2 + 1))
    for number in range(bins):
        low, centre, high = edges[number : number + 3]
        for point in range(size // 2 + 1):
            hertz = point * rate / size
            height = min((hertz - low) / (centre - low), (high - hertz) / (high - centre))
            filters[number, point] = max(0.0, height) * 2 / (high - low)
    return filters


def features(clip: np.ndarray, bins: int, size: int = 400, transform: int = 512) -> np.ndarray:
    """FilterbankFeatures.forward of one clip, by a Fourier sum in float64: (bins, T)."""
    x = np.concatenate([clip[:1], clip[1:] - 0.97 * clip[:-1]]).astype(np.float64)
    x = np.pad(x, transform // 2)  # center, pad_mode "constant"
    window = np.zeros(transform)
    start = (transform - size) // 2
    window[start : start + size] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / (size - 1))  # not periodic
    count = len(clip) // 160  # get_seq_len: (samples + transform - transform) // hop
    points = np.exp(-2j * np.pi * np.outer(np.arange(transform), np.arange(transform // 2 + 1)) / transform)
    power = np.stack([np.abs((x[160 * n : 160 * n + transform] * window) @ points) ** 2 for n in range(count)], 1)
    mel = np.log(librosa_mel(bins, transform) @ power + 2.0**-24)
    deviation = mel.std(axis=1, ddof=1, keepdims=True) if count > 1 else 0.0
    return np.asarray((mel - mel.mean(axis=1, keepdims=True)) / (deviation + 1e-5))


class Masked(nn.Module):
    """MaskedConv1d: what is past a clip's end is silence."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, dilation: int, groups: int) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.conv = nn.Conv1d(before, after, kernel, stride, padding, dilation, groups, bias=False)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = x * (torch.arange(x.shape[2]) < lengths[:, None]).unsqueeze(1)
        return self.conv(x), torch.div(lengths - 1, self.conv.stride[0], rounding_mode="floor") + 1


class Excite(nn.Module):
    """SqueezeExcite."""

    def __init__(self, channels: int, ratio: int) -> None:
        super().__init__()
        layers = nn.Linear(channels, channels // ratio, bias=False), nn.Linear(channels // ratio, channels, bias=False)
        self.fc = nn.Sequential(layers[0], nn.ReLU(), layers[1])

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = x.masked_fill(~(torch.arange(x.shape[2]) < lengths[:, None]).unsqueeze(1), 0.0)
        y = self.fc(x.sum(2) / lengths[:, None])
        return x * torch.sigmoid(y).unsqueeze(2), lengths


def convolutions(before: int, block: dict[str, Any], stride: int, kernel: int, separable: bool) -> list[nn.Module]:
    after, dilation = block["filters"], block["dilation"][0] if kernel > 1 else 1
    if separable:
        layers = [Masked(before, before, kernel, stride, dilation, before), Masked(before, after, 1, 1, 1, 1)]
    else:
        layers = [Masked(before, after, kernel, stride, dilation, 1)]
    return [*layers, nn.BatchNorm1d(after, eps=1e-3)]


class JasperBlock(nn.Module):
    def __init__(self, before: int, block: dict[str, Any]) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        width, separable, kernel = before, block["separable"], block["kernel"][0]
        for number in range(block["repeat"]):
            is_last = number == block["repeat"] - 1
            stride = block["stride"][0] if is_last or not block.get("stride_last") else 1
            parts += convolutions(width, block, stride, kernel, separable)
            parts += [] if is_last else [nn.ReLU(), nn.Dropout(block["dropout"])]
            width = block["filters"]
        if block.get("se"):
            parts.append(Excite(width, block.get("se_reduction_ratio", 8)))
        self.mconv = nn.ModuleList(parts)
        strides = block["stride"][0] if block.get("residual_mode") == "stride_add" else 1
        residual = [nn.ModuleList(convolutions(before, block, strides, 1, False))] if block["residual"] else []
        self.res = nn.ModuleList(residual) if residual else None

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        y, after = x, lengths
        for part in self.mconv:
            y, after = part(y, after) if isinstance(part, (Masked, Excite)) else (part(y), after)
        for branch in self.res or ():
            z, _ = branch[0](x, lengths)
            y = y + branch[1](z)
        return y.relu(), after


class Attention(nn.Module):
    """AttentivePoolLayer."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        first = nn.Module()
        first.conv_layer, first.bn = nn.Conv1d(3 * channels, hidden, 1), nn.BatchNorm1d(hidden)
        self.attention_layer = nn.ModuleList([first, nn.Tanh(), nn.Conv1d(hidden, channels, 1)])

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        mask = (torch.arange(x.shape[2]) < lengths[:, None]).unsqueeze(1)
        mean, deviation = self.statistics(x, mask / mask.sum(2, keepdim=True))
        wide = torch.cat([x, mean[..., None].expand_as(x), deviation[..., None].expand_as(x)], 1)
        first: Any = self.attention_layer[0]
        keys = self.attention_layer[2](first.bn(F.relu(first.conv_layer(wide))).tanh())
        return torch.cat(self.statistics(x, keys.masked_fill(~mask, -math.inf).softmax(2)), 1).unsqueeze(2)

    @staticmethod
    def statistics(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        mean = (weights * x).sum(2)
        return mean, (weights * (x - mean.unsqueeze(2)) ** 2).sum(2).clamp(1e-10).sqrt()


class LabelModel(nn.Module):
    """EncDecSpeakerLabelModel after its features; `config` is that of a `.nemo` file."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        blocks, decoder = config["encoder"]["jasper"], config["decoder"]
        widths = [config["encoder"]["feat_in"], *(block["filters"] for block in blocks)]
        self.encoder = nn.Module()
        self.encoder.encoder = nn.ModuleList(map(JasperBlock, widths, blocks))
        self.decoder, self.mode = nn.Module(), decoder["pool_mode"]
        given = decoder["emb_sizes"]
        sizes = [given] if isinstance(given, int) else given
        width = widths[-1] * (1 if self.mode == "tap" else 2)
        layers = []
        for before, after in zip([width, *sizes], sizes, strict=False):
            if self.mode == "attention":
                layers.append(nn.Sequential(nn.BatchNorm1d(before), nn.Conv1d(before, after, 1)))
            else:
                layers.append(nn.Sequential(nn.Linear(before, after), nn.BatchNorm1d(after, affine=False), nn.ReLU()))
        if self.mode == "attention":
            self.decoder._pooling = Attention(widths[-1], decoder.get("attention_channels", 128))
        self.decoder.emb_layers = nn.ModuleList(layers)
        self.decoder.final = nn.Linear(sizes[-1], decoder["num_classes"], bias=not decoder.get("angular", False))

    def forward(self, mels: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, F, T) and frames (B,) -> logits and embeddings."""
        x: Any = mels
        encoder, decoder = self.encoder.encoder, self.decoder
        for block in encoder:
            x, lengths = block(x, lengths)
        x = decoder._pooling(x, lengths) if self.mode == "attention" else self.statistics(x, lengths)
        for layer in decoder.emb_layers:
            embedding = layer[:2](x)
            x = layer(x)
        return decoder.final(x.flatten(1)), embedding.flatten(1)

    def statistics(self, x: Tensor, lengths: Tensor) -> Tensor:
        """StatsPoolLayer, a clip at a time."""
        clips = [clip[:, :length] for clip, length in zip(x, lengths.tolist(), strict=True)]
        means = torch.stack([clip.mean(1) for clip in clips])
        if self.mode == "tap":
            return means
        return torch.cat([means, torch.stack([clip.var(1).clamp(1e-10).sqrt() for clip in clips])], 1)


def block(filters: int, kernel: int, repeat: int = 1, **more: Any) -> dict[str, Any]:
    settings = {"filters": filters, "repeat": repeat, "kernel": [kernel], "stride": [1], "dilation": [1]}
    settings |= {"dropout": 0.1, "residual": repeat > 1, "separable": True, "se": True, "se_context_size": -1}
    return {**settings, **more}


def config(blocks: list[dict[str, Any]], bins: int, decoder: dict[str, Any], labels: Any = None) -> dict[str, Any]:
    """model_config.yaml of a small model, laid out as AmberNet's and TitaNet's."""
    modules = "nemo.collections.asr.modules."
    front = {"normalize": "per_feature", "window_size": 0.025, "sample_rate": 16000, "window_stride": 0.01}
    front |= {"window": "hann", "features": bins, "n_fft": 512, "frame_splicing": 1, "dither": 1e-05}
    encoder = {"feat_in": bins, "activation": "relu", "conv_mask": True, "jasper": blocks}
    decoder = {"feat_in": blocks[-1]["filters"], **decoder}
    return {
        "train_ds": {"manifest_filepath": "train.json", "labels": labels, "sample_rate": 16000},
        "preprocessor": {"_target_": f"{modules}AudioToMelSpectrogramPreprocessor", **front},
        "encoder": {"_target_": f"{modules}ConvASREncoder", **encoder},
        "decoder": {"_target_": f"{modules}SpeakerDecoder", **decoder},
        "loss": {"_target_": "nemo.collections.common.losses.cross_entropy.CrossEntropyLoss", "weight": [1.0]},
        "target": "nemo.collections.asr.models.label_models.EncDecSpeakerLabelModel",
    }


def nemo_file(path: Path, settings: dict[str, Any], weights: dict[str, Any], mode: str = "w:") -> Path:
    """A `.nemo` file, gzipped with mode "w:gz"; JSON is YAML."""
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in (
            ("model_config.yaml", json.dumps(settings).encode()),
            ("model_weights.ckpt", buffer.getvalue()),
        ):
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
