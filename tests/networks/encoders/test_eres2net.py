"""ERes2Net: 3D-Speaker's and wespeaker's outputs through the importers, and the contract of encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS, POOLINGS
from knn_cli.embedding.embedder import Embedder
from knn_cli.networks import bundle
from knn_cli.networks.conversion import convert
from knn_cli.networks.encoders.eres2net import AttentiveFusion, ERes2Net
from knn_cli.networks.importers.entry import import_embedding_network
from knn_cli.networks.importers.weight_names import SAME_NAMES, eres2net
from tests.helpers.encoder_contract import check_frames, check_gradient, check_padding, shaken
from tests.helpers.public_outputs import OUTPUTS, clips, weights

# Output of the public code -> arguments of the encoder and of the pooling.
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "eres2net": ({"inner": (4, 8, 16, 32), "blocks": (1, 2, 2, 1)}, {}),
    "eres2net-huge": (
        {"inner": (3, 6, 12, 24), "blocks": (1, 1, 2, 1), "scale": 3, "expansion": 4},
        {"two": True},
    ),
    "eres2netv2": (
        {"inner": (3, 6, 13, 26), "blocks": (1, 2, 1, 1), "fusion": "last"},
        {"statistics": "attentive"},
    ),
    "eres2net-wespeaker": ({"inner": (4, 8, 16, 32), "blocks": (1, 2, 2, 1), "window": "hamming"}, {}),
    "eres2net-aug": (
        {"inner": (3, 6, 12, 24), "blocks": (1, 1, 2, 1), "scale": 3, "expansion": 4, "window": "hamming"},
        {"two": True},
    ),
}


def published(name: str) -> dict[str, torch.Tensor]:
    """The checkpoint of a network, under the names of its own code."""
    args, more = NETWORKS[name]
    encoder = ENCODERS.build("eres2net", width=8, **args)
    pooling = POOLINGS.build("resnet", layers=1, channels=encoder.channels, dimension=12, **more)
    names = eres2net(args.get("scale", 2)) if args.get("window") == "hamming" else SAME_NAMES
    state = {names.source_name(key): value for key, value in encoder.state_dict().items()}
    return weights(state | pooling.state_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_checkpoint_gives_the_embeddings_of_its_own_code(tmp_path: Path, name: str) -> None:
    """Whose it is follows from the names of its weights: no option says so."""
    state = published(name)
    theirs = name in ("eres2net-wespeaker", "eres2net-aug")
    torch.save(state, tmp_path / "model.pt")
    convert(tmp_path / "model.pt", tmp_path / "m")
    found = bundle.find(tmp_path / "m")
    assert found.scale == (32768.0 if theirs else 1.0) and found.config["encoder"]["args"]["bins"] == 80
    sounds = [*clips().numpy(), clips().numpy()[0, :9000]]
    embedder = Embedder(tmp_path / "m", device="cpu")
    embeddings, expected = embedder(sounds), np.load(OUTPUTS)[name]
    near = {"atol": 1e-4 * np.abs(expected).max(), "rtol": 0}  # these weights magnify last digits of the features
    np.testing.assert_allclose(embeddings[:2], expected, **near)
    np.testing.assert_allclose(embeddings[2], embedder([sounds[2]])[0], **near)  # padded
    missing = next(key for key in state if key.startswith("layer4.") and "fuse_models" in key)
    torch.save({key: value for key, value in state.items() if key != missing}, tmp_path / "model.pt")
    with pytest.raises(KnnError, match=r"1 missing: layer4\.\d\.fuse_models"):
        import_embedding_network(tmp_path / "model.pt")


@pytest.mark.parametrize("fusion", ["all", "last"])
def test_contract(fusion: str) -> None:
    torch.manual_seed(0)
    sizes = {"width": 4, "inner": (4, 4, 4, 8), "blocks": (1, 1, 2, 1), "scale": 3, "bins": 41}
    encoder = shaken(ENCODERS.build("eres2net", fusion=fusion, **sizes))
    pooling = shaken(POOLINGS.build("resnet", layers=1, channels=encoder.channels, dimension=5))
    check_frames(encoder)
    check_padding(encoder, pooling)
    check_gradient(encoder, pooling)


def test_fusion_by_hand() -> None:
    """With the attention's last norm at bias b, it is tanh(b) everywhere."""
    fusion = AttentiveFusion(4).eval()
    with torch.no_grad():
        fusion.local_att[4].weight.zero_()
        fusion.local_att[4].bias.fill_(np.arctanh(0.25))
    x, y = torch.full((1, 4, 1, 1), 2.0), torch.full((1, 4, 1, 1), 8.0)
    torch.testing.assert_close(fusion(x, y), torch.full((1, 4, 1, 1), 2 * 1.25 + 8 * 0.75))


@pytest.mark.parametrize("wrong", [{"inner": (1, 2)}, {"blocks": (1, 1, 1, 0)}, {"fusion": "first"}])
def test_impossible_sizes(wrong: dict[str, Any]) -> None:
    with pytest.raises(KnnError, match=r"ERes2Net needs|no fusion 'first'"):
        ERes2Net(**wrong)
