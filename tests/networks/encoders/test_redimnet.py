"""ReDimNet: the outputs of its authors' and wespeaker's code through the importers, and the contract of encoders."""

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
from knn_cli.networks.encoders.redimnet import ReDimNet
from knn_cli.networks.encoders.redimnet_blocks import AttentionBlock, Excitation
from knn_cli.networks.importers.entry import import_embedding_network
from tests.helpers.encoder_contract import check_frames, check_gradient, check_padding, shaken
from tests.helpers.public_outputs import OUTPUTS, REDIMNET, clips, weights

# Output of the public code -> arguments of the encoder, and of the pooling.
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "att": (
        {
            "stages": [[1, 1, 2, 8], [3, 2, 1, 0], [2, 1, 1, 12]],
            "blocks": ["resnet-excited", "att"],
            "group": 2,
            "out": 10,
            "hop": 240,
        },
        {"statistics": "attentive-context", "norm": True},
    ),
    "fc": (
        {"stages": [[2, 1, 3, 8], [3, 1, 1, 8]], "blocks": ["convnext-relu", "fc"], "group": 0},
        {"statistics": "mean-deviation"},
    ),
    "conv": ({"stages": [[1, 1, 1, 8], [2, 2, 1, 4]], "blocks": ["resnet", "conv"], "group": 0}, {}),
    "b0": ({"stages": [[1, 1, 1, 4], [2, 1, 2, 8], [1, 1, 1, 0]], "group": 2}, {}),
}
WESPEAKER = {"width": 4, "stages": [[1, 1, 1, 32], [2, 1, 2, 40], [1, 1, 1, 0]], "group": 2, "bins": 80}


def theirs(encoder: Any, args: dict[str, Any], first: int) -> dict[str, Any]:
    """Our weights under the authors' names (`first` is 2) or wespeaker's (0)."""
    mixtures = "inputs_weights.{}" if first == 0 else "stage{}.0.w"
    found: dict[str, Any] = {}
    for key, value in encoder.state_dict().items():
        name = key
        if key == "mixture":
            name = "fin_wght1d.w" if first else f"inputs_weights.{len(args['stages'])}"
        elif key.startswith("stages."):
            _, number, kind, *rest = key.split(".")
            _, blocks, widening, _ = args["stages"][int(number)]
            after = first + 1 + blocks
            if kind == "time" and "fc" in args.get("blocks", ()) and rest[0] == "tcm":
                rest = ["tcm", {"wide": "0", "norm": "1", "narrow": "3"}[rest[2]], *rest[3:]]
            place: dict[str, Any] = {"stride": first, "squeeze": after, "time": after + (widening > 1) + 1}
            if kind == "blocks":
                rest = [str(first + 1 + int(rest[0])), "conv_block", *rest[1:]]
            elif kind != "mixture":
                rest = [str(place[kind]), *rest]
            name = mixtures.format(number) if kind == "mixture" else ".".join([f"stage{number}", *rest])
        found[f"backbone.{name}"] = value
    return found


def published(name: str) -> dict[str, Any]:
    """A file as the authors publish them."""
    args, more = NETWORKS[name]
    encoder = ENCODERS.build("redimnet", width=4, bins=12, **args)
    pooling = POOLINGS.build("normalised-statistics", layers=1, channels=encoder.channels, dimension=12, **more)
    state = theirs(encoder, args, first=2)
    state |= {**pooling.state_dict(), "backbone.stage0.0.w": torch.zeros(1, 1, 1, 1)}
    state = weights(state) | {"spec.torchfbank.1.flipped_filter": torch.zeros(1, 1, 2)}
    return {"model_config": REDIMNET[name], "state_dict": state}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_published_file_gives_the_embeddings_of_its_own_code(tmp_path: Path, name: str) -> None:
    content = published(name)
    torch.save(content, tmp_path / "b0-vox2-ptn.pt")
    convert(tmp_path / "b0-vox2-ptn.pt", tmp_path / "m")
    found = bundle.find(tmp_path / "m")
    given = found.config["encoder"]["args"]
    assert found.scale == 1.0 and found.chunk == "whole" and (given["bins"], given["width"]) == (12, 4)
    assert {**given, **NETWORKS[name][0]} == given
    check_outputs(tmp_path / "m", f"redimnet-{name}")
    del content["state_dict"]["backbone.stage1.2.bias"]
    torch.save(content, tmp_path / "b0-vox2-ptn.pt")
    with pytest.raises(KnnError, match=r"1 missing: backbone\.stage1\.2\.bias\."):
        import_embedding_network(tmp_path / "b0-vox2-ptn.pt")


def check_outputs(model: Path, name: str) -> None:
    sounds = [*clips().numpy(), clips().numpy()[0, :9000]]
    embedder = Embedder(model, device="cpu")
    embeddings, expected = embedder(sounds), np.load(OUTPUTS)[name]
    near = {"atol": 1e-4 * max(1, np.abs(expected).max()), "rtol": 0}
    np.testing.assert_allclose(embeddings[:2], expected, **near)
    np.testing.assert_allclose(embeddings[2], embedder([sounds[2]])[0], **near)  # padded


def test_wespeaker_s(tmp_path: Path) -> None:
    encoder = ENCODERS.build("redimnet", features="hamming", **WESPEAKER)
    pooling = POOLINGS.build("resnet", layers=1, channels=320, dimension=12, statistics="attentive-context")
    state = theirs(encoder, WESPEAKER, first=0) | pooling.state_dict()
    state = weights({**state, "backbone.inputs_weights.0": torch.ones(1, 1, 1, 1)})
    torch.save(state, tmp_path / "avg_model.pt")
    convert(tmp_path / "avg_model.pt", tmp_path / "m")
    assert bundle.find(tmp_path / "m").scale == 32768.0
    check_outputs(tmp_path / "m", "redimnet-wespeaker")
    del state["backbone.stage1.2.3.bias"]
    torch.save(state, tmp_path / "avg_model.pt")
    with pytest.raises(KnnError, match=r"1 missing: backbone\.stage1\.2\.3\.bias\."):
        import_embedding_network(tmp_path / "avg_model.pt")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"feat_type": "tf"}, "made for TensorFlow"),
        ({"tf_optimized_arch": True}, "made for TensorFlow"),
        ({"spec_params": {"do_preemph": False}}, "do_preemph False"),
        ({"pooling_func": "MQMHASTP"}, "pooling_func 'MQMHASTP'"),
        ({"hop_length": "160"}, "of another kind than ReDimNet's: hop_length"),
    ],
)
def test_other_features_are_refused(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    content = published("fc")
    torch.save({**content, "model_config": {**content["model_config"], **change}}, tmp_path / "b.pt")
    with pytest.raises(KnnError, match=why):
        import_embedding_network(tmp_path / "b.pt")


@pytest.mark.parametrize("name", NETWORKS)
def test_contract(name: str) -> None:
    torch.manual_seed(0)
    encoder = shaken(ENCODERS.build("redimnet", width=4, bins=12, **NETWORKS[name][0]))
    pooling = shaken(POOLINGS.build("normalised-statistics", layers=1, channels=encoder.channels, dimension=5))
    check_frames(encoder)
    check_padding(encoder, pooling)
    check_gradient(encoder, pooling)


def test_excitation_by_hand() -> None:
    """With all weights 0 but the last bias, each frequency is multiplied by the sigmoid of its bias."""
    excitation = Excitation(2, 3)
    with torch.no_grad():
        for parameter in excitation.parameters():
            parameter.zero_()
        excitation.exitation.bias.copy_(torch.tensor([0.0, np.log(3.0)]))
    torch.testing.assert_close(excitation(torch.ones(1, 1, 2, 1), None)[0, 0, :, 0], torch.tensor([0.5, 0.75]))


def test_attention_equals_torch_s() -> None:
    torch.manual_seed(0)
    ours, other = AttentionBlock(8, 16).eval(), torch.nn.MultiheadAttention(8, 4, batch_first=True).eval()
    with torch.no_grad():
        other.in_proj_weight.copy_(torch.cat([ours.attention[f"{name}_proj"].weight for name in "qkv"]))
        other.in_proj_bias.copy_(torch.cat([ours.attention[f"{name}_proj"].bias for name in "qkv"]))
        other.out_proj.load_state_dict(ours.attention["out_proj"].state_dict())
        x = torch.randn(2, 5, 8)
        y = ours.layer_norm(x + other(x, x, x, need_weights=False)[0])
        wide = torch.nn.functional.gelu(ours.feed_forward["intermediate_dense"](y), approximate="tanh")
        expected = ours.final_layer_norm(y + ours.feed_forward["output_dense"](wide))
        torch.testing.assert_close(ours(x.transpose(1, 2), None).transpose(1, 2), expected)


@pytest.mark.parametrize("wrong", [{"blocks": ["lstm", "att"]}, {"stages": [[1, 2, 3]]}, {"bins": 71}, {"width": 1}])
def test_impossible_sizes(wrong: dict[str, Any]) -> None:
    with pytest.raises(KnnError, match="ReDimNet"):
        ReDimNet(**{"stages": [[2, 1, 1, 6]], **wrong})
