"""ECAPA-TDNN: speechbrain's outputs, mirrored ends by hand, and the contract of encoders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS, HEADS, POOLINGS
from knn_cli.networks.encoders.ecapa import DeepSoftmax, EcapaPooling, EcapaTDNN
from knn_cli.networks.features import reflect_pad
from knn_cli.networks.importers.weight_names import ECAPA as SPELLING
from knn_cli.networks.importers.weight_names import ECAPA_POOLING, WeightNames, speechbrain_classifier
from knn_cli.networks.network import Network
from tests.helpers.encoder_contract import check_frames, check_gradient, check_padding, shaken
from tests.helpers.public_outputs import CLASSIFIER, ECAPA, OUTPUTS, clips, weights

SMALL = {"channels": (16, 16, 24, 16, 20), "scale": 4, "squeeze": 6, "bins": 24}


def public(module: nn.Module, spelling: WeightNames) -> None:
    """Load the weights that the public implementation of `public_outputs` had."""
    state = module.state_dict()
    named = weights({spelling.source_name(key): value for key, value in state.items()})
    module.load_state_dict({key: named[spelling.source_name(key)] for key in state})


def test_embeddings_and_scores_equal_speechbrain() -> None:
    encoder = EcapaTDNN(ECAPA["channels"], scale=ECAPA["res2net_scale"], squeeze=ECAPA["se_channels"], bins=60)
    pooling = EcapaPooling(1, 24, attention=8, dimension=12)
    head = DeepSoftmax(12, CLASSIFIER["out_neurons"], hidden=[CLASSIFIER["lin_neurons"]])
    public(encoder, SPELLING)
    public(pooling, ECAPA_POOLING)
    public(head, speechbrain_classifier(1))
    expected, network = np.load(OUTPUTS), Network(encoder, pooling, head).eval()
    with torch.inference_mode():
        embeddings = network(clips())
        torch.testing.assert_close(embeddings, torch.from_numpy(expected["ecapa"]), atol=1e-4, rtol=1e-4)
        scores = network.scores(embeddings).log_softmax(1)
        torch.testing.assert_close(scores, torch.from_numpy(expected["ecapa_scores"]), atol=1e-4, rtol=1e-4)


def test_mirrored_by_hand() -> None:
    x = torch.tensor([[[1.0, 2, 3, 4]], [[5.0, 6, 7, 99]]])
    assert reflect_pad(x, 0, None) is x
    assert reflect_pad(x[:1], 2, None)[0, 0].tolist() == [3, 2, 1, 2, 3, 4, 3, 2]
    padded = reflect_pad(x, 2, torch.tensor([4, 3]))[:, 0]
    assert padded[0].tolist() == [3, 2, 1, 2, 3, 4, 3, 2]
    assert padded[1, :7].tolist() == [7, 6, 5, 6, 7, 6, 5]


def test_contract() -> None:
    torch.manual_seed(0)
    encoder = shaken(ENCODERS.build("ecapa-tdnn", **SMALL))
    pooling = shaken(POOLINGS.build("ecapa-tdnn", layers=1, channels=20, attention=8, dimension=10))
    check_frames(encoder)
    check_padding(encoder, pooling)
    check_gradient(encoder, pooling)


def test_attention_without_context_by_hand() -> None:
    """Attention weights all alike: plain mean and deviation, then the linear layer."""
    pooling = EcapaPooling(layers=1, channels=2, attention=3, dimension=2, context=False).eval()
    with torch.no_grad():
        for parameter in pooling.conv.parameters():
            parameter.zero_()
        pooling.fc.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1.0]])[..., None])
        pooling.fc.bias.zero_()
    frames = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [1e9, 1e9]]])
    result = pooling([frames], torch.tensor([[True, True, False]]))
    torch.testing.assert_close(result, torch.tensor([[2.0, 2.0]]), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="2 layers came, 1 expected"):
        pooling([frames, frames])


def test_deep_softmax_by_hand() -> None:
    head = HEADS.build("deep-softmax", dimension=2, classes=2, hidden=[]).eval()
    with torch.no_grad():
        head.linears[0].weight.copy_(torch.eye(2))
        head.linears[0].bias.copy_(torch.tensor([0.0, 1.0]))
    scores = head.logits(torch.tensor([[3.0, -4.0]]))  # leaky ReLU: 3, -0.04
    torch.testing.assert_close(scores, torch.tensor([[3.0, 0.96]]), atol=1e-4, rtol=0)


def test_sizes_that_make_no_network_are_refused() -> None:
    for args in ({"channels": (16, 16)}, {"kernels": (4, 3, 3, 3, 1)}, {"scale": 7}):
        with pytest.raises(KnnError, match="ECAPA-TDNN needs"):
            EcapaTDNN(**{**SMALL, **args})
    with pytest.raises(KnnError, match="attention of at least 1"):
        EcapaPooling(1, 2, attention=0)
