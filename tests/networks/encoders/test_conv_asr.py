"""ConvASREncoder: the contract of encoders; impossible blocks. Its values are held to NeMo's by the importer's test."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS, POOLINGS
from knn_cli.networks.encoders.conv_asr import ConvASR, LayeredStatistics
from tests.helpers.encoder_contract import check_frames, check_gradient, check_padding, shaken

SMALL: dict[str, Any] = {
    "blocks": [
        {"channels": 16, "squeeze": 2},
        {"channels": 16, "kernel": 5, "repeat": 2, "stride": 2, "stride_last": True, "residual": True}
        | {"stride_residual": True, "separable": False, "squeeze": 2},
        {"channels": 20, "kernel": 3, "dilation": 2, "squeeze": 0},
    ],
    "bins": 24,
}


@pytest.mark.parametrize("pooling", ["layered-statistics", "ecapa-tdnn"])
def test_contract(pooling: str) -> None:
    torch.manual_seed(0)
    encoder = shaken(ENCODERS.build("conv-asr", **SMALL))
    args: dict[str, Any] = {"dimensions": [14, 10]} if pooling == "layered-statistics" else {"attention": 8}
    end = shaken(POOLINGS.build(pooling, layers=1, channels=20, **args))
    check_frames(encoder)
    check_padding(encoder, end)
    check_gradient(encoder, end)


def test_titanet_large_by_default() -> None:
    with torch.device("meta"):
        encoder = ConvASR()
    assert (encoder.channels, encoder.stride, len(encoder.block_list())) == (3072, 160, 5)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == pytest.approx(19e6, rel=0.1)


def test_impossible_sizes_are_refused() -> None:
    for block in (
        {"kernel": 4},
        {"channels": 0},
        {"strides": 2},
        {"stride": 2, "residual": True},
        {"stride": 2, "dilation": 2},
        {"stride": 2, "repeat": 2, "residual": True, "stride_residual": True},
        {"dropout": 1.0},
        {"squeeze": 99, "channels": 8},
        {"repeat": True},
    ):
        with pytest.raises(KnnError, match="ConvASREncoder"):
            ConvASR([block])
    for args in ({"blocks": []}, {"window": 401}, {"window": 600}, {"shape": "flat"}):
        with pytest.raises(KnnError):
            ConvASR(**args)
    with pytest.raises(KnnError, match="of at least 1"):
        LayeredStatistics(1, 8, dimensions=[0])
