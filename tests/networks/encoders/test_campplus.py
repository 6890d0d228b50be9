"""CAM++: 3D-Speaker's outputs, the local context by hand, and the contract of encoders."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS, POOLINGS
from knn_cli.networks import bundle
from knn_cli.networks.encoders.campplus import CAMPPlus, CAMPPlusPooling, _context
from knn_cli.networks.importers.weight_names import CAMPPLUS, CAMPPLUS_POOLING
from knn_cli.networks.network import Network
from tests.helpers.encoder_contract import check_frames, check_gradient, check_padding, shaken, sound
from tests.helpers.public_outputs import OUTPUTS, clips, weights


def test_embeddings_equal_3d_speaker() -> None:
    encoder = CAMPPlus(channels=8, growth=4)
    network = Network(encoder, CAMPPlusPooling(1, encoder.channels, dimension=12))
    for part, spelling in ((network.encoder, CAMPPLUS), (network.pooling, CAMPPLUS_POOLING)):
        state = part.state_dict()
        named = weights({spelling.source_name(key): value for key, value in state.items()})
        part.load_state_dict({key: named[spelling.source_name(key)] for key in state})
    expected = torch.from_numpy(np.load(OUTPUTS)["campplus"])
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(clips()), expected, atol=1e-4, rtol=1e-4)


def test_context_by_hand() -> None:
    """250 frames of which 150 are real: a whole segment of ones, half a segment of threes, an empty one."""
    x = torch.cat([torch.ones(1, 1, 100), 3 * torch.ones(1, 1, 50), torch.zeros(1, 1, 100)], dim=2)
    mask = (torch.arange(250) < 150).float()[None, None]
    mean = (100 + 150) / 150
    torch.testing.assert_close(_context(x, mask)[0, 0], torch.tensor([mean + 1, mean + 3, mean]))


def test_contract() -> None:
    torch.manual_seed(0)
    encoder = shaken(ENCODERS.build("campplus", width=4, channels=8, growth=4, bottleneck=2, blocks=(2, 1, 1), bins=40))
    pooling = shaken(POOLINGS.build("campplus", layers=1, channels=encoder.channels, dimension=10))
    check_frames(encoder)
    check_padding(encoder, pooling)
    check_gradient(encoder, pooling)
    with pytest.raises(KnnError, match="3 dense blocks, not 2"):
        CAMPPlus(blocks=(1, 1))


def test_a_long_clip_in_a_padded_batch() -> None:
    """More than one segment of context, the last of them ended by the clip and not by the batch."""
    encoder = shaken(CAMPPlus(width=4, channels=8, growth=4, bottleneck=2, blocks=(1, 1, 1), bins=40))
    waveforms, lengths = sound(64000, 41000), torch.tensor([64000, 41000])
    with torch.inference_mode():
        together, alone = next(encoder(waveforms, lengths))[1], next(encoder(waveforms[1:, :41000]))[0]
    assert len(alone) > 100
    torch.testing.assert_close(together[: len(alone)], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sizes", [(400,), (720,), (16_000,), (64_000, 41_000, 33_000)])
def test_folded_norms_change_nothing(sizes: tuple[int, ...]) -> None:
    """Of any sign, of clips alone and padded, shorter than a segment of context and longer; and no state has them."""
    torch.manual_seed(0)
    encoder = shaken(CAMPPlus(width=4, channels=8, growth=4, bottleneck=2, blocks=(2, 2, 1), bins=40))
    for number, norm in enumerate(each for each in encoder.modules() if isinstance(each, torch.nn.BatchNorm1d)):
        norm.weight.data[number % 3 :: 3] *= -1.0
        norm.weight.data[number % 5 :: 5] *= number % 2
        norm.weight.data[number % 4 :: 4] = 1e-41  # as weight decay leaves them, of channels that are not used
    waveforms = sound(*sizes)
    lengths = torch.tensor(sizes) if len(sizes) > 1 else None
    names = encoder.state_dict().keys()
    with torch.inference_mode():
        plain = next(encoder(waveforms, lengths))
        encoder.fold()
        folded = next(encoder(waveforms, lengths))
    assert not torch.equal(folded, plain)  # the other computation, but for rounding:
    for row, size in enumerate(sizes):
        frames = encoder.frames(size)
        torch.testing.assert_close(folded[row, :frames], plain[row, :frames], atol=1e-5, rtol=1e-5)
    assert encoder.state_dict().keys() == names
    assert torch.equal(next(encoder(waveforms, lengths)), next(encoder(waveforms, lengths)))
    assert next(encoder(waveforms, lengths)).requires_grad  # with gradients, the weights themselves are used


def test_the_shipped_model_is_folded_unless_floats_are_to_be_trained() -> None:
    assert bundle.load_network(bundle.find("voice")).encoder.folded is not None
    assert bundle.load_network(bundle.find("voice"), float_products=True).encoder.folded is None
