"""Networks of wespeaker and 3D-Speaker: whose a checkpoint is, and the outputs of each one's own code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from typer.testing import CliRunner

from knn_cli.cli.app import app
from knn_cli.core.errors import KnnError
from knn_cli.core.registry import ENCODERS, HEADS, POOLINGS
from knn_cli.embedding.embedder import Embedder
from knn_cli.networks import bundle
from knn_cli.networks.conversion import convert
from knn_cli.networks.importers.entry import import_embedding_network
from knn_cli.recognition.classifier import Classifier
from tests.helpers.public_outputs import OUTPUTS, clips, weights
from tests.networks.importers.test_speaker import SETTINGS, Training, campplus_state, outputs, resnet_state
from tests.networks.importers.test_wavlm import waveforms

YAML = {"model": "CAMPPlus", "model_args": {"feat_dim": 80, "embed_dim": 12}}
SPEAKERLAB = {"embedding_model": {"obj": "speakerlab.models.campplus.DTDNN.CAMPPlus"}}


def expect(model: Path, name: str) -> None:
    torch.testing.assert_close(outputs(model), torch.from_numpy(np.load(OUTPUTS)[name]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sign", ["projection", "yaml beside", "yaml", "origin"])
def test_campplus_of_wespeaker_is_not_that_of_3d_speaker(tmp_path: Path, sign: str) -> None:
    """Its waveforms are 32768 times larger and its window is Hamming's: cosines fall to 0.9988 otherwise."""
    state: dict[str, Any] = campplus_state()
    options: dict[str, Any] = {}
    if sign == "projection":
        state["projection.weight"] = torch.ones(7, 12)
    if sign == "origin":
        options["origin"] = "wespeaker"
    if sign.startswith("yaml"):
        config = tmp_path / ("config.yaml" if sign == "yaml beside" else "other.yaml")
        config.write_text(json.dumps(YAML))
        options |= {"config": config} if sign == "yaml" else {}
    torch.save(state, tmp_path / "avg_model.pt")
    convert(tmp_path / "avg_model.pt", tmp_path / "c", **options)
    expect(tmp_path / "c", "campplus-wespeaker")
    found = bundle.find(tmp_path / "c")
    assert found.scale == 32768.0 and found.chunk == "whole" and found.config["encoder"]["args"]["window"] == "hamming"


@pytest.mark.parametrize("sign", ["yaml beside", "origin"])
def test_campplus_of_3d_speaker(tmp_path: Path, sign: str) -> None:
    path = tmp_path / "exp" / "models" / "CKPT-EPOCH-60-00" / "embedding_model.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(campplus_state(), path)
    if sign == "yaml beside":
        (tmp_path / "exp" / "config.yaml").write_text(json.dumps(SPEAKERLAB))
    convert(path, tmp_path / "c", origin=None if sign == "yaml beside" else "3d-speaker")
    expect(tmp_path / "c", "campplus")
    assert bundle.find(tmp_path / "c").scale == 1.0


@pytest.mark.parametrize("state", [campplus_state(), resnet_state(18, 2, False)], ids=["CAM++", "ResNet"])
def test_where_nothing_tells_whose_it_is_the_user_is_asked(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "model.pt"
    torch.save(state, path)
    with pytest.raises(KnnError, match=r"may be a .* of 3D-Speaker or of wespeaker.*`origin`"):
        import_embedding_network(path)
    theirs, ours = (import_embedding_network(path, origin=origin) for origin in ("3d-speaker", "wespeaker"))
    assert (theirs.scale, ours.scale) == (1.0, 32768.0)
    assert theirs.encoder.args != ours.encoder.args
    with pytest.raises(KnnError, match="`origin` cannot be 'kaldi'"):
        import_embedding_network(path, origin="kaldi")
    run = CliRunner().invoke(app, ["convert", str(path), str(tmp_path / "m")])
    assert run.exit_code == 1 and "--origin" in run.output and "--config" in run.output


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("resnet18-ASTP", (("resnet", {"depth": 18, "width": 4}), ("resnet", {"statistics": "attentive"}))),
        ("xvector", (("xvector-tdnn", {"hidden": 8, "channels": 12}), ("resnet", {"two": True}))),
        ("ecapa-ASTP", (("ecapa-tdnn-fbank", {"width": 16}), ("normalised-statistics", {}))),
        (
            "ecapa-context",
            (
                ("ecapa-tdnn-fbank", {"width": 16}),
                ("normalised-statistics", {"statistics": "attentive-context", "norm": True}),
            ),
        ),
    ],
)
def test_a_network_of_wespeaker(tmp_path: Path, name: str, parts: tuple[tuple[str, dict[str, Any]], ...]) -> None:
    """From the folder of an experiment, with the weights of its implementation."""
    (encoder_name, args), (pooling_name, more) = parts
    encoder = ENCODERS.build(encoder_name, **args)
    pooling = POOLINGS.build(pooling_name, layers=1, channels=encoder.channels, dimension=12, **more)
    state = weights({**encoder.state_dict(), **pooling.state_dict()}) | {"projection.weight": torch.ones(5, 12)}
    (tmp_path / "exp" / "models").mkdir(parents=True)
    torch.save(state, tmp_path / "exp" / "models" / "avg_model.pt")
    convert(tmp_path / "exp", tmp_path / "m")
    expect(tmp_path / "m", name)
    sounds = [*clips().numpy(), clips().numpy()[0, :9000]]
    embedder = Embedder(tmp_path / "m", device="cpu")
    np.testing.assert_allclose(embedder(sounds)[2], embedder([sounds[2]])[0], atol=1e-4, rtol=1e-4)  # padded
    del state[next(key for key in state if key.endswith("running_mean"))]
    torch.save(state, tmp_path / "exp" / "models" / "avg_model.pt")
    with pytest.raises(KnnError, match="1 missing: "):
        import_embedding_network(tmp_path / "exp")


def branches(dilated: bool) -> dict[str, Tensor]:
    """The weights of a RepVGG in training: three branches, of which each has its batch norm."""
    second, inner = ("rbr_dense_dilation", 3) if dilated else ("rbr_1x1", 1)
    shapes: dict[str, Tensor] = {"seg.weight": torch.empty(12, 64 * 10 * 2), "seg.bias": torch.empty(12)}
    blocks = [("stage0", 1, 8, 1), ("stage1.0", 8, 8, 1), ("stage1.1", 8, 8, 2), ("stage2.0", 8, 16, 1)]
    blocks += [("stage3.0", 16, 32, 2), ("stage3.1", 32, 32, 1), ("stage4.0", 32, 64, 2)]
    for name, before, after, groups in blocks:
        shared = 1 if dilated else groups
        norms = [f"{name}.rbr_dense.bn", f"{name}.{second}.bn"]
        if before == after:
            norms.append(f"{name}.rbr_identity")
        for norm in norms:
            kinds = ("weight", "bias", "running_mean", "running_var")
            shapes |= {f"{norm}.{kind}": torch.empty(after) for kind in kinds}
            shapes[f"{norm}.num_batches_tracked"] = torch.empty(())
        for branch, size in (("rbr_dense", 3), (second, inner)):
            shapes[f"{name}.{branch}.conv.weight"] = torch.empty(after, before // shared, size, size)
    return weights(shapes)


@pytest.mark.parametrize("dilated", [False, True])
def test_the_branches_of_repvgg_are_merged(tmp_path: Path, dilated: bool) -> None:
    state = branches(dilated)
    path = tmp_path / "avg_model.pt"
    torch.save(state, path)
    convert(path, tmp_path / "m")
    expect(tmp_path / "m", "repvgg-dilated" if dilated else "repvgg")
    sounds = [*clips().numpy(), clips().numpy()[0, :9000]]
    embedder = Embedder(tmp_path / "m", device="cpu")
    np.testing.assert_allclose(embedder(sounds)[2], embedder([sounds[2]])[0], atol=1e-4, rtol=1e-4)
    for key in ("stage3.1.rbr_identity.running_var", "stage2.0.rbr_dense.conv.weight"):
        torch.save({name: value for name, value in state.items() if name != key}, path)
        with pytest.raises(KnnError, match=r"missing: stage3|stage2\.0\.rbr_reparam\.weight is missing"):
            import_embedding_network(path)


def test_the_settings_beside_an_experiment_are_found(tmp_path: Path) -> None:
    """exp/NAME with models/avg_model.pt and config.yaml, as a training of the fork leaves it."""
    training = Training(tmp_path, "softmax")
    folder = tmp_path / "exp" / "naki"
    (folder / "models").mkdir(parents=True)
    training.path.rename(folder / "models" / "avg_model.pt")
    training.config.rename(folder / "config.yaml")
    convert(folder, tmp_path / "m")
    found = bundle.find(tmp_path / "m")
    assert found.chunk == "whole" and len(found.head_labels) == 13
    (folder / "config.yaml").write_text("model: {_target_: pyannote.audio.models.embedding.WeSpeakerResNet34}\n")
    with pytest.raises(KnnError, match="it needs its settings"):  # those of another program are not taken
        convert(folder, tmp_path / "n")


def variant(tmp_path: Path, model: str, pooling: str = "MHFA", **args: Any) -> Training:
    """A training of the fork with another model."""
    training = Training(tmp_path, "softmax")
    settings = {**SETTINGS, "model": model, "projection_args": {"project_type": "softmax"}}
    settings["model_args"] = {**SETTINGS["model_args"], "pooling": pooling, **args}
    training.config.write_text(json.dumps(settings))
    return training


def embedded(training: Training, tmp_path: Path, chunk: object = 20.0) -> Tensor:
    torch.save(training.state, training.path)
    convert(training.path, tmp_path / "m", config=training.config)
    embedder = Embedder(tmp_path / "m", device="cpu")
    assert embedder.bundle.chunk == chunk
    return torch.from_numpy(embedder(list(waveforms().numpy())))


def test_mhfa_context(tmp_path: Path) -> None:
    """What its keys have besides, the clip's mean and deviation, is the same at every frame: the softmax cancels it."""
    training = variant(tmp_path, "WavLM_Base_MHFA", "MHFA_Context")
    key = "speaker_extractor.back_end.att_head.weight"
    training.state[key] = torch.cat([training.state[key], torch.randn(4, 16)], dim=1)
    torch.testing.assert_close(embedded(training, tmp_path, "whole"), training.embeddings(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model", ["WavLM_Base_Drop", "WavLM_Base_Adapter"])
def test_models_that_hear_20_seconds(tmp_path: Path, model: str) -> None:
    training = variant(tmp_path, model)
    torch.testing.assert_close(embedded(training, tmp_path), training.embeddings(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["SeqAdapter", "ParallelAdapter"])
def test_adapters(tmp_path: Path, kind: str) -> None:
    training = variant(tmp_path, "WavLM_Base_Adapter", adapter_type=kind)
    generator, block = torch.Generator().manual_seed(0), "speaker_extractor.model.encoder.layers"
    channels = training.base.config.hidden_size
    for number, layer in enumerate(training.base.encoder.layers):
        for end, module in (("", layer.attention), ("_2", layer.feed_forward)):
            down, offset = torch.randn(3, channels, generator=generator) / 4, torch.randn(3, generator=generator)
            up, last = torch.randn(channels, 3, generator=generator) / 4, torch.randn(channels, generator=generator)
            values = {f"1{end}.weight": down, f"1{end}.bias": offset, f"2{end}.weight": up, f"2{end}.bias": last}
            training.state |= {f"{block}.{number}.adapter_fc{name}": value for name, value in values.items()}

            def adapt(module: Any, args: Any, out: Any, values: Any = (down, offset, up, last)) -> Any:
                down, offset, up, last = values
                x = out[0] if isinstance(out, tuple) else out
                y = x + F.linear(F.gelu(F.linear(x if kind == "SeqAdapter" else args[0], down, offset)), up, last)
                return (y, *out[1:]) if isinstance(out, tuple) else y

            module.register_forward_hook(adapt)
    found = embedded(training, tmp_path)
    torch.testing.assert_close(found, training.embeddings(), atol=1e-4, rtol=1e-4)
    del training.state[f"{block}.0.adapter_fc2_2.bias"]
    torch.save(training.state, training.path)
    with pytest.raises(KnnError, match=r"1 missing: .*adapter_fc2_2\.bias"):
        import_embedding_network(training.path, config=training.config)


@pytest.mark.parametrize("kind", ["PrefixAdapter", "MAMAdapter"])
def test_prefixes(tmp_path: Path, kind: str) -> None:
    """By the fork's formula: half the attention to the clip, half that to the prefix and it, without positions."""
    training = variant(tmp_path, "WavLM_Base_Adapter", adapter_type=kind)
    generator, block = torch.Generator().manual_seed(0), "speaker_extractor.model.encoder.layers"
    channels, heads = training.base.config.hidden_size, training.base.config.num_attention_heads

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / 4

    for number, layer in enumerate(training.base.encoder.layers):
        keys, values = drawn(heads, 5, channels // heads) * 4, drawn(heads, 5, channels // heads) * 4
        down, offset, up, last = drawn(3, channels), drawn(3), drawn(channels, 3), drawn(channels)
        state = {"self_attn.prefix_k_adapter": keys, "self_attn.prefix_v_adapter": values}
        if kind == "MAMAdapter":
            state |= {"adapter_fc1_2.weight": down, "adapter_fc1_2.bias": offset}
            state |= {"adapter_fc2_2.weight": up, "adapter_fc2_2.bias": last}
        training.state |= {f"{block}.{number}.{name}": value for name, value in state.items()}

        def attend(
            x: Tensor, *_: Any, attention: Any = layer.attention, prefix: Any = (keys, values), **__: Any
        ) -> Any:
            query, key, value = (
                linear(x).unflatten(2, (heads, -1)).transpose(1, 2)
                for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            found = torch.zeros_like(query)
            for before in (0, 5):
                seen, said = (
                    torch.cat([more[None, :, :before].expand(len(x), -1, -1, -1), own], dim=2)
                    for more, own in zip(prefix, (key, value), strict=True)
                )
                weights = (query / (channels // heads) ** 0.5 @ seen.transpose(2, 3)).softmax(-1)
                found = found + 0.5 * weights @ said
            return attention.out_proj(found.transpose(1, 2).flatten(2)), None, None

        def adapt(module: Any, args: Any, out: Tensor, kept: Any = (down, offset, up, last)) -> Tensor:
            down, offset, up, last = kept
            return out + F.linear(F.gelu(F.linear(args[0], down, offset)), up, last)

        layer.attention.forward = attend
        if kind == "MAMAdapter":
            layer.feed_forward.register_forward_hook(adapt)
    torch.testing.assert_close(embedded(training, tmp_path), training.embeddings(), atol=1e-4, rtol=1e-4)
    del training.state[f"{block}.1.self_attn.prefix_v_adapter"]
    torch.save(training.state, training.path)
    with pytest.raises(KnnError, match=r"1 missing: .*1\.self_attn\.prefix_v_adapter"):
        import_embedding_network(training.path, config=training.config)


@pytest.mark.parametrize("kind", ["sphere", "sphereface2"])
def test_heads_of_spheres(tmp_path: Path, kind: str) -> None:
    """Scores are lengths times cosines, and the log-odds that the loss of SphereFace2 is made of."""
    training = Training(tmp_path, "arc_margin")
    settings = {**SETTINGS, "projection_args": {"project_type": kind, "scale": 16.0, "t": 2, "margin_type": "A"}}
    training.config.write_text(json.dumps(settings))
    if kind == "sphereface2":
        training.state["projection.bias"] = torch.full((1, 1), -0.3)
        torch.save(training.state, training.path)
    convert(training.path, tmp_path / "m", config=training.config)
    x = training.embeddings()
    cosines = F.normalize(x) @ F.normalize(training.head["weight"]).T
    expected = x.norm(dim=1, keepdim=True) * cosines
    if kind == "sphereface2":
        expected = 16 * (2 * ((cosines + 1) / 2) ** 2 - 1) - 0.3
    model = Classifier(tmp_path / "m", device="cpu")
    scores = torch.from_numpy(model.embedder.scores(x.numpy()))
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    assert model.bundle.config["head"]["name"] in HEADS.names()
