"""The x-vector back end of WavLM: transformers' embeddings, and clips shorter than its kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from knn_cli.core.errors import KnnError
from knn_cli.embedding.embedder import Embedder
from knn_cli.networks.conversion import convert
from knn_cli.networks.importers.entry import import_embedding_network
from knn_cli.networks.pooling.xvector import XVector
from tests.networks.importers.test_wavlm import hugging_face_model, waveforms

SMALL = {"tdnn_dim": [8, 6, 7], "tdnn_kernel": [3, 3, 1], "tdnn_dilation": [1, 2, 1], "xvector_output_dim": 5}


@pytest.mark.parametrize("weighted", [False, True])
def test_converted_it_equals_transformers(tmp_path: Path, weighted: bool) -> None:
    model = hugging_face_model("base", "WavLMForXVector", use_weighted_layer_sum=weighted, **SMALL)
    model.save_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "m")
    with torch.no_grad():
        expected = model(waveforms()).embeddings
    embeddings = torch.from_numpy(Embedder(tmp_path / "m", device="cpu")(list(waveforms().numpy())))
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=1e-4)


def test_other_sizes_than_the_config_says(tmp_path: Path) -> None:
    model = hugging_face_model("base", "WavLMForXVector", **SMALL)
    model.config.tdnn_dim = [8, 6, 8]
    model.save_pretrained(tmp_path)
    with pytest.raises(KnnError, match=r"mis-sized: tdnn\.2\.kernel\.weight is \(7, 6\), not \(8, 6\)"):
        import_embedding_network(tmp_path)


def test_a_short_clip_is_lengthened_by_its_ends() -> None:
    torch.manual_seed(0)
    pooling = XVector(1, 2, widths=(4, 3), kernels=(3, 3), dilations=(1, 2), dimension=3, weighted=False)
    frames = torch.randn(2, 4, 2)
    assert pooling.span == 7
    by_hand = torch.stack([torch.stack([clip[t] for t in (0, 0, 1, 2, 3, 3, 3)]) for clip in frames])
    torch.testing.assert_close(pooling([frames]), pooling([by_hand]))
    with pytest.raises(KnnError, match="of one length"):
        XVector(1, 2, widths=(4,), kernels=(3, 3))
