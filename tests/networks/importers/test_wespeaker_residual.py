"""Res2Net, DF-ResNet, SimAM-ResNet, RepVGG with excitation, multi-query statistics: wespeaker's own outputs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS, POOLINGS
from knn_cli.embedding.embedder import Embedder
from knn_cli.networks import bundle
from knn_cli.networks.conversion import convert
from knn_cli.networks.importers.entry import import_embedding_network
from knn_cli.networks.pooling.multi_query_statistics import MultiQueryStatistics
from knn_cli.networks.pooling.time_statistics import time_statistics
from tests.helpers.public_outputs import OUTPUTS, clips, weights
from tests.networks.importers.test_speaker import outputs
from tests.networks.importers.test_wespeaker import branches

RES2NET = {"width": 8, "inner": (4, 8, 16, 32), "blocks": (1, 2, 1, 1)}
DF_RESNET = {"widths": (4, 4, 6, 6, 8), "blocks": (1, 2, 1, 1)}
RESNET = {"depth": 18, "width": 4}
MANY = {"statistics": "multi-query", "hidden": 64, "attention": {"queries": 2, "heads": 8, "depth": 2, "each": True}}
ONE = {"statistics": "multi-query", "hidden": 64, "attention": {"queries": 1, "heads": 2, "depth": 2, "each": False}}
SIMAM = {"statistics": "attentive-rectified", "hidden": 128, "floor": 1e-5}
# Output -> encoder, pooling, and what stands there for what in names of weights.
NETWORKS: dict[str, tuple[str, dict[str, Any], dict[str, Any], list[tuple[str, str]]]] = {
    "res2net": ("res2net", RES2NET, {"two": True}, []),
    "df-resnet": ("df-resnet", DF_RESNET, {}, []),
    "simam-resnet34": (
        "simam-resnet",
        {"width": 4},
        SIMAM,
        [(r"^pool\.", "pooling."), (r"^seg_1\.", "bottleneck."), (r"^(?!pooling|bottleneck)", "front.")],
    ),
    "resnet18-MQMHASTP": (
        "resnet",
        RESNET,
        MANY,
        [(r"queries\.(\d+)\.(\d+)\.(\d+)", r"n_query.\1.heads_att_trans.\2.att_\3")],
    ),
    "resnet18-MHASTP": (
        "resnet",
        RESNET,
        {**ONE, "two": True},
        [(r"queries\.0\.(\d+)\.(\d+)", r"heads_att_trans.\1.att_\2")],
    ),
}


def theirs(name: str) -> dict[str, Tensor]:
    """The weights of a network under wespeaker's names."""
    encoder_name, args, more, renamed = NETWORKS[name]
    encoder = ENCODERS.build(encoder_name, **args)
    pooling = POOLINGS.build("resnet", layers=1, channels=encoder.channels, dimension=12, **more)
    state: dict[str, Tensor] = {}
    for key, value in {**encoder.state_dict(), **pooling.state_dict()}.items():
        for pattern, there in renamed:
            key = re.sub(pattern, there, key)
        state[key] = value
    return weights(state)


def excited() -> dict[str, Tensor]:
    """A RepVGG in training with excitation, and two queries of eight heads."""
    plain = branches(dilated=False)
    shapes = {key: torch.empty(value.shape) for key, value in plain.items()} | {"seg.weight": torch.empty(12, 64 * 40)}
    for key, value in plain.items():
        if key.endswith("rbr_dense.conv.weight"):
            block, width = key.removesuffix("rbr_dense.conv.weight"), len(value)
            for number, (before, after) in enumerate([(width, width // 4), (width // 4, width)], start=1):
                shapes[f"{block}se.fc_{number}.weight"] = torch.empty(after, before)
                shapes[f"{block}se.fc_{number}.bias"] = torch.empty(after)
    for query in range(2):
        for head in range(8):
            for layer, (before, after) in enumerate([(80, 64), (64, 80)]):
                name = f"pool.n_query.{query}.heads_att_trans.{head}.att_{layer}"
                shapes |= {f"{name}.weight": torch.empty(after, before, 1), f"{name}.bias": torch.empty(after)}
    return weights(shapes)


@pytest.mark.parametrize("name", [*NETWORKS, "repvgg-squeezed"])
def test_it_gives_what_wespeaker_gives(tmp_path: Path, name: str) -> None:
    """Alone as there, in a padded batch as alone; and nothing may lack or be left over."""
    state = excited() if name == "repvgg-squeezed" else theirs(name)
    path = tmp_path / "avg_model.pt"
    torch.save({**state, "projection.weight": torch.ones(5, 12)}, path)
    convert(path, tmp_path / "m")
    expected = torch.from_numpy(np.load(OUTPUTS)[name])
    torch.testing.assert_close(outputs(tmp_path / "m"), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    found = bundle.find(tmp_path / "m")
    assert found.scale == 32768.0 and found.chunk == "whole"
    assert found.config["encoder"]["args"].get("window", "hamming") == "hamming"
    sounds = [*clips().numpy(), clips().numpy()[0, :9000]]
    embedder = Embedder(tmp_path / "m", device="cpu")
    np.testing.assert_allclose(embedder(sounds)[2], embedder([sounds[2]])[0], atol=1e-4, rtol=1e-4)
    torch.save({**state, "front.more": torch.ones(1)}, path)
    with pytest.raises(KnnError, match=r"1 extra: front\.more"):
        import_embedding_network(path, origin="wespeaker")
    norm = [key for key in state if key.endswith("running_mean")][-1]
    torch.save({key: value for key, value in state.items() if key != norm}, path)
    with pytest.raises(KnnError, match="missing"):
        import_embedding_network(path, origin="wespeaker")


def test_a_res2net_of_either_origin(tmp_path: Path) -> None:
    torch.save(theirs("res2net"), tmp_path / "model.pt")
    with pytest.raises(KnnError, match="may be a Res2Net of 3D-Speaker or of wespeaker"):
        import_embedding_network(tmp_path / "model.pt")
    other = import_embedding_network(tmp_path / "model.pt", origin="3d-speaker")
    assert other.scale == 1.0 and other.encoder.args["window"] == "povey" and other.pooling.args["floor"] == 1e-8


def test_multi_query_statistics_by_hand() -> None:
    """One query whose logits are the values themselves, for two heads with a channel each."""
    pool = MultiQueryStatistics(2, queries=1, heads=2, depth=1)
    for parameter in pool.parameters():
        torch.nn.init.ones_(parameter)
    frames = torch.tensor([[[0.0, 1.0], [np.log(3.0), 1.0], [9.0, 9.0]]], dtype=torch.float32)
    mask = torch.tensor([[True, True, False]])
    mean = 0.75 * np.log(3.0)
    deviation = np.log(3.0) * np.sqrt(0.75 * 0.25)
    expected = torch.tensor([[mean, deviation, 1.0, 1e-7**0.5]], dtype=torch.float32)
    torch.testing.assert_close(pool(frames, mask), expected)


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(KnnError, match="3 heads cannot share 8 channels"):
        MultiQueryStatistics(8, heads=3)
    with pytest.raises(KnnError, match="no attention of"):
        time_statistics("mean", 8, attention={"heads": 2})
    with pytest.raises(KnnError, match="no attention of"):
        time_statistics("multi-query", 8, attention={"other": 2})
    for name, args in (
        ("res2net", {"scale": 1}),
        ("df-resnet", {"blocks": (1, 2)}),
        ("simam-resnet", {"blocks": (0, 1, 1, 1)}),
    ):
        with pytest.raises(KnnError, match="needs"):
            ENCODERS.build(name, **args)
