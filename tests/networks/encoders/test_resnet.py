"""ResNets: wespeaker's outputs, an answer by hand, and the contract of encoders."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS, POOLINGS
from knn_cli.networks.encoders.resnet import DEPTHS, ResNet, ResNetPooling
from knn_cli.networks.network import Network
from tests.helpers.encoder_contract import check_frames, check_gradient, check_padding, shaken
from tests.helpers.public_outputs import OUTPUTS, clips, weights


@pytest.mark.parametrize(("depth", "width", "two"), [(18, 4, False), (50, 2, True)])
def test_embeddings_equal_wespeaker(depth: int, width: int, two: bool) -> None:
    encoder = ResNet(depth, width)
    network = Network(encoder, ResNetPooling(1, encoder.channels, dimension=12, two=two))
    for part in (network.encoder, network.pooling):
        part.load_state_dict(weights(part.state_dict()))  # the names are wespeaker's
    expected = torch.from_numpy(np.load(OUTPUTS)[f"resnet{depth}"])
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(clips() * 32768), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("depth", "bins"), [(18, 80), (50, 41)])
def test_contract(depth: int, bins: int) -> None:
    torch.manual_seed(0)
    encoder = shaken(ENCODERS.build("resnet", depth=depth, width=2, bins=bins))
    pooling = shaken(POOLINGS.build("resnet", layers=1, channels=encoder.channels, dimension=5, two=depth == 50))
    check_frames(encoder)
    check_padding(encoder, pooling)
    check_gradient(encoder, pooling)


def test_pooling_by_hand() -> None:
    pooling = ResNetPooling(layers=2, channels=1, dimension=1)
    with torch.no_grad():
        pooling.seg_1.weight.copy_(torch.tensor([[10.0, 1.0]]))
        pooling.seg_1.bias.zero_()
    frames = torch.tensor([[[1.0], [2.0], [3.0], [1e9]]])
    result = pooling([torch.zeros(1, 4, 1), frames], torch.tensor([[True, True, True, False]]))
    assert result.item() == pytest.approx(21.0, abs=1e-5)  # mean 2, unbiased deviation 1
    with pytest.raises(ValueError, match="1 layers came, 2 expected"):
        pooling([frames])


def test_blocks_of_every_depth() -> None:
    """A depth counts the stem, the convolutions of the blocks, and the linear layer."""
    for depth, (blocks, deep) in DEPTHS.items():
        assert depth == 2 + sum(blocks) * (3 if deep else 2)
    with pytest.raises(KnnError, match=r"no ResNet of depth 33.*18, 34, 50"):
        ResNet(33)
